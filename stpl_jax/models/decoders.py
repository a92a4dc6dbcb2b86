"""Auxiliary decoders on features of which whole channels are dropped (Uncertainty Reduction, CVPR 2021)."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp


def draw_channel_masks(keys, count, channels, rate, dtype=jnp.float32):
    """Draws which channels stay, PyTorch's Dropout2d: all pixels of a clip share a draw, what stays grows.

    Args:
      keys: `[B]`, a random key for each clip.
      count: number of draws for each clip.
      channels: C.
      rate: probability that a channel is dropped, in 0..1 (1 excluded).
      dtype: type of the result.

    Returns:
      `[count, B, C]`: 0, or 1 / (1 - rate).

    Raises:
      ValueError: the rate is not a probability below 1.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"methods.ur.dropout is a probability below 1, found {rate}.")
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, jnp.float32(1 - rate), (count, channels)), out_axes=1)(keys)
    return kept.astype(dtype) / (1 - rate)


class AuxiliaryDecoders(nn.Module):
    """Classifiers of the segmentation network's own kind, each on features dropped by a draw of its own.

    Attributes:
      count: number of decoders.
      new_classifier: name -> module of one, `Network.new_classifier`.
    """

    count: int
    new_classifier: Callable

    @nn.compact
    def __call__(self, features, masks):
        """Scores perturbed features.

        Args:
          features: `[B, h, w, C]`.
          masks: `[count, B, C]`, factors of the channels, see `draw_channel_masks`.

        Returns:
          `[count, B, h, w, K]`.
        """
        masks = masks.astype(features.dtype)
        return jnp.stack(
            [self.new_classifier(name=f"decoder_{i}")(features * masks[i, :, None, None]) for i in range(self.count)]
        )
