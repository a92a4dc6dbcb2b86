"""The contract between methods and the loop carries an adversary with its own optimiser, and clips of three frames."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from input_pipeline.needs import DomainNeeds
from stpl_jax import optim, parallel
from stpl_jax.methods.base import Aux
from stpl_jax.ops.resize import resize_flow
from stpl_jax.ops.warp import warp
from stpl_jax.train_state import create_state, make_train_step

VARIABLES = {
    "params": {"head": {"kernel": np.array([[0.5, -0.2], [0.1, 0.4], [-0.3, 0.2]], np.float32)}},
    "batch_stats": {"mean": np.zeros(3, np.float32)},
}


def predict(params, frames):
    """Mean softmax over a frame: `[B, H, W, 3]` to `[B, 2]`."""
    return jax.nn.softmax((frames.astype(jnp.float32) / 255) @ params["head"]["kernel"]).mean((1, 2))


def binary_cross_entropy(score, label):
    return jnp.mean(jax.nn.softplus(-score) if label else jax.nn.softplus(score))


class Adversarial:
    """A network that makes target predictions look like source ones, against an adversary that tells them apart."""

    needs = {
        "source": DomainNeeds(offsets=(0,), flow_pairs=()),
        "target": DomainNeeds(offsets=(0,), flow_pairs=()),
    }

    def init(self, key, variables):
        kernel = jax.random.normal(key, (2,), jnp.float32)
        return {"network": {"segmenter": variables["params"]}, "adversary": {"kernel": kernel}}, None

    def optimisers(self, settings):
        return {"network": optim.sgd(settings), "adversary": optax.adam(0.01, b1=0.9, b2=0.99)}

    def loss(self, params, state, batch, key):
        source, target = (
            predict(params["network"]["segmenter"], batch[d]["frames"][:, 0]) for d in ("source", "target")
        )
        adversary, stop = params["adversary"]["kernel"], jax.lax.stop_gradient
        fool = binary_cross_entropy(target @ stop(adversary), 1)
        tell = binary_cross_entropy(stop(source) @ adversary, 1) + binary_cross_entropy(stop(target) @ adversary, 0)
        return {"network": fool, "adversary": tell}, Aux(state.batch_stats)

    def after_update(self, state, aux):
        return state


class Composed:
    """Compares x_t with x_{t-2} brought to t along two flows, and keeps a moving average of the network."""

    needs = {"target": DomainNeeds(offsets=(0, 1, 2), flow_pairs=((0, 1), (1, 2)))}

    def init(self, key, variables):
        # A copy of its own: a donated state must not hold one buffer twice.
        return {"network": {"segmenter": variables["params"]}}, jax.tree.map(jnp.copy, variables["params"])

    def optimisers(self, settings):
        return {"network": optim.sgd(settings)}

    def loss(self, params, state, batch, key):
        frames = batch["target"]["frames"].astype(jnp.float32) / 255
        flow = resize_flow(batch["target"]["flow"].astype(jnp.float32) / 10, frames.shape[2:4])
        earlier = warp(warp(frames[:, 2], flow[:, 1]), flow[:, 0])
        kernel = params["network"]["segmenter"]["head"]["kernel"]
        loss = jnp.mean(jnp.square((frames[:, 0] - earlier) @ kernel))
        return {"network": loss}, Aux(state.batch_stats, {"seen": frames.mean()}, extra=frames.mean((0, 1, 2, 3)))

    def after_update(self, state, aux):
        teacher = jax.tree.map(
            lambda old, new: 0.9 * old + 0.1 * new, state.extra, state.params["network"]["segmenter"]
        )
        return state.replace(extra=teacher, batch_stats={"mean": aux.extra})


@pytest.fixture
def settings(tiny_config):
    tiny_config.optim.update({"learning_rate": 0.5, "weight_decay": 0.0, "momentum": 0.0, "decay_steps": 1_000_000})
    return tiny_config.optim


def train(method, settings, batch, steps):
    optimisers = method.optimisers(settings)
    first = jax.jit(lambda v: create_state(method, optimisers, v, jax.random.key(1)))(VARIABLES)
    first = jax.tree.map(np.asarray, first)
    state = parallel.replicate(first)
    step = parallel.pmap(make_train_step(method, optimisers, 0), donate_state=True)
    # Optax's Adam mixes whole numbers and floats.
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(steps):
            state, metrics = step(state, parallel.split_over_devices(batch))
    return first, parallel.unreplicate(state), parallel.unreplicate(metrics)


def test_each_group_gets_the_gradient_of_its_own_loss_alone(settings, clips):
    batch = {
        "source": clips(8, seed=1, frames=1, pairs=(), size=(4, 6)),
        "target": clips(8, seed=2, frames=1, pairs=(), size=(4, 6)),
    }
    first, last, metrics = train(Adversarial(), settings, batch, steps=2)
    source, target = (batch[d]["frames"][:, 0] for d in ("source", "target"))

    def fool(network, adversary):
        return binary_cross_entropy(predict(network, target) @ adversary, 1)

    def tell(adversary, network):
        return binary_cross_entropy(predict(network, source) @ adversary, 1) + binary_cross_entropy(
            predict(network, target) @ adversary, 0
        )

    network, adversary = first.params["network"]["segmenter"], first.params["adversary"]["kernel"]
    m = v = np.zeros(2)
    fool_gradient, tell_gradient = jax.jit(jax.value_and_grad(fool)), jax.jit(jax.value_and_grad(tell))
    for step in (1, 2):
        fooled, by_network = fool_gradient(network, adversary)
        told, g = tell_gradient(adversary, network)
        g = np.asarray(g, np.float64)
        # Adam as it was published.
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
        move = 0.01 * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.99**step)) + 1e-8)
        adversary = (adversary - move).astype(np.float32)
        network = {
            "head": {"kernel": network["head"]["kernel"] - np.float32(0.5) * np.asarray(by_network["head"]["kernel"])}
        }
    np.testing.assert_allclose(last.params["adversary"]["kernel"], adversary, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        last.params["network"]["segmenter"]["head"]["kernel"], network["head"]["kernel"], rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose([metrics["loss/network"], metrics["loss/adversary"]], [fooled, told], rtol=1e-5)


def test_three_frames_two_flows_and_a_teacher(settings, clips):
    batch = clips(8, seed=3, frames=3, pairs=((0, 1), (1, 2)), size=(5, 9))
    # Whole pixels: one to the right, then two down.
    batch["flow"][:, 0], batch["flow"][:, 1] = (10, 0), (0, 20)
    first, last, metrics = train(Composed(), settings, {"target": batch}, steps=1)
    frames = batch["frames"].astype(np.float64) / 255
    earlier = np.empty_like(frames[:, 0])
    for y, x in np.ndindex(5, 9):
        earlier[:, y, x] = frames[:, 2, min(y + 2, 4), min(x + 1, 8)]
    difference = frames[:, 0] - earlier
    kernel = VARIABLES["params"]["head"]["kernel"]
    projected = difference @ kernel
    np.testing.assert_allclose(metrics["loss/network"], (projected**2).mean(), rtol=1e-5)
    gradient = 2 * np.einsum("byxc,byxk->ck", difference, projected) / projected.size
    trained = kernel - 0.5 * gradient
    np.testing.assert_allclose(last.params["network"]["segmenter"]["head"]["kernel"], trained, rtol=1e-4, atol=1e-6)
    # after_update sees the parameters after the step, and what the loss handed on.
    np.testing.assert_allclose(last.extra["head"]["kernel"], 0.9 * kernel + 0.1 * trained, rtol=1e-5)
    np.testing.assert_allclose(last.batch_stats["mean"], frames.mean((0, 1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(metrics["seen"], frames.mean(), rtol=1e-5)
