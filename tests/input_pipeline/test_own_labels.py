"""classes.json and masks: what they mean, and everything that they may have wrong."""

import json

import numpy as np
import pytest
from PIL import Image

from input_pipeline import own_labels
from input_pipeline.errors import UserError
from input_pipeline.labels import CLASSES, colour_table

ENTRIES = [
    {"id": 7, "name": "tarmac", "colour": [90, 80, 70]},
    {"id": 2, "name": "car", "colour": [0, 0, 142]},
    {"id": 255, "name": "whatever", "colour": [0, 0, 0]},
    {"id": 4, "name": "sky"},
]


@pytest.fixture
def own(tmp_path):
    (tmp_path / "classes.json").write_text(json.dumps(ENTRIES))
    return own_labels.read_classes(tmp_path / "classes.json")


def written(tmp_path, image, name="a.png", **how):
    (tmp_path / "labels").mkdir(exist_ok=True)
    image.save(tmp_path / "labels" / name, **how)
    return tmp_path / "labels" / name


IDS = np.array([[7, 2, 4], [255, 2, 7]], np.uint8)
INDICES = np.array([[2, 0, 1], [255, 0, 2]], np.uint8)  # car 0, sky 1, tarmac 2
COLOURS = np.array([[[90, 80, 70], [0, 0, 142], [0, 0, 0]], [[0, 0, 0], [0, 0, 142], [90, 80, 70]]], np.uint8)
OF_COLOURS = np.array([[2, 0, 255], [255, 0, 2]], np.uint8)


def test_classes_are_read(own):
    assert own.classes == ("car", "sky", "tarmac") and own.names == {2: "car", 4: "sky", 7: "tarmac"}
    assert own.known_to(("sky", "car", "road")).tolist() == [True, True, False]
    assert own.groups_of(("sky", "car", "road")) == (1, 0, -1)
    assert own.groups_of(("car", "sky", "tarmac")) is None
    with pytest.raises(UserError, match=r"none of its classes \(car, sky, tarmac\) is one of the model's: road, bus"):
        own.groups_of(("road", "bus"))


def test_what_is_written_is_read(tmp_path):
    names, palette = CLASSES["viper"], colour_table(CLASSES["viper"], "viper")
    own_labels.write_classes(tmp_path / "classes.json", names, palette)
    own = own_labels.read_classes(tmp_path / "classes.json")
    assert own.classes == names and own.groups_of(names) is None
    ids = np.arange(16, dtype=np.uint8).reshape(4, 4)
    ids[3, 3] = 255
    for image in (Image.fromarray(ids), Image.fromarray(np.where(ids[..., None] < 255, palette[ids], 0))):
        np.testing.assert_array_equal(own_labels.read_mask(written(tmp_path, image), own, (4, 4)), ids)


def test_ids_colours_palettes_and_transparency(tmp_path, own):
    def read(image):
        return own_labels.read_mask(written(tmp_path, image), own).tolist()

    assert read(Image.fromarray(IDS)) == INDICES.tolist()
    assert read(Image.fromarray(COLOURS)) == OF_COLOURS.tolist()
    # An encoder numbers colours as it likes; the palette of a labelling tool has ids as indices.
    numbered = Image.fromarray(np.array([[0, 1, 2], [2, 1, 0]], np.uint8))
    numbered.putpalette([90, 80, 70, 0, 0, 142, 0, 0, 0])
    assert read(numbered) == OF_COLOURS.tolist()
    ids = Image.fromarray(IDS)
    ids.putpalette([value for i in range(256) for value in (i, 255 - i, 3)])
    assert read(ids) == INDICES.tolist()
    unpainted = np.dstack([COLOURS, np.full((2, 3), 255, np.uint8)])
    unpainted[0, 0] = (1, 2, 3, 0)
    assert read(Image.fromarray(unpainted)) == [[255, 0, 255], [255, 0, 2]]


@pytest.mark.parametrize(
    "image, told",
    [
        (
            Image.fromarray(IDS + np.uint8(1)),
            r"ids that .*classes.json does not name: 0 \(1 pixels\), 3 \(2 pixels\), 5 .*4 sky, 7 tarmac",
        ),
        (Image.fromarray(COLOURS + np.uint8(1)), r"colours that .* \[1, 1, 1\] \(2 pixels\).*7 tarmac \[90, 80, 70\]"),
        (Image.fromarray(np.arange(60, dtype=np.uint8).reshape(4, 5, 3)), "smoothed edges"),
        (Image.fromarray(IDS.astype(np.uint16)), "16 bits a value; expected 8-bit ids"),
        (Image.fromarray(IDS > 4), "1 bits a value; expected 8-bit ids"),
        (Image.fromarray(np.zeros((3, 3), np.uint8)), "expected a mask of 2x3 pixels, as its frame has, found 3x3"),
    ],
)
def test_bad_masks(tmp_path, own, image, told):
    path = written(tmp_path, image)
    with pytest.raises(UserError, match=told) as caught:
        own_labels.read_mask(path, own, None if "2x3" not in told else (2, 3))
    assert str(path) in str(caught.value)


def test_other_files_beside_masks(tmp_path, own):
    assert own_labels.find_masks(tmp_path) == {}
    path = written(tmp_path, Image.fromarray(IDS))
    (tmp_path / "labels" / ".DS_Store").write_bytes(b"x")
    assert own_labels.find_masks(tmp_path) == {"a": path}
    written(tmp_path, Image.fromarray(COLOURS), "b.jpg")
    with pytest.raises(UserError, match="labels: masks are PNG files, .* found b.jpg"):
        own_labels.find_masks(tmp_path)
    (tmp_path / "labels" / "a.png").write_bytes((tmp_path / "labels" / "b.jpg").read_bytes())
    with pytest.raises(UserError, match="a JPEG file; masks are PNG files"):
        own_labels.read_mask(path, own)


@pytest.mark.parametrize(
    "content, told",
    [
        (None, "no such file"),
        ("", "expected JSON"),
        ("{}", "found dict"),
        ("[]", "an empty list"),
        ('[{"id": 1}]', "found the entry"),
        ('[{"id": 256, "name": "a"}]', "found the entry"),
        ('[{"id": true, "name": "a"}]', "found the entry"),
        ('[{"id": 1, "name": "a", "colour": "red"}]', "found the entry"),
        ('[{"id": 1, "name": "a", "colour": [1, 2]}]', "found the entry"),
        ('[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]', "id 1 is there twice, as a and as b"),
        ('[{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]', "the class a is there twice"),
        (json.dumps([{"id": i, "name": str(i), "colour": [9, 9, 9]} for i in (1, 2)]), "colour .* twice, of id 1 and"),
        ('[{"id": 255, "name": "a"}]', "no class but the ignored one"),
    ],
)
def test_bad_classes(tmp_path, content, told):
    if content is not None:
        (tmp_path / "classes.json").write_text(content)
    with pytest.raises(UserError, match=told) as caught:
        own_labels.read_classes(tmp_path / "classes.json")
    assert str(tmp_path / "classes.json") in str(caught.value)
