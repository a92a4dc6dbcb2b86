"""The contrastive loss against a plain double loop over pixels of the paper's equations 3 and 4."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stpl_jax.losses.contrastive import class_balance, pixel_contrast
from stpl_jax.losses.reduction import masked_mean

TEMPERATURE = 0.07


def equation_3(queries, keys, query_labels, key_labels, query_mask, key_mask, temperature):
    """L_q = -1/|P_q| Σ_{q+} log( exp(q·q+/τ) / Σ_{q-} exp(q·q-/τ) ), NaN for a query that does not count."""
    losses = []
    for q, label, counts in zip(queries, query_labels, query_mask, strict=True):
        positives, denominator = [], 0.0
        for k, key_label, key_counts in zip(keys, key_labels, key_mask, strict=True):
            if not key_counts:
                continue
            if key_label == label:
                positives.append(math.exp(float(q @ k) / temperature))
            else:
                denominator += math.exp(float(q @ k) / temperature)
        if not counts or not positives or denominator == 0:
            losses.append(math.nan)
            continue
        losses.append(-sum(math.log(p / denominator) for p in positives) / len(positives))
    return np.array(losses)


def unit(random, *shape):
    x = random.normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def example(seed=0, n=17, m=23, dim=5, classes=4, absent=None):
    random = np.random.default_rng(seed)
    present = [c for c in range(classes) if c != absent]
    return {
        "queries": unit(random, n, dim),
        "keys": unit(random, m, dim),
        "query_labels": random.choice(present, n).astype(np.int32),
        "key_labels": random.choice(present, m).astype(np.int32),
        "query_mask": random.random(n) < 0.8,
        "key_mask": random.random(m) < 0.8,
    }


def with_ties(case):
    case["queries"][:6] = case["queries"][0]
    case["keys"][:9] = case["queries"][0]
    return case


CASES = {
    "ordinary": example(),
    "ties": with_ties(example(1)),
    "absent class": example(2, absent=1),
    "keys lack the queries' class": example(3)
    | {"query_labels": np.full(17, 3, np.int32), "key_labels": np.arange(23) % 3},
    "single class": example(4) | {"query_labels": np.full(17, 2, np.int32), "key_labels": np.full(23, 2, np.int32)},
    "queries masked": example(5) | {"query_mask": np.zeros(17, bool)},
    "keys masked": example(6) | {"key_mask": np.zeros(23, bool)},
    "all masked": example(7) | {"query_mask": np.zeros(17, bool), "key_mask": np.zeros(23, bool)},
}
EMPTY = ("keys lack the queries' class", "single class", "queries masked", "keys masked", "all masked")


NAMES = ("queries", "keys", "query_labels", "key_labels", "query_mask", "key_mask")


@jax.jit
def contrast(*arrays):
    return pixel_contrast(*arrays, 4, TEMPERATURE)


mean_of = jax.jit(masked_mean)
gradients_of = jax.jit(jax.grad(lambda *arrays: masked_mean(*contrast(*arrays)), (0, 1)))


def arrays(case, dtype):
    values = [np.asarray(case[name]) for name in NAMES]
    return [v.astype(t) for v, t in zip(values, (dtype, dtype, np.int32, np.int32, bool, bool), strict=True)]


@pytest.mark.parametrize("name", CASES)
def test_equation_3_by_a_double_loop(x64, name):
    case = CASES[name]
    expected = equation_3(**case, temperature=TEMPERATURE)
    loss, valid = contrast(*arrays(case, np.float64))
    assert loss.dtype == jnp.float64
    np.testing.assert_array_equal(valid, ~np.isnan(expected))
    np.testing.assert_allclose(loss, np.nan_to_num(expected), rtol=1e-12, atol=1e-12)
    assert bool(valid.any()) == (name not in EMPTY)
    # Equation 4: the mean over the queries that count, 0 where none does.
    expected_mean = np.nanmean(expected) if valid.any() else 0.0
    np.testing.assert_allclose(mean_of(loss, valid), expected_mean, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_gradient_by_finite_differences(x64, name):
    case = CASES[name]
    gradients = gradients_of(*arrays(case, np.float64))
    if name in EMPTY:
        for gradient in gradients:
            np.testing.assert_array_equal(gradient, np.zeros(gradient.shape))
        return
    random, step = np.random.default_rng(0), 1e-5
    for _ in range(3):
        directions = [random.normal(size=g.shape) for g in gradients]
        plus, minus = (
            np.nanmean(
                equation_3(
                    **case
                    | {n: case[n] + sign * step * d for n, d in zip(("queries", "keys"), directions, strict=True)},
                    temperature=TEMPERATURE,
                )
            )
            for sign in (1, -1)
        )
        expected = (plus - minus) / (2 * step)
        actual = sum(float(np.vdot(g, d)) for g, d in zip(gradients, directions, strict=True))
        np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-7)


def test_masked_pixels_get_no_gradient():
    case = CASES["ordinary"]
    by_query, by_key = (np.asarray(g) for g in gradients_of(*arrays(case, np.float32)))
    assert not by_query[~case["query_mask"]].any()
    assert not by_key[~case["key_mask"]].any()
    assert by_query[case["query_mask"]].any(-1).all()


def test_identical_pixels_of_two_classes_by_hand(x64):
    # All similarities are 1/τ: -log(e^{1/τ} / (3 e^{1/τ})) = log 3 for the query of class 0 (three negatives), and
    # log 2 for those of class 1 (two negatives).
    pixels = jnp.tile(jnp.asarray([[0.6, 0.8]]), (5, 1))
    labels, mask = jnp.asarray([0, 0, 1, 1, 1], jnp.int32), jnp.ones(5, bool)
    loss, valid = jax.jit(pixel_contrast, static_argnums=(6, 7))(
        pixels, pixels, labels, labels, mask, mask, 2, TEMPERATURE
    )
    assert valid.all()
    np.testing.assert_allclose(loss, np.log([3, 3, 2, 2, 2]), rtol=1e-12)


def test_large_similarities_stay_finite():
    # exp(1/0.001) is infinite in float32; the loss is not: ±1000 apart.
    pixels = jnp.asarray([[1.0, 0.0], [-1.0, 0.0]])
    labels, mask = jnp.asarray([0, 1], jnp.int32), jnp.ones(2, bool)
    loss, _ = jax.jit(pixel_contrast, static_argnums=(6, 7))(pixels, pixels, labels, labels, mask, mask, 2, 0.001)
    np.testing.assert_allclose(loss, [-2000, -2000], rtol=1e-5)


def test_masked_mean():
    values, mask = jnp.asarray([1.0, 2.0, jnp.nan, 6.0]), jnp.asarray([True, True, False, True])
    assert float(mean_of(values, mask)) == 3
    # (1·1 + 1·2 + 6·4) / (1 + 1 + 4)
    assert float(mean_of(values, mask, jnp.asarray([1.0, 1.0, 9.0, 4.0]))) == 4.5
    nothing = jnp.zeros(4, bool)
    assert float(mean_of(values, nothing)) == 0
    np.testing.assert_array_equal(jax.grad(masked_mean)(values, nothing), np.zeros(4))
    np.testing.assert_allclose(jax.grad(masked_mean)(values, mask), [1 / 3, 1 / 3, 0, 1 / 3], rtol=1e-6)


def test_class_balance_by_hand():
    labels = jnp.asarray([0, 0, 0, 0, 2, 2, 1], jnp.int32)
    mask = jnp.asarray([True, True, True, True, True, False, False])
    np.testing.assert_allclose(class_balance(labels, mask, 4, -0.5), [0.5, 0.5, 0.5, 0.5, 1, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(class_balance(labels, mask, 4, -1.0), [0.25, 0.25, 0.25, 0.25, 1, 0, 0], rtol=1e-6)
    np.testing.assert_array_equal(class_balance(labels, mask, 4, 0.0), [1, 1, 1, 1, 1, 0, 0])
    np.testing.assert_array_equal(class_balance(labels, jnp.zeros(7, bool), 4, -0.5), np.zeros(7))


@pytest.mark.parametrize("power", [0.0, -0.5])
def test_weighted_mean_of_the_loss(x64, power):
    case = CASES["ordinary"]
    expected = equation_3(**case, temperature=TEMPERATURE)
    counts = np.bincount(case["query_labels"][case["query_mask"]], minlength=4)
    weights = np.array([counts[label] ** power if counts[label] else 0 for label in case["query_labels"]])
    keep = ~np.isnan(expected)
    loss, valid = contrast(*arrays(case, np.float64))
    labels, mask = jnp.asarray(case["query_labels"]), jnp.asarray(case["query_mask"])
    balance = class_balance(labels, mask, 4, power).astype(jnp.float64)
    np.testing.assert_allclose(
        masked_mean(loss, valid, balance), np.average(expected[keep], weights=weights[keep]), rtol=1e-6
    )
