"""The train step around a method whose numbers can be worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stpl_jax import parallel
from stpl_jax.methods.base import Aux
from stpl_jax.train_state import create_state, make_train_step


class Line:
    """Loss w · mean(x) on each device, plus noise · 0; hands the step's random number to the log."""

    needs = {}

    def init(self, key, variables):
        del key
        return {"network": {"segmenter": variables["params"]}, "idle": jnp.ones(2)}, {"calls": jnp.zeros((), jnp.int32)}

    def loss(self, params, state, batch, key):
        loss = params["network"]["segmenter"]["w"] * batch["x"].mean()
        stats = {"mean": state.batch_stats["mean"] + batch["x"].mean()}
        return {"network": loss}, Aux(stats, {"random": jax.random.uniform(key, (), jnp.float32)})

    def after_update(self, state, aux):
        del aux
        return state.replace(extra={"calls": state.extra["calls"] + 1})


VARIABLES = {"params": {"w": np.float32(2.0)}, "batch_stats": {"mean": np.float32(0.0)}}


def run(steps, seed=0, start=None, accumulate=1):
    method, optimisers = Line(), {"network": optax.sgd(0.1)}
    state = start or create_state(method, optimisers, VARIABLES, jax.random.key(0))
    step = parallel.pmap(make_train_step(method, optimisers, seed, accumulate), donate_state=True)
    state, log = parallel.replicate(state), []
    batch = parallel.split_over_devices({"x": np.arange(16, dtype=np.float32)})
    for _ in range(steps):
        state, metrics = step(state, batch)
        log.append(parallel.unreplicate(metrics))
    return parallel.unreplicate(state), log


def test_one_step_by_hand():
    # Device d holds 2d and 2d + 1, mean 2d + 0.5; over eight devices 7.5, the mean of 0..15.
    # Loss 2·7.5 = 15, gradient 7.5, w = 2 - 0.1·7.5 = 1.25, and once more: 0.5.
    state, log = run(2)
    np.testing.assert_allclose([log[0]["loss/network"], log[1]["loss/network"]], [15, 1.25 * 7.5], rtol=1e-6)
    np.testing.assert_allclose(state.params["network"]["segmenter"]["w"], 0.5, rtol=1e-6)
    np.testing.assert_allclose(state.batch_stats["mean"], 15, rtol=1e-6)
    np.testing.assert_array_equal(state.params["idle"], [1, 1])
    assert int(state.step) == 2 and int(state.extra["calls"]) == 2


def test_accumulated_gradients_are_the_mean_of_the_parts():
    # Device d's parts hold 2d and 2d + 1: the same mean and gradient, but the running average moves twice.
    state, log = run(2, accumulate=2)
    np.testing.assert_allclose([log[0]["loss/network"], log[1]["loss/network"]], [15, 1.25 * 7.5], rtol=1e-6)
    np.testing.assert_allclose(state.params["network"]["segmenter"]["w"], 0.5, rtol=1e-6)
    np.testing.assert_allclose(state.batch_stats["mean"], 2 * 15, rtol=1e-6)
    assert int(state.step) == 2 and int(state.extra["calls"]) == 2
    assert float(log[0]["random"]) == float(run(1)[1][0]["random"]), "draws are those of the step, not of the part"


def test_randomness_comes_from_seed_and_step_alone():
    _, log = run(3)
    draws = [float(entry["random"]) for entry in log]
    assert len(set(draws)) == 3
    halfway, _ = run(1)
    _, rest = run(2, start=halfway)
    assert [float(entry["random"]) for entry in rest] == draws[1:]
    _, other = run(1, seed=1)
    assert float(other[0]["random"]) != draws[0]


def test_the_state_is_donated():
    state = parallel.replicate(create_state(Line(), {"network": optax.sgd(0.1)}, VARIABLES, jax.random.key(0)))
    step = parallel.pmap(make_train_step(Line(), {"network": optax.sgd(0.1)}, 0), donate_state=True)
    step(state, parallel.split_over_devices({"x": np.arange(16, dtype=np.float32)}))
    assert state.params["network"]["segmenter"]["w"].is_deleted()


def test_replicate_and_back():
    tree = {"a": np.arange(6).reshape(2, 3), "b": (np.float32(1.5), jnp.zeros((), jnp.int32))}
    replicated = parallel.replicate(tree)
    assert replicated["a"].shape == (8, 2, 3)
    assert len(replicated["a"].sharding.device_set) == 8
    back = parallel.unreplicate(replicated)
    jax.tree.map(np.testing.assert_array_equal, back, tree)
    assert isinstance(back["a"], np.ndarray)


def test_batches_split_in_order():
    split = parallel.split_over_devices({"x": np.arange(16)})["x"]
    np.testing.assert_array_equal(split, np.arange(16).reshape(8, 2))
    with pytest.raises(ValueError, match="12 clips does not divide over 8 devices"):
        parallel.split_over_devices({"x": np.arange(12)})


def test_prefetch_keeps_order_and_runs_ahead():
    drawn = []

    def numbers():
        for i in range(5):
            drawn.append(i)
            yield i

    items = parallel.prefetch(numbers(), size=2)
    assert next(items) == 0 and drawn == [0, 1, 2]
    assert list(items) == [1, 2, 3, 4]
    assert list(parallel.prefetch([1], size=3)) == [1]
