"""The one reader of pictures: every kind of file against what a person sees, worked out by hand."""

import os
import struct
import warnings

import cv2
import image_bytes
import numpy as np
import pytest
from image_bytes import GREY, GREY_ALPHA, PALETTE, RGB, RGBA, chunk
from PIL import Image, ImageCms

from input_pipeline.errors import UserError
from input_pipeline.images import IMAGE_SUFFIXES, read_image

SIZE = (5, 7)


def draw(channels=(), depth=8, seed=0):
    return (
        np.random.default_rng(seed)
        .integers(0, 2**depth, (*SIZE, *channels))
        .astype(np.uint8 if depth == 8 else np.uint16)
    )


def read(tmp_path, data, name="f.png"):
    path = tmp_path / name
    path.write_bytes(data)
    image = read_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def grey(values):
    return np.repeat(np.asarray(values)[..., None], 3, -1)


def over_white(colours, alpha):
    """By the definition, in floating-point numbers; `alpha` from 0 to 1."""
    return colours * alpha[..., None] + 255.0 * (1 - alpha[..., None])


def test_a_bit_that_flipped_in_a_png_is_seen(tmp_path):
    path, draw = tmp_path / "a.png", np.random.default_rng(0)
    Image.fromarray(draw.integers(0, 9, (40, 60), np.uint8)).save(path)
    whole, right = path.read_bytes(), np.asarray(read_image(path))
    refused = 0
    for place in draw.integers(0, len(whole), 60):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << draw.integers(8)]) + whole[place + 1 :])
        try:
            np.testing.assert_array_equal(read_image(path), right)
        except UserError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused > 50


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
@pytest.mark.parametrize("capitals", [False, True])
def test_ordinary_files_are_bit_for_bit_what_pil_and_opencv_read(tmp_path, suffix, capitals):
    path = tmp_path / f"f{suffix.upper() if capitals else suffix}"
    pixels = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8), (0, 0), 2)
    Image.fromarray(pixels).save(path)
    found = np.asarray(read_image(path))
    with Image.open(path) as image:
        np.testing.assert_array_equal(found, np.asarray(image.convert("RGB")))
    if suffix in (".png", ".bmp", ".tif", ".tiff"):
        np.testing.assert_array_equal(found, pixels)
    else:
        assert np.abs(found.astype(int) - cv2.imread(str(path))[..., ::-1]).max() <= 2


