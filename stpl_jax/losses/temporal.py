"""Losses and labels that compare predictions over time (DA-VSN, VAT-VST)."""

import jax
import jax.numpy as jnp

from stpl_jax.losses.entropy import entropy
from stpl_jax.losses.segmentation import IGNORED


def unconfident_difference(scores, propagated, propagated_entropy, reached):
    """DA-VSN's intra-domain temporal consistency: pulls a prediction to the earlier one where that is more certain.

        w · |p_t - p̂_{t-1}|,  w = 1 where a pixel arrived and H(p̂_{t-1}) < H(p_t), else 0

    Args:
      scores: `[..., K]` scores of x_t.
      propagated: `[..., K]` probabilities of x_{t-1}, propagated to t. No gradient flows into them.
      propagated_entropy: `[...]`, their entropy, propagated alike.
      reached: `[...]` bool, where something was propagated to.

    Returns:
      `[..., K]`, unreduced: the public code averages over all pixels and classes, also those that do not count.

    Source: public code of DA-VSN (`weighted_l1_loss`).
    """
    propagated, propagated_entropy = jax.lax.stop_gradient((propagated, propagated_entropy))
    counts = reached & (propagated_entropy < jax.lax.stop_gradient(entropy(scores)))
    difference = jnp.abs(jax.nn.softmax(scores, -1) - propagated)
    return jnp.where(counts[..., None], difference, 0.0)


def agreed_labels(probabilities, threshold):
    """VAT-VST's pseudo-labels: the class that every frame of a window gives a pixel.

    Args:
      probabilities: `[F, ..., K]`, what each of F frames predicts, all on one grid. No gradient flows from the result.
      threshold: least probability, averaged over the frames, that a label needs.

    Returns:
      `[...]` int32: classes, `IGNORED` where two frames disagree or the threshold is missed.
    """
    probabilities = jax.lax.stop_gradient(probabilities)
    classes = jnp.argmax(probabilities, -1).astype(jnp.int32)
    confident = probabilities.mean(0).max(-1) >= threshold
    # Where all frames agree, their mean has the same class.
    return jnp.where(jnp.all(classes == classes[:1], 0) & confident, classes[0], IGNORED)
