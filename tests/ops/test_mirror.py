"""Mirror images: what a warp makes of mirrored clips is the mirror image of what it makes of the clips."""

import jax.numpy as jnp
import numpy as np

from stpl_jax.ops.mirror import mirror, mirror_flow
from stpl_jax.ops.warp import warp


def test_mirrored_flow_by_hand():
    flow = np.array([[[3, 1], [-4, 2], [5, -6]]], np.int16)  # one row
    np.testing.assert_array_equal(mirror_flow(flow), [[[-5, -6], [4, 2], [-3, 1]]])
    assert mirror_flow(flow).dtype == np.int16


def test_warping_and_mirroring_commute(x64):
    random = np.random.default_rng(0)
    frame, flow = jnp.asarray(random.normal(size=(2, 5, 7, 3))), jnp.asarray(random.normal(0, 3, (2, 5, 7, 2)))
    expected = mirror(warp(frame, flow))
    np.testing.assert_allclose(warp(mirror(frame), mirror_flow(flow)), expected, rtol=1e-10, atol=1e-12)
    assert np.abs(warp(mirror(frame), mirror(flow)) - expected).max() > 0.1, "the sign does not matter here"
