"""The one reader of label files: class ids as their owners number them, and nothing that only looks like ids.

Nothing is guessed on the way: a picture of colours (unless its owner writes labels so), an alpha channel, a turned or
lossy file is refused with what it is. Indices of a palette are ids where the palette is one that goes with ids (see
`palette_fault`).
"""

import collections
from pathlib import Path

import cv2
import numpy as np

from input_pipeline import images, labels
from input_pipeline.datasets import DATASETS
from input_pipeline.errors import UserError, capped

_CLASS_OF_COLOUR = {colour: name for name, colour in labels.PALETTE.items()}
# Instances in Cityscapes' *_instanceIds.png: id * 1000 + number of the object.
_PER_OBJECT = 1000


def read_ids(path, dataset):
    """Reads a label file.

    Args:
      path: PNG file: one channel of 8 bits (or of 16 with values up to 255), grey or with a palette whose indices are
        ids; where the set's `ids_are_red`, three or four channels of 8 or 16 bits, of which the red one is the class;
        where the set has `id_of_colour`, also RGB in these colours.
      dataset: name of a data set.

    Returns:
      `[H, W]` uint8 ids, whether the data set knows them or not.

    Raises:
      OSError: there is no such file, or it cannot be read.
      UserError: the file cannot be decoded, or its pixels are no class ids; says what they are.
    """
    path = Path(path)
    stored = images.decode(path)
    if stored.format != "PNG":
        raise UserError(f"{path}: a {stored.format} file; labels are PNG files, since lossy compression changes ids.")
    if stored.orientation != 1:
        raise UserError(
            f"{path}: a label with EXIF orientation {stored.orientation}; labels are not turned. Save it upright, "
            "without that tag."
        )
    if DATASETS[dataset].ids_are_red:
        return _read_red(path, stored, dataset)
    if DATASETS[dataset].id_of_colour and stored.image.mode == "RGB":
        return _read_colours(path, stored, dataset)
    return _read_grey(path, stored, dataset)


def _read_grey(path, stored, dataset):
    image, expected = stored.image, f"Expected {DATASETS[dataset].label_files}."
    if image.mode == "1" or (image.mode == "L" and stored.depth < 8):
        raise UserError(
            f"{path}: a grey image of {stored.depth} bits, whose values PNG stretches to 0 ... 255: no ids. {expected}"
        )
    if image.mode == "L":
        return np.array(image)
    if image.mode == "I;16":
        return _narrow(path, np.asarray(image), dataset, expected)
    if image.mode != "P":
        raise UserError(f"{path}: {_describe_colours(image)}, no class ids. {expected}")
    ids = np.array(image)
    fault = palette_fault(np.unique(ids), np.reshape(image.getpalette("RGB"), (-1, 3)), dataset)
    if fault:
        raise UserError(f"{path}: {fault}. {expected} If the indices are ids, save them as grey.")
    return ids


def _read_red(path, stored, dataset):
    expected = f"Expected {DATASETS[dataset].label_files}."
    if stored.image.mode not in ("RGB", "RGBA"):
        raise UserError(f"{path}: an image of PIL mode {stored.image.mode}, without a red channel of ids. {expected}")
    if stored.depth == 8 and _share_of_class_colours(stored.image) > 0.5:
        raise UserError(f"{path}: {_describe_colours(stored.image)}, no class ids. {expected}")
    # PIL drops the low byte of 16-bit colours.
    pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.ndim != 3:
        raise UserError(f"{path}: a PNG file that OpenCV does not decode as colours. {expected}")
    return _narrow(path, pixels[..., 2], dataset, expected)


