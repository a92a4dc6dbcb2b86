"""The projection head."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stpl_jax.models.projection import Projection, l2_normalise


def features(channels=5):
    return np.random.default_rng(0).normal(0, 3, (2, 3, 4, channels)).astype(np.float32)


def test_identity_is_exact():
    x = jnp.asarray(features())
    out, variables = Projection(hidden=999, dim=7, initial="identity").init_with_output(jax.random.key(0), x)
    assert variables["params"]["conv1"]["kernel"].shape == (1, 1, 5, 10)
    assert variables["params"]["conv2"]["kernel"].shape == (1, 1, 10, 5)
    np.testing.assert_array_equal(out, l2_normalise(x))
    np.testing.assert_allclose(out, x / np.linalg.norm(x, axis=-1, keepdims=True), rtol=1e-6)


def test_random_head_is_two_matrix_products():
    x = features()
    head = Projection(hidden=8, dim=3)
    params = head.init(jax.random.key(0), jnp.asarray(x))["params"]
    shapes = jax.tree.map(lambda p: p.shape, params)
    assert shapes == {
        "conv1": {"kernel": (1, 1, 5, 8), "bias": (8,)},
        "conv2": {"kernel": (1, 1, 8, 3), "bias": (3,)},
    }
    params["conv1"]["bias"] = jnp.linspace(-1, 1, 8)
    params["conv2"]["bias"] = jnp.asarray([0.5, -0.5, 1.0])
    hidden = np.maximum(x @ np.asarray(params["conv1"]["kernel"])[0, 0] + np.linspace(-1, 1, 8), 0)
    expected = hidden @ np.asarray(params["conv2"]["kernel"])[0, 0] + [0.5, -0.5, 1.0]
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    out = head.apply({"params": params}, jnp.asarray(x))
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


def test_default_widths():
    shape = jax.eval_shape(Projection().init, jax.random.key(0), jnp.zeros((1, 1, 1, 4096)))["params"]
    assert shape["conv1"]["kernel"].shape == (1, 1, 4096, 2048) and shape["conv2"]["kernel"].shape == (1, 1, 2048, 128)


def test_zero_vector_stays_zero_with_a_finite_gradient():
    x = jnp.asarray([[0.0, 0.0], [3.0, 4.0]])
    np.testing.assert_allclose(l2_normalise(x), [[0, 0], [0.6, 0.8]], rtol=1e-6)
    gradient = jax.grad(lambda x: l2_normalise(x)[:, 0].sum())(x)
    # d(x/|x|)/dx = 1/|x| - x²/|x|³ = 16/125, and -xy/|x|³ = -12/125
    np.testing.assert_allclose(gradient, [[0, 0], [0.128, -0.096]], rtol=1e-5)


def test_half_precision_features_give_float32():
    head = Projection(hidden=8, dim=3)
    expected, params = head.init_with_output(jax.random.key(0), jnp.asarray(features()))
    out = head.apply(params, jnp.asarray(features(), jnp.bfloat16))
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, expected, atol=0.03)
    assert np.abs(out - expected).max() > 1e-5, "computed in float32"
    np.testing.assert_allclose(np.linalg.norm(out, axis=-1), np.ones((2, 3, 4)), rtol=1e-5)


def test_unknown_initialisation():
    with pytest.raises(ValueError, match="projection.init is one of.*identity.*random.*found 'zeros'"):
        Projection(initial="zeros").init(jax.random.key(0), jnp.asarray(features()))
