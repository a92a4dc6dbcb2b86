"""Writes the frames of the chosen clips, and of the film, as images of one size."""

import collections
import threading
from pathlib import Path

from PIL import Image

from input_pipeline.errors import UserError
from input_pipeline.ordered_map import ordered_map
from input_pipeline.progress import Progress
from input_pipeline.video_packets import Losses


def fit(frame, size):
    """Cuts a frame to a ratio of width to height, around its middle, and resizes it (bicubic by PIL).

    Args:
      frame: `[H, W, 3]` uint8 RGB.
      size: (height, width).

    Returns:
      PIL image of that size.
    """
    box = cut_box(frame.shape[:2], size)
    return Image.fromarray(frame).resize(size[::-1], Image.Resampling.BICUBIC, box)


def cut_box(frame_size, size):
    """Returns the part of a frame that has the ratio of `size`, around its middle: (left, upper, right, lower)."""
    height, width = frame_size
    scale = min(height / size[0], width / size[1])
    cut_y, cut_x = (height - scale * size[0]) / 2, (width - scale * size[1]) / 2
    return cut_x, cut_y, width - cut_x, height - cut_y


def cut_share(frame_size, size):
    """Returns the share of a frame's area that `fit` cuts off."""
    height, width = frame_size
    scale = min(height / size[0], width / size[1])
    return 1 - scale**2 * size[0] * size[1] / (height * width)


def keep(stretches, wanted, size, folder, progress, threads):
    """Reads material a second time and writes the frames that are wanted.

    Args:
      stretches: list of `scan.Stretch`.
      wanted: {index of the stretch: {frame number: names of its files}}.
      size: (height, width) to write.
      folder: that the names lie in.
      progress: called with lines of text.
      threads: videos and folders that are read at a time.

    Raises:
      UserError: a frame is not there any more.
    """
    counter, lock = Progress(progress, "own_video: keeping frames", sum(map(len, wanted.values()))), threading.Lock()

    def write(i):
        missing = dict(wanted[i])
        for shown in stretches[i].found.read(Losses(), wanted[i]):
            names = missing.pop(shown.number, ())
            for name in names:
                path = Path(folder) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                # Little of a camera's noise can be compressed, and much time be spent on it.
                fit(shown.pixels, size).save(path, compress_level=1)
            if names:
                with lock:
                    counter.step()
            if not missing:
                break
        if missing:
            raise UserError(
                f"{stretches[i].found.path}: {len(missing)} frames that were there during the scan are not there any "
                "more. Start again once the files stay as they are."
            )

    collections.deque(ordered_map(write, wanted, threads), maxlen=0)