def _read_colours(path, stored, dataset):
    id_of = {red << 16 | green << 8 | blue: i for (red, green, blue), i in DATASETS[dataset].id_of_colour.items()}
    red, green, blue = np.moveaxis(np.asarray(stored.image, np.int32), -1, 0)
    colours, where, counts = np.unique(red << 16 | green << 8 | blue, return_inverse=True, return_counts=True)
    unknown = [(c >> 16, c >> 8 & 255, c & 255) for c in colours.tolist() if c not in id_of]
    if unknown:
        share = counts[~np.isin(colours, list(id_of))].sum() / counts.sum()
        raise UserError(
            f"{path}: {share:.2%} of the pixels have colours (RGB) that are no class of {dataset}: "
            f"{', '.join(capped(map(str, unknown), 5))}. Expected {DATASETS[dataset].label_files}."
        )
    return np.array([id_of[c] for c in colours.tolist()], np.uint8)[where].reshape(red.shape)


def _narrow(path, values, dataset, expected):
    if values.max() <= 255:
        return values.astype(np.uint8)
    largest = int(values.max())
    instances = ""
    if largest >= _PER_OBJECT and largest // _PER_OBJECT in labels.class_names(dataset):
        instances = f" (id {largest // _PER_OBJECT}, object {largest % _PER_OBJECT}: *_instanceIds.png?)"
    raise UserError(f"{path}: values up to {largest}{instances}, no class ids. {expected}")


def palette_fault(used, palette, dataset):
    """Tells ids with a palette for the eye from colours that an encoder has numbered as it liked.

    Ids: a grey ramp (index i is grey i), the palette of Pascal VOC's label files, or colours of the data set's own
    classes at their ids. Colours: classes' colours at other indices; or an unknown palette of which just the first
    indices occur, as encoders number them, where ids leave gaps; or indices that are no ids.

    Args:
      used: `[N]` the indices that occur, rising.
      palette: `[M, 3]` uint8 RGB.
      dataset: name of a data set.

    Returns:
      What is wrong in words, or None for ids.
    """
    colours = np.zeros((256, 3), np.int64)
    colours[: len(palette)] = palette
    colours = colours[used]
    if (colours == used[:, None]).all() or (colours == _pascal_palette()[used]).all():
        return None
    names = labels.class_names(dataset)
    at_its_id, elsewhere = 0, []
    for index, colour in zip(used.tolist(), map(tuple, colours.tolist()), strict=True):
        name = _CLASS_OF_COLOUR.get(colour)
        ids = [i for i, classes in names.items() if name in classes]
        if index in ids:
            at_its_id += 1
        elif ids:
            elsewhere.append(f"index {index} has the colour of {name}, whose id is {ids[0]}")
    if len(elsewhere) > at_its_id:
        return f"a palette image of colours, no class ids: {elsewhere[0]}"
    if at_its_id:
        return None
    if len(used) > 1 and used[-1] == len(used) - 1:
        return (
            f"a palette image of colours, no class ids: its indices are just 0 to {used[-1]}, as an encoder numbers "
            "the colours that it finds"
        )
    strange = sorted(set(used.tolist()) - DATASETS[dataset].ids.keys())
    return f"a palette image with the indices {strange[:5]}, which are no class ids" if strange else None


def _pascal_palette():
    """The palette of Pascal VOC's label files: the bits of the index, dealt to red, green and blue from the top."""
    index = np.arange(256)[:, None]
    channel = np.arange(3)
    return sum(((index >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(3))


def _sample(image):
    """Some of the pixels as a list of (red, green, blue)."""
    pixels = np.asarray(image.convert("RGB"))
    step = max(1, min(pixels.shape[:2]) // 64)
    return [tuple(pixel) for pixel in pixels[::step, ::step].reshape(-1, 3).tolist()]


def _share_of_class_colours(image):
    sample = _sample(image)
    return sum(pixel in _CLASS_OF_COLOUR for pixel in sample) / len(sample)


def _describe_colours(image):
    sample = _sample(image)
    common = collections.Counter(sample).most_common(1)[0][0]
    name = f", the colour of {_CLASS_OF_COLOUR[common]}" if common in _CLASS_OF_COLOUR else ""
    kind = "a grey image with alpha" if image.mode == "LA" else f"{image.mode} colours"
    return f"{kind} (most often {common}{name})"
