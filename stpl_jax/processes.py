"""Several processes that run one program: how they find each other, wait for the first one, and fail together.

Work on the devices is shared by `parallel`. What one process does for all (preparing a set, writing a report) can take
hours; the others wait for it through JAX's coordination service, because a collective on the devices that waits as
long is taken for a failure. Every process has to call these functions in the same order.
"""

import itertools
import json
import time
from pathlib import Path

import jax
from jax._src import distributed  # its client, which Orbax uses too, has no public name

from input_pipeline.errors import UserError

# A process that fails alone waits this long for the others to come to their end, too; then all are ended.
SHUTDOWN_SECONDS = 60
_WAIT_MILLISECONDS = 7 * 24 * 3600 * 1000
# How long a file that the first process wrote may stay unseen: network file systems remember what was not there.
_FILE_SECONDS = 60

_numbers = itertools.count()


class ProcessError(UserError):
    """Processes that do not fit together, or another process that failed."""


def start(coordinator=None, count=None, index=None, detect=False, progress=print):
    """Joins the other processes of the run; to be called before anything asks for a device.

    With nothing given, there is one process.

    Args:
      coordinator: HOST:PORT of the first process, the same everywhere.
      count: number of processes.
      index: number of this process, 0 to count - 1.
      detect: leave all of that to JAX, which finds it on TPU slices, under Slurm, Open MPI and Kubernetes.
      progress: called with a line of text, in every process.

    Raises:
      ProcessError: half of it is given, nothing is detected, or the processes have different numbers of devices.
    """
    given = (coordinator, count, index)
    if not detect and given == (None, None, None):
        return
    if detect and given != (None, None, None):
        raise ProcessError("--distributed finds out what --coordinator, --processes and --process_id say: give either.")
    if not detect and (None in given or ":" not in coordinator or not 0 <= index < count):
        raise ProcessError(
            "--coordinator=HOST:PORT, --processes and 0 <= --process_id < --processes go together; found "
            f"coordinator={coordinator}, processes={count}, process_id={index}. On a TPU slice or under Slurm, "
            "--distributed finds them out."
        )
    who = "a process" if detect else f"process {index} of {count}"
    progress(f"{who} looks for the others" + ("" if detect else f" at {coordinator}") + ", 5 minutes at most")
    # SIGTERM is the training loop's, which agrees with the other processes by itself.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            cluster_detection_method=None if detect else "deactivate",
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except ValueError as error:
        raise ProcessError(
            f"--distributed found no cluster here ({error}). It knows TPU slices, Slurm steps (srun), Open MPI and "
            "Kubernetes; elsewhere give --coordinator=HOST:PORT --processes=N --process_id=I."
        ) from error
    counts = [sum(d.process_index == i for d in jax.devices()) for i in range(jax.process_count())]
    if len(set(counts)) > 1:
        raise ProcessError(f"Every process needs the same number of devices; processes 0, 1, ... have {counts}.")


def is_first():
    """Whether this is the process that writes and prints."""
    return jax.process_index() == 0


def in_turn(function):
    """Calls `function` in the first process and, once it has returned there, in the others; returns its value.

    Raises:
      ProcessError: in the others, when it failed in the first.
    """
    done = []
    from_first(lambda: done.append(function()))
    return done[0] if done else function()


def from_first(function):
    """Calls `function` in the first process only, and returns its value, which JSON can hold, in all.

    Raises:
      ProcessError: in the others, when it failed in the first.
    """
    if jax.process_count() == 1:
        return function()
    if is_first():
        return _told(function, share=True)[1]
    return _heard(next(_numbers), 0)


def all_or_none(function):
    """Calls `function` in every process, and returns its value once it has returned in all.

    Raises:
      ProcessError: where it did not fail itself, when it failed elsewhere.
    """
    if jax.process_count() == 1:
        return function()
    number, value = _told(function)
    for index in range(jax.process_count()):
        _heard(number, index)
    return value


def check_together(file, settings):
    """Checks that the processes are one run: same settings, and one file system that all of them see.

    Args:
      file: `config.json` in the run's folder, as the first process has written it.
      settings: what this process expects in it.

    Raises:
      ProcessError: in all processes; says what differs.
    """

    if jax.process_count() == 1:
        return

    def check():
        if settings != first:
            mine, other = settings.splitlines(), first.splitlines()
            differing = [f"{b.strip()} here, {a.strip()} there" for a, b in zip(other, mine, strict=False) if a != b]
            raise ProcessError(
                f"Process {jax.process_index()} was started with other settings than process 0: "
                + "; ".join(differing[:5] or ["other keys"])
            )
        deadline = time.monotonic() + _FILE_SECONDS
        while not (file.is_file() and file.read_text() == settings):
            if time.monotonic() > deadline:
                raise ProcessError(
                    f"Process {jax.process_index()} does not see {file} as process 0 wrote it: --workdir must be on a "
                    "file system that all processes share."
                )
            time.sleep(1)

    file = Path(file).absolute()
    first = from_first(lambda: settings)
    all_or_none(check)


def _key(number, index):
    return f"stpl_jax/{number}/{index}"


def _told(function, share=False):
    """Calls `function` and tells the others how it went, and its value if they `share` it."""
    number, client = next(_numbers), distributed.global_state.client
    key = _key(number, jax.process_index())
    try:
        value = function()
    except BaseException as error:
        client.key_value_set(key, json.dumps({"error": f"{type(error).__name__}: {error}"}))
        raise
    client.key_value_set(key, json.dumps({"value": value if share else None}))
    return number, value


def _heard(number, index):
    found = json.loads(distributed.global_state.client.blocking_key_value_get(_key(number, index), _WAIT_MILLISECONDS))
    if "error" in found:
        raise ProcessError(f"Process {index} failed: {found['error']}")
    return found["value"]
