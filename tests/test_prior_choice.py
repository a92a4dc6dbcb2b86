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
    found = prior_choice.make_measures(tiny_segmenter)(*arguments, parallel.split_over_devices(batch))
    features = jax.jit(tiny_segmenter.features)

    def log_probabilities(stats, frames):
        seen, _ = features({"params": variables["params"], "batch_stats": stats}, frames[None])
        return log_softmax(np.asarray(tiny_segmenter.classify(variables["params"], seen).main[0], float), -1)

    expected, means = [], []
    for share in (0, 0.25, 0.5, 0.75, 1):
        stats = jax.tree.map(lambda s, t, a=share: (1 - a) * s + a * t, source, target)
        frames, costs, seen = batch["frames"][:, 0], [], []
        direct, mirrored = log_probabilities(stats, frames), log_probabilities(stats, frames[:, :, ::-1])
        for p, q in zip(direct, mirrored[:, :, ::-1], strict=True):
            costs += [-(np.exp(p[y, x]) * q[y, x]).sum() for y, x in np.ndindex(p.shape[:2])]
            seen += [np.exp(p[y, x]) for y, x in np.ndindex(p.shape[:2])]
        expected.append(np.mean(costs))
        means.append(np.mean(seen, 0))
    assert np.ptp(expected) > 1e-3
    for device in range(8):
        np.testing.assert_allclose(found[0][device], expected, rtol=2e-4)
        np.testing.assert_allclose(found[1][device], means, rtol=2e-4)
    entropy = [-sum(p * np.log(p) for p in mean) for mean in means]
    batches = [parallel.unreplicate(found)] * 2
    np.testing.assert_allclose(prior_choice.costs(batches), np.subtract(expected, entropy), rtol=1e-3)


def test_batches_are_averaged_before_the_entropy_is_taken():
    # Each batch is of one class, both together are of two: log 2 of entropy, and none without.
    measures = [(np.full(5, 0.25), np.tile([1.0, 0.0], (5, 1))), (np.full(5, 0.75), np.tile([0.0, 1.0], (5, 1)))]
    np.testing.assert_allclose(prior_choice.costs(measures), 0.5 - np.log(2))


@pytest.mark.parametrize("vertex", [0.2, 0.3, 0.5, 0.61])
def test_the_vertex_of_a_parabola_is_found(vertex):
    shares = np.linspace(0, 1, 5)
    np.testing.assert_allclose(prior_choice.lowest(3 * (shares - vertex) ** 2 + 1), vertex, atol=1e-12)


@pytest.mark.parametrize("costs, share", [([1, 2, 3, 4, 5], 0), ([5, 4, 3, 2, 1], 1), ([2, 1, 1, 2, 3], 0.375)])
def test_ends_and_ties(costs, share):
    assert prior_choice.lowest(costs) == share


def test_equal_costs_keep_the_source():
    assert prior_choice.lowest([1] * 5) == 0
