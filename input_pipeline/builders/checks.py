"""Checks every raw file of a set before anything is written, so that all faults are known at once."""

import collections
import dataclasses
import os
from pathlib import Path

import numpy as np

from input_pipeline import flow_files, label_files
from input_pipeline import spec as spec_lib
from input_pipeline.builders import label_checks, near_misses
from input_pipeline.datasets import DATASETS
from input_pipeline.errors import UserError, capped
from input_pipeline.images import read_image
from input_pipeline.ordered_map import ordered_map
from input_pipeline.progress import Progress

_NO_FILE = "no such file"


@dataclasses.dataclass(frozen=True)
class BadFile:
    """One fault.

    Attributes:
      path: file or folder.
      expected: what should be there.
      found: what is there.
    """

    path: str
    expected: str
    found: str

    def __str__(self):
        return f"{self.path}: expected {self.expected}, found {self.found}"


class BadFilesError(UserError):
    """Raw files are missing or broken; the message lists the first of them.

    Attributes:
      bad: tuple of all `BadFile`, sorted by path.
    """

    def __init__(self, spec, bad, advice):
        self.bad = tuple(sorted(bad, key=lambda fault: fault.path))
        lines = "\n".join(capped(f"  {fault}" for fault in self.bad))
        count = f"{len(self.bad)} bad file{'s' if len(self.bad) > 1 else ''}"
        super().__init__(f"{spec.name} ({spec.split}) in {spec.raw_dir}: {count}:\n{lines}\n{advice}")


@dataclasses.dataclass(frozen=True)
class _Examined:
    """What is known of a file: its (height, width), what is wrong with it, and more by kind."""

    size: tuple[int, int] | None = None
    problem: str | None = None
    ids: np.ndarray | None = None  # labels: [256] pixels of each id
    turned: bool = False  # frames: stored on their side or mirrored


def _examine(job):
    kind, path, dataset = job
    if not path.is_file():
        return _Examined(problem=_NO_FILE)
    try:
        if kind == "frame":
            image = read_image(path)
            return _Examined((image.height, image.width), turned=image.info["orientation"] != 1)
        if kind == "flow":
            return _Examined(flow_files.read_flow(path).shape[:2])
        ids = label_files.read_ids(path, dataset)
    except (OSError, ValueError) as error:
        return _Examined(problem=str(error).removeprefix(f"{path}: ").removesuffix("."))
    counts = np.bincount(ids.ravel(), minlength=256)
    unknown = sorted(set(np.flatnonzero(counts).tolist()) - DATASETS[dataset].ids.keys())
    return _Examined(ids.shape, f"unknown label ids {unknown}" if unknown else None, ids=counts)


def missing_folders(spec):
    """Checks the folders that a set (`DatasetSpec`) cannot do without; returns a list of `BadFile`."""
    missing = [
        BadFile(str(path), "a folder", near_misses.describe_missing_folder(path, spec))
        for path in near_misses.folders(spec)
        if not path.is_dir()
    ]
    if spec.flow_source == "precomputed" and spec.flow_pairs and not Path(spec.flow_dir).is_dir():
        missing.append(BadFile(spec.flow_dir, "a folder", "no such folder"))
    return missing


def list_clips(spec):
    """Lists the clips that the spec asks for.

    Args:
      spec: `DatasetSpec`.

    Returns:
      (clips, bad): list of `ClipFiles`, and a list of `BadFile` with the names of the list file that have no clip, or
      with what the folders of the labels (of the frames, where a split has no labels) hold where there is none at all.
    """
    dataset = DATASETS[spec.name]
    clips = dataset.list_clips(spec)
    if not clips:
        folders = [pair[1 if spec.classes else 0] for pair in dataset.folders(spec)]
        expected = f"labels {dataset.labels}" if spec.classes else "frames"
        return [], [BadFile(_common_folder(folders), expected, near_misses.describe_files(folders))]
    if not spec.list_file:
        return clips, []
    # A SYNTHIA list may hold bare frame numbers, which name a frame as long as there is one sequence.
    by_name = {clip.name: clip for clip in clips}
    bare = collections.defaultdict(list)
    for clip in clips:
        bare[clip.name.rpartition("_")[2]].append(clip)
    similar = {near_misses.same_but_for_numbers(name): name for name in by_name}
    chosen, bad = {}, []
    for name in spec_lib.read_list(spec.list_file):
        matches = [by_name[name]] if name in by_name else bare[name]
        if len(matches) == 1:
            chosen[matches[0].name] = matches[0]
        else:
            near = similar.get(near_misses.same_but_for_numbers(name))
            found = f"{len(matches)} frames of that number" if matches else f"none, but {near}" if near else "none"
            bad.append(BadFile(spec.list_file, f"a {'labelled ' if spec.classes else ''}frame for {name!r}", found))
    return [chosen[name] for name in sorted(chosen)], bad


