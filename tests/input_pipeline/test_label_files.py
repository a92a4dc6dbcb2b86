"""The one reader of labels: ids come out as they are stored; what only looks like ids is refused with what it is."""

import cv2
import image_bytes
import numpy as np
import pytest
from image_bytes import GREY, GREY_ALPHA, PALETTE, chunk
from PIL import Image
from raw_trees import label_ids

from input_pipeline.errors import UserError
from input_pipeline.label_files import read_ids
from input_pipeline.labels import PALETTE as COLOURS

IDS = (7, 8, 11, 21, 23, 26)
# Cityscapes' colours of these classes, as its owners publish them.
COLOUR_OF = {
    0: (0, 0, 0), 7: (128, 64, 128), 8: (244, 35, 232), 11: (70, 70, 70), 21: (107, 142, 35), 23: (70, 130, 180),
    26: (0, 0, 142),
}  # fmt: skip


def ids_of(*ids):
    return label_ids(0, (20, 24), ids or IDS)


def save(tmp_path, image, **settings):
    path = tmp_path / "f_gtFine_labelIds.png"
    image.save(path, **settings)
    return path


def with_palette(ids, palette):
    image = Image.fromarray(ids, "P")
    image.putpalette(np.asarray(palette, np.uint8).tobytes())
    return image


def in_colours(ids):
    pixels = np.zeros((*ids.shape, 3), np.uint8)
    for i, colour in COLOUR_OF.items():
        pixels[ids == i] = colour
    return Image.fromarray(pixels)


def pascal_palette():
    """As the development kit of the challenge has it, bit by bit."""
    palette = np.zeros((256, 3), int)
    for i in range(256):
        rest = i
        for bit in range(7, -1, -1):
            for channel in range(3):
                palette[i, channel] |= ((rest >> channel) & 1) << bit
            rest >>= 3
    return palette


def at_their_ids():
    palette = np.zeros((256, 3), int)
    for i, colour in COLOUR_OF.items():
        palette[i] = colour
    return palette


def test_grey_ids_of_8_and_16_bits(tmp_path):
    for ids in (ids_of(), np.arange(256, dtype=np.uint8).reshape(16, 16)):
        found = read_ids(save(tmp_path, Image.fromarray(ids)), "cityscapes_seq")
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, ids)
        path = tmp_path / "sixteen.png"
        cv2.imwrite(str(path), ids.astype(np.uint16))
        np.testing.assert_array_equal(read_ids(path, "cityscapes_seq"), ids)


@pytest.mark.parametrize(
    "palette",
    [
        np.repeat(np.arange(256)[:, None], 3, 1),
        pascal_palette(),
        at_their_ids(),
        # One that is nobody's: ids leave gaps where an encoder would leave none.
        np.random.default_rng(0).integers(0, 256, (256, 3)),
        np.zeros((256, 3)),
    ],
    ids=["grey ramp", "Pascal VOC", "the classes' own colours", "unknown", "black"],
)
def test_palettes_that_go_with_ids(tmp_path, palette):
    path = save(tmp_path, with_palette(ids_of(), palette))
    np.testing.assert_array_equal(read_ids(path, "cityscapes_seq"), ids_of())


def test_palettes_that_go_with_ids_even_if_they_are_the_first_ones(tmp_path):
    ids = ids_of(0, 1, 2, 3, 4)
    for palette in (np.repeat(np.arange(256)[:, None], 3, 1), pascal_palette()):
        np.testing.assert_array_equal(read_ids(save(tmp_path, with_palette(ids, palette)), "viper"), ids)


def test_palette_ids_of_few_bits_are_not_stretched(tmp_path):
    ids = np.array([[2, 3], [9, 11]])
    ramp = chunk(b"PLTE", np.repeat(np.arange(16, dtype=np.uint8)[:, None], 3, 1).tobytes())
    path = tmp_path / "f.png"
    path.write_bytes(image_bytes.png(ids, 4, PALETTE, ramp))
    np.testing.assert_array_equal(read_ids(path, "viper"), ids)


def encoders():
    methods = (Image.Quantize.MEDIANCUT, Image.Quantize.MAXCOVERAGE, Image.Quantize.FASTOCTREE)
    for method in methods:
        yield method.name, lambda image, method=method: image.quantize(method=method)
        yield f"{method.name} 16", lambda image, method=method: image.quantize(16, method)
    yield "adaptive", lambda image: image.convert("P", palette=Image.Palette.ADAPTIVE)
    yield "web", lambda image: image.convert("P")
    # Scaled with smooth edges before: hundreds of colours.
    yield "smooth", lambda image: image.resize((61, 50), Image.Resampling.BICUBIC).quantize()


