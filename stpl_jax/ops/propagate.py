"""Propagating an earlier frame's maps forward: each pixel is thrown to where it moves, and holes stay holes."""

import jax
import jax.numpy as jnp

from stpl_jax.ops.dtypes import compute_dtype


def propagate(x: jax.Array, flow: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Throws each pixel of the earlier frame to the nearest pixel of the current one.

        propagated(round(y - v(y, x)), round(x - u(y, x))) = x(y, x)

    Flow is stored on the current frame's grid and points back, so its negative points forward; it is read at the
    earlier frame's own pixel, which is where it belongs only as far as neighbours move alike. `warp` needs no such
    step, and leaves no holes: this is what the public code of DA-VSN does instead.

    Several pixels may land on one. The one with the largest x wins, and among these the one with the largest y: the
    public code writes column by column, each from top to bottom, and the last one written stays. It is chosen by an
    integer maximum, which does not depend on the order in which a device happens to write. Halves are rounded to even.

    Args:
      x: [..., h, w, C], the earlier frame's maps.
      flow: [..., h, w, 2] floating point, (u, v) in pixels of this grid, from the current frame into the earlier one,
        as for `warp`. The leading axes are those of x.

    Returns:
      The propagated maps [..., h, w, C] of x's dtype, 0 where nothing landed, and bool [..., h, w]: where something
      did. The gradient flows into the pixels of x that won, and not into the flow.

    Raises:
      ValueError: if the shapes do not go together.
      TypeError: if flow is not floating point.
    """
    if x.ndim < 3 or tuple(flow.shape) != (*x.shape[:-1], 2):
        raise ValueError(
            "propagate: expected x [..., h, w, C] and flow [..., h, w, 2], got "
            f"{tuple(x.shape)} and {tuple(flow.shape)}"
        )
    if not jnp.issubdtype(flow.dtype, jnp.floating):
        raise TypeError(f"propagate: flow must be floating point, got {flow.dtype}")
    h, w, channels = x.shape[-3:]
    flow = flow.reshape(-1, h, w, 2).astype(compute_dtype(flow.dtype))
    rows = jnp.round(jnp.arange(h, dtype=flow.dtype)[None, :, None] - flow[..., 1])  # [N, h, w], where a pixel lands
    columns = jnp.round(jnp.arange(w, dtype=flow.dtype)[None, None, :] - flow[..., 0])
    inside = (rows >= 0) & (rows <= h - 1) & (columns >= 0) & (columns <= w - 1)
    # Clamped before the cast: a float beyond int32's range has no defined integer.
    landing = jnp.clip(rows, 0, h - 1).astype(jnp.int32) * w + jnp.clip(columns, 0, w - 1).astype(jnp.int32)
    landing = jnp.where(inside, landing, h * w).reshape(-1, h * w)  # one past the end: dropped
    rank = jnp.arange(w, dtype=jnp.int32)[None, :] * h + jnp.arange(h, dtype=jnp.int32)[:, None]  # [h, w]

    def winners(landing: jax.Array) -> jax.Array:
        return jnp.full(h * w, -1, jnp.int32).at[landing].max(rank.reshape(-1), mode="drop")

    winner = jax.vmap(winners)(landing)  # [N, h·w], rank of the pixel that stays; -1 where none landed
    reached = winner >= 0
    origin = jnp.where(reached, winner % h * w + winner // h, 0)
    picked = jnp.take_along_axis(x.reshape(-1, h * w, channels), origin[..., None], axis=1)
    propagated = jnp.where(reached[..., None], picked, jnp.zeros_like(picked))
    return propagated.reshape(x.shape), reached.reshape(x.shape[:-1])
