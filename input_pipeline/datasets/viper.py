"""VIPER: game frames, every tenth labelled (Richter et al., ICCV 2017)."""

import re
from pathlib import Path

from input_pipeline.dataset import Dataset, labelled_clips
from input_pipeline.datasets.cityscapes_seq import COLOURS

_LABEL = re.compile(r"(\d+)_(\d+)\.png", re.IGNORECASE)

# Classes and mapping of the public DA-VSN code, which the field's results use.
_CLASSES = (
    "road", "sidewalk", "building", "fence", "light", "sign", "vegetation", "terrain", "sky", "person", "car", "truck",
    "bus", "motorcycle", "bicycle",
)  # fmt: skip


def list_clips(spec):
    """Lists the labelled frames; the frames before them need an image, never a label."""
    return labelled_clips(spec, VIPER, "*/*", _LABEL, ".jpg", lambda video, number: f"{video}_{number:05d}")


VIPER = Dataset(
    name="viper",
    folders=lambda spec: [(Path(spec.raw_dir) / spec.split / "img", Path(spec.raw_dir) / spec.split / "cls")],
    expected=(
        "VIPER as its owners ship it: SPLIT/img/SSS/SSS_FFFFF.jpg (or .png) and SPLIT/cls/SSS/SSS_FFFFF.png; raw_dir "
        "is the folder that holds SPLIT"
    ),
    list_clips=list_clips,
    flow_name=lambda video, current, earlier: f"{video}_{current:05d}{earlier:05d}_int16_x10.npy",
    mistaken={"inst": "instances, not classes", "instcs": "instances, not classes"},
    labels="SSS/SSS_FFFFF.png",
    label_files="one 8-bit channel of class ids, as in VIPER's folder cls",
    ids={
        0: "unlabeled", 1: "ambiguous", 2: "sky", 3: "road", 4: "sidewalk", 5: "railtrack", 6: "terrain", 7: "tree",
        8: "vegetation", 9: "building", 10: "infrastructure", 11: "fence", 12: "billboard", 13: "trafficlight",
        14: "trafficsign", 15: "mobilebarrier", 16: "firehydrant", 17: "chair", 18: "trash", 19: "trashcan",
        20: "person", 21: "animal", 22: "bicycle", 23: "motorcycle", 24: "car", 25: "van", 26: "bus", 27: "truck",
        28: "trailer", 29: "train", 30: "plane", 31: "boat",
    },
    ids_name="VIPER's ids",
    ego_id=24,
    classes=_CLASSES,
    colours={name: COLOURS[name] for name in _CLASSES},
    settings={
        "viper": dict(
            road="road", sidewalk="sidewalk", building="building", fence="fence", trafficlight="light",
            trafficsign="sign", vegetation="vegetation", tree="vegetation", terrain="terrain", sky="sky",
            person="person", car="car", truck="truck", bus="bus", motorcycle="motorcycle", bicycle="bicycle",
        ),
    },
)  # fmt: skip
