"""A data set without labels, the smallest there is: numbered frames in one folder."""

from pathlib import Path

import numpy as np
from PIL import Image

from input_pipeline.dataset import ClipFiles, Dataset, flow_folders, flows_of


def film_folders(spec):
    return [(Path(spec.raw_dir) / "film", None)]


def list_film(spec):
    """Every frame that has the frames before it."""
    ((folder, _),) = film_folders(spec)
    paths = {int(path.stem): path for path in folder.glob("*.png")}
    return [
        ClipFiles(
            f"film_{n:03}",
            None,
            {k: paths[n - k] for k in spec.offsets},
            flows_of(spec, FILM, "f", {k: n - k for k in spec.offsets}, flow_folders(spec)),
        )
        for n in sorted(paths)
        if n >= max(spec.offsets)
    ]


FILM = Dataset(
    name="film",
    folders=film_folders,
    expected="film/N.png",
    list_clips=list_film,
    flow_name=lambda video, current, earlier: f"{video}{current}from{earlier}.npy",
    splits={"train": False, "val": False},
)


def picture(seed, size):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
