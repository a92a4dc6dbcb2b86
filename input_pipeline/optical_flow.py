"""Optical flow by OpenCV's DIS, which needs no weights: the default where there are no flow files."""

import cv2
import numpy as np

SMALLEST_SIDE = 12  # of the frames that it takes, pixels


def dis_flow(frame, earlier):
    """Estimates where each pixel of a frame was in an earlier frame (DIS, preset medium, on grey images).

    The estimator's frame 0 is x_t and its frame 1 is the earlier frame: flow lives on the current frame's grid.

    Args:
      frame: `[H, W, 3]` uint8 RGB, x_t.
      earlier: `[H, W, 3]` uint8 RGB, x_{t-1} (or x_{t-2} …), the same size.

    Returns:
      `[H, W, 2]` float32 (u, v), pixels: `frame(y, x) ≈ earlier(y + v, x + u)`.

    Raises:
      ValueError: the frames differ in size, are not RGB uint8, or are smaller than 12 pixels a side.
    """
    frame, earlier = np.asarray(frame), np.asarray(earlier)
    for image in (frame, earlier):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.shape != frame.shape:
            raise ValueError(
                "dis_flow: expected two RGB uint8 frames of one size, found "
                f"{frame.dtype} {list(frame.shape)} and {earlier.dtype} {list(earlier.shape)}."
            )
    if min(frame.shape[:2]) < SMALLEST_SIDE:
        raise ValueError(
            f"dis_flow: DIS needs frames of {SMALLEST_SIDE} pixels or more a side, found {frame.shape[:2]}."
        )
    # A new one for each pair: a small frame changes an estimator's scales for good, and so the flow of later frames.
    estimator = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grey, grey_earlier = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (frame, earlier))
    return estimator.calc(grey, grey_earlier, None)
