"""Signals at random moments in every phase of a run, and a second start beside the first."""

import dataclasses
import functools
import re
import signal
import time

from benchmarks.faults import results
from benchmarks.faults.bench import REPORT, TIMEOUT
from benchmarks.faults.outcome import LEFT, REFUSED, RIGHT, WRONG, Outcome, classify
from benchmarks.faults.product import Started


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of a run.

    Attributes:
      begins: matches the line that it begins with; it ends with the next phase's.
      later: what an undisturbed run has, and one that is about to begin this phase has not.
    """

    begins: re.Pattern
    later: tuple[str, ...]


PHASES = {
    "world": Phase(re.compile("^devices:"), ("world", "data", "source_only", "stpl", *REPORT)),
    "preparation": Phase(re.compile("^viper/train: "), ("data", "source_only", "stpl", *REPORT)),
    "pretraining": Phase(re.compile("^source_only  step 1/"), ("source_only", "stpl", *REPORT)),
    "adaptation": Phase(re.compile("^stpl  step 1/"), ("stpl", *REPORT)),
    "evaluation": Phase(re.compile("^stpl  step 6/6"), ("stpl/checkpoints/6", "stpl/evaluation.json", *REPORT)),
    "report": Phase(re.compile("^stpl  (mIoU .*last step|is done)"), REPORT),
}
# Of a run that did as it was told.
_CODES = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 128 + signal.SIGTERM, signal.SIGINT: 128 + signal.SIGINT}
_SECONDS_TO_STOP = 120


def cases(bench, count):
    """Returns name -> function without arguments that returns an `Outcome`.

    Args:
      bench: `Bench`.
      count: of runs that are killed in each phase; a third as many are told to stop by SIGTERM, and by SIGINT.
    """
    found = {}
    for number, times in ((signal.SIGKILL, count), (signal.SIGTERM, -(-count // 3)), (signal.SIGINT, -(-count // 3))):
        for i in range(times):
            for phase in PHASES:
                name = f"{number.name} in {phase}, {i + 1}"
                found[name] = functools.partial(_disturbed, bench, name, number, phase)
    found["two starts in one folder"] = functools.partial(_two_starts, bench)
    return found


def durations(lines):
    """Returns how long each phase took: name -> seconds.

    Args:
      lines: (seconds, text) of an undisturbed run.

    Raises:
      ValueError: a phase has no line that begins it.
    """
    begins = {}
    for name, phase in PHASES.items():
        begins[name] = next((seconds for seconds, text in lines if phase.begins.search(text)), None)
        if begins[name] is None:
            raise ValueError(f"no line of the undisturbed run begins the phase {name}: {phase.begins.pattern}")
    ends = [*list(begins.values())[1:], lines[-1][0]]
    return {name: end - begin for (name, begin), end in zip(begins.items(), ends, strict=True)}


def _disturbed(bench, name, number, phase):
    """A run that gets a signal in a phase, and is started again."""
    bench.restore(PHASES[phase].later)
    # A decoding process, so that there is one that could be left over. It does not change the bits.
    started = Started(*bench.flags("--config.data.workers=1"))
    if not started.wait_for(PHASES[phase].begins, TIMEOUT):
        return Outcome(WRONG, f"the phase did not begin: {started.end(1)[0].error_line}")
    time.sleep(bench.random(name).random() * durations(bench.lines)[phase])
    met = started.send(number, group=number == signal.SIGINT)
    result, outlived = started.end(_SECONDS_TO_STOP)
    (bench.workdir / "output.txt").write_text(result.output)
    # At the end of the last phase a run may come to its end all the same.
    stopped = judge(result, number, outlived, met and phase != "report")
    if stopped.kind != RIGHT:
        return stopped
    again = bench.forks.run(*bench.flags(), timeout=TIMEOUT)
    outcome = classify(again, results.differing(bench.trained(), results.of_training(bench.run)), named=False)
    if outcome.kind == REFUSED:
        outcome = Outcome(WRONG, f"the second start: {outcome.detail}")
    return outcome if outcome.kind != RIGHT else Outcome(RIGHT, f"code {result.code}, last line: {result.last_line}")


def judge(result, number, outlived, met):
    """Whether a run ended as it should after a signal.

    Args:
      result: `Result`.
      number: of the signal.
      outlived: whether a process of the run was alive afterwards.
      met: whether the signal came when there was work left.

    Returns:
      An `Outcome`; `RIGHT` for a run that stopped with the signal's exit code, or was done before.
    """
    if outlived:
        return Outcome(LEFT, "a process of it was alive afterwards")
    if met and result.code == 0:
        return Outcome(WRONG, "the signal was ignored")
    outcome = classify(result, right_codes=(0, _CODES[number]))
    if outcome.kind == REFUSED:
        # It failed for another reason than the signal.
        return Outcome(WRONG, f"code {result.code}: {outcome.detail}")
    return outcome


def _two_starts(bench):
    bench.restore(PHASES["pretraining"].later)
    first = Started(*bench.flags())
    if not first.wait_for(PHASES["pretraining"].begins, TIMEOUT):
        return Outcome(WRONG, f"the first run ended early: {first.end(1)[0].error_line}")
    # Stopped, so that it is there for as long as the second one takes.
    first.send(signal.SIGSTOP)
    second = bench.forks.run(*bench.flags(), timeout=_SECONDS_TO_STOP)
    first.send(signal.SIGCONT)
    result, outlived = first.end(TIMEOUT)
    if outlived:
        return Outcome(LEFT, "a process of the first run was alive afterwards")
    outcome = classify(result, results.differing(bench.trained(), results.of_training(bench.run)), named=False)
    if outcome.kind != RIGHT:
        return Outcome(outcome.kind, f"the first run: {outcome.detail}")
    outcome = classify(second, ("it ran beside the first",), named=second.code != 0 and str(bench.run) in second.output)
    return Outcome(outcome.kind, f"the second run: {outcome.detail}")
