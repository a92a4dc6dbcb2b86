"""Flow files: names, the stored form, broken files, and resizing against a per-pixel loop."""

import math

import numpy as np
import pytest

from input_pipeline import flow_files


def test_names_are_those_of_the_fields_downloads():
    name = flow_files.flow_name
    assert name("cityscapes_seq", "frankfurt_000000_000294", 294, 293) == (
        "frankfurt_000000_000294_000293_int16_x10.npy"
    )
    assert name("viper", "001_00010", 10, 9) == "001_0001000009_int16_x10.npy"
    assert name("viper", "001_00010", 9, 8) == "001_0000900008_int16_x10.npy"
    assert name("synthia_seq", "SYNTHIA-SEQS-04-DAWN_000001", 1, 0) == "000001_int16_x10.npy"


def test_names_refuse_what_they_cannot_express():
    with pytest.raises(ValueError, match="one frame"):
        flow_files.flow_name("synthia_seq", "SYNTHIA-SEQS-04-DAWN_000002", 2, 0)
    with pytest.raises(ValueError, match="kitti"):
        flow_files.flow_name("kitti", "000001", 1, 0)


def test_npy_holds_ten_times_the_value_rounded_and_clipped(tmp_path):
    flow = np.array([[[0.04, 0.06], [-1.27, 12.34]], [[5000.0, -5000.0], [0.0, -0.05]]])
    path = tmp_path / "made" / "f.npy"
    flow_files.write_flow(path, flow)
    stored = np.load(path)
    assert stored.dtype == np.int16
    np.testing.assert_array_equal(stored, [[[0, 1], [-13, 123]], [[32767, -32768], [0, 0]]])
    read = flow_files.read_flow(path)
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, stored / 10.0, rtol=1e-6)
    assert flow_files.flow_size(path) == (2, 2)
    assert [p.name for p in path.parent.iterdir()] == ["f.npy"]


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
    with pytest.raises(ValueError, match="finite"):
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
