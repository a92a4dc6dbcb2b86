"""SYNTHIA-Seq: rendered sequences in which every frame is labelled (Ros et al., CVPR 2016)."""

import re
from pathlib import Path

from input_pipeline.builders import base, layout
from input_pipeline.images import IMAGE_SUFFIXES

_LABEL = re.compile(r"(\d+)\.png", re.IGNORECASE)
_IMAGE_FOLDERS = ("RGB/Stereo_Left/Omni_F", "rgb")
_LABEL_FOLDERS = ("GT/LABELS/Stereo_Left/Omni_F", "label")
# The bottom of each frame shows the recording car's bonnet; the field's public code cuts 120 of 760 rows.
_ROWS, _ROWS_CUT = 760, 120


def _existing(sequence, choices):
    return next((sequence / choice for choice in choices if (sequence / choice).is_dir()), sequence / choices[0])


def sequences(spec):
    """Returns the sequence folders: `raw_dir` itself if it holds images, else its sub-folders `*SEQS-*`."""
    root = Path(spec.raw_dir).absolute()
    if any((root / choice).is_dir() for choice in (*_IMAGE_FOLDERS, *_LABEL_FOLDERS)):
        return [root]
    return sorted(path for path in root.glob("*SEQS-*") if path.is_dir())


def folders(spec):
    """Returns the folders that have to exist; `raw_dir/SYNTHIA-SEQS-*` stands for a folder without any sequence."""
    found = sequences(spec)
    if not found:
        return [Path(spec.raw_dir) / "SYNTHIA-SEQS-*"]
    return [_existing(path, choices) for path in found for choices in (_IMAGE_FOLDERS, _LABEL_FOLDERS)]


def list_clips(spec):
    """Lists the labelled frames, without those at a sequence's start that have no frames before them by nature.

    Args:
      spec: `DatasetSpec`.

    Returns:
      List of `ClipFiles`, sorted by name.
    """
    found, find = sequences(spec), layout.frame_finder(".png")
    clips = []
    for sequence in found:
        images, ids = (_existing(sequence, _IMAGE_FOLDERS), _existing(sequence, _LABEL_FOLDERS))
        flow_dirs = layout.flow_folders(spec)
        nested = [folder / sequence.name for folder in flow_dirs]
        # A SYNTHIA flow file's name does not say its sequence: files of several sequences cannot share a folder.
        flow_dirs = nested if len(found) > 1 else [*(path for path in nested if path.is_dir()), *flow_dirs]
        numbered = sorted((int(match[1]), path) for path, match in layout.find_labels(ids, "*", _LABEL))
        frames = (path for path in images.glob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        starts = [int(path.stem) for path in frames if path.stem.isdigit()]
        first = min([*starts, *(number for number, _ in numbered[:1])], default=0)
        for number, path in numbered:
            if number - max(spec.offsets) < first:
                continue
            name = f"{sequence.name}_{path.stem}"
            frames = {k: find(images, f"{number - k:0{len(path.stem)}d}") for k in spec.offsets}
            clips.append(layout.ClipFiles(name, path, frames, layout.flows_of(spec, name, number, flow_dirs)))
    return clips


def rows_kept(height):
    """Returns how many rows remain of a frame `height` rows high: 640 of 760, in proportion for others."""
    return height - round(height * _ROWS_CUT / _ROWS)


LAYOUT = layout.Layout(
    folders=folders,
    expected=(
        "SYNTHIA-Seq as its owners ship it: SYNTHIA-SEQS-*/RGB/Stereo_Left/Omni_F/FFFFFF.png and "
        "SYNTHIA-SEQS-*/GT/LABELS/Stereo_Left/Omni_F/FFFFFF.png (or rgb/FFFFFF.png and label/FFFFFF.png); "
        "raw_dir is one sequence or the folder that holds them"
    ),
    labels="FFFFFF.png, of frames that have the frames before them",
    list_clips=list_clips,
    rows_kept=rows_kept,
    mistaken={"COLOR": "colours, not class ids: the folder to get is LABELS", "Stereo_Right": "the other camera"},
)


class SynthiaSeq(base.ClipBuilder):
    """TFDS builder for SYNTHIA-Seq."""

    name = "synthia_seq"
    LAYOUT = LAYOUT
