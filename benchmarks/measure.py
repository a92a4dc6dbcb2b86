"""What all benchmarks share: command lines, which machine this is, calls that take turns, tables, results as JSON."""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import jax

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MIB, GIB = 2**20, 2**30
LIBRARIES = ("jax", "jaxlib", "libtpu", "flax", "optax", "numpy", "torch")


def parser(text, out=RESULTS):
    """Makes a command line's parser.

    Args:
      text: the module's docstring, which `--help` shows.
      out: default of `--out`, the folder for results; None: no such flag.
    """
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    if out:
        made.add_argument("--out", type=Path, default=out, help="folder for results; default %(default)s")
    return made


def cpu_name():
    """Returns the processor's name as the system gives it, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit(folder=ROOT):
    """Returns the commit of a checkout, followed by `+changes` where tracked files differ; `unknown` outside of one.

    Results of benchmarks do not count as changes: else the second benchmark of a commit would differ from the first.
    """

    def git(*arguments):
        return subprocess.run(
            ("git", "-C", str(folder), *arguments), check=True, capture_output=True, text=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)benchmarks/results")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine():
    """Describes what a figure was measured on and with.

    Returns:
      `device` (JAX's name for its first device), `cpu` (name), `cores` (that this process may use), `versions`
      (library -> version, those that are installed), `commit`.
    """
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "device": jax.devices()[0].device_kind,
        "cpu": cpu_name(),
        "cores": cores,
        "versions": versions,
        "commit": commit(),
    }


def alternate(functions, rounds):
    """Times functions that take turns, so that a machine which grows slower or busier does so for all of them.

    Args:
      functions: name -> function without arguments that returns when its work is done. Each is first called once
        without being counted: compilation, caches.
      rounds: how many times each is timed.

    Returns:
      name -> list of seconds, one for each round.

    Raises:
      ValueError: `rounds` is less than 1.
    """
    if rounds < 1:
        raise ValueError(f"rounds is 1 or more, found {rounds}.")
    for function in functions.values():
        function()
    seconds = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def medians(functions, rounds):
    """As `alternate`, with the median of each function's seconds in the place of the list."""
    return {name: statistics.median(seconds) for name, seconds in alternate(functions, rounds).items()}


def resident_memory(function):
    """Calls a function and returns the process's resident memory before, and its peak meanwhile, in bytes (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is resident now
    before = _status("VmRSS")
    function()
    return before, _status("VmHWM")


def _status(entry):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{entry}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {entry}.")


def answer_of(module, *flags):
    """Runs a module in a process of its own; returns what the last line that it prints holds, JSON.

    Raises:
      RuntimeError: it failed; holds the last line of its errors.
    """
    done = subprocess.run([sys.executable, "-m", module, *map(str, flags)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
    return json.loads(done.stdout.splitlines()[-1])


def markdown(head, rows):
    """Sets a table as Markdown; cells are text."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))


def write(name, content, folder=RESULTS):
    """Writes a benchmark's result as JSON, with `machine()` beside it unless the content says what it ran on.

    Args:
      name: of the benchmark; the file is `name.json`.
      content: dict of what JSON can hold.
      folder: made if it is not there.

    Returns:
      The file's path.
    """
    path = Path(folder) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content if "machine" in content else {"machine": machine(), **content}, indent=1)
    path.write_text(text + "\n")
    return path
