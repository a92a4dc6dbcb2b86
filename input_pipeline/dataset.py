"""What there is to say about a data set, and helpers to list its clips; the sets themselves are in `datasets/`."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import numpy as np

from input_pipeline.class_maps import ClassMap
from input_pipeline.images import IMAGE_SUFFIXES


@dataclasses.dataclass(frozen=True)
class ClipFiles:
    """The files of one clip; they need not exist.

    Attributes:
      name: clip name, such as `001_00010`.
      label: label file of x_t, None in a split without labels.
      frames: {offset: image file}.
      flows: {(a, b): flow file}, empty unless flow is precomputed.
    """

    name: str
    label: Path | None
    frames: dict[int, Path]
    flows: dict[tuple[int, int], Path]

    @property
    def files(self):
        """All of them, the label first."""
        return [*([self.label] if self.label else []), *self.frames.values(), *self.flows.values()]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One data set: how it lies in its owner's folders, and what its label files mean.

    A set has a list of classes of its own, which is the *label setting* of its name: what a model is trained on. It may
    carry labels for the settings of other sets, too. A set without any labels leaves the second half of this out.

    Attributes:
      name: of the set, and of its label setting.
      folders: spec -> [(folder of images, folder of labels or None)], all of which have to exist.
      expected: the folder structure in words, for errors.
      list_clips: spec -> list of `ClipFiles`, sorted by name: of every labelled frame, or of every frame that is wanted
        in a split without labels.
      flow_name: (video, number of the current frame, of the earlier one) -> name of the `.npy` file with that flow.
      splits: {name: whether it has labels}.
      drives: names of the drives of which a set (`DatasetSpec`) reads one; empty where it reads all that there is.
      rows_kept: raw height -> rows kept, counted from the top.
      mistaken: folders that are taken for those above, {name: what it holds}, for errors.
      labels: what a label file is called below its folder, for errors.
      label_files: what a label file has to be, for errors.
      ids_are_red: whether ids lie in the red channel; otherwise a label file has one channel.
      id_of_colour: {RGB: id}, where a label file may also be a picture in the owner's colours.
      ids: {id that label files may hold: the owner's name of it}; any other is a broken file.
      ids_name: what this numbering is called, for errors.
      ego_id: id of cars where the recording car itself is labelled so and has to be ignored, else None.
      classes: the set's own classes; a train id is an index into them.
      classes_name: what the numbering by train ids is called where the owner uses it, too; for errors.
      not_scored: classes that are trained but not scored.
      colours: {class: RGB}, all of its classes.
      settings: {label setting: {the owner's name: class of that setting}}; what is not named is ignored.
      class_maps: {label setting of a model: `ClassMap`}, for scoring models of other classes on this set.
    """

    name: str
    folders: Callable
    expected: str
    list_clips: Callable
    flow_name: Callable
    splits: Mapping[str, bool] = dataclasses.field(default_factory=lambda: {"train": True, "val": True})
    drives: tuple[str, ...] = ()
    rows_kept: Callable = lambda height: height
    mistaken: Mapping[str, str] = dataclasses.field(default_factory=dict)
    labels: str = ""
    label_files: str = ""
    ids_are_red: bool = False
    id_of_colour: Mapping[tuple[int, int, int], int] = dataclasses.field(default_factory=dict)
    ids: Mapping[int, str] = dataclasses.field(default_factory=dict)
    ids_name: str = ""
    ego_id: int | None = None
    classes: tuple[str, ...] = ()
    classes_name: str = ""
    not_scored: tuple[str, ...] = ()
    colours: Mapping[str, tuple[int, int, int]] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    class_maps: Mapping[str, ClassMap] = dataclasses.field(default_factory=dict)


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


def flows_of(spec, dataset, video, numbers, folders):
    """Finds the flow files of one clip.

    Args:
      spec: `DatasetSpec`.
      dataset: the `Dataset`, which names them.
      video: what frame numbers are counted in, such as `001` or `frankfurt_000000`.
      numbers: {offset: number of that frame}.
      folders: folders that may hold the files, the preferred first.

    Returns:
      {(a, b): path}, empty unless the spec reads precomputed flow. Each is the first file that exists, as `.npy` or as
      `.flo` with or without `_int16_x10`; else the preferred place.
    """
    flows = {}
    for a, b in spec.flow_pairs if spec.flow_source == "precomputed" else ():
        name = dataset.flow_name(video, numbers[a], numbers[b])
        stem = Path(name).stem
        names = (name, f"{stem}.flo", f"{stem.removesuffix('_int16_x10')}.flo")
        places = (folder / candidate for folder in folders for candidate in names)
        flows[a, b] = next((place for place in places if place.is_file()), folders[0] / name)
    return flows


def labelled_clips(spec, dataset, pattern, label, suffix, frame_stem):
    """Lists the labelled frames of a set whose images lie in folders of the same names as its labels.

    Args:
      spec: `DatasetSpec`.
      dataset: the `Dataset`.
      pattern: glob pattern of label files below their folder.
      label: compiled regular expression of a label file's name; its groups are the video and the frame number.
      suffix: the owner's ending of images, such as `.png`.
      frame_stem: (video, frame number) -> name of an image without its ending.

    Returns:
      List of `ClipFiles`, sorted by name.
    """
    flow_dirs, find = flow_folders(spec), frame_finder(suffix)
    clips = []
    for images, ids in dataset.folders(spec):
        for path, match in find_labels(ids, pattern, label):
            video, number = match[1], int(match[2])
            numbers = {k: number - k for k in spec.offsets}
            frames = {k: find(images / path.parent.name, frame_stem(video, n)) for k, n in numbers.items()}
            flows = flows_of(spec, dataset, video, numbers, flow_dirs)
            clips.append(ClipFiles(f"{video}_{match[2]}", path, frames, flows))
    return clips


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
