"""SYNTHIA-Seq: rendered sequences in which every frame is labelled (Ros et al., CVPR 2016)."""

import re
from pathlib import Path

from input_pipeline.dataset import ClipFiles, Dataset, find_labels, flow_folders, flows_of, frame_finder
from input_pipeline.datasets.cityscapes_seq import COLOURS
from input_pipeline.errors import UserError
from input_pipeline.images import IMAGE_SUFFIXES

_LABEL = re.compile(r"(\d+)\.png", re.IGNORECASE)
_IMAGE_FOLDERS = ("RGB/Stereo_Left/Omni_F", "rgb")
_LABEL_FOLDERS = ("GT/LABELS/Stereo_Left/Omni_F", "label")
# The bottom of each frame shows the recording car's bonnet; the field's public code cuts 120 of 760 rows.
_ROWS, _ROWS_CUT = 760, 120

# Classes and mapping of the public DA-VSN code, which the field's results use.
_CLASSES = (
    "road", "sidewalk", "building", "fence", "pole", "light", "sign", "vegetation", "sky", "person", "rider", "car",
)  # fmt: skip


def _existing(sequence, choices):
    return next((sequence / choice for choice in choices if (sequence / choice).is_dir()), sequence / choices[0])


def sequences(spec):
    """Returns the sequence folders: `raw_dir` itself if it holds images, else its sub-folders `*SEQS-*`."""
    root = Path(spec.raw_dir).absolute()
    if any((root / choice).is_dir() for choice in (*_IMAGE_FOLDERS, *_LABEL_FOLDERS)):
        return [root]
    return sorted(path for path in root.glob("*SEQS-*") if path.is_dir())


def folders(spec):
    """Returns the folders that have to exist: [(images, labels)] of each sequence.

    `raw_dir/SYNTHIA-SEQS-*` stands for a folder without any sequence.
    """
    found = sequences(spec)
    if not found:
        return [(Path(spec.raw_dir) / "SYNTHIA-SEQS-*", None)]
    return [(_existing(path, _IMAGE_FOLDERS), _existing(path, _LABEL_FOLDERS)) for path in found]


def list_clips(spec):
    """Lists the labelled frames, without those at a sequence's start that have no frames before them by nature."""
    found, find = sequences(spec), frame_finder(".png")
    clips = []
    for sequence, (images, ids) in zip(found, folders(spec), strict=False):
        flow_dirs = flow_folders(spec)
        nested = [folder / sequence.name for folder in flow_dirs]
        # A SYNTHIA flow file's name does not say its sequence: files of several sequences cannot share a folder.
        flow_dirs = nested if len(found) > 1 else [*(path for path in nested if path.is_dir()), *flow_dirs]
        numbered = sorted((int(match[1]), path) for path, match in find_labels(ids, "*", _LABEL))
        frames = (path for path in images.glob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        starts = [int(path.stem) for path in frames if path.stem.isdigit()]
        first = min([*starts, *(number for number, _ in numbered[:1])], default=0)
        for number, path in numbered:
            if number - max(spec.offsets) < first:
                continue
            numbers = {k: number - k for k in spec.offsets}
            frames = {k: find(images, f"{n:0{len(path.stem)}d}") for k, n in numbers.items()}
            flows = flows_of(spec, SYNTHIA_SEQ, sequence.name, numbers, flow_dirs)
            clips.append(ClipFiles(f"{sequence.name}_{path.stem}", path, frames, flows))
    return clips


def flow_name(video, current, earlier):
    """Names the file with the flow from frame `current` into frame `earlier`.

    Names hold the current frame only, so one folder can hold one sequence and flow over one frame.

    Raises:
      UserError: the frames are not neighbours.
    """
    del video
    if current - earlier != 1:
        raise UserError(
            f"SYNTHIA-Seq flow files are named after the current frame only, so they hold flow over one frame; "
            f"asked for {current} to {earlier}. Use config.flow.files=none for other pairs."
        )
    return f"{current:06d}_int16_x10.npy"


SYNTHIA_SEQ = Dataset(
    name="synthia_seq",
    folders=folders,
    expected=(
        "SYNTHIA-Seq as its owners ship it: SYNTHIA-SEQS-*/RGB/Stereo_Left/Omni_F/FFFFFF.png and "
        "SYNTHIA-SEQS-*/GT/LABELS/Stereo_Left/Omni_F/FFFFFF.png (or rgb/FFFFFF.png and label/FFFFFF.png); "
        "raw_dir is one sequence or the folder that holds them"
    ),
    list_clips=list_clips,
    flow_name=flow_name,
    # 640 of 760, in proportion for others.
    rows_kept=lambda height: height - round(height * _ROWS_CUT / _ROWS),
    mistaken={"COLOR": "colours, not class ids: the folder to get is LABELS", "Stereo_Right": "the other camera"},
    labels="FFFFFF.png, of frames that have the frames before them",
    label_files="the class id in the red channel, as in SYNTHIA's folder GT/LABELS",
    ids_are_red=True,
    ids={
        0: "void", 1: "sky", 2: "building", 3: "road", 4: "sidewalk", 5: "fence", 6: "vegetation", 7: "pole", 8: "car",
        9: "traffic sign", 10: "pedestrian", 11: "bicycle", 12: "lanemarking", 13: "reserved", 14: "reserved",
        15: "traffic light",
    },
    ids_name="SYNTHIA's ids",
    classes=_CLASSES,
    # The paper's Table 2 has 11 columns.
    not_scored=("fence",),
    colours={name: COLOURS[name] for name in _CLASSES},
    settings={
        # Its bicycles are seen with their riders, and are labelled as one.
        "synthia_seq": {
            "road": "road", "sidewalk": "sidewalk", "building": "building", "fence": "fence", "pole": "pole",
            "traffic light": "light", "traffic sign": "sign", "vegetation": "vegetation", "sky": "sky",
            "pedestrian": "person", "bicycle": "rider", "car": "car",
        },
    },
)  # fmt: skip
