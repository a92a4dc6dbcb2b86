"""Forward propagation against a double loop that writes pixel after pixel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stpl_jax.ops.propagate import propagate


def pixel_by_pixel(x, flow):
    """Writes columns from left to right, each from top to bottom; what is written later stays."""
    h, w = x.shape[:2]
    propagated, origin = np.zeros_like(x), np.full((h, w, 2), -1)
    for column in range(w):
        for row in range(h):
            to_row, to_column = round(row - float(flow[row, column, 1])), round(column - float(flow[row, column, 0]))
            if 0 <= to_row < h and 0 <= to_column < w:
                propagated[to_row, to_column] = x[row, column]
                origin[to_row, to_column] = row, column
    return propagated, origin


def test_whole_pixels_move_against_the_flow():
    x = np.arange(12, dtype=np.float32).reshape(3, 4, 1)
    flow = np.broadcast_to(np.float32([1, -1]), (3, 4, 2))  # was one to the right and one up: moves left and down
    found, reached = jax.jit(propagate)(jnp.asarray(x), jnp.asarray(flow))
    np.testing.assert_array_equal(found[..., 0], [[0, 0, 0, 0], [1, 2, 3, 0], [5, 6, 7, 0]])
    np.testing.assert_array_equal(reached, [[0, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0]])


def test_the_largest_column_then_the_largest_row_stays():
    x = np.arange(1, 10, dtype=np.float32).reshape(3, 3, 1)
    rows, columns = np.indices((3, 3), np.float32)
    everything_to_the_centre = np.stack([columns - 1, rows - 1], -1)
    found, reached = jax.jit(propagate)(jnp.asarray(x), jnp.asarray(everything_to_the_centre))
    assert found[1, 1, 0] == 9 and reached.sum() == 1
    everything_to_the_centre[2, 2] = 50  # leaves the frame; then (1, 2) is last, not (2, 1)
    assert jax.jit(propagate)(jnp.asarray(x), jnp.asarray(everything_to_the_centre))[0][1, 1, 0] == 6


@pytest.mark.parametrize("seed", range(3))
def test_against_the_loop(seed):
    random = np.random.default_rng(seed)
    x = random.normal(size=(2, 3, 7, 9, 4)).astype(np.float32)
    flow = (random.integers(-8, 9, (2, 3, 7, 9, 2)) / 2).astype(np.float32)  # halves, and much of it on one pixel
    found, reached = jax.jit(propagate)(x, flow)
    collisions = 0
    for index in np.ndindex(2, 3):
        expected, origin = pixel_by_pixel(x[index], flow[index])
        np.testing.assert_array_equal(found[index], expected)
        np.testing.assert_array_equal(reached[index], origin[..., 0] >= 0)
        collisions += 63 - (origin[..., 0] >= 0).sum()
    assert collisions > 100


def test_gradient_goes_to_the_pixels_that_stay(x64):
    random = np.random.default_rng(5)
    x, flow = random.normal(size=(5, 6, 2)), random.normal(0, 2, (5, 6, 2))
    weights = random.normal(size=(5, 6, 2))
    gradient, by_flow = jax.jit(jax.grad(lambda x, f: jnp.sum(propagate(x, f)[0] * weights), (0, 1)))(x, flow)
    expected = np.zeros_like(x)
    _, origin = pixel_by_pixel(x, flow)
    for place in np.ndindex(5, 6):
        if origin[place][0] >= 0:
            expected[tuple(origin[place])] += weights[place]
    np.testing.assert_allclose(gradient, expected, rtol=1e-12)
    assert not by_flow.any()


def test_flow_far_outside_and_not_a_number_lands_nowhere():
    flow = np.zeros((2, 3, 2), np.float32)
    flow[0] = 1e12
    flow[1, :, 1] = np.nan
    found, reached = jax.jit(propagate)(jnp.ones((2, 3, 1)), jnp.asarray(flow))
    assert not reached.any() and not found.any()


def test_wrong_input():
    x, flow = jnp.zeros((2, 4, 5, 3)), jnp.zeros((2, 4, 5, 2))
    with pytest.raises(ValueError, match=r"expected x \[..., h, w, C\] and flow"):
        propagate(x, flow[0])
    with pytest.raises(TypeError, match="flow must be floating point, got int16"):
        propagate(x, flow.astype(jnp.int16))
