"""Class-balanced pseudo-labels, as Uncertainty Reduction takes them from CRST (Zou et al., ICCV 2019)."""

import jax
import jax.numpy as jnp

from stpl_jax.losses.segmentation import IGNORED
from stpl_jax.ops.shares import share_of


def class_thresholds(probabilities, proportion):
    """Finds each class's threshold: the confidence that the most confident share of its pixels reaches.

    A pixel belongs to the class of its largest probability, which is its confidence. With n_c pixels of class c, θ_c is
    the ⌊proportion · n_c⌋-th largest confidence among them; where that is none, θ_c is 1.

    Args:
      probabilities: `[P, K]`. No gradient flows from the result.
      proportion: share of each class's pixels, in 0..1.

    Returns:
      θ, `[K]`.

    Raises:
      ValueError: the proportion is not in 0..1.
    """
    probabilities = jax.lax.stop_gradient(probabilities)
    pixels, num_classes = probabilities.shape
    labels, confidence = jnp.argmax(probabilities, -1), jnp.max(probabilities, -1)
    ranked = confidence[jnp.lexsort((-confidence, labels))]  # class by class, most confident first
    sizes = jnp.sum(jax.nn.one_hot(labels, num_classes, dtype=jnp.int32), 0, dtype=jnp.int32)  # [K]
    starts = jnp.cumsum(sizes, dtype=jnp.int32) - sizes
    counts = share_of(sizes, proportion)
    last = jnp.clip(starts + counts - 1, 0, pixels - 1)
    return jnp.where(counts > 0, ranked[last], 1.0)


def class_balanced_labels(probabilities, thresholds):
    """Labels the pixels that are confident for their class.

        y = argmax_c p_c / θ_c , kept where p_y / θ_y ≥ 1

    A class with a low threshold wins a pixel over a class that is likelier there, but less likely than it usually is.

    Args:
      probabilities: `[..., K]`. No gradient flows from the result.
      thresholds: θ, `[K]`, positive.

    Returns:
      `[...]` int32, `IGNORED` where nothing is confident.
    """
    probabilities = jax.lax.stop_gradient(probabilities)
    thresholds = thresholds.reshape((1,) * (probabilities.ndim - 1) + (-1,))
    labels = jnp.argmax(probabilities / thresholds, -1)
    # Compared before the division, whose rounding could put the pixel that sets the threshold below it.
    confident = jnp.take_along_axis(probabilities >= thresholds, labels[..., None], -1)[..., 0]
    return jnp.where(confident, labels, IGNORED).astype(jnp.int32)
