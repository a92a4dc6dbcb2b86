"""Mirror images of clips."""

import jax.numpy as jnp


def mirror(x):
    """Swaps left and right: `[..., H, W, C]`."""
    return jnp.flip(x, -2)


def mirror_flow(flow):
    """Mirrors flow: its grid, and the vectors on it, whose horizontal part changes its sign.

    Args:
      flow: `[..., H, W, 2]`, (u, v), floating point or signed integers.

    Returns:
      `[..., H, W, 2]`, the flow between the mirrored frames.
    """
    mirrored = mirror(flow)
    return jnp.stack([-mirrored[..., 0], mirrored[..., 1]], -1)
