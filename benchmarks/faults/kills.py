"""Signals at random moments in every phase of a run, and a second start beside the first."""

import functools
import re
import signal
import time

from benchmarks.faults import results
from benchmarks.faults.bench import TIMEOUT
from benchmarks.faults.outcome import LEFT, REFUSED, RIGHT, UNNAMED, WRONG, Outcome, classify
from benchmarks.faults.product import Started
from input_pipeline import run_folder

# Each phase begins with a line that matches, and ends with the next one's.
PHASES = {
    "world": re.compile("^devices:"),
    "preparation": re.compile("^viper/train: "),
    "pretraining": re.compile("^source_only  step 1/"),
    "adaptation": re.compile("^stpl  step 1/"),
    "evaluation": re.compile("^stpl  step 6/6"),
    "report": re.compile("^stpl  mIoU "),
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
            name = f"{number.name} in each phase, {i + 1}"
            found[name] = functools.partial(_disturbed_in_each_phase, bench, name, number)
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
    for name, pattern in PHASES.items():
        begins[name] = next((seconds for seconds, text in lines if pattern.search(text)), None)
        if begins[name] is None:
            raise ValueError(f"no line of the undisturbed run begins the phase {name}: {pattern.pattern}")
    ends = [*list(begins.values())[1:], lines[-1][0]]
    return {name: end - begin for (name, begin), end in zip(begins.items(), ends, strict=True)}


def _disturbed_in_each_phase(bench, name, number):
    """One run, which is started again after each signal, and at last left alone."""
    bench.clear()
    if (bench.reference / run_folder.COMPILATION_CACHE).is_dir():
        # Compiled programs do not change the bits, and a minute is saved.
        (bench.run / run_folder.COMPILATION_CACHE).symlink_to(bench.reference / run_folder.COMPILATION_CACHE)
    draw, hits = bench.random(name), 0
    for phase, seconds in durations(bench.lines).items():
        started = Started(*bench.flags())
        began = started.wait_for(PHASES[phase], TIMEOUT)
        if began:
            time.sleep(draw.random() * seconds)
        started.send(number, group=number == signal.SIGINT)
        result, outlived = started.end(_SECONDS_TO_STOP)
        bench.progress(f"  {phase}: code {result.code}, {result.last_line[:100]}")
        hits += result.code != 0
        outcome = _judge(result, number, outlived)
        if outcome.kind != RIGHT:
            return Outcome(outcome.kind, f"{phase}: {outcome.detail}")
    result, outlived = Started(*bench.flags()).end(TIMEOUT)
    outcome = classify(result, results.differing(bench.trained(), results.of_training(bench.run)), named=False)
    if outlived:
        return Outcome(LEFT, "after the end")
    return outcome if outcome.kind != RIGHT else Outcome(RIGHT, f"{hits} of {len(PHASES)} signals met a living run")


def _judge(result, number, outlived):
    """Whether a run ended as it should after a signal; one that had come to its end by then did."""
    if outlived:
        return Outcome(LEFT, "a process of it was alive afterwards")
    outcome = classify(result, right_codes=(0, _CODES[number]))
    if outcome.kind == REFUSED:
        # It failed for another reason than the signal.
        return Outcome(WRONG, f"code {result.code}: {outcome.detail}")
    return outcome


def _two_starts(bench):
    bench.clear()
    first = Started(*bench.flags())
    if not first.wait_for(PHASES["pretraining"], TIMEOUT):
        return Outcome(WRONG, f"the first run ended early: {first.end(1)[0].last_line}")
    # Stopped, so that it is there for as long as the second one takes.
    first.send(signal.SIGSTOP)
    second = bench.forks.run(*bench.flags(), timeout=_SECONDS_TO_STOP)
    first.send(signal.SIGCONT)
    result, outlived = first.end(TIMEOUT)
    outcome = classify(result, results.differing(bench.trained(), results.of_training(bench.run)), named=False)
    if outlived or outcome.kind != RIGHT:
        return Outcome(LEFT, "") if outlived else Outcome(outcome.kind, f"the first run: {outcome.detail}")
    outcome = classify(second, differing=("two runs at once",), named=str(bench.run) in second.output)
    return Outcome(outcome.kind, f"the second run: {outcome.detail}") if outcome.kind != UNNAMED else outcome
