"""Whether a run can write what it will write, before its first long step."""

import collections
import os
import shutil
import tempfile
from pathlib import Path

from input_pipeline.files import expand


def try_to_write(folder):
    """Makes a file in a folder, or in the nearest one above it that is there, and removes it.

    Raises:
      OSError: that cannot be done; names the folder.
    """
    folder = _existing(folder)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}; the run has to write there", str(folder)) from None


def warn_where_full(expected, progress=print):
    """Says of each disk that may become full what is free and what will be written, roughly.

    Args:
      expected: pairs of a folder, which need not be there yet, and the bytes that will be written below it.
      progress: called with lines of text.
    """
    folders, needed = {}, collections.Counter()
    for folder, count in expected:
        folder = _existing(folder)
        disk = os.stat(folder).st_dev
        folders.setdefault(disk, folder)
        needed[disk] += count
    for disk, count in needed.items():
        free = shutil.disk_usage(folders[disk]).free
        if free < count:
            progress(
                f"the disk of {folders[disk]} may become full: {free / 2**30:.1f} GiB are free, and prepared sets and "
                f"checkpoints take about {count / 2**30:.1f} GiB"
            )


def _existing(folder):
    folder = Path(expand(folder))
    return next(parent for parent in (folder, *folder.parents) if parent.exists())
