"""RDA's attacker: picks the frequency bands of an image that are replaced by another image's."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from stpl_jax.models.initialisers import torch_default


class FrequencyGate(nn.Module):
    """Scores each band of each channel: keep, or replace.

    A dense layer over all bands and channels, ReLU, and two scores from each of its outputs by itself. Initialised as
    PyTorch does by default. It sees the logarithm of 1 + level: levels fall by orders of magnitude from the lowest band
    to the highest, and would leave the Gumbel noise without a say.

    Source: RDA's public code (`GateModule96`), which takes the levels themselves.
    """

    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, levels):
        """Scores bands: mean amplitudes `[..., bands, channels]` to logits `[..., bands · channels, 2]`."""
        x = jnp.log1p(levels).reshape(*levels.shape[:-2], -1)
        inputs = x.shape[-1]
        init = torch_default(inputs)
        x = nn.relu(nn.Dense(inputs, kernel_init=init, bias_init=init, param_dtype=self.param_dtype, name="mix")(x))
        kernel = self.param("score_kernel", torch_default(1), (inputs, 2), self.param_dtype)
        bias = self.param("score_bias", torch_default(1), (inputs, 2), self.param_dtype)
        leading = (1,) * (x.ndim - 1)
        return x[..., None] * kernel.reshape(*leading, inputs, 2) + bias.reshape(*leading, inputs, 2)


def straight_through_gate(key, logits, count):
    """Opens the `count` gates whose Gumbel-softmax samples are largest; the gradient is that of the samples.

        s = softmax(logits + Gumbel noise)_1,  gate = 1 on the top `count` of s, 0 elsewhere,  ∂gate := ∂s

    The public code writes ones at the indices of the largest samples, and so cuts its gate off from every gradient.

    Args:
      key: random key.
      logits: `[N, 2]`, keep and replace.
      count: how many gates open.

    Returns:
      `[N]`, exactly 0 or 1.

    Source: RDA, section 3.2, with the straight-through estimator of Jang et al., Categorical Reparameterization with
    Gumbel-Softmax.
    """
    samples = jax.nn.softmax(logits + jax.random.gumbel(key, logits.shape, logits.dtype), -1)[:, 1]
    _, largest = jax.lax.top_k(samples, count)
    hard = jnp.zeros_like(samples).at[largest].set(1)
    return hard + (samples - jax.lax.stop_gradient(samples))


@jax.custom_vjp
def reverse_gradient(x):
    """Hands x on, and turns the gradient on its way back: who made x climbs what the reader descends."""
    return x


reverse_gradient.defvjp(lambda x: (x, None), lambda _, gradient: (-gradient,))
