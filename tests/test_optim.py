"""SGD against a plain numpy loop in PyTorch's arithmetic, and the learning rate against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import base
from input_pipeline.errors import UserError
from stpl_jax import optim
from stpl_jax.models import make_segmenter
from stpl_jax.models.network import initial_variables
from stpl_jax.rows import row_config

SHAPES = {
    "segmenter": {
        "backbone": {"conv1": {"kernel": (3, 4)}, "bn1": {"scale": (4,), "bias": (4,)}},
        "layer5": {"conv2d_list_0": {"kernel": (2, 3), "bias": (3,)}},
    },
    "projection": {"conv1": {"kernel": (5,)}},
}


GROUPS = {"normalisation": r"/bn\d/(scale|bias)$", "classifiers": "^layer[56]/"}


def is_shape(x):
    return isinstance(x, tuple)


def draw(seed):
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda shape: random.normal(size=shape), SHAPES, is_leaf=is_shape)


def settings(**changes):
    config = base.get_config().optim
    config.update({"learning_rate": 0.5, "decay_steps": 5, "weight_decay": 0.1, "momentum": 0.9} | changes)
    return config


def trained_by_optax(config, steps, frozen=(), trained=()):
    params = jax.tree.map(jnp.asarray, draw(0))
    optimiser = optim.sgd(config, GROUPS, frozen, trained=trained)
    state = optimiser.init(params)

    @jax.jit
    def update(params, state, gradients):
        updates, state = optimiser.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for step in range(steps):
        params, state = update(params, state, jax.tree.map(jnp.asarray, draw(step + 1)))
    return params


def trained_by_numpy(steps, factor, frozen=(), clip=None, nesterov=False):
    """torch.optim.SGD: g += decay·p; the buffer is g at first and then momentum·buffer + g; p -= rate·buffer."""
    params = dict(jax.tree_util.tree_leaves_with_path(draw(0)))
    params = {optim.parameter_path(path): p for path, p in params.items()}
    buffers = {}
    for step in range(steps):
        rate = 0.5 * (1 - step / 5) ** 0.9
        gradients = {optim.parameter_path(p): g for p, g in jax.tree_util.tree_leaves_with_path(draw(step + 1))}
        gradients = {name: g for name, g in gradients.items() if name not in frozen}
        if clip:
            norm = np.sqrt(sum((g**2).sum() for g in gradients.values()))
            gradients = {name: g * min(1, clip / norm) for name, g in gradients.items()}
        for name, g in gradients.items():
            g = g + 0.1 * params[name]
            buffers[name] = 0.9 * buffers[name] + g if name in buffers else g
            direction = g + 0.9 * buffers[name] if nesterov else buffers[name]
            params[name] = params[name] - rate * factor(name) * direction
    return params


def compare(found, expected):
    found = {optim.parameter_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(found)}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-7, err_msg=name)


def one(name):
    return 1.0


FROZEN = ("segmenter/backbone/bn1/scale", "segmenter/backbone/bn1/bias")


def test_three_steps_with_multipliers_and_frozen_parameters(x64):
    # The first expression that matches counts: the bias of layer5 gets 20 and not 10.
    config = settings(multipliers=((r"layer5/.*/bias$", 20.0), ("classifiers", 10.0), (r"conv1", 0.5)))
    factors = {
        "segmenter/backbone/conv1/kernel": 0.5,
        "segmenter/layer5/conv2d_list_0/kernel": 10.0,
        "segmenter/layer5/conv2d_list_0/bias": 20.0,
        "projection/conv1/kernel": 0.5,
    }
    found = trained_by_optax(config, 3, ("normalisation",))
    compare(found, trained_by_numpy(3, factors.get, FROZEN))
    for name in ("scale", "bias"):  # not decayed either
        np.testing.assert_array_equal(
            found["segmenter"]["backbone"]["bn1"][name], draw(0)["segmenter"]["backbone"]["bn1"][name]
        )


def test_nesterov(x64):
    compare(trained_by_optax(settings(nesterov=True), 3), trained_by_numpy(3, one, nesterov=True))


def test_clipping_counts_what_is_trained(x64):
    found = trained_by_optax(settings(clip_norm=0.7), 3, ("normalisation",))
    compare(found, trained_by_numpy(3, one, FROZEN, clip=0.7))


def test_frozen_by_configuration(x64):
    found = trained_by_optax(settings(frozen=(r"^projection/",)), 2)
    compare(found, trained_by_numpy(2, one, frozen=("projection/conv1/kernel",)))


def test_learning_rate_of_the_paper():
    schedule = optim.poly_schedule(base.get_config().optim)
    # 2.5e-6 · (1 - step/20,000)^0.9: 1, 0.5^0.9 = 0.5358867, 0.00005^0.9 = 0.000134614
    for step, expected in ((0, 2.5e-6), (10_000, 1.33971683e-6), (19_999, 3.3653e-10), (20_000, 0), (30_000, 0)):
        np.testing.assert_allclose(schedule(step), expected, rtol=1e-3)
    for step in (1, 12_345, 19_000):
        np.testing.assert_allclose(schedule(step), 2.5e-6 * (1 - step / 20_000) ** 0.9, rtol=1e-5)


@pytest.mark.parametrize("steps", [10, 49, 300, 20_000])
def test_learning_rate_ends_at_nought(steps):
    schedule = jax.jit(optim.poly_schedule(settings(decay_steps=steps)))
    assert [float(schedule(jnp.int32(step))) for step in (steps, steps + 1, 2 * steps)] == [0, 0, 0]
    assert schedule(jnp.int32(steps - 1)) > 0


def test_warm_up_by_hand(x64):
    # As HCL's public code: 1e-4 · (0.1 + 0.9 · step/5,000), from step 5,000 on 1e-4 · (1 - step/100,000)^0.9.
    config = base.get_config()
    config.optim.profile = "own"
    schedule = jax.jit(optim.poly_schedule(row_config(config, "hcl").optim))
    by_hand = {0: 1e-5, 1: 1.0018e-5, 2_500: 5.5e-5, 4_999: 9.9982e-5, 5_000: 9.5488538e-5, 50_000: 5.3588673e-5}
    for step, rate in by_hand.items():
        np.testing.assert_allclose(schedule(jnp.asarray(step, jnp.int32)), rate, rtol=1e-7)
    assert schedule(jnp.asarray(100_000, jnp.int32)) == 0


def test_learning_rate_of_source_training():
    config = row_config(base.get_config(), "source_only").optim
    assert config.steps == 40_000
    # It stops far from the schedule's end: 2.5e-4 · (1 - 39,999/250,000)^0.9 = 2.5e-4 · 0.840004^0.9
    np.testing.assert_allclose(optim.poly_schedule(config)(39_999), 2.5e-4 * 0.840004**0.9, rtol=1e-5)


def test_groups_are_the_right_parameters():
    segmenter = make_segmenter(base.get_config().model, 15)
    shapes = jax.eval_shape(lambda: initial_variables(segmenter, jax.random.key(0)))["params"]
    params = {"segmenter": shapes, "projection": {"conv1": {"bias": jax.ShapeDtypeStruct((128,), jnp.float32)}}}

    def frozen(*names):
        state = jax.eval_shape(optim.sgd(base.get_config().optim, segmenter.groups, names).init, params)
        momenta = sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.shape)
        return sum(leaf.size for leaf in jax.tree.leaves(params)) - momenta

    # As many scales and biases as running means and variances.
    assert frozen("normalisation") == 105_344
    classifiers = 15 * 4 * (9 * 1024 + 1) + 15 * 4 * (9 * 2048 + 1) + 2 * 15 * 15
    assert frozen("classifiers", "score_fusion") == classifiers
    assert frozen("normalisation", "classifiers", "score_fusion") == 105_344 + classifiers


@pytest.mark.parametrize("row", ["source_only", "oracle"])
def test_classifiers_learn_ten_times_faster_from_labels(row):
    config = row_config(base.get_config(), row)
    (entry, factor), *rest = config.optim.multipliers
    assert factor == 10 and not rest
    means = optim.selector(entry, make_segmenter(config.model, 15).groups)
    matching = [name for name in ("layer5", "layer6", "sf_layer", "backbone") if means(f"segmenter/{name}/x")]
    assert matching == ["layer5", "layer6"]


@pytest.mark.parametrize("key, entries", [("frozen", ("layer7",)), ("multipliers", (("decoders", 2.0),))])
def test_an_entry_that_means_nothing_says_what_there_is(key, entries):
    with pytest.raises(UserError, match=f"config.optim.{key}.*normalisation.*projection/conv1, segmenter/backbone"):
        optim.sgd(settings(**{key: entries}), GROUPS).init(draw(0))


def test_only_what_is_named_is_trained(x64):
    others = ("segmenter/backbone/conv1/kernel", "projection/conv1/kernel")
    others += ("segmenter/layer5/conv2d_list_0/kernel", "segmenter/layer5/conv2d_list_0/bias")
    compare(trained_by_optax(settings(), 2, trained=("normalisation",)), trained_by_numpy(2, one, others))
