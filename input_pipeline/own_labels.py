"""A person's own labels: `classes.json`, which says what ids and colours mean, and masks named like their frames.

    FOLDER/classes.json      [{"id": 0, "name": "road", "colour": [128, 64, 128]}, ...]; id 255 is ignored
    FOLDER/frames/NAME.png   pictures
    FOLDER/labels/NAME.png   masks: one 8-bit channel of ids, or RGB in the colours of classes.json

Names are the owner's. Those that a model knows, too, are scored; pixels of all others are ignored.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from input_pipeline import images
from input_pipeline.class_maps import ClassMap, class_indices
from input_pipeline.errors import UserError, capped
from input_pipeline.files import write_atomically

CLASSES_FILE, FRAMES, LABELS = "classes.json", "frames", "labels"
IGNORED = 255  # as labels.IGNORED, which knows all data sets; one of them may read this file
_FORM = 'a list of {"id": 0 to 255, "name": text, "colour": [red, green, blue]}, in which id 255 is ignored'
# More unknown colours than this come from smoothed edges, or from a photograph.
_SMOOTHED = 16


@dataclasses.dataclass(frozen=True)
class OwnClasses:
    """What a `classes.json` says.

    Attributes:
      path: the file.
      names: {id: name}, without the ignored one, rising.
      colours: {(red, green, blue): id}, of all that have a colour; the ignored one has id 255.
    """

    path: Path
    names: Mapping[int, str]
    colours: Mapping[tuple[int, int, int], int]

    @property
    def classes(self):
        """The names, in the order of their ids: labels are indices into them."""
        return tuple(self.names.values())

    def known_to(self, model_classes):
        """Which of the classes a model of these classes can predict, `[K]` bool."""
        return np.array([name in model_classes for name in self.classes])

    def groups_of(self, model_classes):
        """Finds what a model's classes count as, by name.

        Args:
          model_classes: names of the model's classes.

        Returns:
          Tuple of indices into `classes`, -1 for a class that is not among them; None where both lists are the same.

        Raises:
          UserError: no name is in both lists.
        """
        if tuple(model_classes) == self.classes:
            return None
        if not self.known_to(model_classes).any():
            raise UserError(
                f"{self.path}: none of its classes ({', '.join(self.classes)}) is one of the model's: "
                f"{', '.join(model_classes)}. Classes are matched by name."
            )
        shared = {name: name if name in self.classes else None for name in model_classes}
        absent = tuple(name for name in self.classes if name not in model_classes)
        return tuple(class_indices(model_classes, self.classes, ClassMap(shared, absent)).tolist())


def write_classes(path, classes, palette):
    """Writes a `classes.json`.

    Args:
      path: file to write.
      classes: names; the ids are their places.
      palette: `[256, 3]` RGB of each id.
    """
    entries = [{"id": i, "name": name, "colour": list(map(int, palette[i]))} for i, name in enumerate(classes)]
    taken = [entry["colour"] for entry in entries]
    ignored = next(grey for grey in ([g, g, g] for g in range(256)) if grey not in taken)
    entries.append({"id": IGNORED, "name": "ignored", "colour": ignored})
    write_atomically(path, "[\n" + ",\n".join(f" {json.dumps(entry)}" for entry in entries) + "\n]\n")


def read_classes(path):
    """Reads a `classes.json`.

    Args:
      path: file.

    Returns:
      `OwnClasses`.

    Raises:
      UserError: there is no such file, it has another form, or says two things of one id, name or colour.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file. Expected {_FORM}: it says what the masks beside it mean.")
    try:
        entries = json.loads(path.read_bytes().decode("utf-8-sig"))
    except ValueError as error:
        raise UserError(f"{path}: expected JSON, {_FORM}; found something else ({error}).") from None
    if not isinstance(entries, list) or not entries:
        raise UserError(
            f"{path}: expected {_FORM}; found {'an empty list' if entries == [] else type(entries).__name__}."
        )
    names, colours = {}, {}
    for entry in entries:
        if not _is_entry(entry):
            raise UserError(f"{path}: expected {_FORM}; found the entry {json.dumps(entry)}.")
        number, name, colour = entry["id"], entry["name"], tuple(entry.get("colour") or ())
        if number in names:
            raise UserError(f"{path}: id {number} is there twice, as {names[number]} and as {name}.")
        if name in names.values():
            raise UserError(f"{path}: the class {name} is there twice.")
        if colour in colours:
            raise UserError(
                f"{path}: the colour {list(colour)} is there twice, of id {colours[colour]} and of id {number}."
            )
        names[number] = name
        if colour:
            colours[colour] = number
    names.pop(IGNORED, None)
    if not names:
        raise UserError(f"{path}: no class but the ignored one. Expected {_FORM}.")
    return OwnClasses(path, dict(sorted(names.items())), colours)


def _is_entry(entry):
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or not entry["name"]:
        return False
    colour = entry.get("colour")
    values = [entry.get("id"), *(colour if isinstance(colour, list) else [])]
    if not all(type(value) is int and 0 <= value <= 255 for value in values):
        return False
    return colour is None or (isinstance(colour, list) and len(colour) == 3)


