"""The optimiser in float64: learning rates by hand, and SGD against PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from configs import base
from stpl_jax import optim

pytestmark = pytest.mark.usefixtures("x64")


def settings(**changes):
    config = base.get_config().optim
    config.update(changes)
    return config


def test_learning_rates_by_hand():
    # 1024 steps to zero, power 0.9, so that two steps are powers of two:
    #   step 0:    (1 - 0)^0.9          = 1
    #   step 512:  (1/2)^0.9  = 2^-0.9  = 0.535886731268
    #   step 1023: (2^-10)^0.9 = 2^-9   = 1/512
    schedule = jax.jit(optim.poly_schedule(settings(learning_rate=2.5e-6, decay_steps=1024)))
    by_hand = {0: 2.5e-6, 512: 1.33971682817e-6, 1023: 4.8828125e-9}
    for step, rate in by_hand.items():
        np.testing.assert_allclose(schedule(jnp.asarray(step, jnp.int32)), rate, rtol=1e-11)
    assert schedule(jnp.asarray(1024, jnp.int32)) == 0 == schedule(jnp.asarray(2000, jnp.int32))


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd(nesterov):
    config = settings(
        learning_rate=0.3,
        decay_steps=5,
        weight_decay=0.1,
        nesterov=nesterov,
        multipliers=(("^fast/", 10.0),),
        frozen=("^still/",),
    )
    random = np.random.default_rng(0)
    start = {name: {"kernel": random.normal(size=(3, 4))} for name in ("slow", "fast", "still")}
    steps = [{name: {"kernel": random.normal(size=(3, 4))} for name in start} for _ in range(4)]

    optimiser = optim.sgd(config)
    params = jax.tree.map(jnp.asarray, start)
    state = optimiser.init(params)

    @jax.jit
    def update(params, state, gradients):
        updates, state = optimiser.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    leaves = {name: torch.tensor(value["kernel"], requires_grad=True) for name, value in start.items()}
    groups = [{"params": [leaf], "lr": 0.3 * (10 if name == "fast" else 1)} for name, leaf in leaves.items()]
    theirs = torch.optim.SGD(groups, momentum=0.9, weight_decay=0.1, nesterov=nesterov)
    schedule = torch.optim.lr_scheduler.LambdaLR(theirs, lambda step: (1 - step / 5) ** 0.9)
    for gradients in steps:
        params, state = update(params, state, jax.tree.map(jnp.asarray, gradients))
        for name in ("slow", "fast"):  # no gradient for the third: PyTorch skips it
            leaves[name].grad = torch.tensor(gradients[name]["kernel"])
        theirs.step()
        schedule.step()
    errors = {
        name: np.abs(np.asarray(params[name]["kernel"]) - leaf.detach().numpy()).max() / leaf.abs().max().item()
        for name, leaf in leaves.items()
    }
    print("\nSGD: " + ", ".join(f"{name} {error:.1e}" for name, error in errors.items()), end="")
    assert all(error <= 1e-13 for error in errors.values()) and errors["still"] == 0
