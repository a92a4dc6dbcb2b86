"""Writes generated videos as the owners of the real data sets ship theirs: folders, names, formats, class ids.

A *video* is what a frame number is counted in: `001`, `SYNTHIA-SEQS-04-DAWN`, `frankfurt_000000`.
"""

from pathlib import Path

import cv2
import numpy as np

from input_pipeline.datasets import DATASETS
from input_pipeline.flow_files import LARGEST, write_flow
from input_pipeline.world.shapes import WORLD_CLASSES

# The id that each set's label files hold for a class, typed from the owners' tables, not taken from the reader's: what
# one of the two has wrong, the other then shows. A class that a set has no id for is 0, which its owners use for what
# nobody trains on; VIPER's riders are people there.
_FILE_IDS = {
    "viper": dict(
        road=3, sidewalk=4, building=9, fence=11, pole=0, light=13, sign=14, vegetation=7, terrain=6, sky=2, person=20,
        rider=20, car=24, truck=27, bus=26, motorcycle=23, bicycle=22,
    ),
    "synthia_seq": dict(
        road=3, sidewalk=4, building=2, fence=5, pole=7, light=15, sign=9, vegetation=6, terrain=0, sky=1, person=10,
        rider=11, car=8, truck=0, bus=0, motorcycle=0, bicycle=0,
    ),
    "cityscapes_seq": dict(
        road=7, sidewalk=8, building=11, fence=13, pole=17, light=19, sign=20, vegetation=21, terrain=22, sky=23,
        person=24, rider=25, car=26, truck=27, bus=28, motorcycle=32, bicycle=33,
    ),
}  # fmt: skip

# Where a set keeps a frame and its labels; `city` is what the name of a video begins with.
_FRAMES = {
    "viper": "{split}/img/{video}/{video}_{number:05d}.jpg",
    "synthia_seq": "{video}/RGB/Stereo_Left/Omni_F/{number:06d}.png",
    "cityscapes_seq": "leftImg8bit_sequence/{split}/{city}/{video}_{number:06d}_leftImg8bit.png",
}
_LABELS = {
    "viper": "{split}/cls/{video}/{video}_{number:05d}.png",
    "synthia_seq": "{video}/GT/LABELS/Stereo_Left/Omni_F/{number:06d}.png",
    "cityscapes_seq": "gtFine/{split}/{city}/{video}_{number:06d}_gtFine_labelIds.png",
}

# Share of a SYNTHIA-Seq frame's rows that stays when the bottom 120 of 760 are cut.
_SYNTHIA_ROWS_KEPT = 640 / 760
_JPEG_QUALITY = 95


def file_ids(dataset):
    """Returns the id that a data set's label files hold for each class, `[len(WORLD_CLASSES)]` uint8."""
    return np.array([_FILE_IDS[dataset][name] for name in WORLD_CLASSES], np.uint8)


def frame_size(dataset, size):
    """Returns the `(height, width)` to render, so that `size` is left once SYNTHIA-Seq's bottom rows are cut."""
    height, width = size
    return (round(height / _SYNTHIA_ROWS_KEPT), width) if dataset == "synthia_seq" else (height, width)


def frame_path(root, dataset, split, video, number):
    """Returns where a data set keeps a frame; `root` is the set's own folder."""
    return _path(_FRAMES, root, dataset, split, video, number)


def _path(forms, root, dataset, split, video, number):
    city = video.partition("_")[0]
    return Path(root) / forms[dataset].format(split=split, city=city, video=video, number=number)


def _write(path, image, *options):
    # Encoded in memory: OpenCV's own writing does not say that a disk is full.
    encoded = cv2.imencode(path.suffix, image, options)[1]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.write_bytes(encoded)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_frame(root, dataset, split, video, number, frame):
    """Writes a frame: VIPER's as JPEG, the others' as PNG.

    Args:
      root: the data set's own folder.
      dataset, split, video, number: which frame it is.
      frame: `[H, W, 3]` uint8 RGB.

    Raises:
      OSError: the file cannot be written; names it.
    """
    path = frame_path(root, dataset, split, video, number)
    options = (cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY) if dataset == "viper" else (cv2.IMWRITE_PNG_COMPRESSION, 1)
    _write(path, frame[..., ::-1], *options)


def write_label(root, dataset, split, video, number, classes):
    """Writes a frame's labels as ids of the data set; SYNTHIA-Seq's go into the red channel of a 16-bit PNG.

    Args:
      root: the data set's own folder.
      dataset, split, video, number: which frame it is.
      classes: `[H, W]` uint8, indices into `WORLD_CLASSES`.

    Raises:
      OSError: the file cannot be written; names it.
    """
    ids = file_ids(dataset)[classes]
    if dataset == "synthia_seq":
        blue_green_red = np.zeros((*ids.shape, 3), np.uint16)
        blue_green_red[..., 2] = ids
        ids = blue_green_red
    _write(_path(_LABELS, root, dataset, split, video, number), ids, cv2.IMWRITE_PNG_COMPRESSION, 1)


def write_flow_pair(flow_root, dataset, split, video, current, earlier, flow):
    """Writes the flow between two frames, in the sub-folder of its split.

    Args:
      flow_root: folder of the data set's flow files.
      dataset, split, video: which video it is.
      current, earlier: frame numbers: the flow lies on the first and points into the second.
      flow: `[H, W, 2]` float32, pixels.
    """
    path = Path(flow_root) / split / DATASETS[dataset].flow_name(video, current, earlier)
    path.parent.mkdir(parents=True, exist_ok=True)
    # What was beside the camera then lay far outside the earlier frame, wherever exactly.
    write_flow(path, np.clip(flow, -LARGEST, LARGEST))
