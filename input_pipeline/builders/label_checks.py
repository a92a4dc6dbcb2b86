"""Whether the labels of a whole set are plausible: ids that occur against ids expected, and how much is ignored."""

import numpy as np

from input_pipeline import labels
from input_pipeline.datasets import DATASETS

# Classes that a set of street videos can hardly be without.
_COMMON = ("road", "sidewalk", "building", "vegetation", "sky", "car")
# A class counts as there from this share of the pixels on: traces of other ids occur in every numbering.
_PRESENT = 0.02
# Another numbering is taken to be the true one if it has a name for most pixels, shows several common classes, and
# fits this many times better: over a set, and in one file, where few classes may be in view.
_NAMED, _NAMED_IN_FILE = 0.75, 0.9
# Train ids have one id for all that has no class, 255: there are no others.
_NAMED_BY_TRAIN_IDS = 0.98
_COMMON_LEAST, _COMMON_LEAST_IN_FILE = 2, 3
_BETTER, _BETTER_IN_FILE = 2.0, 3.0
# From here on up to that a set is doubtful: the user is warned.
_DOUBTFUL = 1.25
_NAMES_SHOWN = 3


def check_labels(spec, counts):
    """Judges the labels of a set.

    Args:
      spec: `DatasetSpec`.
      counts: {label file: `[256]` number of pixels of each id}.

    Returns:
      (fault, faults, lines): what is wrong with the set as a whole, in words, or None; {label file: what is wrong with
      it}; and lines to tell the user.
    """
    if not counts:
        return None, {}, []
    total = np.sum(list(counts.values()), axis=0)
    table = labels.train_id_table(spec.name, spec.classes)
    scored = np.pad(labels.evaluated_classes(spec.classes), (0, 256 - len(DATASETS[spec.classes].classes)))
    ignored = table == labels.IGNORED
    seen = _in_words(total)
    other = _other_numbering(spec.name, total, _NAMED, _COMMON_LEAST)
    if other and other[1] >= _BETTER:
        return f"{seen}, which fit {other[0]}", {}, []
    blank = f"{seen}, and no pixel of a class that is scored (setting {spec.classes})"
    is_blank = not total[scored[table]].sum()
    # Labels of a training set may never be asked for: most methods adapt without them.
    if is_blank and spec.label_size is None:
        return blank, {}, []
    faults = {}
    for path, found in counts.items():
        odd = _other_numbering(spec.name, found, _NAMED_IN_FILE, _COMMON_LEAST_IN_FILE)
        if odd and odd[1] >= _BETTER_IN_FILE:
            faults[path] = f"{_in_words(found)}, which fit {odd[0]}"
    share = total[ignored].sum() / total.sum()
    lines = [f"labels hold {np.count_nonzero(total)} ids, {share:.1%} of the pixels are ignored"]
    if other and other[1] >= _DOUBTFUL:
        lines.append(f"warning: the label {seen} fit {other[0]} better: are the files the right ones?")
    elif is_blank:
        lines.append(f"warning: the labels hold {blank}: nothing can be trained with them")
    elif share > 0.5:
        lines.append(f"warning: more than half of the label pixels are ignored: {seen}")
    empty = sorted(str(path) for path, found in counts.items() if found[ignored].sum() == found.sum())
    if empty:
        more = f", ... and {len(empty) - _NAMES_SHOWN} more" if len(empty) > _NAMES_SHOWN else ""
        lines.append(
            f"warning: {len(empty)} of {len(counts)} label files have no pixel of a class: "
            f"{', '.join(empty[:_NAMES_SHOWN])}{more}"
        )
    return None, faults, lines


def expected_ids(dataset):
    """Says in words which ids a set's labels should hold, by its common classes."""
    names = labels.class_names(dataset)
    common = [f"{i} {name}" for name in _COMMON for i in sorted(names) if name in names[i]]
    common = common or [f"{i} {name}" for i in sorted(names)[:6] for name in sorted(names[i])]
    return f"class ids of {dataset} ({', '.join(common)}, …)"


def _in_words(counts):
    """The ids that occur, the most frequent first, with their shares."""
    order = [i for i in np.argsort(-counts, kind="stable") if counts[i]]
    shown = ", ".join(f"{i} ({counts[i] / counts.sum():.0%})" for i in order[:6])
    return f"ids {shown}{f' and {len(order) - 6} more' if len(order) > 6 else ''}"


def _other_numbering(dataset, counts, named_least, common_least):
    """Looks for a numbering that fits better than the data set's own.

    Returns:
      (its name with the shares of pixels that have a class by it and by the set's own, how many times better it fits),
      or None.
    """
    # Void in one numbering, licence plates in another: says nothing.
    counts = np.where(np.arange(256) == labels.IGNORED, 0, counts)
    if not counts.sum():
        return None
    own = labels.class_names(dataset)
    if sum(any(name in names for names in own.values()) for name in _COMMON) < common_least:
        return None  # by a set's other classes nothing can be told
    own_share, _, own_score = _fit(own, counts)
    found = []
    for name, numbering in labels.numberings().items():
        share, common, score = _fit(numbering, counts)
        least = _NAMED_BY_TRAIN_IDS if sorted(numbering) == list(range(len(numbering))) else named_least
        if numbering != own and share >= least and common >= common_least:
            found.append((score, name, share))
    if not found:
        return None
    score, name, share = max(found, key=lambda entry: entry[0])
    text = f"{name} ({share:.0%} of the pixels have a class by them, {own_share:.0%} by the ids of {dataset})"
    return text, score / own_score if own_score else np.inf


def _fit(numbering, counts):
    """(share of the pixels that have a class, number of common classes that are there, both in one figure)."""
    shares = counts / counts.sum()
    classes = {}
    for i, names in numbering.items():
        for name in names:
            classes[name] = classes.get(name, 0) + shares[i]
    named = float(shares[list(numbering)].sum())
    common = sum(classes.get(name, 0) >= _PRESENT for name in _COMMON)
    return named, common, named * (1 + common) / (1 + len(_COMMON))
