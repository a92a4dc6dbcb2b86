"""Full disks in each phase that writes; then space is made, and the same command goes on."""

import contextlib
import functools
import os
import subprocess

from benchmarks.faults import results
from benchmarks.faults.bench import REPORT, TIMEOUT
from benchmarks.faults.outcome import RIGHT, WANTED, Outcome, classify
from input_pipeline import run_folder

_PAGE = 4096
_ROW = (f"stpl/{run_folder.CHECKPOINTS}", f"stpl/{run_folder.EVALUATION}", f"stpl/{run_folder.METRICS}")
# Phase -> what it writes, and what else is not there yet when it begins.
_PHASES = {
    "world": (("world",), ("data", "source_only", "stpl", *REPORT)),
    "preparation": (("data",), ("source_only", "stpl", *REPORT)),
    "checkpoint": (_ROW[:1], (*_ROW[1:], *REPORT)),
    "report": (REPORT, ()),
    "flow": (("flow",), ("data", "source_only", "stpl", *REPORT)),
    "predict": (("output",), ()),
}


def cases(bench, count):
    """Returns name -> function that returns an `Outcome`: `count` fillings of the disk for each phase."""
    names = [(phase, i) for i in range(count) for phase in _PHASES]
    return {f"{phase}, {i + 1}": functools.partial(_full, bench, f"{phase}, {i + 1}", phase) for phase, i in names}


def _flags(bench, phase):
    if phase == "flow":
        return bench.flags("--config.flow.files=write", mode="flow")
    if phase == "predict":
        return bench.flags(f"--input={bench.video()}", f"--output={bench.run / 'output'}", mode="predict")
    return bench.flags()


def _read(bench, phase):
    if phase == "flow":
        return results.of_flow(bench.run)
    if phase == "predict":
        return results.of_prediction(bench.run / "output")
    return results.of_training(bench.run)


def _begin(bench, phase):
    written, later = _PHASES[phase]
    bench.restore((*written, *later))


def _undisturbed(bench, phase):
    """Returns (results of the phase, bytes that it writes in all and in its largest file)."""

    def measured():
        if phase in ("flow", "predict"):
            _begin(bench, phase)
            result = bench.forks.run(*_flags(bench, phase), timeout=TIMEOUT)
            if result.code:
                raise RuntimeError(f"{phase} fails on a disk with space: {result.output}")
            folder, found = bench.run, _read(bench, phase)
        else:
            folder, found = bench.reference, bench.trained()
        sizes = [size for name in _PHASES[phase][0] for size in _sizes(folder / name)]
        return found, sum(-(-size // _PAGE) * _PAGE for size in sizes), max(sizes)

    return bench.expected(f"disks/{phase}", measured)


def _sizes(path):
    files = path.rglob("*") if path.is_dir() else [path]
    return [file.stat().st_size for file in files if file.is_file()]


def _full(bench, name, phase):
    expected, total, largest = _undisturbed(bench, phase)
    share = bench.random(name).random()
    with _small_disk(bench) as limit_to:
        _begin(bench, phase)
        if limit_to:
            limit_to(share * total)
        largest_file = None if limit_to else int(share * largest)
        full = bench.forks.run(*_flags(bench, phase), timeout=TIMEOUT, largest_file=largest_file)
        # It may have been able to do without what did not fit: a cache.
        differing = () if full.code else results.differing(expected, _read(bench, phase))
        first = classify(full, differing, named=str(bench.run) in full.output)
        if limit_to:
            limit_to(None)
        again = bench.forks.run(*_flags(bench, phase), timeout=TIMEOUT)
        second = classify(again, results.differing(expected, _read(bench, phase)), named=False)
    if first.kind not in WANTED:
        return Outcome(first.kind, f"full: {first.detail}")
    return first if second.kind == RIGHT else Outcome(second.kind, f"with space again: {second.detail}")


@contextlib.contextmanager
def _small_disk(bench):
    """Mounts a disk of its own at the run's folder, where that is allowed.

    Yields:
      A function of how many bytes shall be free, or None for plenty; None where nothing may be mounted.
    """
    bench.clear()
    mounted = os.geteuid() == 0 and _quiet("mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", str(bench.run))

    def limit_to(free):
        used = os.statvfs(bench.run)
        size = (used.f_blocks - used.f_bfree) * used.f_frsize + free if free is not None else 1 << 30
        subprocess.run(["mount", "-o", f"remount,size={int(size)}", str(bench.run)], check=True)

    try:
        yield limit_to if mounted else None
    finally:
        unmount(bench.run)


def _quiet(*command):
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


def unmount(path):
    """Unmounts the disk that a campaign which was killed has left at a path."""
    if os.path.ismount(path):
        subprocess.run(["umount", "-l", str(path)], check=True)
