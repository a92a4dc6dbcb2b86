"""Supervised losses on class scores."""

import jax
import jax.numpy as jnp

IGNORED = 255


def cross_entropy(scores, labels, ignored=IGNORED):
    """Softmax cross-entropy at each pixel, unreduced.

    Args:
      scores: `[..., K]`.
      labels: `[...]` integers in 0..K-1, or `ignored`.
      ignored: the label that does not count.

    Returns:
      `loss` `[...]`, 0 where ignored, and `valid` `[...]` bool.
    """
    valid = labels != ignored
    safe = jnp.where(valid, labels, 0).astype(jnp.int32)
    log_probabilities = jax.nn.log_softmax(scores, -1)
    picked = jnp.take_along_axis(log_probabilities, safe[..., None], -1)[..., 0]
    return jnp.where(valid, -picked, 0.0), valid
