"""Masks that frames come with: `labels/` and `classes.json` beside a folder `frames/`, see `own_labels`."""

import collections
import contextlib
import functools
from pathlib import Path

import numpy as np
from PIL import Image

from input_pipeline import own_labels
from input_pipeline.frame_names import split_into_videos
from input_pipeline.frames import read_picture
from input_pipeline.labels import colour_table
from input_pipeline.ordered_map import ordered_map
from input_pipeline.own_video.keep import cut_box
from input_pipeline.video_packets import SourceError


def has_masks(found):
    """Whether a `folder.Found` is a folder `frames` with masks beside it; `labels/` without a PNG file holds none."""
    is_frames = not found.is_video and found.path.name.lower() == own_labels.FRAMES
    return is_frames and own_labels.holds_masks(found.path.parent)


def find(found, threads=1):
    """Finds the masks of videos and folders of frames, and reads all of them: what is wrong is said before a scan.

    Args:
      found: list of `folder.Found`.
      threads: masks that are read at a time.

    Returns:
      {name of the `Found`: {frame number: file}}; those without masks are left out.

    Raises:
      UserError: a mask is of no frame, no PNG file, of another size than its frame, or not of the classes of the
        `classes.json` beside it; or that cannot be read.
    """
    masks = {}
    for one in filter(has_masks, found):
        folder = one.path.parent
        files = own_labels.find_masks(folder)
        frames = [file for video in split_into_videos(one.files) for file in video.files]
        numbers = {file.stem: number for number, file in enumerate(frames)}
        own_labels.check_named(folder, files, numbers)
        own = own_labels.read_classes(folder / own_labels.CLASSES_FILE)
        masks[one.name] = {numbers[name]: file for name, file in files.items()}
        check = functools.partial(_check, frames=frames, own=own)
        collections.deque(ordered_map(check, masks[one.name].items(), threads), maxlen=0)
    return masks


def _check(mask, frames, own):
    """Reads one (frame number, file)."""
    number, file = mask
    size = None
    # A frame that cannot be read is left out by the scan, and its mask with it.
    with contextlib.suppress(SourceError):
        # As a person sees it, who has labelled it.
        size = read_picture(frames[number]).shape[:2]
    own_labels.read_mask(file, own, size)


def keep(stretches, masks, clips, size, folder):
    """Writes masks as ids of one list of classes, cut and resized as their frames are, and that list.

    Args:
      stretches: list of `scan.Stretch`.
      masks: {index of the stretch: {frame number: file}}, of `find`.
      clips: {(index of the stretch, frame number): name of the held-out clip}.
      size: (height, width) to write.
      folder: that `labels/` and `classes.json` are written to.

    Returns:
      Number of masks.

    Raises:
      UserError: a mask or a `classes.json` that cannot be read.
    """
    owns = {i: own_labels.read_classes(stretches[i].found.path.parent / own_labels.CLASSES_FILE) for i in masks}
    names = tuple(dict.fromkeys(name for own in owns.values() for name in own.classes))
    (Path(folder) / own_labels.LABELS).mkdir()
    kept = 0
    for i, files in masks.items():
        table = np.full(256, own_labels.IGNORED, np.uint8)
        table[: len(owns[i].classes)] = [names.index(name) for name in owns[i].classes]
        for number, file in files.items():
            if (i, number) in clips:
                mask = table[own_labels.read_mask(file, owns[i])]
                box = cut_box(mask.shape, size)
                shown = Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST, box)
                shown.save(Path(folder) / own_labels.LABELS / f"{clips[i, number]}.png")
                kept += 1
    own_labels.write_classes(Path(folder) / own_labels.CLASSES_FILE, names, colour_table(names))
    return kept
