"""Temporal consistency: how many pixels keep their class from frame to frame."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from stpl_jax.ops.warp import warp_nearest


class ConsistencyCounts(NamedTuple):
    """Pixel counts of one clip, int32 scalars; add them up over clips before taking shares."""

    same: jax.Array  # equal classes at the same position of both frames
    total: jax.Array  # pixels of a frame
    same_warped: jax.Array  # equal classes after warping, among `inside`
    inside: jax.Array  # pixels that the flow traces back into the earlier frame


def consistency_counts(current: jax.Array, earlier: jax.Array, flow: jax.Array) -> ConsistencyCounts:
    """Counts the pixels whose predicted class is the same in frames t and t-1, in place and after warping.

    Args:
      current: integer class map [H, W] predicted for frame t.
      earlier: integer class map [H, W] predicted for frame t-1.
      flow: [H, W, 2], (u, v) in pixels, on frame t's grid, pointing to where each pixel was in t-1. The earlier map is
        read at the nearest pixel; pixels that were outside the frame do not count.

    Returns:
      ConsistencyCounts of int32 scalars.

    Raises:
      ValueError: if the shapes do not go together.

    Source: paper, appendix A2; the warped share is an addition that is fairer to a moving camera.
    """
    if current.ndim != 2 or current.shape != earlier.shape:
        raise ValueError(
            f"consistency_counts: expected two class maps [H, W], got {tuple(current.shape)} and {tuple(earlier.shape)}"
        )
    current, earlier = current.astype(jnp.int32), earlier.astype(jnp.int32)
    warped, inside = warp_nearest(earlier, flow)

    def count(mask: jax.Array) -> jax.Array:
        return jnp.sum(mask, dtype=jnp.int32)

    return ConsistencyCounts(
        same=count(current == earlier),
        total=jnp.asarray(current.size, jnp.int32),
        same_warped=count((current == warped) & inside),
        inside=count(inside),
    )


def consistency_shares(counts: ConsistencyCounts) -> tuple[float, float]:
    """Shares of consistent pixels over a set of clips, in percent.

    Args:
      counts: ConsistencyCounts of arrays of any one shape (clips, devices), summed here in int64. Every clip's pixels
        weigh the same.

    Returns:
      (raw, warped), each 0 to 100; NaN where no pixel was counted.
    """
    same, total, same_warped, inside = (int(np.asarray(x).astype(np.int64).sum()) for x in counts)
    return _percent(same, total), _percent(same_warped, inside)


def _percent(part: int, whole: int) -> float:
    return 100.0 * part / whole if whole else float("nan")
