"""Cityscapes-Seq: real video snippets of 30 frames, one of them labelled (Cordts et al., CVPR 2016)."""

import re
from pathlib import Path

from input_pipeline.builders import base, layout

_LABEL = re.compile(r"(.+)_(\d+)_(\d+)_gtFine_labelIds\.png", re.IGNORECASE)


def folders(spec):
    """Returns the folders that have to exist."""
    root = Path(spec.raw_dir)
    return [root / "leftImg8bit_sequence" / spec.split, root / "gtFine" / spec.split]


def list_clips(spec):
    """Lists the labelled frames.

    Which frame of a snippet is labelled is whichever number gtFine names: several cities count their frames
    continuously through a drive (`frankfurt_000000_000294`), so it is not always 19.

    Args:
      spec: `DatasetSpec`.

    Returns:
      List of `ClipFiles`, sorted by name.
    """
    images, ids = folders(spec)
    flow_dirs, find = layout.flow_folders(spec), layout.frame_finder(".png")
    clips = []
    for path, match in layout.find_labels(ids, "*/*", _LABEL):
        city, sequence, number = match[1], match[2], int(match[3])
        name = f"{city}_{sequence}_{match[3]}"
        frames = {
            k: find(images / path.parent.name, f"{city}_{sequence}_{number - k:06d}_leftImg8bit") for k in spec.offsets
        }
        clips.append(layout.ClipFiles(name, path, frames, layout.flows_of(spec, name, number, flow_dirs)))
    return clips


LAYOUT = layout.Layout(
    folders=folders,
    expected=(
        "Cityscapes as its owners ship it: leftImg8bit_sequence/SPLIT/CITY/CITY_SSSSSS_FFFFFF_leftImg8bit.png (package "
        "leftImg8bit_sequence_trainvaltest.zip) and gtFine/SPLIT/CITY/CITY_SSSSSS_FFFFFF_gtFine_labelIds.png; raw_dir "
        "is the folder that holds both"
    ),
    labels="CITY/CITY_SSSSSS_FFFFFF_gtFine_labelIds.png",
    list_clips=list_clips,
    mistaken={
        "leftImg8bit": "single frames without the video around them: the package to get is leftImg8bit_sequence",
        "gtCoarse": "coarse labels: the package to get is gtFine",
    },
)


class CityscapesSeq(base.ClipBuilder):
    """TFDS builder for Cityscapes-Seq."""

    name = "cityscapes_seq"
    LAYOUT = LAYOUT
