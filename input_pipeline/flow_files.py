"""Optical flow on disk: reading, writing, its stored form, and resizing on the host.

A flow field lives on the current frame's grid and points to where each pixel was in the earlier frame:
`warped(y, x) = earlier(y + v, x + u)`. Channel 0 is u (right), channel 1 is v (down), in pixels of its own grid.

Files are `.npy`, int16, `[H, W, 2]`, ten times the value in pixels (the field's downloads use this form), or Middlebury
`.flo`, float32.

Every pixel must have flow. What formats have for unknown flow is refused: NaN and infinity, 1e9 and more in `.flo`
files, and the ends of int16, where a value was clipped on its way into the file.
"""

import io
from pathlib import Path

import numpy as np

from input_pipeline.errors import UserError
from input_pipeline.files import write_atomically

# Stored value per pixel of motion, in int16 files and in prepared sets.
UNITS_PER_PIXEL = 10
# Pixels; the ends of int16, where clipped values lie, are left out. Frames are not as wide as that.
LARGEST = 3276.6
_LARGEST_STORED = np.iinfo(np.int16).max - 1
_FLO_MAGIC = 202021.25
_FLO_HEADER_BYTES = 12


def to_int16(flow):
    """Turns flow in pixels into the stored form.

    Args:
      flow: `[H, W, 2]` float, pixels.

    Returns:
      `[H, W, 2]` int16, ten times the value, rounded to the nearest (half to even).

    Raises:
      UserError: values that are not finite or beyond ±3276.6 px; says which share of the pixels.
    """
    stored = np.rint(np.asarray(flow, np.float64) * UNITS_PER_PIXEL)
    fault = _unusable(stored)
    if fault:
        raise UserError(f"Flow cannot be stored: {fault}.")
    return stored.astype(np.int16)


def to_pixels(stored, dtype=np.float32):
    """Turns flow from the stored form into pixels.

    Args:
      stored: `[..., 2]` int16, of NumPy or of JAX.
      dtype: of the result.

    Returns:
      `[..., 2]` of `dtype`, pixels.
    """
    return stored.astype(dtype) / UNITS_PER_PIXEL


def _unusable(stored):
    """Says which share of the pixels has no flow that can be stored, None where all have it.

    Args:
      stored: `[H, W, 2]`, ten times the value in pixels, of any type.
    """
    # NaN fails the comparisons, too; and the absolute value of int16's lower end does not fit into int16.
    usable = ((stored >= -_LARGEST_STORED) & (stored <= _LARGEST_STORED)).all(-1)
    bad = usable.size - np.count_nonzero(usable)
    if not bad:
        return None
    return f"no usable flow (unknown, not finite, or beyond ±{LARGEST} px) in {bad} of {usable.size} pixels" + (
        f" ({bad / usable.size:.1%})"
    )


def read_flow(path):
    """Reads a flow file.

    Args:
      path: `.npy` (int16, ten times the value in pixels) or `.flo`.

    Returns:
      `[H, W, 2]` float32 (u, v), pixels, all finite and within ±3276.6.

    Raises:
      UserError: another file type, dtype or shape, a file that is cut off, or pixels without flow; says their share.
    """
    path = Path(path)
    if path.suffix == ".npy":
        stored = np.asarray(_open_npy(path))
        fault = _unusable(stored)
        flow = to_pixels(stored)
    else:
        height, width = flow_size(path)
        values = np.fromfile(path, "<f4", count=height * width * 2, offset=_FLO_HEADER_BYTES)
        flow = values.reshape(height, width, 2).astype(np.float32)
        with np.errstate(over="ignore"):
            fault = _unusable(flow * np.float32(UNITS_PER_PIXEL))
    if fault:
        raise UserError(
            f"{path}: {fault}. Every pixel needs flow: fill the others in, or leave the clip out "
            "(--config.data.skip_bad=True)."
        )
    return flow


def flow_size(path):
    """Reads the size of a flow file from its header and checks that the file is complete.

    Args:
      path: `.npy` or `.flo`.

    Returns:
      (height, width).

    Raises:
      UserError: another file type, dtype or shape, or a file that is cut off.
    """
    path = Path(path)
    if path.suffix == ".npy":
        return _open_npy(path).shape[:2]
    if path.suffix == ".flo":
        return _flo_size(path)
    raise UserError(f"{path}: expected a flow file ending in .npy or .flo.")


