"""Processes that this program starts: they end with it, and leave it to decide about signals."""

import multiprocessing
import multiprocessing.connection
import multiprocessing.resource_tracker
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

# A process that is told to end by SIGTERM leaves its parent this long to finish what it is at.
_SECONDS_AFTER_SIGTERM = 30.0


def without_interrupts(function, *arguments):
    """Calls a function; processes that are started within do not hear Ctrl-C, from their first moment on.

    It reaches all processes of a terminal, and one of them is to answer. They inherit what a thread is deaf to, so the
    function is called in a thread of its own; this one hears on.

    Returns:
      What the function returns.
    """
    # Python's own helper comes first: as it starts, it makes the thread hear again.
    multiprocessing.resource_tracker.ensure_running()
    deaf = (signal.SIG_BLOCK, {signal.SIGINT})
    with ThreadPoolExecutor(1, initializer=signal.pthread_sigmask, initargs=deaf) as pool:
        return pool.submit(function, *arguments).result()


def end_with_parent():
    """To be called first thing in a process that `multiprocessing` has started: it will not outlive its parent.

    The parent holds one end of a pipe, which the system closes however the parent dies, SIGKILL included. Ctrl-C is
    left to the parent, see `without_interrupts`.
    """
    sentinel = multiprocessing.parent_process().sentinel
    threading.Thread(target=_exit_after, args=(sentinel,), name="end_with_parent", daemon=True).start()


def serve_parent(index, count):
    """As `end_with_parent`, for workers of Grain: one that gets SIGTERM goes on until the parent has saved its state.

    Job schedulers send the signal to all processes of a job. It is bounded: who is only told to end must do so.

    Args:
      index, count: which worker this is, as Grain tells it.
    """
    del index, count
    end_with_parent()
    signal.signal(signal.SIGTERM, _end_later)


def _exit_after(sentinel):
    multiprocessing.connection.wait([sentinel])
    # Not sys.exit: the main thread may wait for a parent that is gone, and buffers hold nothing that anybody reads.
    os._exit(1)


def _end_later(number, frame):
    del number, frame
    timer = threading.Timer(_SECONDS_AFTER_SIGTERM, os._exit, (128 + signal.SIGTERM,))
    timer.daemon = True
    timer.start()
