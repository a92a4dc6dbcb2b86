"""VIPER: game frames, every tenth labelled (Richter et al., ICCV 2017)."""

import re
from pathlib import Path

from input_pipeline.builders import base, layout

_LABEL = re.compile(r"(\d+)_(\d+)\.png", re.IGNORECASE)
_CAR = 24


def folders(spec):
    """Returns the folders that have to exist."""
    root = Path(spec.raw_dir) / spec.split
    return [root / "img", root / "cls"]


def list_clips(spec):
    """Lists the labelled frames; the frames before them need an image, never a label.

    Args:
      spec: `DatasetSpec`.

    Returns:
      List of `ClipFiles`, sorted by name.
    """
    images, ids = folders(spec)
    flow_dirs, find = layout.flow_folders(spec), layout.frame_finder(".jpg")
    clips = []
    for path, match in layout.find_labels(ids, "*/*", _LABEL):
        video, number = match[1], int(match[2])
        frames = {k: find(images / path.parent.name, f"{video}_{number - k:05d}") for k in spec.offsets}
        clips.append(layout.ClipFiles(path.stem, path, frames, layout.flows_of(spec, path.stem, number, flow_dirs)))
    return clips


LAYOUT = layout.Layout(
    folders=folders,
    expected=(
        "VIPER as its owners ship it: SPLIT/img/SSS/SSS_FFFFF.jpg (or .png) and SPLIT/cls/SSS/SSS_FFFFF.png; raw_dir "
        "is the folder that holds SPLIT"
    ),
    labels="SSS/SSS_FFFFF.png",
    list_clips=list_clips,
    ego_id=_CAR,
    mistaken={"inst": "instances, not classes", "instcs": "instances, not classes"},
)


class Viper(base.ClipBuilder):
    """TFDS builder for VIPER."""

    name = "viper"
    LAYOUT = LAYOUT
