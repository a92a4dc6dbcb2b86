"""Runs configs/viper.py at full size on a few made-up frames: does it fit, and how long does a step take.

    python -m benchmarks.full_size --workdir=runs/full_size

Writes a small VIPER tree (1080×1920 JPEG) and a small Cityscapes-Seq tree (1024×2048 PNG) in their owners' layouts, and
a source model with random weights; then adapts ResNet-101 for two steps by STPL (`main.py --mode=adapt`) and trains it
on source for one (`--mode=pretrain`), each with its validation at 1024×2048. Prints wall-clock time and peak memory.
"""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import jax

from benchmarks import measure
from configs import viper
from input_pipeline.labels import CLASSES
from stpl_jax import checkpoint
from stpl_jax.models import make_segmenter
from stpl_jax.models.network import initial_variables
from tests import raw_trees


def write_trees(root):
    """Writes two labelled VIPER frames and three Cityscapes-Seq clips (two to adapt on, one to score), from noise."""
    viper_ids, cityscapes = (2, 3, 4, 9, 24), dict(size=(1024, 2048), ids=(7, 8, 11, 23, 26), before=2)
    raw_trees.write_viper(
        root / "viper", videos=("001", "002"), labelled=(10,), before=1, size=(1080, 1920), ids=viper_ids
    )
    for split, clips in (("train", (("aachen", 0, 19), ("aachen", 1, 19))), ("val", (("lindau", 0, 19),))):
        raw_trees.write_cityscapes_seq(root / "cityscapes", split=split, clips=clips, **cityscapes)


def write_source_model(folder):
    """Writes a checkpoint of ResNet-101 with random weights and 15 classes."""
    config = viper.get_config()
    classes = CLASSES[config.data.classes]
    variables = initial_variables(make_segmenter(config.model, len(classes)), jax.random.key(0))
    meta = checkpoint.CheckpointMeta(
        config=json.loads(config.to_json_best_effort()),
        classes=tuple(classes),
        label_setting=config.data.classes,
        row="source_only",
        method="source_only",
        batch_norm=config.batch_norm.mode,
        source="random",
        versions=checkpoint.versions(),
    )
    checkpoint.save_model(folder, variables, meta)


def run(name, workdir, *flags):
    """Runs main.py in a process of its own; prints its time and peak memory."""
    root = workdir / "raw"
    command = [
        sys.executable,
        "main.py",
        "--config=configs/viper.py",
        f"--workdir={workdir}",
        "--config.log_every=1",
        *flags,
    ]
    command += [f"--config.data.source.raw_dir={root}/viper", f"--config.data.target.raw_dir={root}/cityscapes"]
    start = time.monotonic()
    subprocess.run(command, check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"{name}: {time.monotonic() - start:.0f} s, peak memory so far {peak:.1f} GiB", flush=True)


def main():
    """Writes the trees and the model, adapts, pretrains."""
    parser = measure.parser(__doc__, None)
    parser.add_argument("--workdir", type=Path, required=True, help="new folder")
    workdir = parser.parse_args().workdir
    write_trees(workdir / "raw")
    write_source_model(workdir / "source_model")
    print(f"{os.cpu_count()} cores, {jax.devices()}")
    run("adapt, 2 steps", workdir, "--mode=adapt", "--config.steps=2", f"--config.init_from={workdir}/source_model")
    run("pretrain, 1 step", workdir, "--mode=pretrain", "--config.steps=1")


if __name__ == "__main__":
    main()
