"""Class-balanced thresholds and labels against loops over pixels, as the public code of CRST writes them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stpl_jax.losses.class_balanced import class_balanced_labels, class_thresholds

FIFTHS = {0.2: 1, 0.6: 3, 1.0: 5}


def thresholds_by_loops(probabilities, fifths):
    """Collects each class's confidences, sorts them and counts down."""
    confidences = [[] for _ in probabilities[0]]
    for row in probabilities:
        winner = 0
        for c, p in enumerate(row):
            if p > row[winner]:
                winner = c
        confidences[winner].append(row[winner])
    thresholds = []
    for values in confidences:
        count = len(values) * fifths // 5
        thresholds.append(sorted(values, reverse=True)[count - 1] if count else 1.0)
    return np.array(thresholds, probabilities.dtype), [len(values) for values in confidences]


def labels_by_loops(probabilities, thresholds):
    labels = []
    for row in probabilities:
        ratios = [p / t for p, t in zip(row, thresholds, strict=True)]
        best = ratios.index(max(ratios))
        labels.append(best if ratios[best] >= 1 else 255)
    return labels


def draw(seed, pixels, classes, levels=None):
    """Probabilities; with `levels`, of so few different values that most confidences are tied."""
    random = np.random.default_rng(seed)
    scores = 2 * random.normal(size=(pixels, classes))
    scores[:, -1] -= 30  # a class that never wins
    scores[:, 0] -= 2  # a class that hardly does
    if levels:
        scores = np.round(scores * levels / 8)
    exponentials = np.exp(scores)
    return exponentials / exponentials.sum(-1, keepdims=True)


@functools.partial(jax.jit, static_argnums=1)
def thresholds_and_labels(probabilities, share):
    thresholds = class_thresholds(probabilities, share)
    return thresholds, class_balanced_labels(probabilities, thresholds)


@pytest.mark.parametrize("levels", [None, 4], ids=["distinct", "ties"])
def test_thresholds_and_labels_against_loops(x64, levels):
    rare, absent = 0, 0
    for seed, pixels in enumerate([4, 64, 64, 64]):
        probabilities = draw(seed, pixels, 5, levels)
        for share, fifths in FIFTHS.items():
            thresholds, labels = thresholds_and_labels(probabilities, share)
            expected, sizes = thresholds_by_loops(probabilities, fifths)
            np.testing.assert_array_equal(thresholds, expected)
            assert labels.dtype == jnp.int32
            np.testing.assert_array_equal(labels, labels_by_loops(probabilities, expected))
            rare += sum(0 < size < 5 for size in sizes)
            absent += sum(size == 0 for size in sizes)
    assert rare and absent


def test_labels_keep_the_shape_of_maps():
    probabilities = jnp.asarray(draw(0, 24, 4), jnp.float32)
    thresholds = class_thresholds(probabilities, 0.2)
    flat = class_balanced_labels(probabilities, thresholds)
    np.testing.assert_array_equal(class_balanced_labels(probabilities.reshape(2, 3, 4, 4), thresholds).ravel(), flat)


def test_a_class_that_is_rarely_sure_wins_where_it_is_surer_than_usual():
    labels = class_balanced_labels(
        jnp.asarray([[0.55, 0.45], [0.75, 0.25], [0.95, 0.05], [0.5, 0.5]]), jnp.asarray([0.9, 0.4])
    )
    np.testing.assert_array_equal(labels, [1, 255, 0, 1])


def test_the_pixel_that_sets_a_threshold_is_labelled():
    # Whatever the rounding of p / θ: in float32, with as many thresholds as there are pixels.
    probabilities = np.zeros((400, 400), np.float32)
    confidences = np.random.default_rng(1).uniform(0.3, 1, 400)
    np.fill_diagonal(probabilities, confidences)
    labels = jax.jit(class_balanced_labels)(jnp.asarray(probabilities), jnp.asarray(confidences, jnp.float32))
    np.testing.assert_array_equal(labels, np.arange(400))


def test_a_certain_pixel_of_a_class_without_threshold_is_labelled():
    probabilities = jnp.asarray([[1.0, 0.0], [0.4, 0.6]])
    thresholds = class_thresholds(probabilities, 0.2)  # ⌊0.2 · 1⌋ = 0 pixels
    np.testing.assert_array_equal(thresholds, [1, 1])
    np.testing.assert_array_equal(class_balanced_labels(probabilities, thresholds), [0, 255])


def test_no_gradient_and_bad_shares():
    probabilities = jnp.asarray(draw(2, 20, 4), jnp.float32)
    gradient = jax.grad(lambda p: class_thresholds(p, 0.6).sum())(probabilities)
    np.testing.assert_array_equal(gradient, np.zeros_like(gradient))
    with pytest.raises(ValueError, match="in 0..1; found 1.5"):
        class_thresholds(probabilities, 1.5)
