"""Flow files: names, the stored form, broken files, and resizing against a per-pixel loop."""

import dataclasses
import math

import numpy as np
import pytest
from raw_trees import write_viper

from input_pipeline import flow_files
from input_pipeline.builders import base
from input_pipeline.builders.checks import BadFilesError
from input_pipeline.clips import open_clips
from input_pipeline.datasets import DATASETS
from input_pipeline.errors import UserError
from input_pipeline.prepare import prepare
from input_pipeline.spec import DatasetSpec


def test_names_are_those_of_the_fields_downloads():
    cityscapes, viper = DATASETS["cityscapes_seq"].flow_name, DATASETS["viper"].flow_name
    assert cityscapes("frankfurt_000000", 294, 293) == "frankfurt_000000_000294_000293_int16_x10.npy"
    assert viper("001", 10, 9) == "001_0001000009_int16_x10.npy"
    assert viper("001", 9, 8) == "001_0000900008_int16_x10.npy"
    assert DATASETS["synthia_seq"].flow_name("SYNTHIA-SEQS-04-DAWN", 1, 0) == "000001_int16_x10.npy"


def test_names_refuse_what_they_cannot_express():
    with pytest.raises(ValueError, match="one frame"):
        DATASETS["synthia_seq"].flow_name("SYNTHIA-SEQS-04-DAWN", 2, 0)


def test_npy_holds_ten_times_the_value_rounded(tmp_path):
    flow = np.array([[[0.04, 0.06], [-1.27, 12.34]], [[3276.6, -3276.6], [0.0, -0.05]]])
    path = tmp_path / "made" / "f.npy"
    flow_files.write_flow(path, flow)
    stored = np.load(path)
    assert stored.dtype == np.int16
    np.testing.assert_array_equal(stored, [[[0, 1], [-13, 123]], [[32766, -32766], [0, 0]]])
    read = flow_files.read_flow(path)
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, stored / 10.0, rtol=1e-6)
    assert flow_files.flow_size(path) == (2, 2)
    assert [p.name for p in path.parent.iterdir()] == ["f.npy"]


# What formats and networks have for unknown flow, and what a format cannot hold.
UNKNOWN = [np.nan, np.inf, -np.inf, 1e9, -1e9, 1e10, 1.6666667e9, 3.4e38, 5000.0, -3276.8]


@pytest.mark.parametrize("value", UNKNOWN)
@pytest.mark.parametrize("channel", [0, 1])
def test_unknown_flow_is_neither_stored_nor_read(tmp_path, value, channel):
    flow = np.zeros((4, 5, 2), "<f4")
    flow[1, 2:4, channel] = value
    with pytest.raises(UserError, match=r"no usable flow .* in 2 of 20 pixels \(10\.0%\)"):
        flow_files.to_int16(flow)
    with pytest.raises(UserError, match=r"/f\.npy: .* in 2 of 20 pixels"):
        flow_files.write_flow(tmp_path / "f.npy", flow)
    assert not list(tmp_path.iterdir())
    path = _flo(tmp_path, flow)
    with pytest.raises(UserError, match=r"/f\.flo: no usable flow .* in 2 of 20 pixels \(10\.0%\).*skip_bad"):
        flow_files.read_flow(path)


@pytest.mark.parametrize("value", [32767, -32767, -32768])
def test_clipped_values_of_int16_files_are_unknown(tmp_path, value):
    stored = np.zeros((4, 5, 2), np.int16)
    stored[0, 0] = value
    with pytest.raises(UserError, match=r"/f\.npy: no usable flow .* in 1 of 20 pixels \(5\.0%\)"):
        flow_files.read_flow(_npy(tmp_path, stored))
    stored[0, 0] = np.sign(value) * 32766
    np.testing.assert_allclose(flow_files.read_flow(_npy(tmp_path, stored)), stored / 10, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32])
@pytest.mark.parametrize("shape", [(4, 5, 2), (2, 4, 5)])
def test_other_arrays_come_with_the_way_to_convert_them(tmp_path, dtype, shape):
    array = np.arange(40).reshape(shape).astype(dtype)
    path = _npy(tmp_path, array)
    with pytest.raises(UserError, match=r"expected flow as int16 \[H, W, 2\].*found") as caught:
        flow_files.read_flow(path)
    # What it says to do is right.
    recipe = str(caught.value).rpartition("numpy.save(FILE, ")[2].removesuffix(").")
    np.save(path, eval(recipe, {"numpy": np, "flow": array}))
    expected = array if shape[2] == 2 else np.moveaxis(array, 0, 2)
    unit = 1 if np.dtype(dtype).kind == "f" else 10
    np.testing.assert_allclose(flow_files.read_flow(path), expected / unit, rtol=1e-3)


def test_unknown_flow_is_found_before_anything_is_written(tmp_path):
    raw, flow_dir = tmp_path / "raw", tmp_path / "flow"
    write_viper(raw, labelled=(10, 20, 30))
    for current in (10, 20, 30):
        flow_files.write_flow(flow_dir / f"001_{current:05}{current - 1:05}_int16_x10.npy", np.zeros((36, 64, 2)))
    flow = np.zeros((36, 64, 2), "<f4")
    flow[:9] = np.nan
    (flow_dir / "001_0002000019_int16_x10.npy").unlink()
    bad = _flo(flow_dir, flow, "001_0002000019.flo")
    spec = DatasetSpec(
        name="viper",
        raw_dir=str(raw),
        split="train",
        classes="viper",
        size=(18, 32),
        label_size=None,
        offsets=(0, 1),
        flow_pairs=((0, 1),),
        flow_source="precomputed",
        flow_dir=str(flow_dir),
    )
    with pytest.raises(BadFilesError) as caught:
        prepare(spec, tmp_path / "prepared", lambda line: None)
    assert [fault.path for fault in caught.value.bad] == [str(bad)] and "(25.0%)" in caught.value.bad[0].found
    source = open_clips(prepare(dataclasses.replace(spec, skip_bad=True), tmp_path / "prepared", lambda line: None))
    assert [source[i]["name"].decode() for i in range(len(source))] == ["001_00010", "001_00030"]


