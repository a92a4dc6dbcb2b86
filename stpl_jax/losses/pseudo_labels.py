"""Which pixels of a clip take part, and with which label (paper, section 3.2: pseudo pixel-wise feature separation)."""

import jax
import jax.numpy as jnp

from stpl_jax.ops.shares import share_of


def confident_pixels(scores, proportion, per_class=False):
    """Picks a clip's most confident pixels: the paper's topk(ŷ; k).

    The pseudo-label is the class of the largest score, the confidence its softmax probability. Ties go to the lower
    pixel index. The number of slots is static, so that the compiled program does not depend on the data.

    Args:
      scores: `[P, K]` fused scores of the clean clip's P pixels. No gradient flows from the result.
      proportion: k, the share of pixels that take part.
      per_class: take ⌊k·n_c⌋ pixels of each class c instead of ⌊k·P⌋ of all. The number of slots stays; those left
        over are masked.

    Returns:
      `index` `[N]` int32 into the P pixels, `labels` `[N]` int32, `mask` `[N]` bool, with N = ⌊k·P⌋.
    """
    scores = jax.lax.stop_gradient(scores)
    pixels, num_classes = scores.shape
    slots = share_of(pixels, proportion)
    labels = jnp.argmax(scores, -1).astype(jnp.int32)
    confidence = jnp.max(jax.nn.softmax(scores, -1), -1)
    if not per_class:
        _, index = jax.lax.top_k(confidence, slots)
        return index, labels[index], jnp.ones(slots, bool)

    # Sorted by class, then by falling confidence; both sorts are stable, so ties keep the lower pixel first.
    order = jnp.argsort(-confidence, stable=True)
    order = order[jnp.argsort(labels[order], stable=True)]
    sizes = jnp.sum(jax.nn.one_hot(labels, num_classes, dtype=jnp.int32), 0, dtype=jnp.int32)  # [K]
    starts = jnp.cumsum(sizes, dtype=jnp.int32) - sizes
    rank = jnp.arange(pixels, dtype=jnp.int32) - starts[labels[order]]
    chosen = rank < share_of(sizes, proportion)[labels[order]]
    # Chosen pixels first; there are never more of them than slots.
    index = order[jnp.argsort(~chosen, stable=True)][:slots].astype(jnp.int32)
    return index, labels[index], jnp.arange(slots) < chosen.sum()
