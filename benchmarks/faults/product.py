"""Starting `main.py`: in a process of its own, or in a fork of one that has imported everything, seconds faster."""

import multiprocessing
import os
import queue
import resource
import runpy
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from benchmarks.faults.outcome import Result
from benchmarks.measure import ROOT

CONFIG = "benchmarks/faults/config.py"
# Imported once. None of it asks for a device, which would not survive a fork.
_IMPORTED = (
    "benchmarks.faults.product",
    "stpl_jax.modes",
    "orbax.checkpoint",
    "tensorflow_datasets",
    "sklearn.manifold",
    "matplotlib.pyplot",
)
# After its parent's death, a process may need this long to notice.
_SECONDS_TO_FOLLOW = 15


class Forks:
    """Runs command lines of `main.py` one after the other, each in a fork of a process that has all modules."""

    def __init__(self, output, imported=_IMPORTED):
        """Prepares the process that is forked; it starts with the first command line.

        Args:
          output: file that takes what a command line prints.
          imported: modules that it has.
        """
        self._output = Path(output)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(imported))

    def run(self, *flags, timeout, home=None, largest_file=None):
        """Runs `main.py` with these flags; returns its `Result`.

        Args:
          flags: texts.
          timeout: seconds; a process that has not ended by then is killed, and its `code` is None.
          home: another home folder, or None.
          largest_file: bytes that no file may exceed, the substitute for a full disk; or None.
        """
        self._output.unlink(missing_ok=True)
        arguments = (flags, str(self._output), home and str(home), largest_file)
        process = self._context.Process(target=_main, args=arguments)
        process.start()
        process.join(timeout)
        code = process.exitcode
        if code is None:
            process.kill()
            process.join()
        return Result(code, self._output.read_text(errors="replace") if self._output.is_file() else "")


def _main(flags, output, home, largest_file):
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    if home:
        os.environ["HOME"] = home
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    sys.argv = ["main.py", *flags]
    runpy.run_path("main.py", run_name="__main__")


class Started:
    """`main.py` in a process of its own, with all its descendants in a group of their own."""

    def __init__(self, *flags):
        command = [sys.executable, "-u", "main.py", *flags]
        self.begun = time.monotonic()
        self.lines = []  # (seconds since the start, text)
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        self._arrived = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        # Ends when the last process that holds the other end of the pipe does: with all descendants, not before.
        for line in self._process.stdout:
            self.lines.append((time.monotonic() - self.begun, line.rstrip("\n")))
            self._arrived.put(line)
        self._arrived.put(None)

    def wait_for(self, pattern, timeout):
        """Waits for a line that matches a compiled pattern; returns whether it came before the end."""
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            try:
                line = self._arrived.get(timeout=left)
            except queue.Empty:
                break
            if line is None:
                return False
            if pattern.search(line):
                return True
        return False

    def send(self, number, group=False):
        """Sends a signal to the process, or to its whole group as a terminal does; returns whether it was alive."""
        alive = self._process.poll() is None
        if alive:
            (os.killpg if group else os.kill)(self._process.pid, number)
        return alive

    def end(self, timeout):
        """Waits for the end: (`Result`, whether a descendant outlived the process; all are dead then)."""
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            code = None
            self._process.kill()
            self._process.wait()
        self._reader.join(_SECONDS_TO_FOLLOW)
        outlived = self._reader.is_alive()
        if outlived:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._reader.join(_SECONDS_TO_FOLLOW)
        return Result(code, "\n".join(text for _, text in self.lines)), outlived
