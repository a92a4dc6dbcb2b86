"""Losses and labels that compare predictions over time, against loops over pixels."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stpl_jax.losses.temporal import agreed_labels, unconfident_difference


def softmax(row):
    exponents = [math.exp(s) for s in row]
    return np.array(exponents) / sum(exponents)


def entropy(p):
    return -sum(x * math.log(x) for x in p) / math.log(len(p))


def example():
    random = np.random.default_rng(0)
    scores = random.normal(0, 1.5, (2, 4, 5, 3))
    propagated = random.dirichlet([0.7] * 3, (2, 4, 5))
    uncertainty = np.array([entropy(p) for p in propagated.reshape(-1, 3)]).reshape(2, 4, 5)
    return scores, propagated, uncertainty, random.uniform(size=(2, 4, 5)) < 0.8


def test_unconfident_difference_and_its_gradient(x64):
    scores, propagated, uncertainty, reached = example()
    expected, by_scores = np.zeros_like(scores), np.zeros_like(scores)
    for place in np.ndindex(2, 4, 5):
        p = softmax(scores[place])
        if reached[place] and uncertainty[place] < entropy(p):
            expected[place] = abs(p - propagated[place])
            signs = np.sign(p - propagated[place])
            by_scores[place] = p * (signs - (signs * p).sum())
    counted = (expected.sum(-1) > 0).mean()
    assert 0.1 < counted < reached.mean() - 0.1

    def total(scores, propagated, uncertainty):
        loss = unconfident_difference(scores, propagated, uncertainty, reached)
        return loss.sum(), loss

    gradients, loss = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(scores, propagated, uncertainty)
    np.testing.assert_allclose(loss, expected, atol=1e-14)
    np.testing.assert_allclose(gradients[0], by_scores, atol=1e-14)
    assert not gradients[1].any() and not gradients[2].any()


def test_nothing_propagated_is_no_loss():
    scores, propagated, uncertainty, reached = example()
    value, gradient = jax.jit(
        jax.value_and_grad(lambda s: unconfident_difference(s, propagated, uncertainty, jnp.zeros_like(reached)).sum())
    )(jnp.asarray(scores))
    assert value == 0 and not gradient.any()


@pytest.mark.parametrize("threshold", [0.0, 0.6])
def test_agreed_labels(threshold):
    random = np.random.default_rng(1)
    common = random.dirichlet([0.3] * 4, (2, 5, 6))
    predictions = (0.5 * common + 0.5 * random.dirichlet([0.6] * 4, (3, 2, 5, 6))).astype(np.float32)
    expected, disagreeing, unsure = np.full((2, 5, 6), 255), 0, 0
    for place in np.ndindex(2, 5, 6):
        frames = predictions[:, *place]
        mean = frames.mean(0)
        if len({int(p.argmax()) for p in frames}) > 1:
            disagreeing += 1
        elif mean.max() < threshold:
            unsure += 1
        else:
            expected[place] = mean.argmax()
    assert disagreeing > 10 and (unsure > 3) == (threshold > 0)
    labels = jax.jit(agreed_labels, static_argnums=1)(predictions, threshold)
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, expected)
