"""One run at a time in a run's folder."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
from pathlib import Path

from input_pipeline import run_folder
from input_pipeline.errors import UserError

# A process shows that it lives by changing the file's time this often. A file of another host is watched for as long as
# three such signs take, unless its time is so old that clocks cannot differ by as much.
_BEAT_SECONDS = 10.0
_WATCH_SECONDS = 30.0
_OLD_SECONDS = 3600.0
# File systems that cannot lock say one of these.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class RunLocked(UserError):
    """Another process is at work in the run's folder."""


@contextlib.contextmanager
def run_lock(workdir, progress=print, name=run_folder.LOCK, flag="--workdir"):
    """Keeps other processes out of a run's folder, or a folder of results, while it is entered.

    The kernel's lock on `<workdir>/lock` ends with the process, however that ends, so that none is left by a kill. A
    network file system may not show it on another host: so the file also names its holder's host and process, and its
    time shows when the holder last lived.

    Args:
      workdir: the run's folder; made if it is missing.
      progress: called with a line of text where a dead process's lock is taken over.
      name: of the file in the folder.
      flag: the one that names the folder, for the message.

    Yields:
      Nothing.

    Raises:
      RunLocked: names the other's host and process.
      OSError: the folder cannot be written to.
    """
    path, ways = Path(workdir) / name, _WAYS.format(flag)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        alone = _flock(handle)
        _refuse_if_held(path, handle, alone, progress, ways)
        mine = {"host": socket.gethostname(), "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(mine).encode(), 0)
        ended = threading.Event()
        beat = threading.Thread(target=_beat, args=(handle, ended), daemon=True)
        beat.start()
        try:
            yield
        finally:
            ended.set()
            beat.join()
            os.ftruncate(handle, 0)
    finally:
        os.close(handle)


def _flock(handle):
    """Whether this process alone holds the kernel's lock; None where the file system has none."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def _refuse_if_held(path, handle, alone, progress, ways):
    holder = _holder(handle)
    if holder is None:
        if alone is False:
            raise RunLocked(f"{path.parent}: another process is at work here and has not said which. {ways}")
        return
    who = f"process {holder['process']} on {holder['host']}, since {holder['since']}"
    if alone is False:
        raise RunLocked(f"{path.parent} is in use by {who}. {ways}")
    if holder["host"] == socket.gethostname():
        held = alone is None and _lives(holder["process"])
    else:
        held = _shows_life(handle, lambda: progress(f"{path.parent} was in use by {who}: watching whether it lives"))
    if held:
        raise RunLocked(f"{path.parent} is in use by {who}. {ways} If that process is gone, delete {path}.")
    progress(f"{path.parent} was in use by {who}, which has ended without saying so: taken over")


def _shows_life(handle, tell):
    """Whether the lock's time changes while it is watched."""
    before = os.fstat(handle).st_mtime_ns
    if time.time() - before / 1e9 > _OLD_SECONDS:
        return False
    tell()
    deadline = time.monotonic() + _WATCH_SECONDS
    while time.monotonic() < deadline:
        time.sleep(min(1.0, _WATCH_SECONDS / 10))
        if os.fstat(handle).st_mtime_ns != before:
            return True
    return False


_WAYS = "Two runs would overwrite each other's results: wait for it, stop it, or give another {}."


def _holder(handle):
    try:
        found = json.loads(os.pread(handle, 4096, 0))
        return {key: found[key] for key in ("host", "process", "since")}
    except (ValueError, TypeError, KeyError):
        # Nobody, or one that was killed while it wrote its name.
        return None


def _lives(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, TypeError, OverflowError):
        return True
    return True


def _beat(handle, ended):
    while not ended.wait(_BEAT_SECONDS):
        os.utime(handle)
