"""The streamed sum over negatives against sums written out in numpy, and against the plain form with all pairs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.loss import largest_difference, plain_contrast
from stpl_jax.losses.contrastive import pixel_contrast
from stpl_jax.losses.reduction import masked_mean
from stpl_jax.losses.streamed import negative_logsumexp

CLASSES = 4
TEMPERATURE = 0.07
NAMES = ("queries", "keys", "query_labels", "key_labels", "query_mask", "key_mask")


def draw(n, m, dim=6, seed=0):
    """Unit vectors, labels and masks; the first keys are all of class 1, so that its queries meet no negative soon."""
    random = np.random.default_rng(seed)

    def unit(*shape):
        x = random.normal(size=shape)
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    case = {
        "queries": unit(n, dim),
        "keys": unit(m, dim),
        "query_labels": random.integers(0, CLASSES, n).astype(np.int32),
        "key_labels": random.integers(0, CLASSES, m).astype(np.int32),
        "query_mask": random.random(n) < 0.8,
        "key_mask": random.random(m) < 0.8,
    }
    case["key_labels"][: m // 2] = 1
    case["query_labels"][:3], case["query_mask"][:3] = 1, True
    return case


def written_out(case, weights, temperature=TEMPERATURE):
    """n_q, and the gradients of Σ_q w_q n_q by queries, keys and temperature, query by query."""
    values, by_queries, by_keys = np.zeros(len(weights)), *(np.zeros(case[name].shape) for name in NAMES[:2])
    by_temperature = 0.0
    for i, (query, label) in enumerate(zip(case["queries"], case["query_labels"], strict=True)):
        negatives = np.flatnonzero((case["key_labels"] != label) & case["key_mask"])
        if not case["query_mask"][i] or not len(negatives):
            continue
        similarity = case["keys"][negatives] @ query / temperature
        exponentials = np.exp(similarity - similarity.max())
        share = exponentials / exponentials.sum()
        values[i] = similarity.max() + np.log(exponentials.sum())
        by_queries[i] = weights[i] * share @ case["keys"][negatives] / temperature
        by_keys[negatives] += weights[i] * share[:, None] * query / temperature
        by_temperature -= weights[i] * share @ similarity / temperature
    return values, (by_queries, by_keys, by_temperature)


def arrays(case, dtype):
    return [jnp.asarray(case[name], dtype if name in NAMES[:2] else None) for name in NAMES]


@partial(jax.jit, static_argnames="block")
def values_and_gradients(inputs, temperature, weights, block):
    """What `written_out` returns, computed by the code under test."""

    def total(queries, keys, temperature):
        values = negative_logsumexp(queries, keys, *inputs[2:], CLASSES, temperature, block)
        return jnp.sum(values * weights), values

    (_, values), gradients = jax.value_and_grad(total, (0, 1, 2), has_aux=True)(*inputs[:2], temperature)
    return values, gradients


# Queries, keys, block: even and uneven, one block of either, of both; blocks of one, blocks of no multiple of 16.
@pytest.mark.parametrize(
    "n, m, block", [(32, 64, 16), (37, 53, 16), (70, 9, 16), (9, 70, 16), (37, 53, 64), (5, 7, 1), (100, 90, 33)]
)
def test_values_and_gradients_as_written_out(x64, n, m, block):
    case, weights = draw(n, m), np.random.default_rng(1).normal(size=n)
    found = values_and_gradients(arrays(case, jnp.float64), jnp.float64(TEMPERATURE), weights, block)
    expected = written_out(case, weights)
    assert np.count_nonzero(expected[0]) > n // 2
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), found, expected)


def mean_and_gradients(contrast, inputs):
    def mean(queries, keys):
        loss, valid = contrast(queries, keys, *inputs[2:], CLASSES, TEMPERATURE)
        return masked_mean(loss, valid), (loss, valid)

    return jax.jit(jax.value_and_grad(mean, (0, 1), has_aux=True))(*inputs[:2])


@pytest.mark.parametrize("n, m, block", [(37, 53, 16), (37, 53, 64), (300, 200, 64)])
@pytest.mark.parametrize("dtype, tolerance", [(jnp.float64, 1e-10), (jnp.float32, 1e-5)])
def test_the_loss_is_the_plain_one(x64, n, m, block, dtype, tolerance):
    inputs = arrays(draw(n, m, seed=2), dtype)
    (_, (loss, valid)), gradients = mean_and_gradients(partial(pixel_contrast, block=block), inputs)
    (_, (expected, counts)), expected_gradients = mean_and_gradients(plain_contrast, inputs)
    assert loss.dtype == dtype
    np.testing.assert_array_equal(valid, counts)
    for a, b in zip((loss, *gradients), (expected, *expected_gradients), strict=True):
        assert largest_difference(a, b) < tolerance


def single_class(case):
    return case | {"query_labels": np.ones(37, np.int32), "key_labels": np.ones(53, np.int32)}


NOTHING = {
    "no key of another class": single_class(draw(37, 53)),
    "no query takes part": draw(37, 53) | {"query_mask": np.zeros(37, bool)},
    "no key takes part": draw(37, 53) | {"key_mask": np.zeros(53, bool)},
}


@pytest.mark.parametrize("block", [16, 64])
@pytest.mark.parametrize("name", NOTHING)
def test_without_negatives_zero_and_no_gradient(name, block):
    weights = np.ones(37, np.float32)
    found = values_and_gradients(arrays(NOTHING[name], jnp.float32), jnp.float32(TEMPERATURE), weights, block)
    jax.tree.map(lambda x: np.testing.assert_array_equal(x, np.zeros(x.shape)), found)


@pytest.mark.parametrize("block", [16, 64])
def test_what_masked_pixels_hold_does_not_matter(block):
    case = draw(37, 53)
    spoilt = {name: case[name].copy() for name in NAMES}
    spoilt["queries"][~case["query_mask"]], spoilt["keys"][~case["key_mask"]] = np.nan, np.inf
    contrast = partial(pixel_contrast, block=block)
    clean, found = (mean_and_gradients(contrast, arrays(c, jnp.float32)) for c in (case, spoilt))
    jax.tree.map(np.testing.assert_array_equal, found, clean)
    by_queries, by_keys = found[1]
    assert not np.asarray(by_queries)[~case["query_mask"]].any() and not np.asarray(by_keys)[~case["key_mask"]].any()


@pytest.mark.parametrize("block", [16, 64])
def test_bfloat16_sums_in_float32(block):
    inputs = arrays(draw(37, 53), jnp.bfloat16)
    weights = np.ones(37, np.float32)
    values, gradients = values_and_gradients(inputs, jnp.float32(TEMPERATURE), weights, block)
    assert values.dtype == jnp.float32 and gradients[0].dtype == gradients[1].dtype == jnp.bfloat16
    # Products of bfloat16 numbers are exact in float32: the inputs' rounding is all that is lost, and here it is in
    # both. Gradients are rounded themselves, and so are their factors.
    exact = {jnp.dtype(jnp.bfloat16): np.float64}
    rounded = {name: np.asarray(x, exact.get(x.dtype)) for name, x in zip(NAMES, inputs, strict=True)}
    expected, expected_gradients = written_out(rounded, weights)
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)
    for found, want in zip(gradients[:2], expected_gradients[:2], strict=True):
        assert largest_difference(found, want) < 0.01


@pytest.mark.parametrize("sign", [1, -1])
def test_large_similarities_stay_finite(sign):
    # From 1000 to -1000 or the other way round, block by block: exp of either is infinite or zero in float32.
    angles = np.linspace(0, np.pi, 37)[::sign]
    case = draw(2, 37, dim=2) | {
        "queries": np.array([[1.0, 0.0], [-1.0, 0.0]]),
        "keys": np.stack([np.cos(angles), np.sin(angles)], -1),
        "query_labels": np.zeros(2, np.int32),
        "query_mask": np.ones(2, bool),
    }
    weights = np.ones(2, np.float32)
    values, gradients = values_and_gradients(arrays(case, jnp.float32), jnp.float32(0.001), weights, 8)
    expected, expected_gradients = written_out(case, weights, 0.001)
    assert expected.max() > 900
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    for found, want in zip(gradients, expected_gradients, strict=True):
        assert largest_difference(found, want) < 1e-3


def test_clips_side_by_side(x64):
    cases = [draw(37, 53, seed=seed) for seed in range(3)]
    weights = np.random.default_rng(1).normal(size=(3, 37))
    stacked = [jnp.stack(x) for x in zip(*(arrays(case, jnp.float64) for case in cases), strict=True)]
    run = jax.vmap(lambda inputs, weights: values_and_gradients(inputs, jnp.float64(TEMPERATURE), weights, 16))
    found = run(stacked, weights)
    expected = [written_out(case, w) for case, w in zip(cases, weights, strict=True)]
    expected = jax.tree.map(lambda *x: np.stack(x), *expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), found, expected)


def test_keys_gathered_from_two_devices(x64):
    # Each device holds half of the queries and of the keys. The gradient of the sum of both devices' sums must come
    # back to the device that holds the pixel.
    case, weights = draw(40, 60), np.random.default_rng(1).normal(size=40)
    halves = [x.reshape(2, -1, *x.shape[1:]) for x in (*arrays(case, jnp.float64), weights)]

    def step(queries, keys, query_labels, key_labels, query_mask, key_mask, weights):
        def total(queries, keys):
            gathered = [jax.lax.all_gather(x, "devices", tiled=True) for x in (keys, key_labels, key_mask)]
            values = negative_logsumexp(
                queries, gathered[0], query_labels, gathered[1], query_mask, gathered[2], CLASSES, TEMPERATURE, 16
            )
            return jnp.sum(values * weights)

        return jax.grad(total, (0, 1))(queries, keys)

    found = jax.pmap(step, "devices", devices=jax.devices()[:2])(*halves)
    for gradient, expected in zip(found, written_out(case, weights)[1], strict=False):
        np.testing.assert_allclose(gradient.reshape(expected.shape), expected, rtol=1e-10, atol=1e-12)


def temporaries(contrast, n):
    inputs = arrays(draw(n, n), jnp.float32)
    mean = jax.grad(lambda q, k: masked_mean(*contrast(q, k, *inputs[2:], CLASSES, TEMPERATURE)), (0, 1))
    return jax.jit(mean).lower(*inputs[:2]).compile().memory_analysis().temp_size_in_bytes


def test_memory_grows_with_the_number_of_pixels_and_not_its_square():
    streamed = partial(pixel_contrast, block=64)
    pairs = 4 * 1024**2  # bytes of all similarities
    assert temporaries(streamed, 1024) < pairs / 8
    assert temporaries(streamed, 2048) < 2.2 * temporaries(streamed, 1024)
    assert temporaries(plain_contrast, 1024) > pairs


def test_a_block_holds_something():
    with pytest.raises(ValueError, match="1 or more; found 0"):
        pixel_contrast(*arrays(draw(5, 7), jnp.float32), CLASSES, TEMPERATURE, block=0)
