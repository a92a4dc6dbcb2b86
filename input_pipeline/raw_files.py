"""The raw files that a set is prepared from: their names, sizes, times and digests, and how they differ later.

A file is named by where it lies: `raw_dir/train/img/001/001_00010.jpg`, `flow_dir/001_0001000009_int16_x10.npy`. So a
raw folder that moves keeps its names.
"""

import dataclasses
import hashlib
import json
import os
from concurrent import futures

from input_pipeline import spec as spec_lib
from input_pipeline.builders import checks

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
    roots = [("raw_dir", os.path.abspath(spec.raw_dir)), ("flow_dir", os.path.abspath(spec.flow_dir))]
    files = {}
    for clip in clips:
        for path in (clip.label, *clip.frames.values(), *clip.flows.values()):
            path = os.path.abspath(path)
            files[_name(path, roots)] = path
    return files


def name_of(spec, path):
    """Returns the name of one file, as `files_of` has it."""
    roots = [("raw_dir", os.path.abspath(spec.raw_dir)), ("flow_dir", os.path.abspath(spec.flow_dir))]
    return _name(os.path.abspath(path), roots)


def _name(path, roots):
    for name, root in roots:
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
    counter, found = checks.Progress(progress, what, len(files)), {}
    for name, digest in zip(files, checks.ordered_map(_digest, files.values(), threads), strict=True):
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


def content_digest(spec, found):
    """Digests what a set is made of: the same for the same files in another place.

    Args:
      spec: `DatasetSpec`.
      found: dict of name -> digest or None, of all its files.

    Returns:
      Hexadecimal text.
    """
    content = [spec_lib.content(spec), sorted(found.items())]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
