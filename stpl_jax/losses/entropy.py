"""Entropy of predictions, from class scores.

Entropies are shares of the largest possible, log K, so the base of the logarithm does not matter: FDA's public code
divides nats by ln K, ADVENT's bits by log2 K, and both get this.
"""

import math

import jax
import jax.numpy as jnp


def self_information(scores):
    """Weighted self-information of each class: -p_c · log p_c / log K.

    Args:
      scores: `[..., K]` before softmax.

    Returns:
      `[..., K]`, 0 or more; sums to `entropy` over classes.

    Source: ADVENT, equation 4 (public code: `prob_2_entropy`): what its discriminators and RDA's see.
    """
    log_probabilities = jax.nn.log_softmax(scores, -1)
    return -jnp.exp(log_probabilities) * log_probabilities / math.log(scores.shape[-1])


def entropy(scores):
    """Entropy of each pixel's prediction as a share of log K: `[..., K]` scores to `[...]`, 0 to 1."""
    return self_information(scores).sum(-1)


def robust_entropy(scores, power):
    """FDA's penalty on entropy, a Charbonnier function that leaves confident pixels alone: (H² + 1e-8)^η.

    Args:
      scores: `[..., K]` before softmax.
      power: η, 2 in the publication.

    Returns:
      `[...]`, unreduced.

    Source: FDA, equation 5, H divided by ln K as in the public code.
    """
    return (jnp.square(entropy(scores)) + 1e-8) ** power
