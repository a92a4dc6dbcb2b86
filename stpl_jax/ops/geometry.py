"""Random resized crops of clips, their labels and their flow, on the device: static shapes, boxes that may be traced.

A crop of one size that is resized to another is one sampling of the frame, done as two small matrix products, as in
`resize.py`. Here, though, pixels are squares and their centres are half a pixel in (OpenCV's and PyTorch's default for
images), and not align-corners: a crop has no corner pixels to keep in place.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from stpl_jax.ops.dtypes import compute_dtype


class Box(NamedTuple):
    """A part of a frame, in whole pixels; int32 scalars, or arrays of them. It may reach beyond the frame."""

    top: jax.Array
    left: jax.Array
    height: jax.Array
    width: jax.Array


def sample_box(
    key: jax.Array,
    size: tuple[int, int],
    out_size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    tries: int = 10,
) -> Box:
    """Draws the box of a random resized crop.

    Area and shape are drawn until the box fits into the frame. After `tries` draws it is the largest box in the middle
    of the frame whose stretch is within the range, or the whole frame where the frame's own is.

    Args:
      key: a random key.
      size: (H, W) of the frame.
      out_size: (h, w) that the box will be resized to; only its shape matters.
      scale: smallest and largest share of the frame's area.
      ratio: smallest and largest stretch: the box's width/height over that of `out_size`; drawn evenly on a log scale.
      tries: number of draws, at least 1.

    Returns:
      A `Box` of scalars that lies within the frame.

    Raises:
      ValueError: the shares are not within 0..1, in order, or a stretch is not positive.

    Source: RandomResizedCrop of torchvision and of albumentations, whose outputs are square here.
    """
    if not 0 < scale[0] <= scale[1] <= 1 or not 0 < ratio[0] <= ratio[1]:
        raise ValueError(
            f"A random crop takes shares of the area in 0..1 and stretches above 0, found {scale}, {ratio}."
        )
    height, width = size
    area_key, shape_key, top_key, left_key = jax.random.split(key, 4)
    areas = jax.random.uniform(area_key, (tries,), jnp.float32, *scale) * (height * width)
    stretch = jax.random.uniform(shape_key, (tries,), jnp.float32, math.log(ratio[0]), math.log(ratio[1]))
    shape = jnp.exp(stretch) * (out_size[1] / out_size[0])
    heights = jnp.round(jnp.sqrt(areas / shape)).astype(jnp.int32)
    widths = jnp.round(jnp.sqrt(areas * shape)).astype(jnp.int32)
    fits = (heights <= height) & (widths <= width)
    chosen = jnp.argmax(fits)
    box_height = jnp.clip(heights[chosen], 1, height)
    box_width = jnp.clip(widths[chosen], 1, width)
    top = jax.random.randint(top_key, (), 0, height - box_height + 1, jnp.int32)
    left = jax.random.randint(left_key, (), 0, width - box_width + 1, jnp.int32)
    drawn, middle = Box(top, left, box_height, box_width), _middle_box(size, out_size, ratio)
    return jax.tree.map(lambda d, m: jnp.where(fits.any(), d, m), drawn, middle)


def _middle_box(size: tuple[int, int], out_size: tuple[int, int], ratio: tuple[float, float]) -> Box:
    """The largest box in the middle of a frame whose stretch is within `ratio`: see `sample_box`."""
    height, width = size
    narrowest, widest = (stretch * out_size[1] / out_size[0] for stretch in ratio)
    box_height = min(height, max(1, round(width / narrowest)))
    box_width = min(width, max(1, round(height * widest)))
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def crop_resized(images: jax.Array, box: Box, size: tuple[int, int], beyond: str = "zero") -> jax.Array:
    """Cuts a box out of images and resizes it bilinearly; beyond the box its border pixels are repeated.

    Args:
      images: [..., H, W, C] floating point.
      box: a `Box` of scalars.
      size: (h, w) of the result.
      beyond: pixels of the result whose centres lie beyond the frame: zero, or mirror (the frame once more, mirrored at
        its border, which fills a box of up to twice the frame; its own last pixels are repeated beyond that).

    Returns:
      [..., h, w, C] of the dtype of images.
    """
    dtype = compute_dtype(images.dtype)
    rows = _weights(box.top, box.height, images.shape[-3], size[0], beyond, dtype)
    columns = _weights(box.left, box.width, images.shape[-2], size[1], beyond, dtype)
    out = jnp.einsum("hy,...yxc->...hxc", rows, images.astype(dtype), precision=lax.Precision.HIGHEST)
    out = jnp.einsum("wx,...hxc->...hwc", columns, out, precision=lax.Precision.HIGHEST)
    return out.astype(images.dtype)


def crop_resized_nearest(classes: jax.Array, box: Box, size: tuple[int, int]) -> jax.Array:
    """As `crop_resized` for class maps [..., H, W]: each pixel takes the class under its centre; [..., h, w].

    Beyond the frame the class at its border is repeated.
    """
    rows = _nearest(box.top, box.height, size[0])
    columns = _nearest(box.left, box.width, size[1])
    return jnp.take(jnp.take(classes, rows, axis=-2, mode="clip"), columns, axis=-1, mode="clip")


def crop_resized_flow(flow: jax.Array, box: Box, size: tuple[int, int]) -> jax.Array:
    """As `crop_resized` for flow [..., H, W, 2] between two frames that are cropped alike: vectors are scaled along."""
    dtype = compute_dtype(flow.dtype)
    factors = jnp.stack([size[1] / box.width.astype(dtype), size[0] / box.height.astype(dtype)])  # of u and v
    factors = factors.reshape((1,) * (flow.ndim - 1) + (2,)).astype(flow.dtype)
    return crop_resized(flow, box, size) * factors


def _weights(start: jax.Array, length: jax.Array, size_in: int, size_out: int, beyond: str, dtype) -> jax.Array:
    """Bilinear weights [size_out, size_in] from a frame's axis to a resized part of it."""
    scale = length.astype(dtype) / size_out
    position = (jnp.arange(size_out, dtype=dtype) + 0.5) * scale - 0.5
    position = jnp.clip(position, 0, (length - 1).astype(dtype)) + start.astype(dtype)
    inside = (position >= -0.5) & (position < size_in - 0.5)
    if beyond == "mirror":
        position = jnp.where(position < -0.5, -1 - position, position)
        position = jnp.where(position >= size_in - 0.5, 2 * size_in - 1 - position, position)
    position = jnp.clip(position, 0, size_in - 1)
    # A tent of width one on each side of the position.
    distance = jnp.abs(jnp.arange(size_in, dtype=dtype)[None, :] - position[:, None])
    weights = jnp.maximum(1 - distance, 0)
    return weights if beyond == "mirror" else jnp.where(inside[:, None], weights, 0)


def _nearest(start: jax.Array, length: jax.Array, size_out: int) -> jax.Array:
    """Indices [size_out] into a frame's axis; whole numbers all along, so that no rounding moves a border."""
    return start + (2 * jnp.arange(size_out, dtype=jnp.int32) + 1) * length // (2 * size_out)
