"""What all benchmarks share: which machine this is, calls that take turns, results as JSON."""

import importlib.metadata
import json
import os
import platform
import subprocess
import time
from pathlib import Path

import jax

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
LIBRARIES = ("jax", "jaxlib", "libtpu", "flax", "optax", "numpy", "torch")


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
