"""Historical contrastive learning (Huang et al., NeurIPS 2021): its two terms as the public code has them."""

import jax
import jax.numpy as jnp

from stpl_jax.losses.entropy import entropy


def historical_consistency(historical, averaged):
    """Weighs each pixel by how well an earlier network and the averaged one agree on it.

        exp(-KL(p_historical ‖ p_averaged))

    Args:
      historical, averaged: scores `[..., K]`.

    Returns:
      `[...]` in 0..1, unreduced.
    """
    earlier, now = jax.nn.log_softmax(historical, -1), jax.nn.log_softmax(averaged, -1)
    return jnp.exp(-jnp.sum(jnp.exp(earlier) * (earlier - now), -1))


def reliability(scores, margin):
    """Rates each pixel by how certain the averaged network is of it.

        r = clip(1 + m - H(p) / log K, 1 - m, 1 + m)

    Args:
      scores: `[..., K]`.
      margin: m, in 0..1 (1 excluded).

    Returns:
      `[...]`.
    """
    return jnp.clip(1 + margin - entropy(scores), 1 - margin, 1 + margin)


def historical_contrast(queries, keys, labels, reliabilities, num_classes, temperature):
    """Contrasts each pixel of the network with the other pixels of the averaged network, weighed by reliability.

        L_i = -1/N Σ_{j ≠ i, y_j = y_i} [ s_ij - log Σ_{k ≠ i} r_k exp(s_ik) + log r_j ] ,  s_ij = q_i·k_j/τ

    The denominator runs over all other pixels, the positives among them. The sum is divided by the number of pixels N,
    not of positives, so that frequent classes weigh more. Since s and log r enter the sum over positives linearly,
    only the denominator needs pairs.

    Args:
      queries: `[N, D]`, unit length, of the network that is trained.
      keys: `[N, D]`, unit length, of the averaged network at the same pixels.
      labels: `[N]` int32, in 0..num_classes-1.
      reliabilities: r, `[N]`, positive.
      num_classes: K.
      temperature: τ.

    Returns:
      `[N]`, unreduced; 0, without a gradient, for a pixel alone in its class.
    """
    count = len(queries)
    members = jax.nn.one_hot(labels, num_classes, dtype=keys.dtype)  # [N, K]
    others = members.sum(0)[labels] - 1  # [N], positives of each query
    logarithms = jnp.log(reliabilities)

    def over_positives(values):
        sums = jnp.einsum("nk,nd->kd", members, values, precision="highest")
        return sums[labels] - values

    similarity = jnp.einsum("nd,md->nm", queries, keys, precision="highest") / temperature + logarithms[None]
    # A pixel alone in its class keeps itself in the sum: nothing multiplies it, and a clip of one pixel stays finite.
    allowed = ~jnp.eye(count, dtype=bool) | (others == 0)[:, None]
    denominators = jax.nn.logsumexp(similarity, -1, where=allowed)
    attraction = jnp.sum(queries * over_positives(keys), -1) / temperature + over_positives(logarithms[:, None])[:, 0]
    return (others * denominators - attraction) / count
