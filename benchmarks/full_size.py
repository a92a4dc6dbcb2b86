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

import cv2
import jax
import numpy as np

from benchmarks import measure
from configs import viper
from input_pipeline.labels import CLASSES
from stpl_jax import checkpoint
from stpl_jax.models import make_segmenter
from stpl_jax.models.network import initial_variables


def write_trees(root):
    """Writes two labelled VIPER frames and three Cityscapes-Seq clips (two to adapt on, one to score), from noise."""
    random = np.random.default_rng(0)

    def smooth(height, width, shift):
        coarse = np.random.default_rng(1).integers(0, 255, (height // 40 + 2, width // 40 + 4, 3)).astype(np.uint8)
        return cv2.resize(coarse, (width + 120, height))[:, shift : shift + width]

    def write(path, image):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not cv2.imwrite(str(path), image):
            raise OSError(f"{path} could not be written.")

    for clip in (1, 2):
        for frame in (9, 10):
            write(root / f"viper/train/img/{clip:03}/{clip:03}_{frame:05}.jpg", smooth(1080, 1920, 4 * frame))
        ids = random.choice([2, 3, 4, 9, 24], (27, 48)).astype(np.uint8).repeat(40, 0).repeat(40, 1)
        write(root / f"viper/train/cls/{clip:03}/{clip:03}_00010.png", ids)
    for split, city, count in (("train", "aachen", 2), ("val", "lindau", 1)):
        for clip in range(count):
            name = f"{city}_{clip:06}"
            for frame in (17, 18, 19):
                path = root / f"cityscapes/leftImg8bit_sequence/{split}/{city}/{name}_{frame:06}_leftImg8bit.png"
                write(path, smooth(1024, 2048, 3 * frame))
            ids = random.choice([7, 8, 11, 23, 26], (16, 32)).astype(np.uint8).repeat(64, 0).repeat(64, 1)
            write(root / f"cityscapes/gtFine/{split}/{city}/{name}_000019_gtFine_labelIds.png", ids)


def write_source_model(folder):
    """Writes a checkpoint of ResNet-101 with random weights and 15 classes."""
    config = viper.get_config()
    classes = CLASSES[config.data.classes]
    variables = initial_variables(make_segmenter(config.model, len(classes)), jax.random.key(0))
    meta = {
        "config": json.loads(config.to_json_best_effort()),
        "row": "source_only",
        "method": "source_only",
        "label_setting": config.data.classes,
        "classes": list(classes),
        "batch_norm": config.batch_norm.mode,
        "source": "random",
        "step": 0,
        "versions": checkpoint.versions(),
    }
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
