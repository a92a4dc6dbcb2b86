"""Warping an earlier frame onto the current frame's grid along optical flow."""

import jax
import jax.numpy as jnp

from stpl_jax.ops.dtypes import compute_dtype


def warp(x: jax.Array, flow: jax.Array) -> jax.Array:
    """Samples x bilinearly where each pixel was.

        warped(y, x) = earlier(y + v(y, x), x + u(y, x))

    Each of the four corner indices is clamped to the border, while the weights are the fractions of the unclamped
    position: beyond the border the nearest border pixel is repeated. The gradient flows into x, and into the flow
    through the weights.

    Args:
      x: [..., h, w, C] floating point, the earlier frame's images, features or scores.
      flow: [..., h, w, 2], (u, v) in pixels of this grid, on the current frame's grid, pointing to where each pixel
        was. The leading axes are those of x.

    Returns:
      [..., h, w, C] of x's dtype; weights and sums are float32, or x's dtype where that is finer.

    Raises:
      ValueError: if the shapes do not go together.
      TypeError: if x or flow is not floating point.

    Source: Resample2d of the public FlowNet2 code, which the public code of DA-VSN and TPS uses.
    """
    if x.ndim < 3:
        raise ValueError(f"warp: expected x [..., h, w, C], got shape {tuple(x.shape)}")
    _check_floating("warp: x", x)
    _check_flow("warp", x.shape[:-1], flow)
    h, w, channels = x.shape[-3:]
    pixels = x.reshape(-1, h * w, channels)  # [N, h·w, C]
    rows, columns = _positions(flow.reshape(-1, h, w, 2))
    top, left = jnp.floor(rows), jnp.floor(columns)
    dtype = compute_dtype(x.dtype)
    down = (rows - top).astype(dtype)  # [N, h, w]
    right = (columns - left).astype(dtype)

    def corner(row: jax.Array, column: jax.Array, weight: jax.Array) -> jax.Array:
        values = jax.vmap(lambda p, i: jnp.take(p, i, axis=0, mode="clip"))(pixels, _index(row, column, h, w))
        return weight.reshape(-1, h * w, 1) * values.astype(dtype)

    warped = (
        corner(top, left, (1 - down) * (1 - right))
        + corner(top, left + 1, (1 - down) * right)
        + corner(top + 1, left, down * (1 - right))
        + corner(top + 1, left + 1, down * right)
    )
    return warped.astype(x.dtype).reshape(x.shape)


def warp_nearest(classes: jax.Array, flow: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Samples a class map at the pixel nearest to where each pixel was.

    Args:
      classes: [..., H, W], any dtype: the earlier frame's class map.
      flow: [..., H, W, 2], (u, v) in pixels of this grid, as for `warp`.

    Returns:
      The warped classes [..., H, W], of the dtype of classes, and bool [..., H, W]: whether the rounded position lies
      in the frame. Where it does not, the class is that of the nearest border pixel. Halves round up.

    Raises:
      ValueError: if the shapes do not go together.
      TypeError: if flow is not floating point.
    """
    if classes.ndim < 2:
        raise ValueError(f"warp_nearest: expected classes [..., H, W], got shape {tuple(classes.shape)}")
    _check_flow("warp_nearest", classes.shape, flow)
    h, w = classes.shape[-2:]
    rows, columns = _positions(flow.reshape(-1, h, w, 2))
    rows, columns = jnp.floor(rows + 0.5), jnp.floor(columns + 0.5)
    inside = (rows >= 0) & (rows <= h - 1) & (columns >= 0) & (columns <= w - 1)
    warped = jnp.take_along_axis(classes.reshape(-1, h * w), _index(rows, columns, h, w), axis=1, mode="clip")
    return warped.reshape(classes.shape), inside.reshape(classes.shape)


def _positions(flow: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where each pixel was: rows and columns, [N, h, w] each, of at least float32 (bfloat16 cannot count to 1024)."""
    flow = flow.astype(compute_dtype(flow.dtype))
    h, w = flow.shape[1:3]
    rows = flow[..., 1] + jnp.arange(h, dtype=flow.dtype)[None, :, None]
    columns = flow[..., 0] + jnp.arange(w, dtype=flow.dtype)[None, None, :]
    return rows, columns


def _index(row: jax.Array, column: jax.Array, h: int, w: int) -> jax.Array:
    """Flat index of whole-numbered positions [N, h, w] clamped to the border: int32 [N, h·w]."""
    # Clamped before the cast: a float beyond int32's range has no defined integer.
    row = jnp.clip(row, 0, h - 1).astype(jnp.int32)
    column = jnp.clip(column, 0, w - 1).astype(jnp.int32)
    return (row * w + column).reshape(-1, h * w)


def _check_floating(name: str, x: jax.Array) -> None:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{name} must be floating point, got {x.dtype}")


def _check_flow(name: str, shape: tuple[int, ...], flow: jax.Array) -> None:
    if tuple(flow.shape) != (*shape, 2):
        raise ValueError(f"{name}: expected flow of shape {(*shape, 2)} beside {tuple(shape)}, got {tuple(flow.shape)}")
    _check_floating(f"{name}: flow", flow)
