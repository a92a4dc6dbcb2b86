"""Holds a converted ACCEL checkpoint to PyTorch at full size: the same class maps?

    python -m experiments.convert_check --workdir=runs/convert_check

Draws a ResNet-101 ACCEL of 15 classes in PyTorch and saves it, converts it (`python -m stpl_jax.convert accel`), and
segments two drifting 512×1024 frames by `main.py --mode=predict`; then does the same by PyTorch alone (float32 as
here, and float64 to judge by), with the flow that predict estimates. Prints the pixels that differ and how far apart
their two best scores are.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from benchmarks import measure
from input_pipeline.optical_flow import dis_flow
from tests.torch_reference.torch_accel import TorchAccel, draw_weights, normalise

SIZE = (512, 1024)


def write_frames(folder, seed):
    """Writes two frames of blurred noise, the second shifted by a few pixels; returns them, RGB."""
    folder.mkdir(parents=True)
    height, width = SIZE
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 16, width // 16 + 1, 3)).astype(np.uint8)
    wide = cv2.resize(coarse, (width + 16, height), interpolation=cv2.INTER_CUBIC)
    frames = [wide[:, shift : shift + width] for shift in (0, 7)]
    for i, frame in enumerate(frames):
        if not cv2.imwrite(str(folder / f"{i}.png"), frame[..., ::-1]):
            raise OSError(f"{folder}/{i}.png could not be written.")
    return frames


@torch.no_grad()
def balance(network, frame):
    """Gives every class the same mean score on a frame: a network with random weights shows few classes otherwise."""
    scores = network.classify(network.eval().features(normalise(frame[None].copy()))).main
    network.layer6.conv2d_list[0].bias -= scores.mean((0, 2, 3))


@torch.no_grad()
def scores_of_torch(network, frames, dtype):
    """Full-size scores of each frame, `[2, H, W, K]`, of the network in a type; the first is fused with itself."""
    network = network.to(dtype).eval()
    maps = [network.classify(network.features(normalise(frame[None].copy(), dtype))) for frame in frames]
    flows = [np.zeros((*SIZE, 2), np.float32), dis_flow(frames[1], frames[0])]
    size = maps[0].main.shape[2:]
    scale = torch.tensor([(size[1] - 1) / (SIZE[1] - 1), (size[0] - 1) / (SIZE[0] - 1)], dtype=dtype)
    out = []
    for current, earlier, flow in zip(maps, (maps[0], maps[0]), flows, strict=True):
        field = torch.from_numpy(flow).to(dtype).permute(2, 0, 1)[None]
        field = F.interpolate(field, size=size, mode="bilinear", align_corners=True) * scale.view(1, 2, 1, 1)
        fused = network.fuse(current, earlier, field).main
        full = F.interpolate(fused, size=SIZE, mode="bilinear", align_corners=True)
        out.append(full[0].permute(1, 2, 0).numpy())
    return np.stack(out)


def run(*command):
    """Runs a command and prints its time."""
    start = time.monotonic()
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    print(f"{time.monotonic() - start:6.1f} s  python {' '.join(command[:3])} ...", flush=True)


def main():
    """Writes the file and the frames, converts, predicts, compares; writes `result.json`."""
    parser = measure.parser(__doc__, None)
    parser.add_argument("--workdir", type=Path, required=True, help="new folder")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    workdir = arguments.workdir
    frames = write_frames(workdir / "frames", arguments.seed)
    network = draw_weights(TorchAccel(num_classes=15), arguments.seed)
    balance(network, frames[0])
    torch.save(network.state_dict(), workdir / "accel.pth")
    print(f"{os.cpu_count()} cores, torch {torch.__version__}", flush=True)
    run("-m", "stpl_jax.convert", "accel", f"{workdir}/accel.pth", f"{workdir}/converted")
    predict = ["main.py", "--mode=predict", "--config=configs/viper.py", f"--workdir={workdir}"]
    predict += [f"--config.init_from={workdir}/converted", f"--input={workdir}/frames", f"--output={workdir}/predicted"]
    run(*predict)
    classes = np.stack([cv2.imread(f"{workdir}/predicted/classes/{i}.png", cv2.IMREAD_UNCHANGED) for i in (0, 1)])

    single, double = (scores_of_torch(network, frames, dtype) for dtype in (torch.float32, torch.float64))
    ordered = np.sort(double, -1)
    margin = ordered[..., -1] - ordered[..., -2]
    result = {
        "pixels": classes.size,
        "classes predicted": len(np.unique(classes)),
        "pixels beside another class": int((classes[:, :, 1:] != classes[:, :, :-1]).sum()),
        "largest score": np.abs(double).max(),
        "largest error of float32 in PyTorch": np.abs(single - double).max(),
    }
    for name, other in (("PyTorch float32", single), ("PyTorch float64", double)):
        differ = classes != other.argmax(-1)
        result[f"pixels that differ from {name}"] = int(differ.sum())
        result[f"largest margin of these, against {name}"] = margin[differ].max(initial=0)
    differ = single.argmax(-1) != double.argmax(-1)
    result["pixels in which PyTorch's two types differ"] = int(differ.sum())
    for name, value in result.items():
        print(f"{name}: {value:.3g}" if isinstance(value, float) else f"{name}: {value:,}")
    (workdir / "result.json").write_text(json.dumps({name: float(value) for name, value in result.items()}, indent=1))


if __name__ == "__main__":
    main()
