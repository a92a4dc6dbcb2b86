"""Cross-entropy against plain numpy."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from stpl_jax.losses.reduction import masked_mean
from stpl_jax.losses.segmentation import cross_entropy

entropies = jax.jit(cross_entropy, static_argnums=2)
mean_and_gradient = jax.jit(jax.value_and_grad(lambda scores, labels: masked_mean(*cross_entropy(scores, labels))))


def loop(scores, labels, ignored=255):
    losses = np.zeros(labels.shape)
    for where in np.ndindex(labels.shape):
        if labels[where] != ignored:
            row = scores[where]
            losses[where] = -math.log(math.exp(row[labels[where]]) / sum(math.exp(s) for s in row))
    return losses


def example(seed=0):
    random = np.random.default_rng(seed)
    return random.normal(0, 3, (2, 3, 4, 5)), random.choice([0, 1, 2, 3, 4, 255], (2, 3, 4)).astype(np.uint8)


def test_against_a_loop(x64):
    scores, labels = example()
    assert (labels == 255).any() and (labels != 255).any()
    loss, valid = entropies(jnp.asarray(scores), jnp.asarray(labels), 255)
    np.testing.assert_allclose(loss, loop(scores, labels), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(valid, labels != 255)


def test_other_ignored_label(x64):
    scores, labels = example()
    labels = np.where(labels == 255, 0, labels).astype(np.int32)
    loss, valid = entropies(jnp.asarray(scores), jnp.asarray(labels), 3)
    np.testing.assert_allclose(loss, loop(scores, labels, ignored=3), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(valid, labels != 3)


def test_gradient_is_softmax_minus_one_hot(x64):
    scores, labels = example()
    _, gradient = mean_and_gradient(jnp.asarray(scores), jnp.asarray(labels))
    exponentials = np.exp(scores)
    expected = exponentials / exponentials.sum(-1, keepdims=True)
    keep = labels != 255
    expected[keep, labels[keep]] -= 1
    expected[~keep] = 0
    np.testing.assert_allclose(gradient, expected / keep.sum(), rtol=1e-11, atol=1e-14)


def test_all_ignored():
    scores, labels = jnp.ones((2, 3, 4)), jnp.full((2, 3), 255, jnp.uint8)
    loss, valid = entropies(scores, labels, 255)
    np.testing.assert_array_equal(loss, np.zeros((2, 3)))
    assert not valid.any()
    mean, gradient = mean_and_gradient(scores, labels)
    assert float(mean) == 0
    np.testing.assert_array_equal(gradient, np.zeros(scores.shape))