def test_flow_that_grows_out_of_the_stored_form_when_it_is_resized(tmp_path):
    flow_files.write_flow(tmp_path / "f.npy", np.full((4, 4, 2), 3000.0))
    spec = DatasetSpec("viper", "raw", "train", "viper", (8, 8), None, (0, 1), (), "dis")
    with pytest.raises(UserError, match=r"f\.npy, resized to 8x8: .* in 64 of 64 pixels"):
        base.read_stored_flow(tmp_path / "f.npy", spec, (4, 4))


def _flo(folder, flow, name="f.flo"):
    path = folder / name
    header = np.float32(202021.25).tobytes() + np.array(flow.shape[1::-1], "<i4").tobytes()
    path.write_bytes(header + flow.astype("<f4").tobytes())
    return path


def test_flo_reads(tmp_path):
    flow = np.random.default_rng(0).normal(size=(3, 5, 2)).astype("<f4")
    path = tmp_path / "f.flo"
    path.write_bytes(np.float32(202021.25).tobytes() + np.array([5, 3], "<i4").tobytes() + flow.tobytes())
    np.testing.assert_array_equal(flow_files.read_flow(path), flow)
    assert flow_files.flow_size(path) == (3, 5)


def _npy(tmp_path, array):
    path = tmp_path / "f.npy"
    np.save(path, array)
    return path


def test_broken_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="float32"):
        flow_files.read_flow(_npy(tmp_path, np.zeros((2, 2, 2), np.float32)))
    with pytest.raises(ValueError, match=r"\[2, 2, 3\]"):
        flow_files.flow_size(_npy(tmp_path, np.zeros((2, 2, 3), np.int16)))
    path = _npy(tmp_path, np.zeros((4, 4, 2), np.int16))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"f\.npy.*cannot be read"):
        flow_files.flow_size(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"f\.npy.*cannot be read"):
        flow_files.read_flow(path)
    flo = tmp_path / "f.flo"
    flo.write_bytes(np.float32(202021.25).tobytes() + np.array([5, 3], "<i4").tobytes() + b"\0" * 40)
    with pytest.raises(ValueError, match="132 bytes; the file has 52"):
        flow_files.read_flow(flo)
    flo.write_bytes(b"no such number here")
    with pytest.raises(ValueError, match="202021"):
        flow_files.flow_size(flo)
    with pytest.raises(ValueError, match="png"):
        flow_files.flow_size(tmp_path / "f.png")
    with pytest.raises(FileNotFoundError):
        flow_files.read_flow(tmp_path / "absent.npy")


def test_writing_refuses_bad_flow_and_leaves_nothing_behind(tmp_path):
    with pytest.raises(ValueError, match="not finite"):
        flow_files.write_flow(tmp_path / "f.npy", np.full((2, 2, 2), np.nan))
    with pytest.raises(ValueError, match=r"\[2, 2\]"):
        flow_files.write_flow(tmp_path / "f.npy", np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"\.npy"):
        flow_files.write_flow(tmp_path / "f.flo", np.zeros((2, 2, 2)))
    (tmp_path / "taken.npy").mkdir()
    with pytest.raises(OSError):
        flow_files.write_flow(tmp_path / "taken.npy", np.zeros((2, 2, 2)))
    assert [p.name for p in tmp_path.iterdir()] == ["taken.npy"]


def _resize_by_loop(flow, size):
    old_h, old_w = flow.shape[:2]
    out = np.zeros((*size, 2))
    for i in range(size[0]):
        for j in range(size[1]):
            y, x = i * (old_h - 1) / (size[0] - 1), j * (old_w - 1) / (size[1] - 1)
            y0, x0 = math.floor(y), math.floor(x)
            y1, x1 = min(y0 + 1, old_h - 1), min(x0 + 1, old_w - 1)
            top = flow[y0, x0] * (1 - (x - x0)) + flow[y0, x1] * (x - x0)
            low = flow[y1, x0] * (1 - (x - x0)) + flow[y1, x1] * (x - x0)
            out[i, j] = top * (1 - (y - y0)) + low * (y - y0)
    return out


@pytest.mark.parametrize("size", [(4, 5), (13, 17), (7, 4)])
def test_resize_matches_a_loop(size):
    flow = np.random.default_rng(1).normal(size=(7, 9, 2))
    loop = _resize_by_loop(flow, size)
    aligned = loop * [(size[1] - 1) / 8, (size[0] - 1) / 6]
    np.testing.assert_allclose(flow_files.resize_flow(flow, size), aligned, atol=1e-5)
    np.testing.assert_allclose(flow_files.resize_flow(flow, size, "public"), loop * size[0] / 7, atol=1e-5)


def test_resize_to_the_same_size_changes_nothing():
    flow = np.random.default_rng(2).normal(size=(3, 4, 2)).astype(np.float32)
    for scale in ("align_corners", "public"):
        np.testing.assert_array_equal(flow_files.resize_flow(flow, (3, 4), scale), flow)


def test_resize_refuses_bad_requests():
    with pytest.raises(ValueError, match="half_pixel"):
        flow_files.resize_flow(np.zeros((4, 4, 2)), (2, 2), "half_pixel")
    with pytest.raises(ValueError, match="two pixels"):
        flow_files.resize_flow(np.zeros((4, 4, 2)), (1, 4))
