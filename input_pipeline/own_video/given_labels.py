"""Masks that frames come with: `labels/` and `classes.json` beside a folder `frames/`, see `own_labels`."""

from pathlib import Path

import numpy as np
from PIL import Image

from input_pipeline import own_labels
from input_pipeline.frame_names import split_into_videos
from input_pipeline.labels import colour_table
from input_pipeline.own_video.keep import cut_box


def find(stretches):
    """Finds the masks of a scan's frames.

    Args:
      stretches: list of `scan.Stretch`.

    Returns:
      {index of the stretch: {frame number: file}}; stretches without masks are left out.

    Raises:
      UserError: a mask is of no frame, or no PNG file.
    """
    found = {}
    for i, stretch in enumerate(stretches):
        folder = stretch.found.path.parent
        if stretch.found.is_video or stretch.found.path.name.lower() != own_labels.FRAMES:
            continue
        masks = own_labels.find_masks(folder)
        files = (file for video in split_into_videos(stretch.found.files) for file in video.files)
        numbers = {file.stem: number for number, file in enumerate(files)}
        own_labels.check_named(folder, masks, numbers)
        if masks:
            found[i] = {numbers[name]: file for name, file in masks.items()}
    return found


def keep(stretches, masks, clips, size, folder):
    """Writes masks as ids of one list of classes, cut and resized as their frames are, and that list.

    Args:
      stretches: list of `scan.Stretch`.
      masks: of `find`.
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