def find_masks(folder):
    """Lists the masks beside frames: {name without its ending: path}, sorted.

    Args:
      folder: that holds `labels`.

    Returns:
      dict; empty where there is no folder of labels, or nothing in it. Hidden files are left out.

    Raises:
      UserError: a file that is no PNG, which masks have to be.
    """
    labels = Path(folder) / LABELS
    files = sorted(labels.iterdir()) if labels.is_dir() else []
    files = [file for file in files if file.is_file() and not file.name.startswith((".", "Thumbs.db"))]
    if other := [file.name for file in files if file.suffix.lower() != ".png"]:
        listed = ", ".join(line.strip() for line in capped(other, 5))
        raise UserError(f"{labels}: masks are PNG files, named like their frames; found {listed}.")
    return {file.stem: file for file in files}


def holds_masks(folder):
    """Whether one PNG file or more lies in `labels/` of a folder; labels of another form are no masks."""
    labels = Path(folder) / LABELS
    return labels.is_dir() and any(
        file.suffix.lower() == ".png" and not file.name.startswith(".") for file in labels.iterdir()
    )


def check_named(folder, masks, names):
    """Raises `UserError` where masks of a folder are of none of the frames with these names."""
    if other := [file.name for name, file in masks.items() if name not in names]:
        listed = ", ".join(line.strip() for line in capped(other, 5))
        raise UserError(f"{Path(folder) / LABELS}: masks are named like their frames, and no frame is called {listed}.")


def read_mask(path, own, size=None):
    """Reads a mask.

    Args:
      path: PNG file; one channel of ids, grey or with a palette, or colours, with an alpha channel or without. Pixels
        that are transparent are ignored.
      own: `OwnClasses`.
      size: (height, width) that it must have; None for any.

    Returns:
      `[H, W]` uint8 indices into `own.classes`; 255 is ignored.

    Raises:
      UserError: the file cannot be decoded, has another size, or ids or colours that `classes.json` does not name.
    """
    path = Path(path)
    stored = images.decode(path)
    image = stored.image
    if stored.format != "PNG":
        raise UserError(f"{path}: a {stored.format} file; masks are PNG files, since lossy compression changes them.")
    if stored.depth != 8 and image.mode != "P":
        raise UserError(f"{path}: {stored.depth} bits a value; expected 8-bit ids, or 8-bit colours.")
    if size is not None and image.size[::-1] != tuple(size):
        found = f"{image.height}x{image.width}"
        raise UserError(f"{path}: expected a mask of {size[0]}x{size[1]} pixels, as its frame has, found {found}.")
    if image.mode == "L" or (image.mode == "P" and not _is_painted(image, own)):
        return _of_ids(path, np.asarray(image), own)
    return _of_colours(path, np.asarray(image.convert("RGBA")), own)


def _is_painted(image, own):
    """Whether a palette image is one of classes' colours; otherwise its indices are ids."""
    palette = np.reshape(image.getpalette("RGB"), (-1, 3)).tolist()
    return all(i < len(palette) and tuple(palette[i]) in own.colours for i in np.unique(np.asarray(image)).tolist())


def _of_ids(path, ids, own):
    table = np.full(256, IGNORED, np.uint8)
    table[list(own.names)] = np.arange(len(own.names))
    counts = np.bincount(ids.ravel(), minlength=256)
    unknown = [i for i in np.flatnonzero(counts).tolist() if i not in own.names and i != IGNORED]
    if unknown:
        listed = ", ".join(line.strip() for line in capped([f"{i} ({counts[i]} pixels)" for i in unknown], 5))
        raise UserError(f"{path}: ids that {own.path} does not name: {listed}. It has {_listed(own)}.")
    return table[ids]


def _of_colours(path, pixels, own):
    colours = np.full(1 << 24, -1, np.int16)
    indices = {number: index for index, number in enumerate(own.names)} | {IGNORED: IGNORED}
    for colour, number in own.colours.items():
        colours[_packed(np.array(colour))] = indices[number]
    packed = _packed(pixels[..., :3].astype(np.int64))
    found = np.where(pixels[..., 3] > 0, colours[packed], IGNORED)
    strange, counts = np.unique(packed[found < 0], return_counts=True)
    if len(strange):
        order = np.argsort(-counts, kind="stable")
        told = [
            f"{[int(s >> shift & 255) for shift in (16, 8, 0)]} ({n} pixels)"
            for s, n in zip(strange[order], counts[order], strict=True)
        ]
        smoothed = " So many come from smoothed edges: save masks without." if len(strange) > _SMOOTHED else ""
        listed = ", ".join(line.strip() for line in capped(told, 5))
        raise UserError(f"{path}: colours that {own.path} does not name: {listed}.{smoothed} It has {_listed(own)}.")
    return found.astype(np.uint8)


def _packed(colours):
    return colours[..., 0] << 16 | colours[..., 1] << 8 | colours[..., 2]


def _listed(own):
    colours = {number: list(colour) for colour, number in own.colours.items()}
    entries = [f"{i} {name}" + (f" {colours[i]}" if i in colours else "") for i, name in own.names.items()]
    return f"{', '.join(entries)}, and 255 for what is ignored"
