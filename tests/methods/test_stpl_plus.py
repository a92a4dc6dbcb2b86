"""Our recipe against a loop over clips, on a network written out, and the teacher's average."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from patch_network import patch_network
from two_devices import changed, is_batch_norm, names, states_of_steps

from stpl_jax import forward
from stpl_jax.forward import augmented_clips, flow_on_grid
from stpl_jax.losses.pseudo_labels import confident_pixels
from stpl_jax.methods import make_method
from stpl_jax.ops.augment import AugmentSettings
from stpl_jax.ops.warp import warp
from stpl_jax.train_state import TrainState

KEY = jax.random.key(3)


@pytest.fixture
def network(x64, tiny_config, small_clips, to_float64):
    """Configuration, network, parameters, a state whose teacher differs from them, and clips; float64."""
    tiny_config.method = "stpl_plus"
    segmenter = patch_network()
    variables = to_float64(dict(segmenter.initial(jax.random.key(1))))
    random = np.random.default_rng(0)
    stats = jax.tree.map(lambda x: x + random.uniform(0.1, 0.5, x.shape), variables["batch_stats"])
    params, extra = make_method(tiny_config, segmenter).init(jax.random.key(2), variables)
    teacher = jax.tree.map(lambda x: x + 0.3 * random.normal(size=x.shape), extra["teacher"])
    state = TrainState(jnp.zeros((), jnp.int32), params, stats, None, {"teacher": teacher})
    return tiny_config, segmenter, params, state, {"target": small_clips(2)}


def patches_of(frames):
    """`[T, H, W, 3]` to `[T, h, w, 48]`."""
    t, height, width, _ = frames.shape
    cut = jnp.asarray(frames, float).reshape(t, height // 4, 4, width // 4, 4, 3)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(t, height // 4, width // 4, 48)


def scores_of(params, mean, var, frames, flow):
    """Fused main scores `[h·w, K]` of one clip, written out."""

    def dense(name, x):
        bias = params[name].get("bias", jnp.zeros(1))
        return x @ params[name]["kernel"] + bias.reshape((1,) * (x.ndim - 1) + (-1,))

    norm = params["norm"]
    factor, offset = norm["scale"] / jnp.sqrt(var + 1e-5), norm["bias"]
    x = (patches_of(frames) - mean[None, None, None]) * factor[None, None, None] + offset[None, None, None]
    now, before = dense("layer6", jnp.tanh(dense("second", jnp.tanh(dense("first", x)))))
    on_grid = flow_on_grid(jnp.asarray(flow), now.shape[:2], "align_corners")
    fused = dense("sf_layer", jnp.concatenate([now, warp(before[None], on_grid[None])[0]], -1))
    return fused.reshape(-1, fused.shape[-1])


def assert_trees_close(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-11), found, expected)


def dimmed(key, frames, settings):
    """Stands in for `photometric`, which is tested apart and computes in float32: a draw for the clip, in float64."""
    assert settings == AugmentSettings()
    return frames.astype(float) * jax.random.uniform(key, (), float, 0.4, 0.9)


@pytest.mark.parametrize("power, weight", [(0.0, 0.0), (-0.5, 0.7)])
def test_loss_and_gradient(network, monkeypatch, power, weight):
    monkeypatch.setattr(forward, "photometric", dimmed)
    config, segmenter, params, state, batch = network
    settings = config.methods.stpl_plus
    settings.update({"class_power": power, "augmented_weight": weight})
    method, data = make_method(config, segmenter), batch["target"]
    augmented = augmented_clips(data, KEY, AugmentSettings(**settings.augment))

    norm, labelled = state.batch_stats["norm"], []
    for frames, flow in zip(data["frames"], data["flow"][:, 0], strict=True):
        pixels = np.asarray(patches_of(frames)).reshape(-1, 48)
        scores = scores_of(state.extra["teacher"], pixels.mean(0), pixels.var(0), frames, flow)
        index, labels, mask = map(np.asarray, confident_pixels(scores, 0.9, per_class=True))
        labelled.append((index[mask], labels[mask]))
        norm = {
            "mean": 0.9 * norm["mean"] + 0.1 * pixels.mean(0),
            "var": 0.9 * norm["var"] + 0.1 * pixels.var(0, ddof=1),
        }

    def expected(params):
        total = 0.0
        for share, clips in ((1.0, data["frames"]), (weight, augmented)):
            for clip, flow, (index, labels) in zip(clips, data["flow"][:, 0], labelled, strict=True):
                scores = scores_of(params["network"]["segmenter"], norm["mean"], norm["var"], clip, flow)[index]
                counts = np.bincount(labels, minlength=segmenter.num_classes)
                weights = np.array([float(counts[y]) ** power for y in labels])
                # No log-softmax: the logarithm of the class's share of the exponentials.
                powers = jnp.exp(scores)
                shares = powers[jnp.arange(len(labels)), labels] / powers.sum(-1)
                total += share * -(weights * jnp.log(shares)).sum() / weights.sum() / len(labelled)
        return total

    def loss(params):
        losses, aux = method.loss(params, state, batch, KEY)
        return losses["network"], aux

    (found, aux), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert len({tuple(labels) for _, labels in labelled}) == len(labelled), "clips have labels of their own"
    value, by_parameter = jax.jit(jax.value_and_grad(expected))(params)
    # The classifiers' gradients are computed too; the optimiser leaves them.
    assert_trees_close((found, gradient, aux.batch_stats["norm"]), (value, by_parameter, norm))


@pytest.mark.parametrize("mode", ["running", "sync"])
def test_other_statistics_are_refused(tiny_config, mode):
    tiny_config.method, tiny_config.batch_norm.mode = "stpl_plus", mode
    with pytest.raises(ValueError, match=rf"batch_norm.mode is batch .* found '{mode}'"):
        make_method(tiny_config, patch_network())


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