@pytest.mark.parametrize("encode", [pytest.param(encode, id=name) for name, encode in encoders()])
@pytest.mark.parametrize("kind", ["classes' colours", "other colours"])
@pytest.mark.parametrize("dataset", ["viper", "cityscapes_seq"])
def test_colours_that_an_encoder_has_numbered(tmp_path, encode, kind, dataset):
    image = in_colours(ids_of())
    if kind == "other colours":
        image = Image.fromarray(np.asarray(image)[..., ::-1] // 2 + 9)
    path = save(tmp_path, encode(image))
    with pytest.raises(UserError, match=r"labelIds\.png: a palette image.*no class ids.* Expected one 8-bit channel"):
        read_ids(path, dataset)


def test_a_grey_label_that_a_packer_has_made_a_palette_image_of(tmp_path):
    """Colours are the ids here, and the indices are not."""
    path = save(tmp_path, Image.fromarray(ids_of()).convert("RGB").quantize())
    with pytest.raises(UserError, match="palette image"):
        read_ids(path, "cityscapes_seq")


def test_train_ids_in_the_classes_colours(tmp_path):
    palette = np.zeros((256, 3), int)
    palette[:3] = COLOURS["road"], COLOURS["sidewalk"], COLOURS["building"]
    with pytest.raises(UserError, match="index 0 has the colour of road, whose id is 7"):
        read_ids(save(tmp_path, with_palette(ids_of(0, 2), palette)), "cityscapes_seq")


def test_colours_are_named(tmp_path):
    road = Image.new("RGB", (8, 8), COLOURS["road"])
    expected = (
        r"f_gtFine_labelIds\.png: {} \(most often \(128, 64, 128\), the colour of road\).*\*_gtFine_labelIds\.png"
    )
    with pytest.raises(UserError, match=expected.format("RGB colours")):
        read_ids(save(tmp_path, road), "cityscapes_seq")
    with pytest.raises(UserError, match=expected.format("RGBA colours")):
        read_ids(save(tmp_path, road.convert("RGBA")), "cityscapes_seq")
    with pytest.raises(UserError, match=r"most often \(1, 2, 3\)\).*folder cls"):
        read_ids(save(tmp_path, Image.new("RGB", (8, 8), (1, 2, 3))), "viper")
    with pytest.raises(UserError, match=r"most often .* road\).*red channel"):
        read_ids(save(tmp_path, road), "synthia_seq")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (image_bytes.png(np.ones((4, 8)), 1, GREY), "grey image of 1 bits"),
        (image_bytes.png(np.full((4, 8), 3), 2, GREY), "grey image of 2 bits"),
        (image_bytes.png(np.full((4, 8), 11), 4, GREY), "grey image of 4 bits"),
        (image_bytes.png(np.full((4, 8, 2), 7), 8, GREY_ALPHA), "grey image with alpha"),
        (image_bytes.png(np.full((4, 8), 26001), 16, GREY), r"values up to 26001 \(id 26, object 1"),
        (image_bytes.png(np.full((4, 8), 7 * 257), 16, GREY), "values up to 1799, no class ids"),
        (image_bytes.png(np.full((4, 8), 7), 8, GREY)[:48], "cannot be decoded"),
        (b"", "empty"),
        (b"7,7,7", "cannot be decoded"),
    ],
)
@pytest.mark.parametrize("dataset", ["viper", "cityscapes_seq"])
def test_what_is_no_label(tmp_path, content, words, dataset):
    path = tmp_path / "f.png"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"f\.png: .*{words}"):
        read_ids(path, dataset)


@pytest.mark.parametrize("dataset", ["viper", "synthia_seq", "cityscapes_seq"])
def test_lossy_and_turned_labels_are_refused(tmp_path, dataset):
    path = tmp_path / "f.png"
    for kind in ("JPEG", "WEBP", "BMP"):
        Image.fromarray(ids_of()).save(path, kind)
        with pytest.raises(UserError, match=rf"f\.png: a {kind} file; labels are PNG"):
            read_ids(path, dataset)
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(ids_of()).save(path, exif=exif)
    with pytest.raises(UserError, match="EXIF orientation 3.*not turned"):
        read_ids(path, dataset)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_synthia_ids_lie_in_the_red_channel(tmp_path, dtype):
    red = label_ids(0, (20, 24), (1, 2, 3, 8, 15))
    others = np.full_like(red, 200)
    path = tmp_path / "f.png"
    cv2.imwrite(str(path), np.stack([others, others, red], -1).astype(dtype))
    np.testing.assert_array_equal(read_ids(path, "synthia_seq"), red)
    cv2.imwrite(str(path), np.stack([others, others, red, others], -1).astype(dtype))
    np.testing.assert_array_equal(read_ids(path, "synthia_seq"), red)


def test_synthia_files_without_ids(tmp_path):
    path = tmp_path / "f.png"
    for mode in ("L", "LA", "P", "1"):
        Image.fromarray(ids_of(1, 2)).convert(mode).save(path)
        with pytest.raises(UserError, match=f"PIL mode {mode}, without a red channel.*LABELS"):
            read_ids(path, "synthia_seq")
    cv2.imwrite(str(path), np.full((4, 4, 3), 300, np.uint16))
    with pytest.raises(UserError, match="values up to 300"):
        read_ids(path, "synthia_seq")
