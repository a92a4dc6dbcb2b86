import re

import numpy as np
import pytest
import torch
from PIL import Image

from input_pipeline.errors import UserError
from stpl_jax import frame_arrays

RIGHT = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
GREY = RIGHT[..., 0]


def in_three(grey):
    return np.repeat(grey[..., None], 3, -1)


@pytest.mark.parametrize(
    ("frames", "found", "expected"),
    [
        ((RIGHT / 255).astype(np.float32), "float32", RIGHT),
        (RIGHT.astype(np.float64), "float64", RIGHT),
        (RIGHT.astype(np.int64), "int64", RIGHT),
        (RIGHT.astype(np.uint16) * 257, "uint16", RIGHT),
        (RIGHT > 127, "bool", (RIGHT > 127) * np.uint8(255)),
        (np.moveaxis(RIGHT, -1, 1), r"\[2, 3, 5, 7\]", RIGHT),
        (np.moveaxis(RIGHT, -1, 0), r"\[3, 2, 5, 7\]", RIGHT),
        (np.concatenate([RIGHT, RIGHT[..., :1]], -1), r"\[2, 5, 7, 4\]", RIGHT),
        (GREY, r"\[2, 5, 7\]", in_three(GREY)),
        (GREY[..., None], r"\[2, 5, 7, 1\]", in_three(GREY)),
        (GREY[0], r"\[5, 7\]", in_three(GREY[:1])),
        (RIGHT[0], r"\[5, 7, 3\]", RIGHT[:1]),
        (RIGHT[None], r"\[1, 2, 5, 7, 3\]", RIGHT),
        ([Image.fromarray(frame) for frame in GREY], r"\[2, 5, 7\]", in_three(GREY)),
    ],
)
def test_the_message_holds_the_code_that_converts(frames, found, expected):
    with pytest.raises(UserError, match=rf"Expected frames \[T, H, W, 3\] uint8 RGB, found .*{found}") as error:
        frame_arrays.video_array(frames)
    # All that is told is done, one after the other: it leads to the frames that are meant.
    frames = np.asarray(frames)
    for _ in range(2):
        for code in re.findall(r": ([^:]*frames.*?)\.(?= |$)", str(error.value)):
            frames = eval(code, {"np": np, "frames": frames})
        try:
            frames = frame_arrays.video_array(frames)
            break
        except UserError as again:
            error = type("Again", (), {"value": again})
    np.testing.assert_array_equal(frames, expected)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((0, 5, 7, 3), np.uint8), "There is nothing in it"),
        ((RIGHT - 120.0) / 60, "undo the normalisation"),
        (np.full((1, 5, 7, 3), np.nan), "not finite"),
        (np.full((1, 5, 7, 3), 10**6), "from 1000000 to 1000000, and 0 to 255"),
        (iter(RIGHT), "segment_stream takes iterators"),
        ("video.mp4", "found the path 'video.mp4'.*--mode=predict"),
        ([RIGHT[0], RIGHT[0, :4]], "its parts differ in shape"),
        ({"frames": RIGHT}, "found dict that is none"),
        (None, "found NoneType that is none"),
        (torch.zeros(2, 5, 7, 3, requires_grad=True), "tensor.detach"),
    ],
)
def test_what_are_no_frames(frames, message):
    with pytest.raises(UserError, match=message):
        frame_arrays.video_array(frames)


def test_what_are_frames():
    for frames in (RIGHT, list(RIGHT), [Image.fromarray(f) for f in RIGHT], torch.from_numpy(RIGHT.copy())):
        np.testing.assert_array_equal(frame_arrays.video_array(frames), RIGHT)
    with pytest.raises(UserError, match=r"Frame 7: expected \[H, W, 3\] uint8 RGB, found uint8 \[3, 5, 7\].*moveaxis"):
        frame_arrays.frame_array(np.moveaxis(RIGHT[0], -1, 0), 7)


@pytest.mark.parametrize("size", [64, (64,), (64, 0), (64, 32.0), (1, 2, 3), "64", (True, True), -1, np.int64(64)])
def test_sizes_that_are_none(size):
    with pytest.raises(UserError, match=r"Expected size=\(height, width\), two whole numbers"):
        frame_arrays.size_pair(size)


def test_sizes():
    assert frame_arrays.size_pair(None) is None
    for size in ((64, 32), [64, 32], np.array([64, 32]), (np.int32(64), 32)):
        assert frame_arrays.size_pair(size) == (64, 32)


@pytest.mark.parametrize(
    ("flow", "message"),
    [
        ((64, 64), r"write size=\(height, width\)"),
        (np.zeros((2, 5, 7, 2), np.float32), "one field less"),
        (np.zeros((1, 2, 5, 7), np.float32), r"np.moveaxis\(flow, 1, -1\)"),
        (np.zeros((5, 7, 2), np.float32), r"flow\[None\]"),
        (np.zeros((1, 5, 7, 3), np.float32), r"expected|Expected flow \[T-1, H, W, 2\] = \[1, 5, 7, 2\]"),
        ("flow.flo", "found the path"),
    ],
)
def test_flow_of_another_shape(flow, message):
    with pytest.raises(UserError, match=message):
        frame_arrays.flows_array(flow, RIGHT.shape)


def test_flow_values():
    flow = np.zeros((5, 7, 2), np.float32)
    np.testing.assert_array_equal(frame_arrays.flow_array(flow.astype(np.float16), 1, (5, 7)), flow)
    for unknown in (np.nan, np.inf, 1e9, 1.7e9):
        flow[1, 2:4, 0] = unknown
        with pytest.raises(UserError, match=r"Flow of frame 3 is not finite or unknown \(1e9\) at 5.7% of the pixels"):
            frame_arrays.flow_array(flow, 3, (5, 7))
    with pytest.raises(UserError, match="found int16.*divide by 10"):
        frame_arrays.flow_array(np.zeros((5, 7, 2), np.int16), 1, (5, 7))


@pytest.mark.parametrize("mode", ["HSV", "YCbCr", "LAB", "CMYK", "P", "LA"])
def test_pil_images_of_another_mode_name_the_conversion(mode):
    image = Image.new("RGB", (8, 6)).convert("L" if mode == "LAB" else mode)
    image = Image.new("LAB", (8, 6)) if mode == "LAB" else image
    for values in (image, [image], [Image.new("RGB", (8, 6)), image]):
        with pytest.raises(UserError, match=rf"PIL image of mode {mode}.*convert\(.RGB.\)"):
            frame_arrays.video_array(values)


def test_a_pil_image_on_its_side_is_no_frame():
    image = Image.new("RGB", (8, 6))
    image.getexif()[0x0112] = 6
    with pytest.raises(UserError, match="EXIF orientation 6.*exif_transpose"):
        frame_arrays.frame_array(image, 0)
    np.testing.assert_array_equal(frame_arrays.video_array([Image.new("RGB", (8, 6))]), np.zeros((1, 6, 8, 3)))
