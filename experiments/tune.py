"""Chooses the embedded benchmark's learning rates: the same tries for every row, on development seeds.

    python -m experiments.tune --seeds 100 101 --rates 1e-4 3e-4 2e-3

Each row of the tables adapts once with each rate on each seed; `configs/synthetic.py` is to name the rate with the best
mean mIoU at the last step. Nothing else varies. Writes `tuning.md` and `tuning.json`; a run that was stopped goes on.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks import measure
from configs.synthetic import LEARNING_RATES
from experiments.tables import TABLES, run_seed
from input_pipeline import run_folder
from input_pipeline.files import write_atomically

CONFIG = "configs/synthetic.py"
# Trained with labels, or not at all: their settings are not part of the comparison.
_FIXED = ("source_only", "bn_statistics", "alpha_bn", "oracle")


def rows():
    """Returns the rows that are tuned: those of all tables that adapt."""
    names = (row.name for number in sorted(TABLES, reverse=True) for row in TABLES[number].rows)
    return tuple(name for name in dict.fromkeys(names) if name not in _FIXED)


def adapt(workdir, source, seed, rate, names):
    """Adapts by every row with one rate, from the source model and on the sets of another working directory.

    Returns:
      row -> mIoU at the last step; None where the loss was no longer finite.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    if not (workdir / "world").exists():
        (workdir / "world").symlink_to((source / "world").resolve())
    for name in names:
        if not run_folder.evaluation(workdir, name).is_file():
            command = [sys.executable, "main.py", f"--config={CONFIG}", f"--workdir={workdir}", "--mode=adapt"]
            command += [f"--config.seed={seed}", f"--config.method={name}", f"--config.init_from={source}"]
            key = f"rows.{name}.optim" if name in LEARNING_RATES else "optim"
            command += [f"--config.{key}.learning_rate={rate}", "--config.evaluate.every=0"]
            command += [f"--config.data.prepared_dir={source / 'data'}"]
            result = subprocess.run(command, stderr=subprocess.PIPE, text=True)
            if result.returncode and "NonFiniteLoss" not in result.stderr:
                raise SystemExit(f"{' '.join(command)} failed:\n{result.stderr}")
    return {name: _miou(run_folder.evaluation(workdir, name)) for name in names}


def _miou(file):
    return json.loads(file.read_text())["last"]["miou"] if file.is_file() else None


def table(scores, rates):
    """Sets the tries as Markdown.

    Args:
      scores: rate -> seed -> row -> mIoU, or None.
      rates: as written on the command line.

    Returns:
      Markdown, and row -> best rate.
    """
    lines = ["| row | " + " | ".join(rates) + " | chosen |", "| --- |" + " --- |" * (len(rates) + 1)]
    chosen = {}
    for row in next(iter(scores[rates[0]].values())):
        tries = {rate: [by_row[row] for by_row in scores[rate].values()] for rate in rates}
        means = {rate: -1 if None in tries[rate] else statistics.mean(tries[rate]) for rate in rates}
        chosen[row] = max(rates, key=means.get)
        cells = [" ".join("diverged" if m is None else f"{m:.1f}" for m in tries[rate]) for rate in rates]
        lines.append(f"| {row} | {' | '.join(cells)} | {chosen[row]} |")
    return "\n".join(lines), chosen


def main():
    """Runs what is missing and writes the tries."""
    parser = measure.parser(__doc__, None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101], help="100 and up")
    parser.add_argument("--rates", nargs="+", default=["1e-4", "3e-4", "2e-3"])
    parser.add_argument("--rows", nargs="+", default=rows())
    parser.add_argument("--workdir", type=Path, default=Path("runs/tune"))
    parser.add_argument("--results", type=Path, default=measure.RESULTS)
    arguments = parser.parse_args()
    if min(arguments.seeds) < 100:
        parser.error("settings are never chosen on the seeds of the tables: 100 and up")
    scores = {rate: {} for rate in arguments.rates}
    for seed in arguments.seeds:
        source = arguments.workdir / f"seed{seed}" / "source"
        run_seed(CONFIG, source, seed, ("source_only", "bn_statistics", "oracle"))
        for rate in arguments.rates:
            workdir = arguments.workdir / f"seed{seed}" / f"rate{rate}"
            scores[rate][seed] = adapt(workdir, source, seed, rate, arguments.rows)
    text, chosen = table(scores, arguments.rates)
    head = f"mIoU at the last step on seeds {' '.join(map(str, arguments.seeds))}, for each learning rate\n\n"
    command = " ".join(["python -m experiments.tune", *sys.argv[1:]])
    write_atomically(arguments.results / "tuning.md", f"{head}{text}\n\n    {command}\n")
    content = {"command": command, "scores": scores, "chosen": chosen}
    write_atomically(arguments.results / "tuning.json", json.dumps(content, indent=1))
    print(text)


if __name__ == "__main__":
    main()
