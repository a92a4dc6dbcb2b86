"""Scoring a model on a set of other classes: which of the set's classes each of the model's counts as."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from input_pipeline.errors import UserError

LEFT_OUT = -1


@dataclasses.dataclass(frozen=True)
class ClassMap:
    """From a model's classes to a set's, many to one, by name.

    Attributes:
      classes: {class of the model: class of the set, or None where it is left out}, every class of the model.
      not_predicted: classes of the set that none of the model's counts as.
    """

    classes: Mapping[str, str | None]
    not_predicted: tuple[str, ...] = ()


def class_indices(model_classes, set_classes, class_map=None):
    """Finds which of a set's classes each of a model's classes counts as.

    A group's probability is the sum of its members': `p(c | set) = sum over k with indices[k] = c of p(k | model)`.

    Args:
      model_classes: names of the model's K classes, in their order.
      set_classes: names of the set's classes, in their order.
      class_map: `ClassMap`; None where both lists have the same names.

    Returns:
      `[K]` int32 indices into `set_classes`, `LEFT_OUT` (-1) where a class is left out; 0 to K - 1 for equal lists.

    Raises:
      UserError: the lists differ and there is no map; or the map has unknown names, lacks a class of the model, or
        leaves a class of the set without any, and does not say so.
    """
    if class_map is None:
        if set(model_classes) != set(set_classes):
            raise UserError(
                f"The model's classes are {', '.join(model_classes)}, and the data set's are {', '.join(set_classes)}: "
                "a class map has to say which of these each of the model's counts as (`class_maps` in the set's file)."
            )
        class_map = ClassMap({name: name for name in model_classes})
    entries, absent, known = class_map.classes, set(class_map.not_predicted), set(set_classes)
    targets = set(entries.values()) - {None}
    faults = {
        "classes that the model does not have": entries.keys() - set(model_classes),
        "classes that the data set does not have": (targets | absent) - known,
        "no entry for the model's": set(model_classes) - entries.keys(),
        "nothing for the data set's (and `not_predicted` does not name them)": known - targets - absent,
        "something for classes that `not_predicted` names": targets & absent,
    }
    if found := [f"{what}: {', '.join(sorted(names))}" for what, names in faults.items() if names]:
        raise UserError(f"The class map does not fit model and data set. It has {'; '.join(found)}.")
    index = {name: i for i, name in enumerate(set_classes)} | {None: LEFT_OUT}
    return np.array([index[entries[name]] for name in model_classes], np.int32)