def _open_npy(path):
    # Mapping reads the header only, and fails on a file shorter than the header promises.
    try:
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
    except (EOFError, OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise UserError(
            f"{path}: expected a complete .npy flow file, found one that cannot be read ({error})."
        ) from error
    if stored.dtype != np.int16 or stored.ndim != 3 or stored.shape[2] != 2:
        raise UserError(
            f"{path}: expected flow as int16 [H, W, 2] (ten times the value in pixels), "
            f"found {stored.dtype} {list(stored.shape)}.{_how_to_convert(stored)}"
        )
    return stored


def _how_to_convert(array):
    channels_last = array.ndim == 3 and array.shape[2] == 2
    if array.dtype.kind not in "fi" or not (channels_last or (array.ndim == 3 and array.shape[0] == 2)):
        return ""
    turn = "" if channels_last else ".transpose(1, 2, 0)"
    # Whole numbers may be pixels or tenths of pixels: that is for the user to know.
    tenfold = "numpy.rint(10 * flow)" if array.dtype.kind == "f" else "flow"
    return (
        f" If it holds (u, v) in {'pixels' if array.dtype.kind == 'f' else 'tenths of pixels'}, convert it: "
        f"numpy.save(FILE, {tenfold}{turn}.astype('int16'))."
    )


def _flo_size(path):
    with open(path, "rb") as file:
        header = file.read(_FLO_HEADER_BYTES)
    if len(header) < _FLO_HEADER_BYTES or np.frombuffer(header, "<f4", 1)[0] != np.float32(_FLO_MAGIC):
        raise UserError(f"{path}: expected a .flo file that starts with the number {_FLO_MAGIC}.")
    width, height = (int(n) for n in np.frombuffer(header, "<i4", 2, offset=4))
    expected, found = _FLO_HEADER_BYTES + height * width * 8, path.stat().st_size
    if height < 1 or width < 1 or found < expected:
        raise UserError(
            f"{path}: the header says {height} rows of {width} pixels, {expected} bytes; the file has {found} bytes."
        )
    return height, width


def write_flow(path, flow):
    """Writes flow as `.npy`, int16, ten times the value; the file appears complete or not at all.

    Args:
      path: file to write, ending in `.npy`; its folder is made if it is missing.
      flow: `[H, W, 2]` float (u, v), pixels; rounded to a tenth of a pixel.

    Raises:
      OSError: the file cannot be written.
      UserError: the ending is not `.npy`, or the flow has another shape, or values that are not finite or beyond
        ±3276.6 px.
    """
    path, flow = Path(path), np.asarray(flow)
    if path.suffix != ".npy":
        raise UserError(f"{path}: flow is written as .npy; give a name that ends in .npy.")
    if flow.ndim != 3 or flow.shape[2] != 2:
        raise UserError(f"{path}: expected finite flow of shape [H, W, 2], found shape {list(flow.shape)}.")
    stored = io.BytesIO()
    try:
        np.save(stored, to_int16(flow))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    write_atomically(path, stored.getvalue())


def resize_flow(flow, size, scale="align_corners"):
    """Resizes flow to another grid: bilinear with aligned corners, values scaled to the new grid's pixels.

    `align_corners`: u·(w-1)/(W-1), v·(h-1)/(H-1), exact for this resampling. `public`: both times h/H, as the public
    code of the field's baselines does (about 1.4% off at feature resolution), for checkpoints trained with it.

    Args:
      flow: `[H, W, 2]` float (u, v), pixels of the H×W grid.
      size: (h, w) of the result.
      scale: `align_corners` or `public`.

    Returns:
      `[h, w, 2]` float32, pixels of the h×w grid.

    Raises:
      UserError: unknown `scale`, or a side shorter than two pixels.
    """
    if scale not in ("align_corners", "public"):
        raise UserError(f"flow scale {scale!r}: expected 'align_corners' or 'public'.")
    flow = np.asarray(flow, np.float32)
    old_h, old_w = flow.shape[:2]
    new_h, new_w = size
    if min(old_h, old_w, new_h, new_w) < 2:
        raise UserError(f"Cannot resize flow of {old_h}x{old_w} to {new_h}x{new_w}: every side needs two pixels.")
    if (old_h, old_w) == (new_h, new_w):
        return flow.copy()
    x = np.linspace(0, old_w - 1, new_w, dtype=np.float64)
    y = np.linspace(0, old_h - 1, new_h, dtype=np.float64)
    resized = _lerp(_lerp(flow, y, axis=0), x, axis=1)
    if scale == "public":
        return resized * np.float32(new_h / old_h)
    factors = np.array([(new_w - 1) / (old_w - 1), (new_h - 1) / (old_h - 1)], np.float32)
    return resized * factors


def _lerp(values, positions, axis):
    low = np.clip(np.floor(positions).astype(np.int64), 0, values.shape[axis] - 2)
    weight = (positions - low).astype(np.float32)
    weight = weight[:, None, None] if axis == 0 else weight[None, :, None]
    below, above = np.take(values, low, axis), np.take(values, low + 1, axis)
    return below + (above - below) * weight
