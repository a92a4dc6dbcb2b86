"""From unreduced losses to a scalar."""

import jax
import jax.numpy as jnp


def masked_mean(values, mask, weights=None, axis_name=None):
    """Averages the values where the mask is set; nothing set gives 0 (a clip of one class counts as zero).

    Args:
      values: `[N]`.
      mask: `[N]` bool.
      weights: `[N]`, or None for equal weights.
      axis_name: mapped axis whose devices share one mean, or None for this device alone.

    Returns:
      A scalar: Σ w·v / Σ w over the mask. With an axis, this device's part of it: the mean of the parts over the
      devices is the mean over all their values, however many of them each device holds.
    """
    weights = mask.astype(values.dtype) * (1 if weights is None else weights)
    total = weights.sum() if axis_name is None else jax.lax.pmean(weights.sum(), axis_name)
    return jnp.sum(weights * jnp.where(mask, values, 0.0)) / jnp.where(total > 0, total, 1.0)