def test_16_bit_png_shows_the_high_byte(tmp_path):
    values = draw(depth=16)
    values[0, :4] = [0, 255, 256, 65535]
    found = read(tmp_path, image_bytes.png(values, 16, GREY))
    np.testing.assert_array_equal(found, grey(values // 256))
    assert np.abs(found - grey(values / 257)).max() < 1
    colours = draw((3,), 16)
    np.testing.assert_array_equal(read(tmp_path, image_bytes.png(colours, 16, RGB)), colours // 256)
    # As OpenCV and other tools write it.
    cv2.imwrite(str(tmp_path / "cv.png"), values)
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "cv.png")), grey(values // 256))


def test_16_bits_made_of_8_come_back_by_either_convention(tmp_path):
    values = np.arange(256, dtype=np.uint16).reshape(16, 16)
    for stored in (values * 257, values * 256):
        np.testing.assert_array_equal(read(tmp_path, image_bytes.png(stored, 16, GREY)), grey(values))
        np.testing.assert_array_equal(read(tmp_path, image_bytes.png(grey(stored), 16, RGB)), grey(values))


@pytest.mark.parametrize("order", ["<", ">"])
def test_tiff_of_more_than_8_bits(tmp_path, order):
    values, colours = draw(depth=16), draw((3,), 16)
    found = read(tmp_path, image_bytes.tiff(values, 16, order=order), "f.tif")
    np.testing.assert_array_equal(found, grey(values // 256))
    found = read(tmp_path, image_bytes.tiff(colours, 16, photometric=2, order=order), "f.tif")
    np.testing.assert_array_equal(found, colours // 256)


def test_tiff_of_12_bits_and_with_white_as_zero(tmp_path):
    values = np.arange(24).reshape(4, 6) * 178
    found = read(tmp_path, image_bytes.tiff(values, 12), "f.tif")
    np.testing.assert_array_equal(found, grey(values // 16))
    values = draw(depth=16)
    found = read(tmp_path, image_bytes.tiff(values, 16, photometric=0), "f.tif")
    np.testing.assert_array_equal(found, grey(255 - values // 256))
    found = read(tmp_path, image_bytes.tiff(draw(), 8, photometric=0), "f.tif")
    np.testing.assert_array_equal(found, grey(255 - draw()))


@pytest.mark.parametrize(
    ("dtype", "depth", "sample_format"),
    [("int16", 16, 2), ("uint32", 32, 1), ("int32", 32, 2), ("float32", 32, 3)],
)
def test_values_without_a_known_white_are_refused(tmp_path, dtype, depth, sample_format):
    data = image_bytes.tiff(np.ones(SIZE, dtype), depth, sample_format=sample_format)
    with pytest.raises(UserError, match=r"f\.tif: .*does not say which of them is white.*8 or 16 bits"):
        read(tmp_path, data, "f.tif")


def test_12_bits_in_16_are_dark_and_that_is_said_once_for_a_folder(tmp_path):
    values = np.full(SIZE, 4095, np.uint16)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for name in ("a.png", "b.png", "c.png"):
            np.testing.assert_array_equal(read(tmp_path, image_bytes.png(values, 16, GREY), name), 15)
    assert len(caught) == 1 and str(tmp_path) in str(caught[0].message) and "by 16" in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Black, bright, and a dark picture of 8 bits: nothing to say.
        read(tmp_path, image_bytes.png(values * 0, 16, GREY))
        read(tmp_path, image_bytes.png(values * 16, 16, GREY))
        read(tmp_path, image_bytes.png(values // 256, 8, GREY))


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_few_bits_reach_from_black_to_white(tmp_path, depth):
    values = np.arange(35).reshape(SIZE) % 2**depth
    np.testing.assert_array_equal(
        read(tmp_path, image_bytes.png(values, depth, GREY)), grey(values * 255 // (2**depth - 1))
    )


@pytest.mark.parametrize("depth", [2, 4, 8])
def test_palettes_show_their_colours(tmp_path, depth):
    indices = np.arange(35).reshape(SIZE) % 2**depth
    palette = np.random.default_rng(1).integers(0, 256, (2**depth, 3), dtype=np.uint8)
    found = read(tmp_path, image_bytes.png(indices, depth, PALETTE, chunk(b"PLTE", palette.tobytes())))
    np.testing.assert_array_equal(found, palette[indices])
    # Transparency of the first two entries.
    chunks = chunk(b"PLTE", palette.tobytes()), chunk(b"tRNS", bytes([0, 128]))
    found = read(tmp_path, image_bytes.png(indices, depth, PALETTE, *chunks))
    alpha = np.ones(256)
    alpha[:2] = 0, 128 / 255
    assert np.abs(found - over_white(palette[indices], alpha[indices])).max() <= 1


@pytest.mark.parametrize("depth", [8, 16])
def test_alpha_lies_over_white(tmp_path, depth):
    shift = depth - 8
    values = draw((2,), depth)
    found = read(tmp_path, image_bytes.png(values, depth, GREY_ALPHA))
    assert np.abs(found - over_white(grey(values[..., 0] >> shift), (values[..., 1] >> shift) / 255)).max() <= 1
    values = draw((4,), depth)
    found = read(tmp_path, image_bytes.png(values, depth, RGBA))
    assert np.abs(found - over_white(values[..., :3] >> shift, (values[..., 3] >> shift) / 255)).max() <= 1
    values[..., 3] = 2**depth - 1
    np.testing.assert_array_equal(read(tmp_path, image_bytes.png(values, depth, RGBA)), values[..., :3] >> shift)
    values[..., 3] = 0
    with pytest.raises(UserError, match="transparent everywhere"):
        read(tmp_path, image_bytes.png(values, depth, RGBA))


@pytest.mark.parametrize(("depth", "key"), [(1, 1), (2, 2), (4, 9), (8, 200), (16, 40000)])
def test_a_transparent_grey_is_white(tmp_path, depth, key):
    values = np.arange(35).reshape(SIZE) * 7 % 2**depth
    values[2, 3], values[0, 0] = key, 0
    found = read(tmp_path, image_bytes.png(values, depth, GREY, chunk(b"tRNS", struct.pack(">H", key))))
    shown = values // 256 if depth == 16 else values * 255 // (2**depth - 1)
    np.testing.assert_array_equal(found, grey(np.where(values == key, 255, shown)))


def test_a_transparent_colour_is_white_or_refused(tmp_path):
    values = draw((3,))
    key = chunk(b"tRNS", struct.pack(">HHH", *values[1, 2]))
    expected = values.copy()
    expected[1, 2] = 255
    np.testing.assert_array_equal(read(tmp_path, image_bytes.png(values, 8, RGB, key)), expected)
    with pytest.raises(UserError, match="one is transparent"):
        read(tmp_path, image_bytes.png(draw((3,), 16), 16, RGB, key))


def test_premultiplied_alpha(tmp_path):
    alpha = np.full(SIZE, 128, np.uint8)
    stored = np.stack([np.full(SIZE, value, np.uint8) for value in (64, 32, 0)] + [alpha], -1)
    found = read(tmp_path, image_bytes.tiff(stored, 8, photometric=2, extra=1), "f.tif")
    # Premultiplied colours are added to what of white comes through.
    assert np.abs(found.astype(int) - (stored[..., :3] + 255 - 128)).max() <= 1
    found = read(tmp_path, image_bytes.tiff(stored[..., [0, 3]], 8, photometric=1, extra=1), "f.tif")
    assert np.abs(found.astype(int) - (64 + 255 - 128)).max() <= 1


def test_cmyk_and_cielab(tmp_path):
    ink = np.zeros((16, 16, 4), np.uint8)
    ink[..., 0] = 255
    Image.fromarray(ink, "CMYK").save(tmp_path / "f.jpg", quality=100, subsampling=0)
    assert np.abs(np.asarray(read_image(tmp_path / "f.jpg")).astype(int) - [0, 255, 255]).max() <= 3
    # Lightness 50 without a colour is 119 in sRGB.
    lab = np.zeros((*SIZE, 3), np.uint8)
    lab[..., 0] = 128
    assert np.abs(read(tmp_path, image_bytes.tiff(lab, 8, photometric=8), "f.tif").astype(int) - 119).max() <= 1


# Where row 0 and column 0 of the stored pixels lie, as the EXIF standard words it.
UPRIGHT = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: p[::-1].transpose(1, 0, 2),
    7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    8: lambda p: p.transpose(1, 0, 2)[::-1],
}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone_in_every_format(tmp_path, orientation):
    pixels = draw((3,))
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name, settings in {"f.png": {}, "f.webp": {"lossless": True}, "f.tif": {}}.items():
        Image.fromarray(pixels).save(tmp_path / name, exif=exif, **settings)
        image = read_image(tmp_path / name)
        np.testing.assert_array_equal(np.asarray(image), UPRIGHT[orientation](pixels), err_msg=name)
        assert image.info["orientation"] == orientation
    blocks = np.kron(pixels, np.ones((16, 16, 1), np.uint8))
    Image.fromarray(blocks).save(tmp_path / "f.jpg", exif=exif, quality=100, subsampling=0)
    found = np.asarray(read_image(tmp_path / "f.jpg")).astype(int)
    assert np.abs(found - UPRIGHT[orientation](blocks)).max() <= 4
    # 16 bits are turned, too.
    values = draw(depth=16)
    block = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    found = read(tmp_path, image_bytes.png(values, 16, GREY, block))
    np.testing.assert_array_equal(found, UPRIGHT[orientation](grey(values // 256)))


@pytest.mark.parametrize("content", [b"Exif\0\0no such thing", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"])
def test_damaged_exif_data_leaves_the_picture_as_it_is(tmp_path, content):
    pixels = draw((3,))
    Image.fromarray(pixels).save(tmp_path / "f.webp", lossless=True, exif=content)
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "f.webp")), pixels)


def test_an_orientation_that_does_not_exist_is_none(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 9
    Image.fromarray(draw((3,))).save(tmp_path / "f.png", exif=exif)
    image = read_image(tmp_path / "f.png")
    np.testing.assert_array_equal(np.asarray(image), draw((3,)))
    assert image.info["orientation"] == 1


@pytest.mark.parametrize("name", ["f.png", "f.webp", "f.tif"])
def test_several_pictures_in_one_file_are_refused(tmp_path, name):
    first, *others = (Image.fromarray(draw((3,), seed=seed)) for seed in range(3))
    first.save(tmp_path / name, save_all=True, append_images=others)
    with pytest.raises(UserError, match=rf"{name}: 3 pictures in one file"):
        read_image(tmp_path / name)


def test_of_a_cameras_multi_picture_jpeg_the_first_is_the_photo(tmp_path):
    pictures = [Image.new("RGB", (16, 16), colour) for colour in ((200, 0, 0), (0, 200, 0))]
    pictures[0].save(tmp_path / "f.mpo", save_all=True, append_images=pictures[1:], quality=100)
    found = read(tmp_path, (tmp_path / "f.mpo").read_bytes(), "f.jpg")
    assert np.abs(found.astype(int) - [200, 0, 0]).max() <= 3


def test_a_colour_profile_changes_nothing(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(draw((3,))).save(tmp_path / "f.png", icc_profile=profile)
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "f.png")), draw((3,)))


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_files_that_are_cut_off_are_refused(tmp_path, suffix):
    path = tmp_path / f"f{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    for length in (10, 40, len(whole) // 2, len(whole) - 200):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"/f\.\w+: .*cannot be decoded"):
            read_image(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="empty file"):
        read_image(path)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"frame,label\n1,2\n", "frame,label"),
        (b"GIF89a" + bytes(20), "GIF89a"),
        (b"\0\0\0\x1cftypheic", "ftypheic"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "%!PS"),
        (image_bytes.png(np.zeros((1, 1)), 8, GREY).replace(b"IHDR\0\0\0\1\0\0\0\1", b"IHDR\0\1\0\0\0\1\0\0"), "limit"),
    ],
)
def test_other_files_are_refused_with_what_they_begin_with(tmp_path, content, word):
    if word == "limit":  # the header's own checksum has to fit for it to be believed
        header = content[12:29]
        content = content[:29] + struct.pack(">I", image_bytes.zlib.crc32(header)) + content[33:]
    with pytest.raises(UserError, match=r"f\.png: .*cannot be decoded") as caught:
        read(tmp_path, content)
    assert word in str(caught.value)


def test_what_is_no_file_at_all(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "absent.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for name in ("pipe.png", "folder.png"):
        with pytest.raises(UserError, match=rf"{name}: a folder, a pipe"):
            read_image(tmp_path / name)
