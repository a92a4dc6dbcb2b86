"""Blended statistics against means and variances by numpy, and nothing else moves."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from patch_network import patch_network

from input_pipeline.errors import UserError
from stpl_jax import parallel
from stpl_jax.methods import make_method
from stpl_jax.models.network import Network, PerClassifier, group_by_group
from stpl_jax.train_state import create_state, make_train_step


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_two_steps_by_numpy(alpha, tiny_config, drawn_variables, clips):
    tiny_config.method, tiny_config.methods.alpha_bn.alpha = "alpha_bn", alpha
    segmenter = patch_network(dtype=jnp.float32, param_dtype=jnp.float32)
    variables = drawn_variables(segmenter)
    method = make_method(tiny_config, segmenter)
    assert list(method.needs) == ["target"] and not method.needs["target"].labels
    state = parallel.replicate(jax.tree.map(np.asarray, create_state(method, {}, variables, jax.random.key(0))))
    step = parallel.pmap(make_train_step(method, {}, 0), donate_state=True)
    batches = [clips(16, seed=seed, frames=1, pairs=()) for seed in (1, 2)]
    for batch in batches:
        state, _ = step(state, {"target": parallel.split_over_devices(batch)})
    found = parallel.unreplicate(state)

    means, variances = [], []
    for batch in batches:
        patches = batch["frames"][:, 0].reshape(8, 2, 8, 4, 16, 4, 3).astype(float)  # two clips on each device
        patches = patches.transpose(0, 1, 2, 4, 3, 5, 6).reshape(8, -1, 48)
        means.append(patches.mean(1).mean(0))
        variances.append(patches.var(1, ddof=1).mean(0))
    source = variables["batch_stats"]["norm"]
    for name, target in (("mean", means), ("var", variances)):
        expected = (1 - alpha) * source[name] + alpha * np.mean(target, 0)
        np.testing.assert_allclose(found.batch_stats["norm"][name], expected, rtol=1e-5, atol=1e-3)
    jax.tree.map(np.testing.assert_array_equal, found.params["network"]["segmenter"], variables["params"])


def test_every_layer_of_a_deep_network_is_read(small_config, small_segmenter, small_variables, small_clips):
    small_config.method, small_config.methods.alpha_bn.alpha = "alpha_bn", 1.0
    method = make_method(small_config, small_segmenter)
    state = create_state(method, {}, small_variables, jax.random.key(0))
    data = {"target": small_clips(2, frames=1, pairs=())}
    _, aux = jax.jit(method.loss)(state.params, state, data, jax.random.key(0))
    # The network's own running averages, moved once with momentum 0.1, say the same.
    before = small_variables["batch_stats"]
    frames = data["target"]["frames"].swapaxes(0, 1)
    _, after = jax.jit(lambda v, x: small_segmenter.features(v, x, True, 1))(small_variables, frames)
    own = jax.tree.map(lambda a, b: (a - 0.9 * b) / 0.1, after, before)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), aux.extra, own)


class HalfFrozen(nn.Module):
    """Three normalisations: as usual, by running statistics that stay, and by the batch's without keeping them."""

    @nn.compact
    def __call__(self, images, train):
        x = nn.Conv(4, (4, 4), strides=4, name="conv")(images)
        x = nn.BatchNorm(True, name="frozen")(x)
        x = nn.BatchNorm(not train, momentum=1.0, name="stays")(nn.tanh(x))
        return nn.BatchNorm(not train, momentum=0.9, name="moves")(nn.tanh(x))


def test_layers_whose_statistics_stay_keep_them(tiny_config, clips):
    tiny_config.method, tiny_config.methods.alpha_bn.alpha = "alpha_bn", 0.3
    module = HalfFrozen()

    @functools.partial(jax.jit, static_argnums=2)
    def backbone(variables, images, train):
        # Flax mixes whole numbers and floats in its averages.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            features, new = module.apply(variables, images, train, mutable=["batch_stats"])
        return PerClassifier(features), new["batch_stats"]

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        variables = module.init(jax.random.key(0), jnp.zeros((1, 16, 32, 3)), False)
    for name, mean, var in (("frozen", 3.0, 0.5), ("stays", 0.2, 2.0), ("moves", 7.0, 9.0)):
        variables["batch_stats"][name] = {"mean": jnp.full(4, mean), "var": jnp.full(4, var)}
    network = Network(
        num_classes=2,
        normalise=lambda rgb, dtype: rgb.astype(dtype) / 255,
        backbone=group_by_group(backbone),
        main_classifier=lambda params, x: x[..., :2],
        groups={},
    )
    method = make_method(tiny_config, network)
    state = parallel.replicate(jax.tree.map(np.asarray, create_state(method, {}, variables, jax.random.key(0))))
    step = parallel.pmap(make_train_step(method, {}, 0), donate_state=True)
    batches = [clips(jax.device_count(), seed=seed, frames=1, pairs=()) for seed in (1, 2)]
    for batch in batches:
        state, _ = step(state, {"target": parallel.split_over_devices(batch)})
    found = parallel.unreplicate(state).batch_stats

    for name in ("frozen", "stays"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found[name], variables["batch_stats"][name]
        )
    # The network's own running averages say the same of the one that moves.
    images = jnp.concatenate([batch["frames"][:, 0] for batch in batches]).astype(jnp.float32) / 255
    before = variables["batch_stats"]["moves"]
    after = [backbone(variables, image[None], True)[1]["moves"] for image in images]
    for part in ("mean", "var"):
        target = np.mean([(a[part] - 0.9 * before[part]) / 0.1 for a in after], 0)
        np.testing.assert_allclose(found["moves"][part], 0.7 * before[part] + 0.3 * target, rtol=1e-3, atol=1e-3)


def test_alpha_is_a_share(tiny_config):
    tiny_config.method, tiny_config.methods.alpha_bn.alpha = "alpha_bn", 1.5
    with pytest.raises(UserError, match=r"methods.alpha_bn.alpha is a share, in 0..1; found 1.5"):
        make_method(tiny_config, patch_network())
