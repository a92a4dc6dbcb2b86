"""What the three builders share about raw folders: the files of a clip, and reading them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from input_pipeline import flow_files


@dataclasses.dataclass(frozen=True)
class ClipFiles:
    """The files of one clip; they need not exist.

    Attributes:
      name: clip name, such as `001_00010`.
      label: label file of x_t.
      frames: {offset: image file}.
      flows: {(a, b): flow file}, empty unless flow is precomputed.
    """

    name: str
    label: Path
    frames: dict[int, Path]
    flows: dict[tuple[int, int], Path]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one data set lies in its owner's folders.

    Attributes:
      folders: spec -> the folders that have to exist.
      expected: the folder structure in words, for errors.
      list_clips: spec -> list of `ClipFiles` of every labelled frame, sorted by name.
      read_ids: label file -> `[H, W]` uint8 ids as the owner numbers them; ValueError for another kind of file.
      rows_kept: raw height -> rows kept, counted from the top.
      ego_id: id of cars where the recording car itself is labelled so and has to be ignored, else None.
    """

    folders: Callable
    expected: str
    list_clips: Callable
    read_ids: Callable
    rows_kept: Callable = lambda height: height
    ego_id: int | None = None


def read_image(path):
    """Decodes an image file completely.

    Args:
      path: JPEG or PNG file.

    Returns:
      PIL image in mode RGB.

    Raises:
      ValueError: the file cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise
    # PIL's decoders raise many types on broken data (OSError, SyntaxError, struct.error, …).
    except Exception as error:
        raise ValueError(f"cannot be decoded ({error})") from error


def read_ids_grey(path):
    """Reads a label file with one 8-bit channel.

    Args:
      path: PNG file, grey or with a palette (then the indices count).

    Returns:
      `[H, W]` uint8.

    Raises:
      ValueError: the file cannot be decoded or has another kind of pixel.
    """
    try:
        with Image.open(path) as image:
            mode, ids = image.mode, np.array(image)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"cannot be decoded ({error})") from error
    if mode not in ("L", "P"):
        raise ValueError(f"expected one 8-bit channel with ids, found pixels of PIL mode {mode}")
    return ids


def read_ids_red(path):
    """Reads a label file whose red channel holds the class, 8 or 16 bits deep.

    Args:
      path: PNG file with three or four channels.

    Returns:
      `[H, W]` uint8.

    Raises:
      ValueError: the file cannot be decoded, has too few channels, or holds ids above 255.
    """
    # PIL drops the low byte of 16-bit colours, so OpenCV reads the ids; but OpenCV fills up files that are cut off,
    # so PIL tells whether the file is complete.
    read_image(path)
    pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError("cannot be decoded")
    if pixels.ndim != 3 or pixels.shape[2] < 3:
        raise ValueError(f"expected colours with the class in the red channel, found shape {list(pixels.shape)}")
    red = pixels[..., 2]
    if red.max() > 255:
        raise ValueError(f"expected ids up to 255 in the red channel, found {int(red.max())}")
    return red.astype(np.uint8)


def find_flow(folders, name):
    """Looks a flow file up.

    Args:
      folders: folders that may hold it, the preferred first.
      name: file name from `flow_files.flow_name`.

    Returns:
      The first that exists, as `.npy` or as `.flo` with or without `_int16_x10`; else the preferred place.
    """
    stem = Path(name).stem
    for folder in folders:
        for candidate in (name, f"{stem}.flo", f"{stem.removesuffix('_int16_x10')}.flo"):
            if (folder / candidate).is_file():
                return folder / candidate
    return folders[0] / name


def flows_of(spec, clip_name, number, folders):
    """Finds the flow files of one clip.

    Args:
      spec: `DatasetSpec`.
      clip_name: clip name.
      number: frame number of x_t.
      folders: folders that may hold the files.

    Returns:
      {(a, b): path}, empty unless the spec reads precomputed flow.
    """
    if spec.flow_source != "precomputed":
        return {}
    return {
        (a, b): find_flow(folders, flow_files.flow_name(spec.name, clip_name, number - a, number - b))
        for a, b in spec.flow_pairs
    }


def flow_folders(spec):
    """Returns the folders in which a set's flow files may lie: `flow_dir` itself, or a sub-folder of the split."""
    split_dir = Path(spec.flow_dir) / spec.split
    return [split_dir, Path(spec.flow_dir)] if split_dir.is_dir() else [Path(spec.flow_dir)]


def ego_vehicle(is_car):
    """Finds the recording car: the connected car regions that touch the bottom row within its middle tenth.

    Args:
      is_car: `[H, W]` bool.

    Returns:
      `[H, W]` bool, True on the recording car.
    """
    _, regions = cv2.connectedComponents(is_car.astype(np.uint8))
    width = is_car.shape[1]
    middle = regions[-1, int(width * 0.45) : int(np.ceil(width * 0.55))]
    return np.isin(regions, middle[middle > 0])
