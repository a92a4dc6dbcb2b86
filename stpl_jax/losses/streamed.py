"""The contrastive loss's sum over negatives, exact, in memory that grows with the number of pixels and not its square.

    n_q = log Σ_{k: y_k ≠ y_q} exp(q·k/τ)

Similarities exist for one block of queries and one block of keys at a time. Forward, a running maximum and sums
relative to it meet the blocks of keys one after another, as in online softmax (Milakov and Gimelshein, 2018). Backward,
each block's similarities are computed again, as in flash attention (Dao et al., NeurIPS 2022).
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import sequential_vmap

from stpl_jax.ops.dtypes import compute_dtype

# Similarities at a time: 4 MiB in float32. On a CPU larger blocks leave the cache and smaller ones cost more calls.
BLOCK = 1024
# What a pair that is no negative gets for a similarity. Finite, so that the difference of two such is not NaN.
_EXCLUDED = -1e30


def negative_logsumexp(
    queries, keys, query_labels, key_labels, query_mask, key_mask, num_classes, temperature, block=BLOCK
):
    """Log-sum-exp of each query's similarities to the keys of all other classes.

        n_q = log Σ_{k: y_k ≠ y_q} exp(q·k/τ) ,  ∂n_q/∂q = Σ_k p_qk k/τ ,  ∂n_q/∂k = p_qk q/τ ,  p_qk = exp(q·k/τ - n_q)

    With one block of each, similarities are kept for the backward pass; with more, they are computed anew. The gradient
    goes to queries, keys and temperature. What masked pixels hold does not matter, be it NaN.

    Args:
      queries: `[N, D]` floating point.
      keys: `[M, D]`, the same type.
      query_labels, key_labels: `[N]` and `[M]` int32, in 0..num_classes-1.
      query_mask, key_mask: `[N]` and `[M]` bool, the pixels that take part.
      num_classes: K.
      temperature: τ, positive.
      block: the most queries, and the most keys, whose similarities exist at a time.

    Returns:
      `[N]` float32 (float64 for float64); 0, without a gradient, for a query that is masked or has no negative.

    Raises:
      ValueError: `block` is less than 1.
    """
    if block < 1:
        raise ValueError(f"block is the number of queries and of keys compared at a time, 1 or more; found {block}.")
    one_hot = jax.nn.one_hot(key_labels, num_classes, dtype=jnp.int32)
    sizes = jnp.sum(one_hot, axis=0, where=key_mask[:, None])  # [K]
    counts = query_mask & (sizes.sum() > sizes[query_labels])  # [N]
    # Masked pixels are multiplied by zeros further on, and 0·NaN would be NaN.
    queries = jnp.where(counts[:, None], queries, 0)
    keys = jnp.where(key_mask[:, None], keys, 0)
    key_labels = jnp.where(key_mask, key_labels, -1)
    scale = 1 / jnp.asarray(temperature, compute_dtype(queries.dtype))
    if max(len(queries), len(keys)) <= block:
        result = jax.nn.logsumexp(_similarity(queries, keys, query_labels, key_labels, scale), axis=-1)
    else:
        result = _streamed(
            _blocks(queries, block),
            _blocks(keys, block),
            _blocks(query_labels, block),
            _blocks(key_labels, block, fill=-1),
            scale,
        ).reshape(-1)[: len(queries)]
    return jnp.where(counts, result, 0)


def _blocks(values, most, fill=0):
    """Cuts `[N, ...]` into `[number, size, ...]`: as few blocks as can be, of even size, the last one filled up."""
    number = math.ceil(len(values) / most)
    # A multiple of 16 suits vector units, where there is room for it.
    size = min(16 * math.ceil(len(values) / number / 16), most)
    padding = [(0, number * size - len(values))] + [(0, 0)] * (values.ndim - 1)
    return jnp.pad(values, padding, constant_values=fill).reshape(number, size, *values.shape[1:])


def _product(a, b, dimension_a, dimension_b):
    """Matrix product over the given dimensions, summed in float32 or better whatever the type of the factors."""
    return lax.dot_general(
        a,
        b,
        (((dimension_a,), (dimension_b,)), ((), ())),
        precision="highest",
        preferred_element_type=compute_dtype(a.dtype),
    )


def _similarity(queries, keys, query_labels, key_labels, scale):
    """Similarities `[n, m]` of negatives, `_EXCLUDED` for other pairs; a key with label -1 is nobody's negative."""
    negative = (query_labels[:, None] != key_labels[None, :]) & (key_labels >= 0)[None, :]
    return jnp.where(negative, _product(queries, keys, 1, 1) * scale, _EXCLUDED)


