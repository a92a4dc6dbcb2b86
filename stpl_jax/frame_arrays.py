"""What people hand to a network as frames, flow and size: checked, with a word on how to convert."""

import numpy as np
from PIL import Image

from input_pipeline.errors import UserError

_ORIENTATION = 0x0112  # EXIF's tag


def video_array(values):
    """Returns the frames of a video as an array.

    Args:
      values: `[T, H, W, 3]` uint8 RGB: an array, or a list of frames or of PIL images in mode RGB.

    Returns:
      The same as a numpy array.

    Raises:
      UserError: anything else; says what was expected, what was found and how to convert it.
    """
    frames = _array(values, "frames", "[T, H, W, 3] uint8 RGB")
    hints = [_hint_for_shape(frames, True), _hint_for_values(frames, "frames")]
    if hints != [None, None]:
        raise UserError(_message("Expected frames [T, H, W, 3] uint8 RGB", frames, hints))
    return frames


def frame_array(values, i):
    """Returns frame `i` of a stream as an array `[H, W, 3]` uint8; raises as `video_array`."""
    frame = _array(values, f"frame {i}", "[H, W, 3] uint8 RGB")
    hints = [_hint_for_shape(frame, False), _hint_for_values(frame, "frame")]
    if hints != [None, None]:
        raise UserError(_message(f"Frame {i}: expected [H, W, 3] uint8 RGB", frame, hints))
    return frame


def flows_array(values, shape):
    """Returns the flow of a video as an array.

    Args:
      values: `[T-1, H, W, 2]` floating point.
      shape: of the frames.

    Returns:
      The same as a numpy array; its values are not looked at.

    Raises:
      UserError: another shape.
    """
    flow = _array(values, "flow", "[T-1, H, W, 2] float32")
    expected = (shape[0] - 1, *shape[1:3], 2)
    if flow.shape == expected:
        return flow
    hint = ""
    if flow.shape == (2,):
        hint = "For the size of the class maps write size=(height, width)."
    elif flow.shape == (shape[0], *expected[1:]):
        hint = "Flow lies between two frames: one field less than frames, flow[i] on the grid of frame i+1."
    elif flow.shape == (expected[0], 2, *expected[1:3]):
        hint = "Channels come last: np.moveaxis(flow, 1, -1)."
    elif flow.shape == expected[1:] and shape[0] == 2:
        hint = "For one field write flow[None]."
    raise UserError(
        f"Expected flow [T-1, H, W, 2] = {list(expected)} float32 beside frames {list(shape)}, found {describe(flow)}. "
        f"{hint}".rstrip()
    )


def flow_array(values, i, size):
    """Returns the flow of frame `i`.

    Args:
      values: `[H, W, 2]` floating point, in pixels.
      i: number of the frame, for errors.
      size: (H, W) of the frames.

    Returns:
      The same as a numpy array.

    Raises:
      UserError: another shape or type of array, or values that are not finite or that stand for unknown flow.
    """
    flow = _array(values, f"flow of frame {i}", "[H, W, 2] float32 in pixels")
    if flow.shape != (*size, 2) or not np.issubdtype(flow.dtype, np.floating):
        hint = ""
        if np.issubdtype(flow.dtype, np.integer):
            hint = "Flow files hold int16, ten times the value: divide by 10."
        raise UserError(
            f"Flow of frame {i}: expected {[*size, 2]} float32 in pixels, found {describe(flow)}. {hint}".rstrip()
        )
    unknown = ~np.isfinite(flow).all(-1) | (np.abs(flow, dtype=np.float64) >= _UNKNOWN).any(-1)
    if unknown.any():
        raise UserError(
            f"Flow of frame {i} is not finite or unknown (1e9) at {unknown.mean():.1%} of the pixels. Fill these, with "
            "0 or with their neighbours' flow."
        )
    return flow


# Middlebury's mark for unknown flow is 1e9 and more.
_UNKNOWN = 1e9


def size_pair(size):
    """Returns the size of class maps as (height, width).

    Args:
      size: two whole numbers above 0, or None.

    Returns:
      (height, width), or None.

    Raises:
      UserError: anything else.
    """
    if size is None:
        return None
    whole = np.asarray(size) if isinstance(size, tuple | list | np.ndarray) else None
    if whole is None or whole.shape != (2,) or not np.issubdtype(whole.dtype, np.integer) or not (whole > 0).all():
        raise UserError(f"Expected size=(height, width), two whole numbers above 0, or None; found size={size!r}.")
    return int(whole[0]), int(whole[1])


