import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stpl_jax.ops.warp import warp, warp_nearest


def loop_warp(x, flow):
    """Bilinear warp of [h, w, C], one pixel at a time."""
    h, w, _ = x.shape
    out = np.zeros(x.shape)
    for i in range(h):
        for j in range(w):
            row, column = i + flow[i, j, 1], j + flow[i, j, 0]
            top, left = math.floor(row), math.floor(column)
            for corner_row, row_weight in ((top, 1 - (row - top)), (top + 1, row - top)):
                for corner_column, column_weight in ((left, 1 - (column - left)), (left + 1, column - left)):
                    value = x[min(max(corner_row, 0), h - 1), min(max(corner_column, 0), w - 1)]
                    out[i, j] += row_weight * column_weight * value
    return out


def test_warp_agrees_with_a_loop_inside_and_beyond_every_border():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 5, 6, 4))
    flow = rng.uniform(-9, 9, size=(2, 3, 5, 6, 2))
    rows = np.arange(5)[:, None] + flow[..., 1]
    columns = np.arange(6) + flow[..., 0]
    for beyond in (rows < -1, rows > 5, columns < -1, columns > 6, (rows > 0) & (rows < 4) & (columns > 0)):
        assert beyond.any()
    with jax.enable_x64(True):
        result = np.asarray(jax.jit(warp)(jnp.asarray(x), jnp.asarray(flow)))
    for b in range(2):
        for t in range(3):
            np.testing.assert_allclose(result[b, t], loop_warp(x[b, t], flow[b, t]), atol=1e-12)
    single = np.asarray(warp(jnp.asarray(x[0, 0], jnp.float32), jnp.asarray(flow[0, 0], jnp.float32)))
    np.testing.assert_allclose(single, loop_warp(x[0, 0], flow[0, 0]), atol=1e-5)


def test_a_translated_image_warps_onto_itself():
    scene = np.random.default_rng(1).normal(size=(40, 50, 3)).astype(np.float32)
    current = scene[10:30, 10:35]
    earlier = scene[13:33, 5:30]  # what is now at (y, x) was at (y - 3, x + 5)
    flow = np.zeros((20, 25, 2), np.float32)
    flow[..., 0], flow[..., 1] = 5, -3
    warped = np.asarray(warp(jnp.asarray(earlier), jnp.asarray(flow)))
    np.testing.assert_array_equal(warped[3:, :-5], current[3:, :-5])
    classes, inside = warp_nearest(jnp.asarray((earlier[..., 0] > 0).astype(np.uint8)), jnp.asarray(flow))
    np.testing.assert_array_equal(np.asarray(classes)[3:, :-5], (current[..., 0] > 0)[3:, :-5])
    expected = np.zeros((20, 25), bool)
    expected[3:, :-5] = True
    np.testing.assert_array_equal(np.asarray(inside), expected)


def test_half_a_pixel_averages_neighbours():
    x = jnp.asarray([[0.0, 10.0, 20.0]], jnp.float32)[..., None]
    flow = jnp.asarray([0.5, 0.0], jnp.float32).reshape(1, 1, 2)
    warped = warp(x, jnp.broadcast_to(flow, (1, 3, 2)))
    np.testing.assert_array_equal(np.asarray(warped).ravel(), [5.0, 15.0, 20.0])


def test_far_positions_repeat_the_border():
    x = np.arange(12, dtype=np.float32).reshape(3, 4, 1)
    for direction, expected in (
        ((1e12, 0), np.repeat(x[:, -1:], 4, axis=1)),
        ((-1e12, 0), np.repeat(x[:, :1], 4, axis=1)),
        ((0, 1e12), np.repeat(x[-1:], 3, axis=0)),
        ((0, -1e12), np.repeat(x[:1], 3, axis=0)),
    ):
        flow = np.broadcast_to(np.asarray(direction, np.float32), (3, 4, 2))
        np.testing.assert_array_equal(np.asarray(warp(jnp.asarray(x), jnp.asarray(flow))), expected)