@jax.custom_vjp
def _streamed(queries, keys, query_labels, key_labels, scale):
    """Log-sum-exp over negatives, block by block.

    Args:
      queries: `[Q, n, D]`, Q blocks of n.
      keys: `[P, m, D]`.
      query_labels: `[Q, n]` int32.
      key_labels: `[P, m]` int32, -1 for keys that do not count.
      scale: 1/τ, a scalar.

    Returns:
      `[Q, n]`, of the scale's type; finite and meaningless for a query without negatives.
    """
    return _forward(queries, keys, query_labels, key_labels, scale)[0]


# One clip after another: clips side by side would need as many blocks at a time, and ran slower.
@sequential_vmap
def _forward(queries, keys, query_labels, key_labels, scale):
    """The log-sum-exp `[Q, n]` and each query's mean negative Σ_k p_qk k, `[Q, n, D]`."""

    def one_block_of_queries(block):
        queries, query_labels = block

        def meet(running, block):
            maximum, total, weighted = running
            keys, key_labels = block
            similarity = _similarity(queries, keys, query_labels, key_labels, scale)
            # Until a query meets its first negative, maximum is _EXCLUDED and the sums count excluded pairs: `shrink`
            # is then exactly 0, and they are forgotten.
            larger = jnp.maximum(maximum, similarity.max(-1))
            shrink, terms = jnp.exp(maximum - larger), jnp.exp(similarity - larger[:, None])
            # Factors in the keys' type, so that bfloat16 stays on the matrix unit; the sum is float32.
            weighted = weighted * shrink[:, None] + _product(terms.astype(keys.dtype), keys, 1, 0)
            return (larger, total * shrink + terms.sum(-1), weighted), None

        size, dim = queries.shape
        dtype = scale.dtype
        start = jnp.full(size, _EXCLUDED, dtype), jnp.zeros(size, dtype), jnp.zeros((size, dim), dtype)
        (maximum, total, weighted), _ = lax.scan(meet, start, (keys, key_labels))
        return maximum + jnp.log(total), weighted / total[:, None]

    return lax.map(one_block_of_queries, (queries, query_labels))


@sequential_vmap
def _gradient_by_keys(queries, keys, query_labels, key_labels, scale, result, gradient):
    """Σ_q g_q p_qk q/τ, `[P, m, D]`, from the result of `_forward` and its gradient g, `[Q, n]`."""

    def one_block_of_keys(block):
        keys, key_labels = block

        def meet(running, block):
            queries, query_labels, result, gradient = block
            similarity = _similarity(queries, keys, query_labels, key_labels, scale)
            weights = jnp.exp(similarity - result[:, None]) * gradient[:, None]
            return running + _product(weights.astype(queries.dtype), queries, 0, 0), None

        start = jnp.zeros(keys.shape, scale.dtype)
        weighted, _ = lax.scan(meet, start, (queries, query_labels, result, gradient))
        return (weighted * scale).astype(keys.dtype)

    return lax.map(one_block_of_keys, (keys, key_labels))


def _streamed_forward(*arguments):
    # The mean negative is the gradient by the query but for factors. Made here, where the similarities are at hand, it
    # spares the backward pass a product.
    result, means = _forward(*arguments)
    return result, (arguments, result, means)


def _streamed_backward(saved, gradient):
    arguments, result, means = saved
    queries, scale = arguments[0], arguments[-1]
    by_product = gradient[..., None] * means  # [Q, n, D]
    by_queries = (by_product * scale).astype(queries.dtype)
    by_scale = jnp.sum(by_product * queries.astype(scale.dtype))
    return by_queries, _gradient_by_keys(*arguments, result, gradient), None, None, by_scale


_streamed.defvjp(_streamed_forward, _streamed_backward)