def check_files(spec, clips, progress, threads=None):
    """Reads every file of the clips completely, and judges the labels as a whole (see `label_checks`).

    Reading here and again while preparing doubles the time spent reading; in return a set is either prepared whole or
    every fault in it is named at once, before hours are spent.

    Args:
      spec: `DatasetSpec`.
      clips: list of `ClipFiles`.
      progress: called with lines of text.
      threads: number of threads; None takes the number of cores.

    Returns:
      (good, bad, raw_size): the clips without faults, the list of `BadFile`, and the (height, width) that the set's
      frames share (the commonest one).

    Raises:
      BadFilesError: the labels of the set are not what they should be: ids of another numbering, or nothing but
        ignored ones. To leave single clips out does not mend that.
    """
    jobs = {}
    for clip in clips:
        files = [("label", clip.label)] if clip.label else []
        files += [("frame", path) for path in clip.frames.values()] + [("flow", path) for path in clip.flows.values()]
        for kind, path in files:
            jobs.setdefault(path, (kind, path, spec.name))
    counter = Progress(progress, f"{spec.name}/{spec.split}: checking files", len(jobs))
    results = {}
    for path, result in zip(jobs, ordered_map(_examine, jobs.values(), threads or os.cpu_count()), strict=True):
        results[path] = result
        counter.step()
    sizes = collections.Counter(results[p].size for p in jobs if jobs[p][0] == "frame" and results[p].size)
    raw_size = sizes.most_common(1)[0][0] if sizes else None
    similar = near_misses.similar_files([p for p, result in results.items() if result.problem == _NO_FILE])
    faults = {}
    for path, (kind, *_) in jobs.items():
        size, problem = results[path].size, results[path].problem
        allowed = {raw_size, spec.size} if kind == "flow" else {raw_size}
        if path in similar:
            problem = f"{_NO_FILE}, but {similar[path]}"
        elif problem is None and raw_size is not None and size not in allowed:
            problem = f"{size[0]}x{size[1]}"
        if problem is not None:
            faults[path] = BadFile(str(path), _expectation(kind, spec, raw_size), problem)
    _check_labels(spec, {p: result.ids for p, result in results.items() if result.ids is not None}, faults, progress)
    turned = sum(result.turned for result in results.values())
    if turned:
        progress(
            f"{spec.name}/{spec.split}: {turned} frames are turned upright as their EXIF orientation says; labels and "
            "flow files have to fit them upright"
        )
    good = [clip for clip in clips if not faults.keys() & set(clip.files)]
    return good, _with_missing_folders(faults), raw_size


def _check_labels(spec, counts, faults, progress):
    """Adds files with other ids to the faults; raises where it is the whole set."""
    fault, files, lines = label_checks.check_labels(spec, counts)
    expected = label_checks.expected_ids(spec.name)
    if fault:
        folder = _common_folder([path.parent for path in counts])
        raise BadFilesError(
            spec,
            [*_with_missing_folders(faults), BadFile(folder, expected, f"in {len(counts)} files {fault}")],
            f"These labels cannot be trained or scored on. Expected {DATASETS[spec.name].label_files}.",
        )
    for path, problem in files.items():
        faults.setdefault(path, BadFile(str(path), expected, problem))
    for line in lines:
        progress(f"{spec.name}/{spec.split}: {line}")


def _common_folder(folders):
    return os.path.commonpath([os.path.abspath(folder) for folder in folders])


def _expectation(kind, spec, raw_size):
    raw = "the frames' size" if raw_size is None else f"{raw_size[0]}x{raw_size[1]}"
    if kind == "frame":
        return f"an image of {raw}, like the set's other frames"
    if kind == "label":
        return f"class ids of {spec.name} at {raw}"
    return f"flow (int16 .npy or .flo) of {raw} (raw frames) or {spec.size[0]}x{spec.size[1]} (training size)"


def _with_missing_folders(faults):
    """Replaces the missing files of a folder that is missing altogether by one line for the folder."""
    kept, folders = [], collections.Counter()
    for path, fault in faults.items():
        if fault.found == _NO_FILE and not path.parent.is_dir():
            folders[path.parent] += 1
        else:
            kept.append(fault)
    return [BadFile(str(path), f"a folder with {n} files", "no such folder") for path, n in folders.items()] + kept
