"""Random access to a prepared set: lazy, picklable, and clear about what it does not hold."""

import pickle

import numpy as np
import pytest
from raw_trees import write_viper

from input_pipeline import clips, encoding
from input_pipeline.errors import UserError
from input_pipeline.prepare import prepare
from input_pipeline.spec import DatasetSpec


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("clips")
    write_viper(root / "viper", labelled=(10, 20, 30))
    spec = DatasetSpec(
        name="viper",
        raw_dir=str(root / "viper"),
        split="train",
        classes="viper",
        size=(18, 32),
        label_size=None,
        offsets=(0, 1, 2),
        flow_pairs=((0, 1), (1, 2)),
        flow_source="dis",
    )
    return clips.open_clips(prepare(spec, root / "prepared", lambda line: None))


def test_shapes_and_types(source):
    clip = clips.read_clip(source, 1, (0, 1, 2), ((0, 1), (1, 2)), True)
    assert {key: (value.shape, value.dtype.name) for key, value in clip.items() if key != "name"} == {
        "frames": ((3, 18, 32, 3), "uint8"),
        "flow": ((2, 18, 32, 2), "int16"),
        "label": ((36, 64), "uint8"),
        "index": ((), "int32"),
    }
    assert clip["name"] == "001_00020" and clip["index"] == 1


def test_parts_come_in_the_order_asked_for(source):
    everything = clips.read_clip(source, 0, (0, 1, 2), ((0, 1), (1, 2)), True)
    part = clips.read_clip(source, 0, (2, 0), ((1, 2),), False)
    np.testing.assert_array_equal(part["frames"], everything["frames"][[2, 0]])
    np.testing.assert_array_equal(part["flow"], everything["flow"][1:])
    assert "label" not in part
    nothing = clips.read_clip(source, 0, (), (), False)
    assert nothing["frames"].shape == (0, 18, 32, 3) and nothing["flow"].shape == (0, 18, 32, 2)


def test_only_what_is_asked_for_is_decoded(source, monkeypatch):
    decoded = []
    decode = encoding.cv2.imdecode
    monkeypatch.setattr(encoding.cv2, "imdecode", lambda data, mode: decoded.append(mode) or decode(data, mode))
    clips.read_clip(source, 0, (1,), (), False)
    assert len(decoded) == 1
    clips.read_clip(source, 0, (0, 1), ((0, 1),), True)
    assert len(decoded) == 1 + 4


def test_asking_for_more_names_the_key(source):
    with pytest.raises(ValueError, match=r"offsets \[3\].*DatasetSpec\.offsets"):
        clips.read_clip(source, 0, (0, 3), (), False)
    with pytest.raises(ValueError, match=r"\(0, 2\).*DatasetSpec\.flow_pairs"):
        clips.read_clip(source, 0, (0,), ((0, 1), (0, 2)), False)


def test_indices_outside_are_refused(source):
    assert len(source) == 3
    for i in (-1, 3):
        with pytest.raises(IndexError, match="holds 3"):
            source[i]


def test_a_source_pickles(source):
    copy = pickle.loads(pickle.dumps(source))
    assert copy.spec == source.spec and len(copy) == 3
    assert copy[2] == source[2]


def test_a_folder_without_a_set_is_refused(tmp_path):
    with pytest.raises(UserError, match="run prepare first"):
        clips.open_clips(tmp_path)
