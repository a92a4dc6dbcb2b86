"""STPL with an averaged teacher: its two terms against STPL and a loop over pixels, and the teacher's average."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from patch_network import PatchNetwork
from two_devices import changed, is_batch_norm, names, states_of_steps

from stpl_jax.losses.pseudo_labels import confident_pixels
from stpl_jax.methods import make_method
from stpl_jax.methods.forward import extract, flow_on_grid, frames_first, fused_main_scores
from stpl_jax.train_state import TrainState

KEY = jax.random.key(3)


@pytest.fixture
def network(x64, tiny_config, small_clips, to_float64):
    """Configuration, network, parameters, a teacher that differs from it, and clips; float64."""
    tiny_config.method = "stpl_plus"
    tiny_config.methods.stpl.projection.update({"hidden": 6, "dim": 4})
    segmenter = PatchNetwork()
    variables = to_float64(dict(segmenter.init(jax.random.key(1), jnp.zeros((2, 1, 16, 32, 3)))))
    params, extra = make_method(tiny_config, segmenter).init(jax.random.key(2), variables)
    params = to_float64(params)
    random = np.random.default_rng(0)
    teacher = jax.tree.map(lambda x: x + 0.3 * random.normal(size=x.shape), extra["teacher"])
    state = TrainState(jnp.zeros((), jnp.int32), params, variables["batch_stats"], None, {"teacher": teacher})
    return tiny_config, segmenter, params, state, {"target": small_clips(2)}


def gradients(config, segmenter, params, state, batch):
    method = make_method(config, segmenter)
    return jax.jit(jax.value_and_grad(lambda p: method.loss(p, state, batch, KEY)[0]["network"]))(params)


def assert_trees_close(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), found, expected)


def test_contrast_alone_with_itself_as_teacher_is_stpl(network):
    config, segmenter, params, state, batch = network
    config.methods.stpl_plus.update({"supervision_weight": 0.0, "contrast_weight": 2.0})
    own = state.replace(extra={"teacher": params["network"]["segmenter"]})
    loss, gradient = gradients(config, segmenter, params, own, batch)
    other, _ = gradients(config, segmenter, params, state, batch)
    config.method = "stpl"
    expected = gradients(config, segmenter, params, state, batch)
    assert_trees_close((loss, gradient), jax.tree.map(lambda x: 2 * x, expected))
    assert not np.isclose(loss, other), "another teacher gives other pseudo-labels"


@pytest.mark.parametrize("power", [0.0, -0.5])
def test_supervision_is_cross_entropy_on_the_augmented_clip(network, power):
    config, segmenter, params, state, batch = network
    config.methods.stpl_plus.contrast_weight = 0.0
    config.methods.stpl.contrast.class_power = power
    data, stats = batch["target"], state.batch_stats
    clean = frames_first(data["frames"])
    augmented = make_method(config, segmenter).stpl.augment(data, KEY).astype(jnp.float64)

    def scores_of(weights, frames):
        # The running averages play no part: every frame is normalised by its own statistics.
        features, _ = extract(segmenter, weights, stats, frames.astype(jnp.float64), config.batch_norm)
        flow = flow_on_grid(data["flow"][:, 0], features.main.shape[2:4], config.flow.scale)
        scores = fused_main_scores(segmenter, weights, features.main[0], features.main[1], flow)
        return scores.reshape(len(scores), -1, scores.shape[-1])

    labelled = [map(np.asarray, confident_pixels(s, 0.7)[:2]) for s in scores_of(state.extra["teacher"], clean)]

    def expected(params):
        means = []
        for scores, (index, labels) in zip(scores_of(params["network"]["segmenter"], augmented), labelled, strict=True):
            counts = np.bincount(labels, minlength=segmenter.num_classes)
            weights = np.array([float(counts[y]) ** power for y in labels])
            # No log-softmax: the logarithm of the class's share of the exponentials.
            powers = jnp.exp(scores[index])
            shares = powers[jnp.arange(len(labels)), labels] / powers.sum(-1)
            means.append(-(weights * jnp.log(shares)).sum() / weights.sum())
        return sum(means) / len(means)

    assert_trees_close(gradients(*network), jax.jit(jax.value_and_grad(expected))(params))


def test_the_teacher_is_the_networks_moving_average(small_config, small_segmenter, small_variables, small_clips):
    small_config.method = "stpl_plus"
    small_config.methods.stpl_plus.teacher_decay = 0.75
    small_config.optim.learning_rate = 0.1
    method = make_method(small_config, small_segmenter)
    batches = [{"target": small_clips(2, seed=seed)} for seed in range(2)]
    states, metrics = states_of_steps(method, small_config.optim, small_variables, batches)
    teacher = states[0].params["network"]["segmenter"]
    for state in states[1:]:
        teacher = jax.tree.map(lambda t, p: 0.75 * t + 0.25 * p, teacher, state.params["network"]["segmenter"])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), state.extra["teacher"], teacher)
    moved = changed(states[0].params["network"], states[-1].params["network"])
    expected = {
        name
        for name in names(states[0].params["network"])
        if not is_batch_norm(name) and not name.startswith(("segmenter/layer", "segmenter/sf_layer"))
    }
    assert moved == expected, "the classifiers stay, all else moves"
    assert set(metrics[0]) == {"loss/network", "confident", "state_norm"}
