import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stpl_jax.metrics import temporal_consistency


def loop_counts(current, earlier, flow):
    height, width = current.shape
    same = same_warped = inside = 0
    for y in range(height):
        for x in range(width):
            same += current[y, x] == earlier[y, x]
            row, column = math.floor(y + flow[y, x, 1] + 0.5), math.floor(x + flow[y, x, 0] + 0.5)
            if 0 <= row < height and 0 <= column < width:
                inside += 1
                same_warped += current[y, x] == earlier[row, column]
    return same, height * width, same_warped, inside


def random_clips(clips, shape=(9, 11)):
    rng = np.random.default_rng(0)
    current = rng.integers(0, 3, size=(clips, *shape)).astype(np.uint8)
    earlier = rng.integers(0, 3, size=(clips, *shape)).astype(np.uint8)
    flow = rng.uniform(-4, 4, size=(clips, *shape, 2)).astype(np.float32)
    return current, earlier, flow


def test_counts_and_shares_agree_with_a_loop():
    clips = random_clips(3)
    counts = jax.jit(jax.vmap(temporal_consistency.consistency_counts))(*(jnp.asarray(x) for x in clips))
    assert all(x.dtype == jnp.int32 and x.shape == (3,) for x in counts)
    expected = np.asarray([loop_counts(*clip) for clip in zip(*clips, strict=True)])
    np.testing.assert_array_equal(np.stack([np.asarray(x) for x in counts], axis=1), expected)
    same, total, same_warped, inside = expected.sum(axis=0)
    raw, warped = temporal_consistency.consistency_shares(counts)
    assert raw == pytest.approx(100 * same / total) and warped == pytest.approx(100 * same_warped / inside)


def test_a_moving_scene_is_consistent_only_after_warping():
    scene = np.arange(12 * 16).reshape(12, 16) % 7
    current, earlier = scene[2:10, 3:13], scene[1:9, 4:14]  # what is at (y, x) was at (y + 1, x - 1)
    flow = np.zeros((8, 10, 2), np.float32)
    flow[..., 0], flow[..., 1] = -1, 1
    counts = temporal_consistency.consistency_counts(jnp.asarray(current), jnp.asarray(earlier), jnp.asarray(flow))
    assert int(counts.inside) == 7 * 9
    assert temporal_consistency.consistency_shares(counts) == (0.0, 100.0)


def test_shares_sum_beyond_int32_and_survive_no_pixels():
    most = np.full((4,), 2**31 - 1, np.int32)
    counts = temporal_consistency.ConsistencyCounts(same=most // 2, total=most, same_warped=most * 0, inside=most * 0)
    raw, warped = temporal_consistency.consistency_shares(counts)
    assert raw == pytest.approx(50) and math.isnan(warped)


def test_counts_refuse_bad_input():
    current, earlier, flow = (jnp.asarray(x[0]) for x in random_clips(1))
    with pytest.raises(ValueError, match="two class maps"):
        temporal_consistency.consistency_counts(current, earlier[:-1], flow)
    with pytest.raises(ValueError, match="expected flow of shape"):
        temporal_consistency.consistency_counts(current, earlier, flow[:-1])
