"""Processes that this program starts: they end with it, and leave it to decide about signals."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading

# A process that is told to end by SIGTERM leaves its parent this long to finish what it is at.
_SECONDS_AFTER_SIGTERM = 30.0


def end_with_parent():
    """To be called first thing in a process that `multiprocessing` has started: it will not outlive its parent.

    The parent holds one end of a pipe, which the system closes however the parent dies, SIGKILL included. Ctrl-C,
    which reaches all processes of a terminal, is left to the parent, so that one of them answers.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
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
