"""Scaling a frame within its own size: what no longer fits is cut off, what is missing is mirrored in."""

import jax
import jax.numpy as jnp
from jax import lax

from stpl_jax.ops.dtypes import compute_dtype

# Positions this close to the border, in pixels, count as on it: rounding must not cost a row.
TOLERANCE = 1e-3


def zoom(x: jax.Array, scale: jax.Array, anchor: jax.Array) -> jax.Array:
    """Enlarges (scale above 1) or shrinks maps around a point that stays where it is; the size stays, too.

        zoomed(i) = x(a + (i - a) / scale),  a = anchor · (n - 1),  along each axis,

    bilinear. Corner pixels are the ends of the anchor's range, so frames, features and scores of one clip can be zoomed
    alike, each on its own grid (as `resize_align_corners` aligns them). Beyond the border the map is mirrored: unlike a
    constant, that hardly changes the statistics that batch normalisation sees. Flow has to be multiplied by the scale
    besides. `zoom(zoom(x, s, a), 1 / s, a)` is x again but for the smoothing, where nothing was cut off.

    Args:
      x: [h, w, C] floating point; `jax.vmap` it over clips.
      scale: scalar, at least 0.5; may be traced.
      anchor: [2], (y, x) in 0..1 of the height and width: the point that stays.

    Returns:
      [h, w, C] of x's dtype.

    Raises:
      ValueError: if x is not [h, w, C].
      TypeError: if x is not floating point.
    """
    if x.ndim != 3:
        raise ValueError(f"zoom: expected x [h, w, C], got shape {tuple(x.shape)}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"zoom: x must be floating point, got {x.dtype}")
    dtype = compute_dtype(x.dtype)

    def weights(axis: int) -> jax.Array:
        size = x.shape[axis]
        last = jnp.asarray(size - 1, dtype)
        position = _positions(size, scale, anchor[axis], dtype)
        position = jnp.clip(last - jnp.abs(last - jnp.abs(position)), 0, last)
        distance = jnp.abs(position[:, None] - jnp.arange(size, dtype=dtype)[None, :])
        return jnp.maximum(1 - distance, 0)  # [out, in]

    zoomed = jnp.einsum("Xx,yxc->yXc", weights(1), x.astype(dtype), precision=lax.Precision.HIGHEST)
    return jnp.einsum("Yy,yxc->Yxc", weights(0), zoomed, precision=lax.Precision.HIGHEST).astype(x.dtype)


def covered(size: tuple[int, int], scale: jax.Array, anchor: jax.Array) -> jax.Array:
    """Tells where `zoom` reads inside the map: bool [h, w], for maps of that (h, w) and the same scale and anchor."""

    def inside(axis: int) -> jax.Array:
        position = _positions(size[axis], scale, anchor[axis], jnp.float32)
        return (position >= -TOLERANCE) & (position <= size[axis] - 1 + TOLERANCE)

    return inside(0)[:, None] & inside(1)[None, :]


def _positions(size: int, scale: jax.Array, anchor: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Where each pixel of an axis is read, [size], in pixels."""
    fixed = jnp.asarray(anchor, dtype) * (size - 1)
    return fixed + (jnp.arange(size, dtype=dtype) - fixed) / jnp.asarray(scale, dtype)
