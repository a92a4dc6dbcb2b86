"""What the three builders share about raw folders: the files of a clip, and where they lie."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from input_pipeline import flow_files
from input_pipeline.images import IMAGE_SUFFIXES


@dataclasses.dataclass(frozen=True)
class ClipFiles:
    """The files of one clip; they need not exist.

    Attributes:
      name: clip name, such as `001_00010`.
      label: label file of x_t.
      frames: {offset: image file}.
      flows: {(a, b): flow file}, empty unless flow is precomputed.
    """

    name: str
    label: Path
    frames: dict[int, Path]
    flows: dict[tuple[int, int], Path]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one data set lies in its owner's folders.

    Attributes:
      folders: spec -> the folders that have to exist: images, labels, images, labels, …
      expected: the folder structure in words, for errors.
      labels: what a label file is called below its folder, for errors.
      list_clips: spec -> list of `ClipFiles` of every labelled frame, sorted by name.
      rows_kept: raw height -> rows kept, counted from the top.
      ego_id: id of cars where the recording car itself is labelled so and has to be ignored, else None.
      mistaken: folders that are taken for those above, {name: what it holds}, for errors.
    """

    folders: Callable
    expected: str
    labels: str
    list_clips: Callable
    rows_kept: Callable = lambda height: height
    ego_id: int | None = None
    mistaken: dict = dataclasses.field(default_factory=dict)


def frame_finder(suffix):
    """Makes a function that looks frames up by name, whichever kind of image they are.

    Args:
      suffix: the owner's ending, such as `.png`; it comes first where a folder holds a frame as two kinds.

    Returns:
      (folder, name without ending) -> `Path`; with the owner's ending where there is no such frame. Each folder is
      listed once.
    """
    listings = {}

    def find(folder, stem):
        if folder not in listings:
            listings[folder] = _images_in(folder, (suffix, *IMAGE_SUFFIXES))
        return listings[folder].get(stem, folder / f"{stem}{suffix}")

    return find


def _images_in(folder, suffixes):
    """{name without ending: path} of a folder's images; of two kinds of one name, the one that `suffixes` has first."""
    if not folder.is_dir():
        return {}
    found = {}
    for name in sorted(os.listdir(folder)):
        stem, suffix = os.path.splitext(name)
        if suffix.lower() not in suffixes:
            continue
        if stem not in found or suffixes.index(suffix.lower()) < suffixes.index(found[stem].suffix.lower()):
            found[stem] = folder / name
    return found


def find_labels(folder, pattern, name):
    """Lists label files.

    Args:
      folder: folder of the labels.
      pattern: glob pattern below it.
      name: compiled regular expression that the whole name has to match.

    Returns:
      List of (path, match), sorted by path. Hidden files, such as other systems leave beside copies, are left out.
    """
    paths = sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))
    return [(path, match) for path in paths if (match := name.fullmatch(path.name))]


def find_flow(folders, name):
    """Looks a flow file up.

    Args:
      folders: folders that may hold it, the preferred first.
      name: file name from `flow_files.flow_name`.

    Returns:
      The first that exists, as `.npy` or as `.flo` with or without `_int16_x10`; else the preferred place.
    """
    stem = Path(name).stem
    for folder in folders:
        for candidate in (name, f"{stem}.flo", f"{stem.removesuffix('_int16_x10')}.flo"):
            if (folder / candidate).is_file():
                return folder / candidate
    return folders[0] / name


def flows_of(spec, clip_name, number, folders):
    """Finds the flow files of one clip.

    Args:
      spec: `DatasetSpec`.
      clip_name: clip name.
      number: frame number of x_t.
      folders: folders that may hold the files.

    Returns:
      {(a, b): path}, empty unless the spec reads precomputed flow.
    """
    if spec.flow_source != "precomputed":
        return {}
    return {
        (a, b): find_flow(folders, flow_files.flow_name(spec.name, clip_name, number - a, number - b))
        for a, b in spec.flow_pairs
    }


def flow_folders(spec):
    """Returns the folders in which a set's flow files may lie: `flow_dir` itself, or a sub-folder of the split."""
    split_dir = Path(spec.flow_dir) / spec.split
    return [split_dir, Path(spec.flow_dir)] if split_dir.is_dir() else [Path(spec.flow_dir)]


def ego_vehicle(is_car):
    """Finds the recording car: the connected car regions that touch the bottom row within its middle tenth.

    Args:
      is_car: `[H, W]` bool.

    Returns:
      `[H, W]` bool, True on the recording car.
    """
    _, regions = cv2.connectedComponents(is_car.astype(np.uint8))
    width = is_car.shape[1]
    middle = regions[-1, int(width * 0.45) : int(np.ceil(width * 0.55))]
    return np.isin(regions, middle[middle > 0])
