"""Views of a clip to train on: mirrored or not, scaled by a factor and cut to a fixed size, on the device.

Scaling and cutting are one sampling of a box, `geometry.py`. Where the scaled frame is smaller than the cut, the box
reaches beyond the frame's lower and right border: flow is 0 there, images are black or mirrored in, and `within_frame`
says so.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from stpl_jax.ops.geometry import Box, crop_resized, crop_resized_flow
from stpl_jax.ops.mirror import mirror, mirror_flow


class View(NamedTuple):
    """What a view shows.

    Attributes:
      mirrored: bool scalar; the frame is mirrored first.
      box: the part of it, in pixels of the frame; its lower and right end may lie beyond the frame.
    """

    mirrored: jax.Array
    box: Box


def sample_view(
    key: jax.Array,
    size: tuple[int, int],
    out_size: tuple[int, int],
    scale: tuple[float, float],
    flip_probability: float,
) -> View:
    """Draws a view of one clip.

    Args:
      key: a random key.
      size: (H, W) of the frame.
      out_size: (h, w) of the view.
      scale: smallest and largest factor that the frame is scaled by, drawn evenly.
      flip_probability: that the frame is mirrored.

    Returns:
      A `View`. Along an axis on which the scaled frame is smaller than the view, its box starts at 0; elsewhere it lies
      within the frame, each position alike.
    """
    flip_key, scale_key, *place_keys = jax.random.split(key, 4)
    mirrored = jax.random.uniform(flip_key, (), jnp.float32) < flip_probability
    factor = jax.random.uniform(scale_key, (), jnp.float32, *scale)
    lengths = [jnp.maximum(jnp.round(side / factor).astype(jnp.int32), 1) for side in out_size]
    starts = [
        jax.random.randint(place_key, (), 0, jnp.maximum(side - length, 0) + 1, jnp.int32)
        for place_key, side, length in zip(place_keys, size, lengths, strict=True)
    ]
    return View(mirrored, Box(*starts, *lengths))


def view_images(images: jax.Array, view: View, out_size: tuple[int, int], beyond: str = "zero") -> jax.Array:
    """Shows images `[..., H, W, C]`, floating point, in a view: `[..., h, w, C]`; `beyond`: as `crop_resized`."""
    return crop_resized(jnp.where(view.mirrored, mirror(images), images), view.box, out_size, beyond)


def view_flow(flow: jax.Array, view: View, out_size: tuple[int, int]) -> jax.Array:
    """As `view_images` for flow `[..., H, W, 2]` between frames in this view: its vectors change along with them."""
    return crop_resized_flow(jnp.where(view.mirrored, mirror_flow(flow), flow), view.box, out_size)


def view_classes(
    classes: jax.Array, view: View, size: tuple[int, int], out_size: tuple[int, int], grid: tuple[int, int]
) -> jax.Array:
    """Brings classes on a network's grid of the frame to its grid of the view, each from the pixel nearest to it.

    Corner pixels of a grid lie on corner pixels of the images, as scores are resized everywhere here.

    Args:
      classes: `[h', w']` of the whole frame.
      view: the view.
      size, out_size: (H, W) of the frame and (h, w) of the view.
      grid: (height, width) of the result.

    Returns:
      `[*grid]`; beyond the frame, whatever is at its border.
    """
    classes = jnp.where(view.mirrored, jnp.flip(classes, -1), classes)
    for axis, position in enumerate(_positions(view.box, out_size, grid)):
        spacing = (classes.shape[axis] - 1) / max(size[axis] - 1, 1)
        nearest = jnp.floor(position * spacing + 0.5).astype(jnp.int32)
        classes = jnp.take(classes, nearest, axis=axis, mode="clip")
    return classes


def within_frame(view: View, size: tuple[int, int], out_size: tuple[int, int], grid: tuple[int, int]) -> jax.Array:
    """Tells which pixels of a network's grid of the view show the frame: bool `[*grid]`; arguments: `view_classes`."""
    rows, columns = (p < side - 0.5 for p, side in zip(_positions(view.box, out_size, grid), size, strict=True))
    return rows[:, None] & columns[None, :]


def _positions(box: Box, out_size: tuple[int, int], grid: tuple[int, int]) -> list[jax.Array]:
    """Where the rows and the columns of the view's grid lie in the frame, in its pixels."""

    def along(start, length, side, count):
        dtype = jnp.result_type(float)
        in_view = jnp.arange(count, dtype=dtype) * ((side - 1) / max(count - 1, 1))
        return (in_view + 0.5) * (length.astype(dtype) / side) - 0.5 + start.astype(dtype)

    return [along(box.top, box.height, out_size[0], grid[0]), along(box.left, box.width, out_size[1], grid[1])]