def test_bfloat16_features_keep_their_dtype_and_exact_positions():
    # bfloat16 holds whole numbers up to 256 only: positions computed in it would read neighbours.
    x = jax.random.normal(jax.random.key(0), (2, 700, 3)).astype(jnp.bfloat16)
    for dtype in (jnp.bfloat16, jnp.float32):
        flow = jnp.zeros((2, 700, 2), dtype).at[..., 0].set(1)
        warped = warp(x, flow)
        assert warped.dtype == jnp.bfloat16
        np.testing.assert_array_equal(
            np.asarray(warped, np.float32)[:, :-1], np.asarray(x, np.float32)[:, 1:], err_msg=str(dtype)
        )


def test_gradients_agree_with_finite_differences():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(4, 5, 2))
    # Whole pixels plus a fraction from .2 to .8, so that no step crosses a pixel boundary, where weights bend.
    flow = rng.integers(-6, 6, size=(4, 5, 2)) + rng.uniform(0.2, 0.8, size=(4, 5, 2))
    weights = rng.normal(size=(4, 5, 2))

    def loss(x, flow):
        return jnp.sum(jnp.asarray(weights) * warp(x, flow) ** 2)

    with jax.enable_x64(True):
        gradients = jax.grad(loss, argnums=(0, 1))(jnp.asarray(x), jnp.asarray(flow))
    for position, gradient in enumerate(gradients):
        numeric = np.zeros(gradient.shape)
        for index in np.ndindex(gradient.shape):
            values = []
            for step in (1e-5, -1e-5):
                moved = [x.copy(), flow.copy()]
                moved[position][index] += step
                values.append(np.sum(weights * loop_warp(*moved) ** 2))
            numeric[index] = (values[0] - values[1]) / 2e-5
        assert np.abs(numeric).max() > 0.1
        np.testing.assert_allclose(np.asarray(gradient), numeric, atol=1e-7)


def test_warp_nearest_agrees_with_a_loop():
    rng = np.random.default_rng(3)
    classes = rng.integers(0, 200, size=(2, 5, 6)).astype(np.uint8)
    # Whole and half pixels: a half is where roundings differ.
    flow = np.round(rng.uniform(-5, 5, size=(2, 5, 6, 2)) * 2) / 2
    warped, inside = jax.jit(warp_nearest)(jnp.asarray(classes), jnp.asarray(flow, jnp.float32))
    assert warped.dtype == jnp.uint8 and inside.dtype == jnp.bool_
    for b, i, j in np.ndindex(2, 5, 6):
        row = math.floor(i + flow[b, i, j, 1] + 0.5)
        column = math.floor(j + flow[b, i, j, 0] + 0.5)
        assert bool(inside[b, i, j]) == (0 <= row < 5 and 0 <= column < 6)
        assert int(warped[b, i, j]) == classes[b, min(max(row, 0), 4), min(max(column, 0), 5)]


def test_warp_refuses_bad_input():
    x = jnp.zeros((2, 4, 5, 3))
    with pytest.raises(ValueError, match=r"expected flow of shape \(2, 4, 5, 2\)"):
        warp(x, jnp.zeros((4, 5, 2)))
    with pytest.raises(TypeError, match="int16"):
        warp(x, jnp.zeros((2, 4, 5, 2), jnp.int16))
    with pytest.raises(TypeError, match="uint8"):
        warp(x.astype(jnp.uint8), jnp.zeros((2, 4, 5, 2)))
    with pytest.raises(ValueError, match=r"\[\.\.\., h, w, C\]"):
        warp(jnp.zeros((4, 5)), jnp.zeros((4, 5, 2)))
    with pytest.raises(ValueError, match=r"expected flow of shape \(4, 5, 2\)"):
        warp_nearest(jnp.zeros((4, 5), jnp.uint8), jnp.zeros((5, 4, 2)))
    with pytest.raises(ValueError, match=r"\[\.\.\., H, W\]"):
        warp_nearest(jnp.zeros((4,), jnp.uint8), jnp.zeros((4, 2)))
