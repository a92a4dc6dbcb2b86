"""The pixel-to-pixel contrastive loss (paper, section 3.2, equations 1-4)."""

import jax
import jax.numpy as jnp

from stpl_jax.losses.streamed import BLOCK, negative_logsumexp
from stpl_jax.ops.dtypes import compute_dtype


def pixel_contrast(
    queries, keys, query_labels, key_labels, query_mask, key_mask, num_classes, temperature, block=BLOCK
):
    """Contrasts each query pixel with the keys of its own class against the keys of all others.

        L_q = -1/|P_q| Σ_{q+ ∈ P_q} log( exp(q·q+/τ) / Σ_{q- ∈ N_q} exp(q·q-/τ) )

    The denominator runs over NEGATIVES only, as equation 3 is printed, so the positive term is linear in the key and
    only the mean key of each class is needed:

        L_q = logsumexp_{k ∈ N_q}(q·k/τ) - q·μ_{y_q}/τ

    Args:
      queries: `[N, D]`, unit length.
      keys: `[M, D]`, unit length, the same type.
      query_labels, key_labels: `[N]` and `[M]` int32, in 0..num_classes-1.
      query_mask, key_mask: `[N]` and `[M]` bool, the pixels that take part; what the others hold does not matter.
      num_classes: K.
      temperature: τ.
      block: the most queries, and the most keys, that are compared at a time. The result does not depend on it;
        memory grows with its square.

    Returns:
      `loss` `[N]`, unreduced, float32 (float64 for float64), and `valid` `[N]` bool: the queries that take part and
      have a positive and a negative. `loss` is 0 where not `valid`, and so is its gradient.

    Raises:
      ValueError: `block` is less than 1.
    """
    dtype = compute_dtype(queries.dtype)
    members = jax.nn.one_hot(key_labels, num_classes, dtype=dtype) * key_mask[:, None].astype(dtype)  # [M, K]
    sizes = members.sum(0)  # [K]
    counted = jnp.where(key_mask[:, None], keys, 0).astype(dtype)
    means = jnp.einsum("mk,md->kd", members, counted, precision="highest") / jnp.maximum(sizes, 1)[:, None]
    positives = sizes[query_labels]
    valid = query_mask & (positives > 0) & (sizes.sum() > positives)

    log_negatives = negative_logsumexp(
        queries, keys, query_labels, key_labels, valid, key_mask, num_classes, temperature, block
    )
    queries = jnp.where(valid[:, None], queries, 0).astype(dtype)
    # All class means and then one of them: a gathered `[N, D]` and the scatter of its gradient would cost more.
    to_means = jnp.einsum("nd,kd->nk", queries, means, precision="highest")
    attraction = jnp.take_along_axis(to_means, query_labels[:, None], 1)[:, 0] / temperature
    return jnp.where(valid, log_negatives - attraction, 0.0), valid


def class_balance(labels, mask, num_classes, power, axis_name=None):
    """Weighs each pixel by its class's count to a power: -0.5 lifts rare classes, 0 weighs all pixels alike.

    Args:
      labels: `[N]` int32.
      mask: `[N]` bool, the pixels that count.
      num_classes: K.
      power: exponent, 0 or negative.
      axis_name: mapped axis over whose devices pixels are counted, or None for this device alone.

    Returns:
      `[N]` float32 (float64 under `jax_enable_x64`); 0 where the mask is not set.
    """
    dtype = jnp.result_type(float)
    counts = (jax.nn.one_hot(labels, num_classes, dtype=dtype) * mask[:, None].astype(dtype)).sum(0)
    counts = jnp.maximum(counts if axis_name is None else jax.lax.psum(counts, axis_name), 1.0)
    return jnp.where(mask, counts[labels] ** power, 0.0)
