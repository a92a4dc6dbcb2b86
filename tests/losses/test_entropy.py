"""Entropies against PyTorch readings of ADVENT's and FDA's public code."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from stpl_jax.losses.entropy import entropy, robust_entropy, self_information

CLASSES = 5


def information(p):
    """ADVENT's `prob_2_entropy`: bits over log2 K."""
    return -p * torch.log2(p + 1e-30) / np.log2(CLASSES)


def charbonnier(p, power):
    """FDA's loss before its mean: nats over ln K."""
    share = -(p * torch.log(p)).sum(-1) / np.log(CLASSES)
    return (share**2.0 + 1e-8) ** power


MEASURES = {
    "self-information": (self_information, information),
    "entropy": (entropy, lambda p: information(p).sum(-1)),
    "robust, 2": (lambda s: robust_entropy(s, 2.0), lambda p: charbonnier(p, 2.0)),
    "robust, 1.5": (lambda s: robust_entropy(s, 1.5), lambda p: charbonnier(p, 1.5)),
}


@functools.partial(jax.jit, static_argnums=0)
def with_gradient(measure, scores, weights):
    found, back = jax.vjp(measure, scores)
    return found, back(weights)[0]


@pytest.mark.parametrize("name", MEASURES)
def test_values_and_gradients(x64, name):
    ours, theirs = MEASURES[name]
    scores = np.random.default_rng(0).normal(0, 3, (2, 4, 6, CLASSES))
    x = torch.tensor(scores, requires_grad=True)
    expected = theirs(torch.softmax(x, -1))
    weights = np.random.default_rng(1).normal(size=expected.shape)
    (torch.tensor(weights) * expected).sum().backward()
    found, gradient = with_gradient(ours, jnp.asarray(scores), jnp.asarray(weights))
    np.testing.assert_allclose(found, expected.detach(), rtol=1e-10)
    np.testing.assert_allclose(gradient, x.grad, rtol=1e-8, atol=1e-13)


def test_from_certain_to_clueless():
    scores = jnp.asarray([[0.0] * CLASSES, [500.0] + [0.0] * (CLASSES - 1)], jnp.float32)
    for name in ("entropy", "robust, 2"):
        found, gradient = with_gradient(MEASURES[name][0], scores, jnp.ones(2))
        np.testing.assert_allclose(found, [1, 0], atol=1e-6)
        assert np.isfinite(gradient).all()
