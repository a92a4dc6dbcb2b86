"""What a run writes down as it goes: progress lines, `metrics.jsonl`, TensorBoard scalars."""

import itertools
import json
import statistics
import sys
import time
from pathlib import Path

import tensorboardX

from input_pipeline.files import write_atomically
from input_pipeline.run_folder import METRICS


class RunLog:
    """Scalars of one row's training; only the first process writes.

    A resumed run drops what was written after its checkpoint, so that each step stands once.
    """

    def __init__(self, folder, row, steps, start, clips_per_step, every, enabled=True, progress=print):
        """Opens the log.

        Args:
          folder: where `metrics.jsonl` and TensorBoard's file go.
          row: name that stands before each line.
          steps: the last step.
          start: the step from which training goes on.
          clips_per_step: clips of all devices and processes.
          every: steps between printed lines.
          enabled: False in all processes but the first.
          progress: called with lines of text.
        """
        self.row, self.steps, self.clips_per_step, self.every = row, steps, clips_per_step, every
        self.progress = progress if enabled else (lambda line: None)
        self.timer = None
        self.ends = []  # when each step of this process was done
        self.file = self.board = None
        if enabled:
            path = Path(folder) / METRICS
            path.parent.mkdir(parents=True, exist_ok=True)
            _keep_until(path, start, steps)
            self.path, self.file = path, path.open("a")
            self.board = tensorboardX.SummaryWriter(str(folder), purge_step=start + 1 if start else None)

    def step(self, step, metrics):
        """Writes a step's metrics; prints every `every` steps, and the first and last."""
        now = time.monotonic()
        self.ends.append(now)
        if self.timer is None:
            # The first step holds the compilation: speed is counted from its end.
            self.timer = (now, step)
        self.write(step, metrics)
        if step % self.every and step != self.steps and self.timer[1] != step:
            return
        # The most looked-at first; the rest stands in the files.
        shown = [name for name in metrics if name.startswith("loss/")] + ["learning_rate"]
        parts = [f"{self.row}  step {step}/{self.steps}"]
        parts += [f"{name} {metrics[name]:.4g}" for name in shown if name in metrics]
        seconds, done = now - self.timer[0], step - self.timer[1]
        if done and seconds > 0:
            parts.append(f"{done * self.clips_per_step / seconds:.2f} clips/s")
            parts.append(f"left {_clock((self.steps - step) * seconds / done)}")
        self.progress("  ".join(parts))

    def write(self, step, metrics):
        """Writes scalars without printing them."""
        if self.file is None:
            return
        try:
            self.file.write(json.dumps({"step": step} | metrics) + "\n")
            self.file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        for name, value in metrics.items():
            self.board.add_scalar(name, value, step)

    def seconds_per_step(self):
        """Returns the median time between two steps, so that compilation and validation do not count; or None."""
        pauses = [after - before for before, after in itertools.pairwise(self.ends)]
        return statistics.median(pauses) if pauses else None

    def close(self):
        """Closes the files."""
        if self.file is not None:
            self.file.close()
            self.board.close()


def read_log(path):
    """Reads a row's log; a run that is killed while it writes, or a damaged disk, leaves lines that are none.

    Args:
      path: `metrics.jsonl`.

    Returns:
      (entries, damaged): list of dicts, each with a whole number `step`, and the number of lines that were left out.
    """
    entries, damaged = [], 0
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line.decode())
        except (ValueError, RecursionError):
            entry = None
        if _is_entry(entry):
            entries.append(entry)
        else:
            damaged += 1
    return entries, damaged


def _is_entry(entry):
    """Whether a line has the form that training writes: a step, and numbers, which need not be finite."""
    return isinstance(entry, dict) and type(entry.get("step")) is int and all(map(_is_number, entry.values()))


def _is_number(value):
    # No truth value, and no whole number that does not fit a float.
    return isinstance(value, float) or (type(value) is int and abs(value) <= sys.float_info.max)


def _keep_until(path, start, steps):
    """Drops what a run that goes on from step `start` writes again: later steps, and the score after the last one."""
    entries, _ = read_log(path)
    kept = [
        e
        for e in entries
        if e["step"] <= start and not (e["step"] == steps and any(name.startswith("validation/") for name in e))
    ]
    if path.exists():
        write_atomically(path, "".join(json.dumps(entry) + "\n" for entry in kept))


def _clock(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
