"""The choice of confident pixels against plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stpl_jax.losses.pseudo_labels import confident_pixels
from stpl_jax.ops.shares import share_of


def confident_by_loops(scores, tenths, per_class):
    """Chosen pixels by sorting in Python, as a set, with labels and the number of slots."""
    shifted = np.exp(scores - scores.max(-1, keepdims=True))
    probabilities = shifted / shifted.sum(-1, keepdims=True)
    labels = [int(np.argmax(row)) for row in scores]
    slots = tenths * len(scores) // 10

    def best(pixels, count):
        return sorted(pixels, key=lambda i: (-probabilities[i].max(), i))[:count]

    if not per_class:
        return best(range(len(scores)), slots), labels, slots
    chosen = []
    for c in range(scores.shape[1]):
        members = [i for i, label in enumerate(labels) if label == c]
        chosen += best(members, tenths * len(members) // 10)
    return chosen, labels, slots


def tied(seed, pixels, classes):
    """Scores with many exact ties, among classes and among pixels: two classes count, whose margin is 0, 1 or 2."""
    random = np.random.default_rng(seed)
    scores = np.full((pixels, classes), -1e9, np.float32)
    for row in scores:
        first, second = random.permutation(classes)[:2]
        row[first], row[second] = random.integers(0, 3), 0
    return scores


choose = jax.jit(confident_pixels, static_argnums=(1, 2))


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("pixels", [1, 9, 10, 128])
@pytest.mark.parametrize("kind", ["ties", "distinct"])
def test_against_sorting(per_class, pixels, kind):
    for seed in range(5):
        scores = tied(seed, pixels, 4)
        if kind == "distinct":
            scores = np.random.default_rng(seed).normal(size=(pixels, 4)).astype(np.float32)
            scores[:, 3] -= 9  # a class that hardly occurs
        chosen, labels, slots = confident_by_loops(scores.astype(np.float64), 7, per_class)
        index, picked_labels, mask = choose(jnp.asarray(scores), 0.7, per_class)
        assert index.shape == picked_labels.shape == mask.shape == (slots,)
        assert index.dtype == picked_labels.dtype == jnp.int32 and mask.dtype == bool
        index, mask = np.asarray(index), np.asarray(mask)
        assert len(set(index.tolist())) == slots, "no pixel fills two slots"
        assert sorted(index[mask].tolist()) == sorted(chosen)
        np.testing.assert_array_equal(picked_labels, [labels[i] for i in index])
        if not per_class:
            assert mask.all()
            assert index.tolist() == chosen, "most confident first, the lower index among equals"


def test_all_equal_takes_the_first_pixels():
    index, labels, mask = choose(jnp.zeros((10, 3)), 0.7, False)
    np.testing.assert_array_equal(index, np.arange(7))
    np.testing.assert_array_equal(labels, np.zeros(7))
    assert mask.all()


def test_confidence_is_the_probability_and_not_the_score():
    # Pixel 0 has the largest score and the least certainty.
    scores = jnp.asarray([[9.0, 8.9], [2.0, -2.0], [1.0, -4.0]])
    index, labels, _ = choose(scores, 0.4, False)
    np.testing.assert_array_equal(index, [2])
    np.testing.assert_array_equal(labels, [0])


def test_per_class_keeps_rare_classes():
    # Ten certain pixels of class 0 and ten uncertain ones of class 1: all 14 slots, 10 + 4 of them without per_class.
    scores = jnp.asarray([[5.0, 0.0]] * 10 + [[0.0, 0.1]] * 10)
    counts = [
        np.bincount(np.asarray(labels)[np.asarray(mask)], minlength=2).tolist()
        for _, labels, mask in (choose(scores, 0.7, per_class) for per_class in (False, True))
    ]
    assert counts == [[10, 4], [7, 7]]


def test_no_gradient():
    def chosen_scores(scores):
        index, labels, _ = choose(scores, 0.7, False)
        return jnp.sum((labels + index).astype(jnp.float32))

    gradient = jax.grad(chosen_scores)(jnp.asarray(tied(0, 10, 3)))
    np.testing.assert_array_equal(gradient, np.zeros((10, 3)))


@pytest.mark.parametrize("per_class", [False, True])
def test_under_vmap_and_jit_in_float64(x64, per_class):
    scores = np.random.default_rng(1).normal(size=(3, 20, 4))
    together = jax.vmap(lambda s: choose(s, 0.7, per_class))(jnp.asarray(scores))
    for i, clip in enumerate(scores):
        for a, b in zip(together, choose(jnp.asarray(clip), 0.7, per_class), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a[i], b)


@pytest.mark.parametrize(
    "proportion, numerator, denominator", [(0.7, 7, 10), (0.3, 3, 10), (0.29, 29, 100), (1, 1, 1), (0, 0, 1)]
)
def test_share_is_exact(proportion, numerator, denominator):
    for count in [*range(200), 8385]:
        assert share_of(count, proportion) == numerator * count // denominator
    counts = jnp.arange(200, dtype=jnp.int32)
    np.testing.assert_array_equal(share_of(counts, proportion), [numerator * n // denominator for n in range(200)])


@pytest.mark.parametrize("proportion", [-0.1, 1.01, 70])
def test_share_out_of_range(proportion):
    with pytest.raises(ValueError, match=f"0..1.*{proportion}"):
        share_of(10, proportion)
