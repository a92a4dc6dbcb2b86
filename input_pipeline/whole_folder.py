"""Folders that a run writes: by one process at a time, and under their name only when they are whole."""

import contextlib
import fcntl
import glob
import os
import secrets
import shutil
from pathlib import Path


@contextlib.contextmanager
def turn_to_write(path, wait=lambda: None):
    """Holds the right to write `path`; another process that wants it waits until the block ends.

    The system gives the right back when a process dies, however it does.

    Args:
      path: file or folder that is about to be written; its parent folder is made if it is missing.
      wait: called without arguments if another process has the right now.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.parent / f".{path.name}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            wait()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def whole_folder(path):
    """Gives a new folder beside `path`; when the block ends, it takes `path`'s name.

    To be called within `turn_to_write(path)`: what killed runs have left beside it is then nobody's, and is removed. A
    process of theirs that should still live writes into its own run's folder, and never into this one. An exception in
    the block removes the new folder.

    Args:
      path: folder that is not there yet, or is empty.

    Yields:
      `Path` of the new folder.

    Raises:
      OSError: it cannot be made, or does not fit `path`.
    """
    path = Path(path)
    for leftover in path.parent.glob(f"{glob.escape(path.name)}.*.unfinished"):
        shutil.rmtree(leftover, ignore_errors=True)
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(4)}.unfinished")
    unfinished.mkdir()
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
