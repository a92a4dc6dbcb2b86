"""A campaign of faults: kills, full disks, damaged files, flipped bits, wrong command lines. All on a run of seconds.

    python -m benchmarks.faults --workdir=runs/faults
    python -m benchmarks.faults --workdir=runs/faults --part=commands,flips --count=20
    python -m benchmarks.faults --workdir=runs/faults --case='kills: two starts in one folder'

Prints how each case ended, a table, and for each case that did not end as it should the command that repeats it; writes
the same to `faults.json`. Ends with 1 if there is such a case. Without `--count` it takes two hours or so on two CPU
cores.
"""

import argparse
import os
import shlex
import sys
import time
import traceback
from pathlib import Path

import jax

from benchmarks import measure
from benchmarks.faults import commands, damages, disks, kills
from benchmarks.faults.bench import Bench
from benchmarks.faults.outcome import STACK, WANTED, Outcome, table

# Part -> (its cases, how many there are if nobody says: of runs, of fillings, of files, of bits; all command lines).
PARTS = {
    "kills": (kills.cases, 7),
    "disks": (disks.cases, 3),
    "damages": (damages.cases, 200),
    "flips": (damages.flips, 80),
    "commands": (commands.cases, None),
}


def run_cases(cases, progress=print):
    """Runs cases one after the other.

    Args:
      cases: name -> function that returns an `Outcome`.
      progress: called with lines of text.

    Returns:
      name -> `Outcome`; a case of which the campaign itself could not make one counts as a stack trace.
    """
    outcomes = {}
    for number, (name, run) in enumerate(cases.items(), 1):
        started = time.monotonic()
        try:
            outcomes[name] = run()
        except Exception as error:  # the others are wanted all the same
            traceback.print_exc()
            outcomes[name] = Outcome(STACK, f"in the campaign itself: {type(error).__name__}: {error}")
        seconds, outcome = time.monotonic() - started, outcomes[name]
        progress(f"{number}/{len(cases)}  {name}: {outcome.kind}  {outcome.detail[:160]}  ({seconds:.0f} s)")
    return outcomes


def failures(outcomes, workdir, seed):
    """Returns (case, `Outcome`, command that repeats it) of each case that did not end as it should."""
    found = []
    for part, cases in outcomes.items():
        for name, outcome in cases.items():
            if outcome.kind not in WANTED:
                case = shlex.quote(f"--case={part}: {name}")
                command = f"python -m benchmarks.faults --workdir={shlex.quote(str(workdir))} --seed={seed} {case}"
                found.append((f"{part}: {name}", outcome, command))
    return found


def _chosen(bench, arguments):
    if arguments.case:
        part, _, name = arguments.case.partition(": ")
        if part not in PARTS:
            raise SystemExit(f"--case is PART: NAME, with one of {', '.join(PARTS)}; found {arguments.case!r}.")
        # The largest number holds all names that smaller ones have.
        function, _ = PARTS[part]
        cases = function(bench, None if part == "commands" else 1000)
        if name not in cases:
            raise SystemExit(f"No case {name!r} in {part}.")
        return {part: {name: cases[name]}}
    count = arguments.count
    return {part: PARTS[part][0](bench, PARTS[part][1] if count is None else count) for part in arguments.part}


def main():
    """Runs the campaign; exits with 1 if a case did not end as it should."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True, help="folder for the campaign; nothing else is in it")
    parser.add_argument("--part", type=lambda text: text.split(","), default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--count", type=int, help="how many of each part; of kills and full disks, in each phase")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    parser.add_argument("--case", help="one case alone, as PART: NAME")
    parser.add_argument("--results", type=Path, default=measure.RESULTS, help="folder of faults.json")
    arguments = parser.parse_args()
    if unknown := [part for part in arguments.part if part not in PARTS]:
        parser.error(f"--part is some of {', '.join(PARTS)}, found {', '.join(unknown)}")
    # This process and all that it starts.
    os.environ["JAX_PLATFORMS"] = "cpu"
    jax.config.update("jax_platforms", "cpu")
    disks.unmount(arguments.workdir / "run")
    bench = Bench(arguments.workdir, arguments.seed, lambda line: print(line, flush=True))
    outcomes = {}
    for part, cases in _chosen(bench, arguments).items():
        bench.progress(f"{part}: {len(cases)} cases")
        outcomes[part] = run_cases(cases, bench.progress)
    wrong = failures(outcomes, arguments.workdir, arguments.seed)
    for case, outcome, command in wrong:
        print(f"\n{outcome.kind}: {case}\n  {outcome.detail[:400]}\n  {command}")
    print(f"\n{table(outcomes)}\n")
    content = {
        "command": shlex.join(["python", "-m", "benchmarks.faults", *sys.argv[1:]]),
        "outcomes": {p: {n: [o.kind, o.detail] for n, o in cases.items()} for p, cases in outcomes.items()},
        "repeat": {case: command for case, _, command in wrong},
    }
    print(measure.write("faults", content, arguments.results))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
