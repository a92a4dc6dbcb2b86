"""DIS flow: direction, sign and units on an image whose motion is known."""

import numpy as np
import pytest
from raw_trees import frame_pixels

from input_pipeline import optical_flow


def test_flow_points_to_where_each_pixel_was():
    earlier = frame_pixels(0, (64, 96))
    # Content moves 3 right and 2 down, so each pixel was 3 left and 2 up.
    frame = np.roll(earlier, (2, 3), (0, 1))
    flow = optical_flow.dis_flow(frame, earlier)
    assert flow.shape == (64, 96, 2) and flow.dtype == np.float32
    np.testing.assert_allclose(np.median(flow[8:-8, 8:-8], (0, 1)), [-3, -2], atol=0.1)
    np.testing.assert_array_equal(flow, optical_flow.dis_flow(frame, earlier))


def test_bad_frames_are_refused():
    frame = frame_pixels(0, (32, 32))
    for other in (frame[:16], frame[..., 0], frame.astype(np.float32)):
        with pytest.raises(ValueError, match="two RGB uint8 frames of one size"):
            optical_flow.dis_flow(frame, other)
    with pytest.raises(ValueError, match="12 pixels"):
        optical_flow.dis_flow(frame[:8, :8], frame[:8, :8])


def test_a_small_frame_does_not_change_later_flow():
    frames = [frame_pixels(seed, (64, 128)) for seed in (1, 2)]
    before = optical_flow.dis_flow(*frames)
    optical_flow.dis_flow(*(frame_pixels(seed, (12, 14)) for seed in (3, 4)))
    np.testing.assert_array_equal(optical_flow.dis_flow(*frames), before)