def _message(expected, array, hints):
    return " ".join([f"{expected}, found {describe(array)}.", *filter(None, hints)])


def describe(array):
    """Returns type and shape of an array as text."""
    return f"{array.dtype} {list(array.shape)}"


def _array(values, name, expected):
    if isinstance(values, str | bytes) or hasattr(values, "__fspath__"):
        raise UserError(
            f"Expected {name} as {expected}, found the path {values!r}. Files are segmented by "
            "stpl_jax.predict.predict_files or --mode=predict."
        )
    if hasattr(values, "__next__"):
        raise UserError(f"Expected {name} as {expected}, found an iterator. segment_stream takes iterators.")
    for image in values if isinstance(values, list | tuple) else (values,):
        if not isinstance(image, Image.Image):
            continue
        # Of grey and transparent ones the array tells the same, below.
        if image.mode not in ("RGB", "RGBA", "L", "1") or image.getexif().get(_ORIENTATION, 1) != 1:
            raise UserError(
                f"Expected {name} as {expected}, found a PIL image of mode {image.mode}, stored with EXIF orientation "
                f'{image.getexif().get(_ORIENTATION, 1)}: PIL.ImageOps.exif_transpose(image).convert("RGB") is upright '
                "and in RGB."
            )
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise UserError(f"Expected {name} as one array {expected}; its parts differ in shape ({error}).") from error
    # Tensors on a GPU or with gradients do not convert themselves, and say so by many types of error.
    except Exception as error:
        raise UserError(
            f"Expected {name} as a numpy array {expected}, found {type(values).__name__} ({error}). For a torch "
            "tensor: tensor.detach().cpu().numpy()."
        ) from error
    if array.dtype == object:
        raise UserError(f"Expected {name} as an array {expected}, found {type(values).__name__} that is none.")
    return array


def _hint_for_shape(frames, is_video):
    """How to bring frames to `[..., H, W, 3]`; an empty text where nobody knows, None where they have that shape."""
    name, dimensions, shape = ("frames", 4, frames.shape) if is_video else ("frame", 3, frames.shape)
    if not frames.size:
        return "There is nothing in it."
    if len(shape) == dimensions:
        if shape[-1] == 3:
            return None
        if shape[-1] == 4:
            return f"Without alpha: {name}[..., :3]."
        if shape[-1] == 1:
            return f"Grey frames, three times: np.repeat({name}, 3, axis=-1)."
        if shape[-3] in (1, 3, 4):
            return f"Channels come last: np.moveaxis({name}, -3, -1)."
        if is_video and shape[0] in (1, 3, 4):
            return "Channels come last: np.moveaxis(frames, 0, -1)."
        return ""
    if is_video and len(shape) == 3 and shape[-1] in (3, 4):
        return "For one frame: frames[None]."
    if len(shape) == dimensions - 1:
        return f"Grey frames, three times: np.repeat({name}[..., None], 3, axis=-1)."
    if is_video and len(shape) == 2:
        return "For one grey frame: np.repeat(frames[None, ..., None], 3, axis=-1)."
    return f"One {'video' if is_video else 'frame'} at a time: {name}[0]." if len(shape) == dimensions + 1 else ""


def _hint_for_values(frames, name):
    """How to bring values to uint8, or None where they are."""
    if frames.dtype == np.uint8 or not frames.size:
        return None
    if frames.dtype == bool:
        return f"If these are masks of 0 and 1: {name}.astype(np.uint8) * 255."
    if np.issubdtype(frames.dtype, np.integer):
        low, high = int(frames.min()), int(frames.max())
        if low >= 0 and high <= 255:
            return f"Its values fit: {name}.astype(np.uint8)."
        if low >= 0 and high <= 65535:
            return f"Its values reach {high}; if they have 16 bits: ({name} // 257).astype(np.uint8)."
        return f"Its values lie from {low} to {high}, and 0 to 255 are expected."
    if not np.issubdtype(frames.dtype, np.floating):
        return ""
    low, high = float(frames.min()), float(frames.max())
    if not np.isfinite([low, high]).all():
        return "Some of its values are not finite."
    if low < 0:
        return f"Its values lie from {low:.3g} to {high:.3g}: undo the normalisation, and bring them to 0 to 255."
    if high <= 1:
        return f"Its values lie between 0 and 1: ({name} * 255).round().astype(np.uint8)."
    if high <= 255:
        return f"Its values lie between 0 and 255: {name}.round().astype(np.uint8)."
    return f"Its values lie from {low:.3g} to {high:.3g}, and 0 to 255 are expected."
