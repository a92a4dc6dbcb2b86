"""Tiny raw folders in the owners' layouts, for the tests of everything that reads data."""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image


def frame_pixels(seed, size):
    """Returns a smooth random frame, `[H, W, 3]` uint8 RGB."""
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 2)


def label_ids(seed, size, ids):
    """Returns random blocks of the given ids, `[H, W]` uint8."""
    blocks = np.random.default_rng(seed).choice(np.array(ids, np.uint8), (4, 4))
    return np.kron(blocks, np.ones((-(-size[0] // 4), -(-size[1] // 4)), np.uint8))[: size[0], : size[1]]


def _save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_viper(root, *, split="train", videos=("001",), labelled=(10, 20), before=2, size=(36, 64), ids=(3, 11, 2)):
    """Writes VIPER's layout: the labelled frames and as many frames before each as `before` says.

    Args:
      root: folder to write to.
      split: `train` or `val`.
      videos: video numbers as text.
      labelled: numbers of the labelled frames of each video.
      before: frames written before each labelled frame.
      size: (height, width).
      ids: VIPER ids that labels are made of.

    Returns:
      List of clip names, sorted.
    """
    root = Path(root)
    names = []
    for v, video in enumerate(videos):
        for number in labelled:
            for n in range(number - before, number + 1):
                _save(root / split / "img" / video / f"{video}_{n:05d}.jpg", frame_pixels((v, n), size))
            name = f"{video}_{number:05d}"
            _save(root / split / "cls" / video / f"{name}.png", label_ids((v, number), size, ids))
            names.append(name)
    return sorted(names)


def write_synthia_seq(
    root, *, sequence="SYNTHIA-SEQS-04-DAWN", count=4, size=(38, 64), ids=(3, 2, 1, 10), plain_folders=False
):
    """Writes SYNTHIA-Seq's layout: `count` frames from 000000 on, all labelled, ids in the red channel of 16-bit PNG.

    Args:
      root: folder that holds the sequences.
      sequence: folder of the sequence.
      count: number of frames.
      size: (height, width).
      ids: SYNTHIA ids that labels are made of.
      plain_folders: writes `rgb` and `label` as some copies do, not the owners' `RGB/Stereo_Left/Omni_F`.

    Returns:
      List of the names of clips with one frame before them, sorted.
    """
    base = Path(root) / sequence
    images, labels = (
        ("rgb", "label")
        if plain_folders
        else (
            "RGB/Stereo_Left/Omni_F",
            "GT/LABELS/Stereo_Left/Omni_F",
        )
    )
    for n in range(count):
        _save(base / images / f"{n:06d}.png", frame_pixels(n, size))
        red = label_ids(n, size, ids).astype(np.uint16)
        instances = np.full_like(red, 300)
        path = base / labels / f"{n:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        # OpenCV's order is BGR; green holds the instance, which passes 255 and has to be ignored.
        cv2.imwrite(str(path), np.stack([np.zeros_like(red), instances, red], -1))
    return [f"{sequence}_{n:06d}" for n in range(1, count)]


def write_cityscapes_seq(
    root,
    *,
    split="train",
    clips=(("aachen", 0, 19), ("aachen", 1, 19), ("frankfurt", 0, 294)),
    before=2,
    size=(32, 64),
    ids=(7, 11, 21, 26),
):
    """Writes Cityscapes-Seq's layout: the labelled frames and the frames before each.

    Args:
      root: folder to write to.
      split: `train` or `val`.
      clips: (city, sequence number, number of the labelled frame) of each clip.
      before: frames written before each labelled frame.
      size: (height, width).
      ids: Cityscapes label ids that labels are made of.

    Returns:
      List of clip names, sorted.
    """
    root = Path(root)
    names = []
    for c, (city, sequence, number) in enumerate(clips):
        stem = f"{city}_{sequence:06d}"
        for n in range(number - before, number + 1):
            path = root / "leftImg8bit_sequence" / split / city / f"{stem}_{n:06d}_leftImg8bit.png"
            _save(path, frame_pixels((c, n), size))
        name = f"{stem}_{number:06d}"
        _save(root / "gtFine" / split / city / f"{name}_gtFine_labelIds.png", label_ids((c, number), size, ids))
        names.append(name)
    return sorted(names)


def write_camvid(root, frames, *, size=(36, 48), ids=(0, 1, 3, 4, 5, 8), owners=False):
    """Writes CamVid: the copy's layout with ids, or the owners' with colours.

    Args:
      root: folder to write to.
      frames: names of frames with their endings, such as `0006R0_f00930.png`; in the copy's layout with their folder,
        such as `val/0016E5_07959.jpg`.
      size: (height, width).
      ids: ids that labels are made of.
      owners: whether to write the owners' layout; the classes of `ids` are then those of `CAMVID_COLOURS`.

    Returns:
      {name of the frame without folder and ending: `[H, W]` uint8 ids of its label}.
    """
    root, written = Path(root), {}
    for seed, frame in enumerate(map(Path, frames)):
        labels = written[frame.stem] = label_ids(seed, size, ids)
        if owners:
            _save(root / "701_StillsRaw_full" / frame, frame_pixels(seed, size))
            _save(root / "LabeledApproved_full" / f"{frame.stem}_L.png", CAMVID_COLOURS[labels])
        else:
            _save(root / frame, frame_pixels(seed, size))
            _save(root / f"{frame.parent}annot" / f"{frame.stem}.png", labels)
    return written


# Of the owners' classes sky, building, pole, road, sidewalk, tree, sign, fence, car, pedestrian, bicyclist and void.
CAMVID_COLOURS = np.array(
    [
        (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (0, 0, 192), (128, 128, 0), (192, 128, 128),
        (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192), (0, 0, 0),
    ],
    np.uint8,
)  # fmt: skip
