"""Kills adaptation with SIGKILL at random moments, starts it again, and compares the end with an undisturbed run.

    python -m benchmarks.kill_and_resume --run=runs/synthetic --workdir=runs/killed --kills=5

`--run` is a finished run of the same configuration: its data and source model are used, and its final parameters must
equal those of the killed run, bit for bit.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

from input_pipeline import run_folder
from stpl_jax import checkpoint


def main():
    """Runs, kills, compares; exits with 1 if a bit differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="finished run to compare with")
    parser.add_argument("--workdir", type=Path, required=True, help="new folder to kill in")
    parser.add_argument("--config", default="configs/synthetic.py")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--checkpoint_every", type=int, default=10, help="steps")
    arguments = parser.parse_args()
    settings = json.loads((arguments.run / run_folder.CONFIG).read_text())
    row = settings["method"]
    arguments.workdir.mkdir(parents=True)
    for folder in ("world", "data", "source_only", "compilation_cache"):
        if (arguments.run / folder).exists():
            (arguments.workdir / folder).symlink_to((arguments.run / folder).absolute())

    command = [sys.executable, "main.py", f"--config={arguments.config}", f"--workdir={arguments.workdir}"]
    command += ["--mode=adapt", f"--config.seed={settings['seed']}", f"--config.method={row}"]
    command += [f"--config.checkpoint.every={arguments.checkpoint_every}"]
    metrics = arguments.workdir / row / "metrics.jsonl"

    def steps_done():
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        return sum("learning_rate" in line for line in lines)

    moments, total = random.Random(arguments.seed), settings["rows"].get(row, settings)["optim"]["steps"]
    for kill in range(arguments.kills):
        # Within a span of steps that later kills leave room for, and then some milliseconds: also while saving.
        target = (kill + moments.random()) * total / arguments.kills
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        while process.poll() is None and steps_done() < target:
            time.sleep(0.005)
        time.sleep(moments.random() * 0.5)
        ended = process.poll() is not None
        process.kill()
        process.wait()
        print(f"kill {kill + 1}: {'the run had ended' if ended else f'killed after step {steps_done()}'}", flush=True)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    ends = [checkpoint.load_model(folder / row) for folder in (arguments.run, arguments.workdir)]
    first, second = (jax.tree_util.tree_leaves_with_path(end.variables) for end in ends)
    differing = [
        jax.tree_util.keystr(p) for (p, a), (_, b) in zip(first, second, strict=True) if not np.array_equal(a, b)
    ]
    steps = " and ".join(end.path.name for end in ends)
    print(f"steps {steps}: {len(first)} arrays, {len(differing)} differ {differing[:5]}")
    sys.exit(1 if differing or ends[0].path.name != ends[1].path.name else 0)


if __name__ == "__main__":
    main()
