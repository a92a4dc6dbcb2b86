"""The cost of each share by plain loops, and where a parabola is lowest."""

import jax
import numpy as np
import pytest
from scipy.special import log_softmax

from stpl_jax import parallel, prior_choice


def test_costs_by_loops(tiny_segmenter, drawn_variables, clips):
    variables = drawn_variables(tiny_segmenter)
    source, target = variables["batch_stats"], drawn_variables(tiny_segmenter, seed=5)["batch_stats"]
    batch = clips(8)
    arguments = map(parallel.replicate, (variables["params"], source, target))
    found = prior_choice.make_costs(tiny_segmenter)(*arguments, parallel.split_over_devices(batch))
    features = jax.jit(tiny_segmenter.features)

    def log_probabilities(stats, frames):
        seen, _ = features({"params": variables["params"], "batch_stats": stats}, frames[None])
        return log_softmax(np.asarray(tiny_segmenter.classify(variables["params"], seen).main[0], float), -1)

    expected = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        stats = jax.tree.map(lambda s, t, a=share: (1 - a) * s + a * t, source, target)
        frames, costs = batch["frames"][:, 0], []
        direct, mirrored = log_probabilities(stats, frames), log_probabilities(stats, frames[:, :, ::-1])
        for p, q in zip(direct, mirrored[:, :, ::-1], strict=True):
            costs += [-(np.exp(p[y, x]) * q[y, x]).sum() for y, x in np.ndindex(p.shape[:2])]
        expected.append(np.mean(costs))
    assert np.ptp(expected) > 1e-3
    for device in np.asarray(found):
        np.testing.assert_allclose(device, expected, rtol=2e-4)


@pytest.mark.parametrize("vertex", [0.2, 0.3, 0.5, 0.61])
def test_the_vertex_of_a_parabola_is_found(vertex):
    shares = np.linspace(0, 1, 5)
    np.testing.assert_allclose(prior_choice.lowest(3 * (shares - vertex) ** 2 + 1), vertex, atol=1e-12)


@pytest.mark.parametrize("costs, share", [([1, 2, 3, 4, 5], 0), ([5, 4, 3, 2, 1], 1), ([2, 1, 1, 2, 3], 0.375)])
def test_ends_and_ties(costs, share):
    assert prior_choice.lowest(costs) == share


def test_equal_costs_keep_the_source():
    assert prior_choice.lowest([1] * 5) == 0
