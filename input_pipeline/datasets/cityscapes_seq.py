"""Cityscapes-Seq: real video snippets of 30 frames, one of them labelled (Cordts et al., CVPR 2016)."""

import re
from pathlib import Path

from input_pipeline.dataset import Dataset, labelled_clips

_LABEL = re.compile(r"(.+_\d+)_(\d+)_gtFine_labelIds\.png", re.IGNORECASE)

# The owners' colours (RGB) of the 19 classes that they score, in the order of their train ids.
COLOURS = {
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
    "wall": (102, 102, 156),
    "fence": (190, 153, 153),
    "pole": (153, 153, 153),
    "light": (250, 170, 30),
    "sign": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "rider": (255, 0, 0),
    "car": (0, 0, 142),
    "truck": (0, 0, 70),
    "bus": (0, 60, 100),
    "train": (0, 80, 100),
    "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
}


def list_clips(spec):
    """Lists the labelled frames.

    Which frame of a snippet is labelled is whichever number gtFine names: several cities count their frames
    continuously through a drive (`frankfurt_000000_000294`), so it is not always 19.
    """
    return labelled_clips(
        spec, CITYSCAPES_SEQ, "*/*", _LABEL, ".png", lambda video, number: f"{video}_{number:06d}_leftImg8bit"
    )


CITYSCAPES_SEQ = Dataset(
    name="cityscapes_seq",
    folders=lambda spec: [
        (Path(spec.raw_dir) / "leftImg8bit_sequence" / spec.split, Path(spec.raw_dir) / "gtFine" / spec.split)
    ],
    expected=(
        "Cityscapes as its owners ship it: leftImg8bit_sequence/SPLIT/CITY/CITY_SSSSSS_FFFFFF_leftImg8bit.png (package "
        "leftImg8bit_sequence_trainvaltest.zip) and gtFine/SPLIT/CITY/CITY_SSSSSS_FFFFFF_gtFine_labelIds.png; raw_dir "
        "is the folder that holds both"
    ),
    list_clips=list_clips,
    flow_name=lambda video, current, earlier: f"{video}_{current:06d}_{earlier:06d}_int16_x10.npy",
    mistaken={
        "leftImg8bit": "single frames without the video around them: the package to get is leftImg8bit_sequence",
        "gtCoarse": "coarse labels: the package to get is gtFine",
    },
    labels="CITY/CITY_SSSSSS_FFFFFF_gtFine_labelIds.png",
    label_files="one 8-bit channel of class ids, as in Cityscapes' *_gtFine_labelIds.png",
    # Its licence plates, -1, are 255 in 8 bits.
    ids={
        0: "unlabeled", 1: "ego vehicle", 2: "rectification border", 3: "out of roi", 4: "static", 5: "dynamic",
        6: "ground", 7: "road", 8: "sidewalk", 9: "parking", 10: "rail track", 11: "building", 12: "wall", 13: "fence",
        14: "guard rail", 15: "bridge", 16: "tunnel", 17: "pole", 18: "polegroup", 19: "traffic light",
        20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car",
        27: "truck", 28: "bus", 29: "caravan", 30: "trailer", 31: "train", 32: "motorcycle", 33: "bicycle",
        255: "license plate",
    },
    ids_name="Cityscapes' ids (*_labelIds.png)",
    classes=tuple(COLOURS),
    classes_name="Cityscapes' train ids (*_labelTrainIds.png)",
    colours=COLOURS,
    settings={
        "cityscapes_seq": {name: name for name in COLOURS if name not in ("light", "sign")}
        | {"traffic light": "light", "traffic sign": "sign"},
        "viper": {
            "road": "road", "sidewalk": "sidewalk", "building": "building", "fence": "fence", "traffic light": "light",
            "traffic sign": "sign", "vegetation": "vegetation", "terrain": "terrain", "sky": "sky", "person": "person",
            "rider": "person", "car": "car", "truck": "truck", "bus": "bus", "motorcycle": "motorcycle",
            "bicycle": "bicycle",
        },
        "synthia_seq": {
            "road": "road", "sidewalk": "sidewalk", "building": "building", "fence": "fence", "pole": "pole",
            "traffic light": "light", "traffic sign": "sign", "vegetation": "vegetation", "sky": "sky",
            "person": "person", "rider": "rider", "car": "car",
        },
    },
)  # fmt: skip
