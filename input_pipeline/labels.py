"""From a data set's ids to train ids, and the classes, colours and scored classes of a label setting.

A *label setting* is the list of classes that a model is trained on, and has the name of the data set whose classes they
are: `viper` has 15, `synthia_seq` has 12, `cityscapes_seq` has 19, `camvid` has 11. Cityscapes-Seq carries labels for
the first three. A train id is an index into the setting's class list; 255 is ignored everywhere.
"""

import colorsys

import numpy as np

from input_pipeline.class_maps import class_indices
from input_pipeline.datasets import DATASETS
from input_pipeline.errors import UserError

IGNORED = 255

# Label setting -> its classes; and RGB of every class of any setting, the first set's where two differ.
CLASSES = {name: dataset.classes for name, dataset in DATASETS.items() if dataset.classes}
PALETTE = {name: rgb for dataset in reversed(DATASETS.values()) for name, rgb in dataset.colours.items()}


def train_ids(dataset, setting):
    """Returns the table of a data set in one of its label settings: {id in label files: train id}."""
    classes, names = DATASETS[setting].classes, DATASETS[dataset].settings[setting]
    return {i: classes.index(names[name]) for i, name in DATASETS[dataset].ids.items() if name in names}


def class_names(dataset):
    """Returns the classes that a data set's ids stand for in any setting: {id: set of names}."""
    settings, found = DATASETS[dataset].settings.values(), {}
    for i, name in DATASETS[dataset].ids.items():
        if names := {setting[name] for setting in settings if name in setting}:
            found[i] = names
    return found


def numberings():
    """Returns the numberings that label files of streets come in: {its name in words: {id: set of class names}}."""
    found = {}
    for name, dataset in DATASETS.items():
        if dataset.ids:
            found[dataset.ids_name] = class_names(name)
        if dataset.classes:
            words = dataset.classes_name or f"this program's train ids (setting {name})"
            found[words] = {i: {known} for i, known in enumerate(dataset.classes)}
    return found


def setting_of(dataset, split, model_setting):
    """Finds the label setting that labels are read in.

    Args:
      dataset: name of a data set.
      split: one of its splits.
      model_setting: label setting of the model that is trained or scored.

    Returns:
      That setting where the set has labels for it; its own where it has a class map for such models; None where the
      split has no labels.
    """
    found = DATASETS[dataset]
    if not found.splits.get(split, True):
        return None
    return dataset if model_setting in found.class_maps and model_setting not in found.settings else model_setting


def class_groups(model_setting, dataset, setting):
    """Finds what the classes of a model count as on a prepared set.

    Args:
      model_setting: label setting of the model.
      dataset: name of the set.
      setting: label setting that its labels are read in, of `setting_of`.

    Returns:
      Tuple of indices into the classes of `setting`, see `class_maps.class_indices`; None where they are the same.
    """
    if setting == model_setting:
        return None
    class_map = DATASETS[dataset].class_maps[model_setting]
    found = class_indices(DATASETS[model_setting].classes, DATASETS[setting].classes, class_map)
    return tuple(found.tolist())


def train_id_table(dataset, setting):
    """Looks up the table that turns a data set's ids into train ids.

    Args:
      dataset: name of a data set.
      setting: one of its label settings.

    Returns:
      `[256]` uint8, 255 for every id that is not trained: `table[ids]` maps a whole image.

    Raises:
      UserError: there is no such set, or it has no labels in that setting.
    """
    if dataset not in DATASETS or setting not in DATASETS[dataset].settings:
        known = ", ".join(f"{name} with {s}" for name, d in DATASETS.items() for s in d.settings)
        raise UserError(f"No class table for data set {dataset!r} with label setting {setting!r}. Known: {known}.")
    table = np.full(256, IGNORED, np.uint8)
    for file_id, train_id in train_ids(dataset, setting).items():
        table[file_id] = train_id
    return table


def evaluated_classes(setting):
    """Returns the train ids of the classes that are scored, `[K]` bool, in the order of the setting's classes."""
    return np.array([name not in DATASETS[setting].not_scored for name in DATASETS[setting].classes])


def model_classes(data):
    """Returns the classes of the model that `config.data` is about: `data.class_names`, or else its label setting's."""
    return tuple(data.class_names) or CLASSES[data.classes]


def shown_classes(data):
    """Finds the classes that the validation set is scored and shown by: its labels', or the model's without labels.

    Args:
      data: `config.data`.

    Returns:
      Their names, and the label setting that has their colours.
    """
    setting = setting_of(data.target.name, data.target.val_split, data.classes)
    return (CLASSES[setting], setting) if setting in CLASSES else (model_classes(data), data.classes)


def colour_table(names, setting=None):
    """Returns a palette, `[256, 3]` uint8 RGB, black for ignored ids: `table[classes]` paints a map.

    Args:
      names: of the classes, in the order of their train ids.
      setting: label setting whose colours come first. Names that no set has get hues far apart.
    """
    own, table = DATASETS[setting].colours if setting in DATASETS else {}, np.zeros((256, 3), np.uint8)
    for i, name in enumerate(names):
        hue = i * 0.618 % 1  # of the golden ratio: never near an earlier one for long
        table[i] = own.get(name) or PALETTE.get(name) or np.multiply(colorsys.hsv_to_rgb(hue, 0.7, 0.9), 255)
    return table
