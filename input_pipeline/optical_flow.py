"""Optical flow on the host, without weights: estimators that can run while a set is prepared.

`ESTIMATORS` at the end of the file has them by name; those that run on the devices are in `stpl_jax.flow_estimators`.
"""

import dataclasses
from collections.abc import Callable

import cv2
import numpy as np

SMALLEST_SIDE = 12  # of the frames that DIS takes, pixels


@dataclasses.dataclass(frozen=True)
class HostEstimator:
    """An optical flow estimator that runs on the host, a pair of frames at a time.

    Attributes:
      function: (frame, earlier) -> flow, as `dis_flow`; called from several threads.
      smallest_side: of the frames that it takes, pixels.
    """

    function: Callable
    smallest_side: int = 1


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


ESTIMATORS = {"dis": HostEstimator(dis_flow, SMALLEST_SIDE)}
DEFAULT = ESTIMATORS["dis"]  # where nobody has chosen
