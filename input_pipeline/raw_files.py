"""The raw files that a set is prepared from: their names, sizes, times and digests, and how they differ later.

A file is named by where it lies: `raw_dir/train/img/001/001_00010.jpg`, `flow_dir/001_0001000009_int16_x10.npy`. So a
raw folder that moves keeps its names.
"""

import collections
import dataclasses
import hashlib
import json
import os
from concurrent import futures

from input_pipeline.ordered_map import ordered_map
from input_pipeline.progress import Progress

# Asking a network disk for sizes and times is waiting, not work.
_STAT_THREADS = 16
_CHUNK = 256


@dataclasses.dataclass(frozen=True)
class Differences:
    """How the files of a set differ from those that it was prepared from; each a list of names, sorted.

    Attributes:
      added: files that were missing, or not part of the set.
      removed: files that are missing now, or no longer part of the set.
      resized: files of another size.
      touched: files of the same size and another time, whose content may or may not be the same.
    """

    added: list[str]
    removed: list[str]
    resized: list[str]
    touched: list[str]


def files_of(spec, clips):
    """Names the files of clips.

    Args:
      spec: `DatasetSpec`.
      clips: list of `ClipFiles`.

    Returns:
      dict of name -> path as text, in the order of the clips; the files need not exist.
    """
    return {name_of(spec, path): os.path.abspath(path) for clip in clips for path in clip.files}


def name_of(spec, path):
    """Returns the name of one file, as `files_of` has it."""
    path = os.path.abspath(path)
    for name, root in (("raw_dir", os.path.abspath(spec.raw_dir)), ("flow_dir", os.path.abspath(spec.flow_dir))):
        if path.startswith(root + os.sep):
            return name + path[len(root) :]
    return path


def sizes_and_times(files):
    """Asks for the size and the time of files; nothing is read.

    Args:
      files: dict of name -> path.

    Returns:
      dict of name -> (bytes, time of the last change in ns), or None for a file that is missing.
    """
    paths = list(files.values())
    chunks = [paths[i : i + _CHUNK] for i in range(0, len(paths), _CHUNK)]
    with futures.ThreadPoolExecutor(_STAT_THREADS) as pool:
        found = [entry for entries in pool.map(lambda chunk: [_stat(p) for p in chunk], chunks) for entry in entries]
    return dict(zip(files, found, strict=True))


def _stat(path):
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_size, found.st_mtime_ns


def digests(files, progress, what, threads):
    """Digests the content of files.

    Args:
      files: dict of name -> path.
      progress: called with lines of text.
      what: beginning of these lines.
      threads: number of threads.

    Returns:
      dict of name -> hexadecimal text, or None for a file that is missing.
    """
    counter, found = Progress(progress, what, len(files)), {}
    for name, digest in zip(files, ordered_map(_digest, files.values(), threads), strict=True):
        found[name] = digest
        counter.step()
    return found


def _digest(path):
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return None


def differences(before, now):
    """Compares sizes and times.

    Args:
      before: dict of name -> (bytes, time, ...) or None, of the files that a set was prepared from.
      now: the same of the files that it would be prepared from.

    Returns:
      `Differences`.
    """
    there = {name for name, entry in before.items() if entry}
    here = {name for name, entry in now.items() if entry}
    both = sorted(there & here)
    return Differences(
        added=sorted(here - there),
        removed=sorted(there - here),
        resized=[name for name in both if before[name][0] != now[name][0]],
        touched=[name for name in both if before[name][0] == now[name][0] and before[name][1] != now[name][1]],
    )


def feature_digests(spec, clips, found):
    """Digests what each feature of a set is made of: the same for the same files in another place.

    Args:
      spec: `DatasetSpec`.
      clips: list of `ClipFiles` that the set holds.
      found: dict of name -> digest, of all their files.

    Returns:
      dict of feature (`label`, `frame_0`, `flow_0_1`, …) -> hexadecimal text; without flow that is made of frames.
    """
    files = collections.defaultdict(list)
    for clip in clips:
        features = {f"frame_{k}": path for k, path in clip.frames.items()}
        features |= {f"flow_{a}_{b}": path for (a, b), path in clip.flows.items()}
        for feature, path in (features | ({"label": clip.label} if clip.label else {})).items():
            name = name_of(spec, path)
            files[feature].append([clip.name, name, found[name]])
    return {feature: hashlib.sha256(json.dumps(entries).encode()).hexdigest() for feature, entries in files.items()}
