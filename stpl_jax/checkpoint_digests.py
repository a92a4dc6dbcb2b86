"""Digests of what a checkpoint holds: of every array and of `meta`, stored in `meta`; of every file, beside the items.

The first are taken from the values in memory and compared with the values that were restored. The second are taken when
all files are written, and compared before anything reads them: they name the file, and no library sees damaged bytes.
"""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from input_pipeline.files import write_atomically

KEY = "digests"  # of `meta`
FILES = "files.json"


def add(meta, items):
    """Returns `meta` with digests.

    Args:
      meta: JSON-able dict.
      items: name of an item -> name -> numpy array.

    Returns:
      `meta` with `digests`: for each item name -> digest, and `meta`, the digest of all else.
    """
    return meta | {KEY: {item: of_arrays(arrays) for item, arrays in items.items()} | {"meta": of_json(meta)}}


def of_arrays(arrays):
    """Digests arrays: name -> numpy array to name -> text, another one for other values, dtype or shape."""

    def digest(array):
        found = _new(f"{array.dtype.name} {array.shape} ".encode())
        found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        return found.hexdigest()

    return dict(zip(arrays, _in_threads(digest, arrays.values()), strict=True))


def of_json(value):
    """Digests what JSON can hold; the order of keys does not count."""
    # Once through JSON first: tuples become lists, as they do in the file.
    return _new(json.dumps(json.loads(json.dumps(value)), sort_keys=True).encode()).hexdigest()


def differing(stored, arrays):
    """Compares an item's arrays with its digests.

    Args:
      stored: name -> digest.
      arrays: name -> numpy array.

    Returns:
      Lines of text, one for each array that is missing, too many or another one.
    """
    found = of_arrays(arrays)
    problems = dict.fromkeys(stored, "missing") | dict.fromkeys(found, "not expected")
    problems |= dict.fromkeys(stored.keys() & found.keys(), "other values than were saved")
    return [f"{name}: {what}" for name, what in sorted(problems.items()) if stored.get(name) != found.get(name)]


def write_files(folder):
    """Writes `files.json` into a checkpoint's folder: size and digest of every file of its items."""
    folder = Path(folder)
    # What stands beside the items is Orbax's own, which it may still write.
    files = [path for path in sorted(folder.glob("*/**/*")) if path.is_file()]
    entries = {
        path.relative_to(folder).as_posix(): [path.stat().st_size, digest]
        for path, digest in zip(files, _in_threads(_of_file, files), strict=True)
    }
    write_atomically(folder / FILES, json.dumps({"files": entries, "digest": of_json(entries)}, indent=1))


def damaged_files(folder, items):
    """Compares a checkpoint's files with `files.json`.

    Args:
      folder: the checkpoint's.
      items: names of the items to look at.

    Returns:
      Lines of text, one for each file that is missing, cut or another one; None where there is no `files.json`.
    """
    folder = Path(folder)
    try:
        listed = json.loads((folder / FILES).read_text())
        entries = {name: (int(size), digest) for name, (size, digest) in listed["files"].items()}
        whole = listed["digest"] == of_json(listed["files"])
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError, IsADirectoryError):
        whole = False
    if not whole:
        return [f"{FILES}: cut, or other bytes than were written"]

    def problem(name):
        size, digest = entries[name]
        if not (folder / name).is_file():
            return f"{name}: missing"
        found = (folder / name).stat().st_size
        if found != size:
            return f"{name}: expected {size:,} bytes, found {found:,}"
        return None if _of_file(folder / name) == digest else f"{name}: other bytes than were written"

    wanted = [name for name in entries if name.split("/")[0] in items]
    return [line for line in _in_threads(problem, wanted) if line]


def _of_file(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, _new).hexdigest()


def _new(start=b""):
    # 128 bits of BLAKE2b: where the processor has no instructions for SHA, it takes half the time of SHA-256.
    return hashlib.blake2b(start, digest_size=16)


def _in_threads(function, values):
    # Hashing and reading let other threads run.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(function, values))
