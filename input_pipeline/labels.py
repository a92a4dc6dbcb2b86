"""Class tables: names, colours, and how each data set's ids become train ids.

A *label setting* is the list of classes that a model is trained on: `viper` has 15, `synthia_seq` has 12.
Cityscapes-Seq carries labels for both. A train id is an index into the setting's class list; 255 is ignored everywhere.

The tables are those of the public DA-VSN code, which the field's results use.
"""

import numpy as np

from input_pipeline.errors import UserError

IGNORED = 255

CLASSES = {
    "viper": (
        "road", "sidewalk", "building", "fence", "light", "sign", "vegetation", "terrain", "sky", "person", "car",
        "truck", "bus", "motorcycle", "bicycle",
    ),
    "synthia_seq": (
        "road", "sidewalk", "building", "fence", "pole", "light", "sign", "vegetation", "sky", "person", "rider", "car",
    ),
}  # fmt: skip

# Classes that are trained but not scored: SYNTHIA-Seq's fence (the paper's Table 2 has 11 columns).
NOT_EVALUATED = {"viper": (), "synthia_seq": ("fence",)}

# The Cityscapes palette, RGB.
PALETTE = {
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
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
    "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
}

# (data set, label setting) -> {id in the data set's files: train id}.
TRAIN_IDS = {
    ("viper", "viper"): {
        3: 0, 4: 1, 9: 2, 11: 3, 13: 4, 14: 5, 7: 6, 8: 6, 6: 7, 2: 8, 20: 9, 24: 10, 27: 11, 26: 12, 23: 13, 22: 14,
    },
    ("synthia_seq", "synthia_seq"): {3: 0, 4: 1, 2: 2, 5: 3, 7: 4, 15: 5, 9: 6, 6: 7, 1: 8, 10: 9, 11: 10, 8: 11},
    ("cityscapes_seq", "viper"): {
        7: 0, 8: 1, 11: 2, 13: 3, 19: 4, 20: 5, 21: 6, 22: 7, 23: 8, 24: 9, 25: 9, 26: 10, 27: 11, 28: 12, 32: 13,
        33: 14,
    },
    ("cityscapes_seq", "synthia_seq"): {
        7: 0, 8: 1, 11: 2, 13: 3, 17: 4, 19: 5, 20: 6, 21: 7, 23: 8, 24: 9, 25: 10, 26: 11,
    },
}  # fmt: skip

# Ids that the owners' label files may hold; any other is a broken file. Cityscapes writes -1 (licence plate) as 255.
KNOWN_IDS = {
    "viper": frozenset(range(32)),
    "synthia_seq": frozenset(range(16)),
    "cityscapes_seq": frozenset([*range(34), 255]),
}

# The numbering of Cityscapes' *_labelTrainIds.png, which many tools write. None of the settings above has these ids.
CITYSCAPES_TRAIN_IDS = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "light", "sign", "vegetation", "terrain", "sky", "person",
    "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip

# What a label file has to be, for errors.
ID_FILES = {
    "viper": "one 8-bit channel of class ids, as in VIPER's folder cls",
    "synthia_seq": "the class id in the red channel, as in SYNTHIA's folder GT/LABELS",
    "cityscapes_seq": "one 8-bit channel of class ids, as in Cityscapes' *_gtFine_labelIds.png",
}


def class_names(dataset):
    """Returns the classes that a data set's ids stand for in any setting: {id: set of names}."""
    names = {}
    for (owner, setting), table in TRAIN_IDS.items():
        for file_id, train_id in table.items() if owner == dataset else ():
            names.setdefault(file_id, set()).add(CLASSES[setting][train_id])
    return names


def numberings():
    """Returns the numberings that label files of streets come in: {its name in words: {id: set of class names}}."""
    return {
        "VIPER's ids": class_names("viper"),
        "SYNTHIA's ids": class_names("synthia_seq"),
        "Cityscapes' ids (*_labelIds.png)": class_names("cityscapes_seq"),
        "Cityscapes' train ids (*_labelTrainIds.png)": {i: {name} for i, name in enumerate(CITYSCAPES_TRAIN_IDS)},
        **{
            f"this program's train ids (setting {setting})": {i: {name} for i, name in enumerate(names)}
            for setting, names in CLASSES.items()
        },
    }


def train_id_table(dataset, setting):
    """Looks up the table that turns a data set's ids into train ids.

    Args:
      dataset: `viper`, `synthia_seq` or `cityscapes_seq`.
      setting: `viper` or `synthia_seq`.

    Returns:
      `[256]` uint8, 255 for every id that is not trained: `table[ids]` maps a whole image.

    Raises:
      UserError: the data set has no labels in that setting.
    """
    if (dataset, setting) not in TRAIN_IDS:
        known = ", ".join(f"{d} with {s}" for d, s in TRAIN_IDS)
        raise UserError(f"No class table for data set {dataset!r} with label setting {setting!r}. Known: {known}.")
    table = np.full(256, IGNORED, np.uint8)
    for file_id, train_id in TRAIN_IDS[dataset, setting].items():
        table[file_id] = train_id
    return table


def evaluated_classes(setting):
    """Returns the train ids of the classes that are scored, `[K]` bool, in the order of `CLASSES[setting]`."""
    return np.array([name not in NOT_EVALUATED[setting] for name in CLASSES[setting]])


def colour_table(setting):
    """Returns the setting's palette, `[256, 3]` uint8 RGB, black for ignored ids: `table[classes]` paints a map."""
    table = np.zeros((256, 3), np.uint8)
    for train_id, name in enumerate(CLASSES[setting]):
        table[train_id] = PALETTE[name]
    return table
