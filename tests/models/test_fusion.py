"""The four fusions against plain loops."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stpl_jax.models.fusion import make_fusion


def turned(features):
    """`[B, T, h, w, C]`, earliest frame first, to what fusions take: `[T, B, ...]`, newest first."""
    return jnp.asarray(features).swapaxes(0, 1)[::-1]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def stam_by_loops(z, weights):
    """Equations 5-7 on one clip `[T, h, w, C]`, earliest frame first, to `[h, w, T·C]`."""
    frames, height, width, channels = z.shape
    average, largest = [z[t].mean() for t in range(frames)], [z[t].max() for t in range(frames)]
    attended = np.empty_like(z)
    for t in range(frames):
        total = 0.0
        for pooled in (average, largest):
            total += weights["fc_bias"][t] + sum(weights["fc"][s, t] * pooled[s] for s in range(frames))
        attended[t] = sigmoid(total) * z[t]
    out = np.empty((height, width, frames * channels))
    for i, j in np.ndindex(height, width):
        total = weights["conv_bias"]
        for a, b in np.ndindex(7, 7):
            row, column = i + a - 3, j + b - 3
            if 0 <= row < height and 0 <= column < width:
                values = attended[:, row, column]
                total += weights["conv"][a, b, 0] * values.mean() + weights["conv"][a, b, 1] * values.max()
        for t, c in np.ndindex(frames, channels):
            out[i, j, t * channels + c] = sigmoid(total) * attended[t, i, j, c] + z[t, i, j, c]
    return out


@pytest.mark.parametrize("frames, channels, height, width", [(2, 1, 2, 2), (2, 3, 4, 9), (3, 2, 3, 3)])
def test_stam_against_loops(x64, frames, channels, height, width):
    random = np.random.default_rng(0)
    features = random.normal(size=(2, frames, height, width, channels))
    weights = {
        "fc": random.normal(size=(frames, frames)),
        "fc_bias": random.normal(size=frames),
        "conv": random.normal(size=(7, 7, 2)),
        "conv_bias": float(random.normal()),
    }
    params = {
        "temporal": {"kernel": weights["fc"], "bias": weights["fc_bias"]},
        "spatial": {"kernel": weights["conv"][..., None], "bias": np.array([weights["conv_bias"]])},
    }
    fusion = make_fusion("stam", param_dtype=jnp.float64)
    fresh = jax.eval_shape(fusion.init, jax.random.key(0), turned(features))["params"]
    assert jax.tree.map(lambda x: x.shape, fresh) == jax.tree.map(lambda x: x.shape, params)
    out = jax.jit(fusion.apply)({"params": jax.tree.map(jnp.asarray, params)}, turned(features))
    np.testing.assert_allclose(out, [stam_by_loops(clip, weights) for clip in features], rtol=1e-12)


def test_stam_of_zeros_by_hand():
    # Zero weights: both attentions are sigmoid(0) = 0.5 and the output is z + 0.5·0.5·z.
    features = turned(jnp.asarray([4.0, 8.0, 12.0, 16.0, -4.0, 0.0, 4.0, 8.0]).reshape(1, 2, 2, 2, 1))
    fusion = make_fusion("stam")
    params = jax.tree.map(jnp.zeros_like, fusion.init(jax.random.key(0), features))
    out = fusion.apply(params, features)
    np.testing.assert_allclose(out[0, ..., 0], [[5, 10], [15, 20]])
    np.testing.assert_allclose(out[0, ..., 1], [[-5, 0], [5, 10]])


def frames_of(count=3):
    return np.random.default_rng(1).normal(size=(2, count, 4, 5, 3)).astype(np.float32)


def test_add():
    features = frames_of()
    fusion = make_fusion("add")
    assert "params" not in fusion.init(jax.random.key(0), turned(features))
    expected = features[:, 0] + features[:, 1] + features[:, 2]
    np.testing.assert_allclose(fusion.apply({}, turned(features)), expected, rtol=1e-6, atol=1e-6)


def test_concat_puts_the_earliest_frame_first():
    features = frames_of()
    out = make_fusion("concat").apply({}, turned(features))
    np.testing.assert_array_equal(out, np.concatenate([features[:, 0], features[:, 1], features[:, 2]], -1))


def test_conv1x1_is_a_matrix_product():
    features = frames_of(2)
    fusion = make_fusion("conv1x1")
    params = fusion.init(jax.random.key(0), turned(features))["params"]["conv"]
    assert params["kernel"].shape == (1, 1, 6, 3) and params["bias"].shape == (3,)
    params = params | {"bias": jnp.asarray([1.0, -2.0, 3.0])}
    out = fusion.apply({"params": {"conv": params}}, turned(features))
    stacked = np.concatenate([features[:, 0], features[:, 1]], -1)
    expected = stacked @ np.asarray(params["kernel"])[0, 0] + [1, -2, 3]
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


def test_conv1x1_may_start_as_the_mean_over_frames():
    features = frames_of(3)
    fusion = make_fusion("conv1x1", "average")
    out, _ = fusion.init_with_output(jax.random.key(0), turned(features))
    np.testing.assert_allclose(out, features.mean(1), rtol=1e-5, atol=1e-6)


def test_unknown_names():
    with pytest.raises(ValueError, match="fusion is one of.*concat.*found 'attention'"):
        make_fusion("attention")
    with pytest.raises(ValueError, match="fusion_init is one of.*found 'zeros'"):
        make_fusion("conv1x1", "zeros").init(jax.random.key(0), turned(frames_of()))


@pytest.mark.parametrize("name", ["add", "concat", "conv1x1", "stam"])
def test_half_precision_stays_half_and_near(name):
    fusion, features = make_fusion(name), turned(frames_of())
    params = fusion.init(jax.random.key(3), features)
    out = fusion.apply(params, features.astype(jnp.bfloat16))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), fusion.apply(params, features), rtol=0.02, atol=0.02)


def test_stam_gradient_by_finite_differences(x64):
    random = np.random.default_rng(2)
    features, weights = random.normal(size=(1, 2, 3, 4, 2)), random.normal(size=(1, 3, 4, 4))
    fusion = make_fusion("stam", param_dtype=jnp.float64)
    shapes = jax.eval_shape(fusion.init, jax.random.key(0), turned(features))
    params = jax.tree.map(lambda s: jnp.asarray(random.normal(size=s.shape)), shapes)
    loss = jax.jit(lambda x: jnp.sum(fusion.apply(params, turned(x)) * weights))
    gradient = np.asarray(jax.jit(jax.grad(loss))(jnp.asarray(features)))
    for where in np.ndindex(features.shape):
        step = np.zeros(features.shape)
        step[where] = 1e-6
        expected = (loss(jnp.asarray(features + step)) - loss(jnp.asarray(features - step))) / 2e-6
        np.testing.assert_allclose(gradient[where], expected, rtol=1e-6, atol=1e-7)
