"""The terms of historical contrastive learning against double loops and against PyTorch's automatic gradients."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from stpl_jax.losses.historical import historical_consistency, historical_contrast, reliability

TEMPERATURE = 0.07
CLASSES = 6


def draw_pixels(seed, labels):
    random, count = np.random.default_rng(seed), len(labels)
    queries, keys = random.normal(size=(2, count, 7))
    queries, keys = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (queries, keys))
    return queries, keys, np.array(labels, np.int32), random.uniform(0.9, 1.1, count)


def contrast_by_loops(queries, keys, labels, reliabilities):
    losses = []
    for i in range(len(queries)):
        similarity = [math.fsum(queries[i] * key) / TEMPERATURE for key in keys]
        denominator = math.fsum(
            reliabilities[k] * math.exp(similarity[k]) for k in range(len(keys)) if k != i
        )  # e^(1/0.07) is a million: no overflow
        total = 0.0
        for j in range(len(keys)):
            if j != i and labels[j] == labels[i]:
                total += similarity[j] - math.log(denominator) + math.log(reliabilities[j])
        losses.append(-total / len(queries))
    return losses


def contrast_in_torch(queries, keys, labels, reliabilities):
    """All pairs as matrices, with masks, as the publication has it."""
    others = 1 - torch.eye(len(queries), dtype=queries.dtype)
    positive = (labels[:, None] == labels[None]) * others
    similarity = queries @ keys.T / TEMPERATURE
    denominator = (similarity.exp() * others * reliabilities[None]).sum(1, keepdim=True)
    logarithm = similarity - torch.log(denominator + 1e-20) + reliabilities.log()[None]
    return -(positive * logarithm).sum(1) / len(queries)


contrast = functools.partial(historical_contrast, num_classes=CLASSES, temperature=TEMPERATURE)


@jax.jit
def contrast_and_gradients(queries, keys, labels, reliabilities, weights):
    """Each pixel's loss, and the gradient of all of them together, each with a weight of its own."""
    losses, pull = jax.vjp(lambda q, k, r: contrast(q, k, labels, r), queries, keys, reliabilities)
    return losses, pull(weights)


CASES = {
    "mixed": [0, 2, 0, 1, 2, 0],
    "one class": [2] * 6,
    "a pixel alone in its class": [0, 0, 3, 0, 0, 0],
    "all alone": [0, 1, 2, 3, 4, 5],
    "one pixel": [1],
}


@pytest.mark.parametrize("name", CASES)
def test_contrast_values_and_gradients(x64, name):
    count = len(CASES[name])
    queries, keys, labels, reliabilities = draw_pixels(3, CASES[name])
    weights = np.random.default_rng(4).normal(size=count)
    found, gradients = contrast_and_gradients(queries, keys, labels, reliabilities, weights)
    assert found.shape == (count,)
    np.testing.assert_allclose(found, contrast_by_loops(queries, keys, labels, reliabilities), rtol=1e-10, atol=1e-12)

    theirs = [torch.tensor(x, requires_grad=x.dtype == np.float64) for x in (queries, keys, labels, reliabilities)]
    (contrast_in_torch(*theirs) * torch.tensor(weights)).sum().backward()
    for ours, their in zip(gradients, (theirs[0], theirs[1], theirs[3]), strict=True):
        np.testing.assert_allclose(ours, their.grad, rtol=1e-9, atol=1e-11)


def test_reliable_positives_and_unreliable_negatives_change_the_loss_as_the_equation_says(x64):
    queries, keys, labels, _ = draw_pixels(5, [0, 0, 1])
    first, second = (
        contrast_and_gradients(queries, keys, labels, np.array([1, 1, r]), np.ones(3))[0][0] for r in (1.0, 0.9)
    )
    positive, negative = (math.exp(queries[0] @ keys[k] / TEMPERATURE) for k in (1, 2))
    expected = (math.log(positive + 0.9 * negative) - math.log(positive + negative)) / 3
    np.testing.assert_allclose(second - first, expected, rtol=1e-9)


def test_consistency_against_pytorch(x64):
    random = np.random.default_rng(6)
    historical, averaged = random.normal(0, 2, (2, 3, 5, CLASSES))
    log_averaged, earlier = torch.tensor(averaged).log_softmax(-1), torch.tensor(historical).softmax(-1)
    divergence = torch.nn.functional.kl_div(log_averaged, earlier, reduction="none").sum(-1)
    found = historical_consistency(jnp.asarray(historical), jnp.asarray(averaged))
    np.testing.assert_allclose(found, torch.exp(-divergence), rtol=1e-12)
    turned = historical_consistency(jnp.asarray(averaged), jnp.asarray(historical))
    assert np.abs(turned - found).max() > 0.01, "the divergence has a direction"
    same = historical_consistency(jnp.asarray(averaged), jnp.asarray(averaged + 3))
    np.testing.assert_allclose(same, np.ones((3, 5)), rtol=1e-12)
    far = historical_consistency(jnp.asarray([900.0, 0.0]), jnp.asarray([0.0, 900.0]))
    assert float(far) == 0.0


def test_reliability_by_hand(x64):
    # Entropies as shares of two bits: all, none, half.
    scores = jnp.asarray([[0.0, 0, 0, 0], [99, 0, 0, 0], [50, 50, 0, 0]])
    np.testing.assert_allclose(reliability(scores, 0.1), [0.9, 1.1, 0.9], rtol=1e-12)
    np.testing.assert_allclose(reliability(scores, 0.7), [0.7, 1.7, 1.2], rtol=1e-12)
    probabilities = np.array([0.995, 0.003, 0.001, 0.001])
    entropy = -(probabilities * np.log2(probabilities)).sum() / np.log2(4)
    assert 0 < entropy < 0.2
    np.testing.assert_allclose(reliability(jnp.log(probabilities), 0.1), 1.1 - entropy, rtol=1e-12)
