"""How far predictions from perturbed features are from the unperturbed one (Uncertainty Reduction)."""

import jax
import jax.numpy as jnp


def probability_error(scores, probabilities):
    """Squared difference of a prediction's probabilities and others, averaged over classes, unreduced.

        1/K · Σ_c (softmax(scores)_c - p_c)²

    Args:
      scores: `[..., K]`.
      probabilities: p, of a shape that broadcasts to it. No gradient goes there.

    Returns:
      `[...]`.
    """
    return jnp.mean(jnp.square(jax.nn.softmax(scores, -1) - jax.lax.stop_gradient(probabilities)), -1)
