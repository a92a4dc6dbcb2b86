"""What lies beside a file or folder that is missing: nearly always the right one under another name."""

import collections
import dataclasses
import itertools
import os
import re
from pathlib import Path

from input_pipeline.datasets import DATASETS

# A raw folder is looked for this far around the given one; a set's folders have far fewer neighbours than that.
_LEVELS_UP, _LEVELS_DOWN, _MOST_FOLDERS = 3, 2, 500
_MOST_NAMES = 8


def same_but_for_numbers(name):
    """Returns a name without its ending, in small letters and with numbers without leading zeros."""
    return re.sub(r"\d+", lambda digits: str(int(digits[0])), os.path.splitext(name)[0].lower())


def similar_files(paths):
    """Finds files whose names differ from missing ones by zeros in front of numbers, capitals or the ending.

    Args:
      paths: missing files.

    Returns:
      {missing file: name of a file beside it}, of those that have one.
    """
    listings, found = {}, {}
    for path in paths:
        folder = path.parent
        if folder not in listings:
            listings[folder] = {same_but_for_numbers(name): name for name in _names(folder)}
        near = listings[folder].get(same_but_for_numbers(path.name))
        if near is not None and near != path.name:
            found[path] = near
    return found


def folders(spec):
    """Returns all folders that have to exist for a set (`DatasetSpec`): of images, and of labels where it has any."""
    return [path for pair in DATASETS[spec.name].folders(spec) for path in pair if path is not None]


def describe_missing_folder(path, spec):
    """Says in words what there is in place of a folder that is missing.

    Args:
      path: missing folder.
      spec: `DatasetSpec`.

    Returns:
      Text: the `raw_dir` that would fit, or what the nearest existing folder above holds.
    """
    other = other_raw_dir(spec)
    if other:
        return f"no such folder, but {other} is laid out so: set raw_dir to it"
    above = next((parent for parent in path.parents if parent.is_dir()), None)
    if above is None:
        return "no such folder"
    names = _names(above)
    known = DATASETS[spec.name].mistaken
    mistaken = [f"{name} ({known[name]})" for name in names if name in known]
    return f"no such folder; {above} holds {', '.join(mistaken) or _listed(names)}"


def other_raw_dir(spec):
    """Looks for a folder above or below `raw_dir` that holds what the set asks for; None if there is none."""
    given = Path(spec.raw_dir).absolute()
    for folder in itertools.chain(given.parents[:_LEVELS_UP], _below(given, _LEVELS_DOWN)):
        if all(path.is_dir() for path in folders(dataclasses.replace(spec, raw_dir=str(folder)))):
            return folder
    return None


def describe_files(folders):
    """Says in words what kinds of files lie in folders, by what follows the last number in their names.

    Args:
      folders: folders, which need not exist.

    Returns:
      Text such as `500 *_gtFine_labelTrainIds.png, 500 *_gtFine_color.png (such as aachen/…)`.
    """
    kinds, example = collections.Counter(), ""
    for folder in folders:
        for parent, _, names in os.walk(folder):
            for name in sorted(name for name in names if not name.startswith(".")):
                example = example or os.path.relpath(os.path.join(parent, name), folder)
                kinds[re.sub(r"^.*\d{3,}", "*", name)] += 1
    if not kinds:
        return "no files"
    shown = [f"{count} {kind}" for kind, count in kinds.most_common(_MOST_NAMES)]
    more = f" and {len(kinds) - len(shown)} other kinds" if len(kinds) > len(shown) else ""
    return f"{', '.join(shown)}{more} (such as {example})"


def _names(folder):
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError:
        return []


def _listed(names):
    shown = ", ".join(names[:_MOST_NAMES]) or "nothing"
    return f"{shown} and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else shown


def _below(folder, levels):
    """Yields the folders up to some levels below one, the nearest first."""
    level = [folder]
    for _ in range(levels):
        level = list(itertools.islice((below for parent in level for below in _folders_in(parent)), _MOST_FOLDERS))
        yield from level


def _folders_in(folder):
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []
