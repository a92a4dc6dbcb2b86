"""Writes generated videos as the owners of the real data sets ship theirs: folders, names, formats, class ids.

- `viper`: `train/img/SSS/SSS_FFFFF.jpg`; labels `train/cls/SSS/SSS_FFFFF.png` of every tenth frame.
- `synthia_seq`: `VIDEO/RGB/Stereo_Left/Omni_F/FFFFFF.png`; labels `VIDEO/GT/LABELS/Stereo_Left/Omni_F/FFFFFF.png`, 16
  bits.
- `cityscapes_seq`: `leftImg8bit_sequence/SPLIT/CITY/CITY_SSSSSS_FFFFFF_leftImg8bit.png`; labels
  `gtFine/SPLIT/CITY/CITY_SSSSSS_FFFFFF_gtFine_labelIds.png`.

A *video* is what a frame number is counted in: `001`, `SYNTHIA-SEQS-04-DAWN`, `frankfurt_000000`.
"""

from pathlib import Path

import cv2
import numpy as np

from input_pipeline.flow_files import LARGEST, flow_name, write_flow
from input_pipeline.labels import CLASSES, TRAIN_IDS
from input_pipeline.world_shapes import WORLD_CLASSES

# What a set's labels have no class for gets an id that its owners use and nobody trains on.
_UNLABELLED = 0
# Where a set files a class that it has no name for.
_STANDS_FOR = {("viper", "rider"): "person"}

# Share of a SYNTHIA-Seq frame's rows that stays when the bottom 120 of 760 are cut.
_SYNTHIA_ROWS_KEPT = 640 / 760
_JPEG_QUALITY = 95


def file_ids(dataset):
    """Looks up which id a data set's label files hold for each class of the generated street.

    Args:
      dataset: `viper`, `synthia_seq` or `cityscapes_seq`.

    Returns:
      `[len(WORLD_CLASSES)]` uint8. The first id of a class where a set has several; 0 where it has none.
    """
    ids = {}
    # SYNTHIA-Seq's classes go first: they tell riders from people where VIPER's put both ids into one class.
    for setting in ("synthia_seq", "viper"):
        for file_id, train_id in TRAIN_IDS.get((dataset, setting), {}).items():
            if file_id not in ids.values():
                ids.setdefault(CLASSES[setting][train_id], file_id)
    names = (_STANDS_FOR.get((dataset, name), name) for name in WORLD_CLASSES)
    return np.array([ids.get(name, _UNLABELLED) for name in names], np.uint8)


def frame_size(dataset, size):
    """Returns the `(height, width)` to render, so that `size` is left once SYNTHIA-Seq's bottom rows are cut."""
    height, width = size
    return (round(height / _SYNTHIA_ROWS_KEPT), width) if dataset == "synthia_seq" else (height, width)


def frame_path(root, dataset, split, video, number):
    """Returns where a data set keeps a frame; `root` is the set's own folder."""
    root = Path(root)
    if dataset == "viper":
        return root / split / "img" / video / f"{video}_{number:05d}.jpg"
    if dataset == "synthia_seq":
        return root / video / "RGB" / "Stereo_Left" / "Omni_F" / f"{number:06d}.png"
    city = video.partition("_")[0]
    return root / "leftImg8bit_sequence" / split / city / f"{video}_{number:06d}_leftImg8bit.png"


def label_path(root, dataset, split, video, number):
    """Returns where a data set keeps the labels of a frame; `root` is the set's own folder."""
    root = Path(root)
    if dataset == "viper":
        return root / split / "cls" / video / f"{video}_{number:05d}.png"
    if dataset == "synthia_seq":
        return root / video / "GT" / "LABELS" / "Stereo_Left" / "Omni_F" / f"{number:06d}.png"
    city = video.partition("_")[0]
    return root / "gtFine" / split / city / f"{video}_{number:06d}_gtFine_labelIds.png"


def _write(path, image, *options):
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), image, options):
        raise OSError(f"{path} could not be written. Is the disk full, or the folder read-only?")


def write_frame(root, dataset, split, video, number, frame):
    """Writes a frame: VIPER's as JPEG, the others' as PNG.

    Args:
      root: the data set's own folder.
      dataset, split, video, number: which frame it is.
      frame: `[H, W, 3]` uint8 RGB.
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
    """
    ids = file_ids(dataset)[classes]
    if dataset == "synthia_seq":
        blue_green_red = np.zeros((*ids.shape, 3), np.uint16)
        blue_green_red[..., 2] = ids
        ids = blue_green_red
    _write(label_path(root, dataset, split, video, number), ids, cv2.IMWRITE_PNG_COMPRESSION, 1)


def write_flow_pair(flow_root, dataset, split, video, current, earlier, flow):
    """Writes the flow between two frames, in the sub-folder of its split.

    Args:
      flow_root: folder of the data set's flow files.
      dataset, split, video: which video it is.
      current, earlier: frame numbers: the flow lies on the first and points into the second.
      flow: `[H, W, 2]` float32, pixels.
    """
    path = Path(flow_root) / split / flow_name(dataset, f"{video}_{current}", current, earlier)
    path.parent.mkdir(parents=True, exist_ok=True)
    # What was beside the camera then lay far outside the earlier frame, wherever exactly.
    write_flow(path, np.clip(flow, -LARGEST, LARGEST))
