"""Batch normalisation in groups: hand-computed numbers, one pass against several, one device against two."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stpl_jax.models.batch_norm import GroupedBatchNorm, average_after


def variables(channels, seed=0):
    random = np.random.default_rng(seed)
    return {
        "params": {"scale": random.uniform(0.5, 2, channels), "bias": random.normal(size=channels)},
        "batch_stats": {"mean": random.normal(size=channels), "var": random.uniform(0.5, 2, channels)},
    }


@partial(jax.jit, static_argnums=(2, 3))
def normalise(values, x, groups, averaged):
    norm = GroupedBatchNorm(param_dtype=x.dtype)
    return norm.apply(values, x, groups, averaged, mutable=["batch_stats"])


# One channel, two groups of one clip of one row: [1, 3] and [2, 8].
# Means 2 and 5; biased variances 1 and 9, which normalise; unbiased ones 2 and 18, which are averaged.
HAND_X = [[1.0, 3.0], [2.0, 8.0]]
HAND = {"params": {"scale": [2.0], "bias": [3.0]}, "batch_stats": {"mean": [0.0], "var": [1.0]}}


def hand(groups, averaged):
    values = jax.tree.map(lambda x: jnp.asarray([x]), HAND, is_leaf=lambda x: isinstance(x, float))
    values = jax.tree.map(lambda x: x.reshape(1), {k: {n: v[0] for n, v in d.items()} for k, d in values.items()})
    out, updated = normalise(values, jnp.asarray(HAND_X).reshape(2, 1, 2, 1), groups, averaged)
    stats = updated["batch_stats"]
    return np.asarray(out).reshape(2, 2), float(stats["mean"][0]), float(stats["var"][0])


# averaged=1: mean 0.9·0 + 0.1·2 = 0.2;   var 0.9·1 + 0.1·2 = 1.1
# averaged=2: mean 0.9·0.2 + 0.1·5 = 0.68; var 0.9·1.1 + 0.1·18 = 2.79
@pytest.mark.parametrize("averaged, mean, var", [(0, 0.0, 1.0), (1, 0.2, 1.1), (2, 0.68, 2.79)])
def test_two_groups_by_hand(x64, averaged, mean, var):
    out, new_mean, new_var = hand(2, averaged)
    # (1 - 2)/√(1 + 1e-5) = -0.999995000037; ·2 + 3. (2 - 5)/√(9 + 1e-5) = -0.999999444445.
    expected = [[1.000009999925, 4.999990000075], [1.00000111111, 4.99999888889]]
    np.testing.assert_allclose(out, expected, rtol=1e-11)
    np.testing.assert_allclose([new_mean, new_var], [mean, var], rtol=1e-13)


def test_a_blend_of_running_and_batch_statistics_by_hand(x64):
    # Share 0.25 of the groups' means 2, 5 and variances 1, 9; 0.75 of the running ones, 0 and 1.
    values = {n: {k: jnp.asarray(v) for k, v in d.items()} for n, d in HAND.items()}
    x = jnp.asarray(HAND_X).reshape(2, 1, 2, 1)
    out, updated = GroupedBatchNorm(param_dtype=x.dtype).apply(values, x, 2, 2, 0.25, mutable=["batch_stats"])
    expected = 3 + 2 * (np.array(HAND_X) - [[0.5], [1.25]]) / np.sqrt([[1.00001], [3.00001]])
    np.testing.assert_allclose(out.reshape(2, 2), expected, rtol=1e-12)
    # The running averages take the groups' own.
    np.testing.assert_allclose([updated["batch_stats"][n][0] for n in ("mean", "var")], [0.68, 2.79], rtol=1e-13)


def test_one_group_by_hand(x64):
    # [1, 3, 2, 8]: mean 3.5; squares 6.25 + 0.25 + 2.25 + 20.25 = 29: biased 7.25, unbiased 29/3.
    out, mean, var = hand(1, 1)
    np.testing.assert_allclose(out, 3 + 2 * (np.array(HAND_X) - 3.5) / 7.25001**0.5, rtol=1e-12)
    np.testing.assert_allclose([mean, var], [0.35, 0.9 + 2.9 / 3], rtol=1e-13)


def test_running_averages_by_hand(x64):
    values = {
        "params": {"scale": jnp.asarray([2.0]), "bias": jnp.asarray([3.0])},
        "batch_stats": {"mean": jnp.asarray([0.5]), "var": jnp.asarray([4.0])},
    }
    # (1 - 0.5)·2/√4.00001 + 3 and so on; `averaged` is of no account.
    out, updated = normalise(values, jnp.asarray(HAND_X).reshape(2, 1, 2, 1), 0, 2)
    np.testing.assert_allclose(
        np.asarray(out).reshape(2, 2), (np.array(HAND_X) - 0.5) * 2 / 4.00001**0.5 + 3, rtol=1e-13
    )
    assert float(updated["batch_stats"]["mean"][0]) == 0.5
    assert float(updated["batch_stats"]["var"][0]) == 4.0


@pytest.mark.parametrize("averaged", [4, 2])
def test_one_pass_over_groups_is_several_passes(x64, averaged):
    random = np.random.default_rng(1)
    x, weights = random.normal(2, 3, (2, 4 * 3, 2, 5, 6))
    values = variables(6)

    def together(params, x):
        out, updated = normalise({"params": params, "batch_stats": values["batch_stats"]}, x, 4, averaged)
        return jnp.sum(out * weights), (out, updated["batch_stats"])

    def one_after_another(params, x):
        stats, outs = values["batch_stats"], []
        for g in range(4):
            out, updated = normalise(
                {"params": params, "batch_stats": stats}, x[3 * g : 3 * g + 3], 1, int(g < averaged)
            )
            stats = updated["batch_stats"]
            outs.append(out)
        out = jnp.concatenate(outs)
        return jnp.sum(out * weights), (out, stats)

    results = [
        jax.jit(jax.value_and_grad(f, (0, 1), has_aux=True))(values["params"], jnp.asarray(x))
        for f in (together, one_after_another)
    ]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10), *results)
    # The check has teeth: statistics over all groups together would differ.
    joint, _ = normalise(values, jnp.asarray(x), 1, 0)
    assert np.abs(np.asarray(joint) - np.asarray(results[0][0][1][0])).max() > 0.01


def test_average_after_is_a_loop(x64):
    random = np.random.default_rng(0)
    average, statistics = random.normal(size=3), random.normal(size=(4, 3))
    expected = average
    for s in statistics:
        expected = 0.9 * expected + 0.1 * s
    np.testing.assert_allclose(average_after(jnp.asarray(average), jnp.asarray(statistics)), expected, rtol=1e-13)


def test_gradient_flows_through_mean_and_variance(x64):
    # Without it, the gradient of a plain sum would not be zero.
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 3, 2)))
    values = variables(2)
    gradient = jax.jit(jax.grad(lambda x: normalise(values, x, 2, 2)[0].sum()))(x)
    np.testing.assert_allclose(gradient, np.zeros(x.shape), atol=1e-12)


def test_two_devices_in_sync_are_one(x64):
    groups, clips = 2, 2
    random = np.random.default_rng(2)
    x = random.normal(1, 2, (groups, clips, 3, 4, 5))
    x[:, 1] += 3  # the devices' own statistics differ much
    weights = random.normal(size=x.shape)
    values = variables(5)

    def loss(params, x, weights, sync_axis):
        x = x.reshape(-1, *x.shape[2:])
        norm = GroupedBatchNorm(sync_axis, jnp.float64)
        out, updated = norm.apply(
            {"params": params, "batch_stats": values["batch_stats"]}, x, groups, groups, mutable=["batch_stats"]
        )
        return jnp.sum(out.reshape(weights.shape) * weights), (out.reshape(weights.shape), updated["batch_stats"])

    def step(params, x, weights):
        (_, (out, stats)), (by_params, by_x) = jax.value_and_grad(loss, (0, 1), has_aux=True)(
            params, x, weights, "devices"
        )
        return out, stats, jax.lax.psum(by_params, "devices"), by_x

    per_device = [np.moveaxis(a[:, :, None], 1, 0) for a in (x, weights)]  # [devices, groups, 1, h, w, C]
    two = jax.pmap(step, "devices", in_axes=(None, 0, 0), devices=jax.devices()[:2])(values["params"], *per_device)
    (_, (out, stats)), (by_params, by_x) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True), static_argnums=3)(
        values["params"], jnp.asarray(x), jnp.asarray(weights), None
    )

    close = partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10)
    for sharded, whole in ((two[0], out), (two[3], by_x)):
        close(np.moveaxis(np.asarray(sharded)[:, :, 0], 0, 1), whole)
    for device in range(2):
        jax.tree.map(lambda a, b, d=device: close(a[d], b), two[1], stats)
        jax.tree.map(lambda a, b, d=device: close(a[d], b), two[2], by_params)


def test_half_precision_is_normalised_in_float32():
    # 1000 ± 1: a variance taken in bfloat16, or as E[x²] - E[x]² in float32 of half-precision sums, would be useless.
    x = jnp.asarray(np.tile([996.0, 1004.0], 32).reshape(1, 8, 8, 1), jnp.bfloat16)
    values = {
        "params": {"scale": jnp.ones(1), "bias": jnp.zeros(1)},
        "batch_stats": {"mean": jnp.zeros(1), "var": jnp.ones(1)},
    }
    out, updated = GroupedBatchNorm().apply(values, x, 1, 1, mutable=["batch_stats"])
    assert out.dtype == jnp.bfloat16 and updated["batch_stats"]["var"].dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(out, np.float32).reshape(-1), np.tile([-1, 1], 32), rtol=1e-2)
    np.testing.assert_allclose(updated["batch_stats"]["var"], [0.9 + 0.1 * 16 * 64 / 63], rtol=1e-5)


def test_one_value_has_no_unbiased_variance():
    with pytest.raises(ValueError, match="two values per channel or more, found 1.*batch_norm.mode=running"):
        normalise({k: jax.tree.map(jnp.float32, v) for k, v in variables(3).items()}, jnp.ones((2, 1, 1, 3)), 2, 2)
