"""Adam with polynomial decay against PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from ml_collections import ConfigDict

from stpl_jax import optim

SETTINGS = ConfigDict({"learning_rate": 0.05, "betas": (0.9, 0.99)})
DECAY = ConfigDict({"learning_rate": 7.0, "warmup_steps": 0, "decay_steps": 8, "power": 0.9})


def test_against_pytorch(x64):
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    start = {"a": random.normal(size=(3, 4)), "b": random.normal(size=5)}
    gradients = [{name: random.normal(size=x.shape) for name, x in start.items()} for _ in range(6)]
    gradients[2]["a"][:] = 0

    tensors = {name: torch.tensor(x, requires_grad=True) for name, x in start.items()}
    adam = torch.optim.Adam(tensors.values(), lr=0.05, betas=(0.9, 0.99))
    for step, gradient in enumerate(gradients):
        adam.param_groups[0]["lr"] = 0.05 * (1 - step / 8) ** 0.9
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(gradient[name])
        adam.step()

    optimiser = optim.adam(SETTINGS, DECAY)
    params = jax.tree.map(jnp.asarray, start)
    state = optimiser.init(params)

    @jax.jit
    def update(params, state, gradient):
        updates, state = optimiser.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    for gradient in gradients:
        params, state = update(params, state, jax.tree.map(jnp.asarray, gradient))
    for name, tensor in tensors.items():
        np.testing.assert_allclose(params[name], tensor.detach(), rtol=1e-12)


def test_the_rate_is_its_own_and_the_decay_the_networks():
    schedule = optim.poly_schedule(DECAY, 0.5)
    np.testing.assert_allclose([schedule(0), schedule(4), schedule(8)], [0.5, 0.5 * 0.5**0.9, 0], rtol=1e-6)
    np.testing.assert_allclose(optim.poly_schedule(DECAY)(0), 7.0)


def test_it_warms_up_as_the_network_does():
    decay = DECAY.copy_and_resolve_references()
    decay.warmup_steps = 4
    optimiser, gradient = optim.adam(SETTINGS, decay), {"a": jnp.full(2, 3.0)}
    state, found = optimiser.init(gradient), []
    for _ in range(6):
        updates, state = optimiser.update(gradient, state)
        found.append(-updates["a"][0])
    # While the gradient stays the same, Adam moves by the rate: from a tenth of 0.05 to all of it, then the decay's.
    expected = [0.005, 0.01625, 0.0275, 0.03875, 0.05 * 0.5**0.9, 0.05 * (3 / 8) ** 0.9]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_networks_adam_leaves_out_what_is_frozen_and_multiplies_rates():
    settings = DECAY.copy_and_resolve_references()
    settings.update({"frozen": ("^segmenter/b",), "multipliers": (("classifiers", 10.0),)})
    groups = {"normalisation": "^norm", "classifiers": "^out"}
    optimiser = optim.network_adam(SETTINGS, settings, groups, ("normalisation",))
    params = {"segmenter": {name: jnp.ones(2) for name in ("a", "b", "norm", "out")}}
    updates, _ = optimiser.update(jax.tree.map(lambda x: 3 * x, params), optimiser.init(params), params)
    # Adam's first step is the rate, whatever the gradient.
    expected = {"a": -0.05, "b": 0.0, "norm": 0.0, "out": -0.5}
    for name, update in updates["segmenter"].items():
        np.testing.assert_allclose(update, expected[name], rtol=1e-5)
