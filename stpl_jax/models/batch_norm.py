"""Batch normalisation whose batch is made of groups, each with statistics of its own."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from stpl_jax.ops.dtypes import compute_dtype

EPSILON = 1e-5
MOMENTUM = 0.1
# Name of the batch statistics among the values that rematerialisation may keep.
STATISTICS = "batch_statistics"


def average_after(average, statistics):
    """Moves a running average over several groups, one after another, as one weighted sum.

    Equals the loop `for s in statistics: average = 0.9 * average + 0.1 * s`.

    Args:
      average: `[C]`, the running average before.
      statistics: `[G, C]`, the groups' statistics in the order in which they count.

    Returns:
      `[C]`, the running average after the last group.
    """
    count = statistics.shape[0]
    weights = MOMENTUM * (1 - MOMENTUM) ** np.arange(count - 1, -1, -1)
    weights = jnp.asarray(weights, statistics.dtype)
    return (1 - MOMENTUM) ** count * average + jnp.einsum("g,gc->c", weights, statistics, precision="highest")


class GroupedBatchNorm(nn.Module):
    """Batch normalisation, PyTorch's arithmetic, with the batch split into groups that do not see each other.

    The public code forwards each frame by itself, so each frame of each view has its own mean and variance; here all of
    them go through the network as one batch and only the statistics are kept apart. Statistics are two-pass, at least
    float32, over the group's clips on this device, rows and columns; the gradient flows through both. Running averages
    take the unbiased variance, as PyTorch does (Flax takes the biased one).

    `scale` and `bias` are parameters that no method of the paper trains.

    Attributes:
      sync_axis: name of the pmapped axis over which statistics are taken, or None for this device alone.
      param_dtype: type of scale, bias and running averages.
      epsilon: what is added to variances.
    """

    sync_axis: str | None = None
    param_dtype: Any = jnp.float32
    epsilon: float = EPSILON

    @nn.compact
    def __call__(self, x, groups, averaged, share=1.0):
        """Normalises.

        Args:
          x: `[G·B, h, w, C]`, group-major.
          groups: G, the number of groups; 0 normalises with the running averages and leaves them alone.
          averaged: how many of the groups, from the first on, enter the running averages, in that order.
          share: weight of a group's statistics among those that normalise it; the running averages, as they are before,
            have the rest: (1 - share) · running + share · group's, means and variances (α-BN, arXiv 2110.04065).

        Returns:
          `[G·B, h, w, C]`, type of `x`.
        """
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,), self.param_dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), self.param_dtype)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), self.param_dtype)

        dtype = compute_dtype(x.dtype)
        if not groups:
            factor = scale.astype(dtype) * jax.lax.rsqrt(running_var.value.astype(dtype) + self.epsilon)
            offset = bias.astype(dtype) - running_mean.value.astype(dtype) * factor
            return (x.astype(dtype) * factor[None, None, None] + offset[None, None, None]).astype(x.dtype)

        grouped = x.astype(dtype).reshape(groups, -1, *x.shape[1:])
        mean = checkpoint_name(self._across_devices(grouped.mean((1, 2, 3))), STATISTICS)  # [G, C]
        centred = grouped - mean[:, None, None, None]
        var = checkpoint_name(self._across_devices(jnp.square(centred).mean((1, 2, 3))), STATISTICS)  # [G, C]
        if share == 1:
            used = var
        else:
            used_mean = (1 - share) * running_mean.value.astype(dtype)[None] + share * mean
            used = (1 - share) * running_var.value.astype(dtype)[None] + share * var
            centred = grouped - used_mean[:, None, None, None]
        factor = scale.astype(dtype)[None] * jax.lax.rsqrt(used + self.epsilon)
        out = centred * factor[:, None, None, None] + bias.astype(dtype)[None, None, None, None]

        if averaged and not self.is_initializing() and self.is_mutable_collection("batch_stats"):
            count = grouped[0, ..., 0].size * (jax.lax.axis_size(self.sync_axis) if self.sync_axis else 1)
            if count < 2:
                raise ValueError(
                    f"Batch statistics need two values per channel or more, found {count}: x is {x.shape} in {groups} "
                    "groups. Use larger frames, more clips per device, or batch_norm.mode=running."
                )
            unbiased = var * (count / (count - 1))
            for running, statistics in ((running_mean, mean), (running_var, unbiased)):
                average = average_after(running.value.astype(dtype), statistics[:averaged])
                running.value = average.astype(self.param_dtype)
        return out.reshape(x.shape).astype(x.dtype)

    def _across_devices(self, statistics):
        if self.sync_axis is None or self.is_initializing():
            return statistics
        return jax.lax.pmean(statistics, self.sync_axis)
