"""Disagreement of probabilities against PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from stpl_jax.losses.uncertainty import probability_error


def test_against_pytorch(x64):
    random = np.random.default_rng(0)
    scores, others = random.normal(0, 3, (2, 3, 4, 7)), random.normal(0, 3, (3, 4, 7))
    probabilities = np.exp(others) / np.exp(others).sum(-1, keepdims=True)

    def loss(scores, probabilities):
        return probability_error(scores, probabilities[None]).sum()

    unreduced = probability_error(jnp.asarray(scores), jnp.asarray(probabilities)[None])
    assert unreduced.shape == (2, 3, 4)
    by_scores, by_probabilities = jax.grad(loss, (0, 1))(jnp.asarray(scores), jnp.asarray(probabilities))

    theirs = torch.tensor(scores, requires_grad=True)
    target = torch.tensor(probabilities).expand(2, 3, 4, 7)
    expected = torch.nn.functional.mse_loss(theirs.softmax(-1), target, reduction="none").mean(-1)
    expected.sum().backward()
    np.testing.assert_allclose(unreduced, expected.detach(), rtol=1e-12)
    np.testing.assert_allclose(by_scores, theirs.grad, rtol=1e-10, atol=1e-14)
    np.testing.assert_array_equal(by_probabilities, np.zeros_like(probabilities))
