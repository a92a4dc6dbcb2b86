"""RDA's gate: what it opens, and which gradient it gets."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

from stpl_jax.models.frequency_gate import FrequencyGate, reverse_gradient, straight_through_gate


def test_scores_against_pytorch(x64):
    torch.set_num_threads(1)
    levels = np.random.default_rng(0).exponential(50, (2, 4, 3))
    gate = FrequencyGate(jnp.float64)
    params = jax.jit(gate.init)(jax.random.key(0), jnp.asarray(levels))["params"]
    dense, each = nn.Linear(12, 12).double(), nn.Conv1d(12, 24, 1, groups=12).double()
    assert sum(p.numel() for p in (*dense.parameters(), *each.parameters())) == sum(
        leaf.size for leaf in jax.tree.leaves(params)
    )
    as_tensor = jax.tree.map(lambda x: torch.tensor(np.asarray(x)), params)
    dense.weight.data, dense.bias.data = as_tensor["mix"]["kernel"].T, as_tensor["mix"]["bias"]
    each.weight.data, each.bias.data = as_tensor["score_kernel"].reshape(24, 1, 1), as_tensor["score_bias"].flatten()
    # Bands count first: output 3·band + channel.
    flat = torch.log1p(torch.tensor(levels).reshape(2, 12))
    expected = each(torch.relu(dense(flat))[..., None]).reshape(2, 12, 2)
    np.testing.assert_allclose(
        jax.jit(gate.apply)({"params": params}, jnp.asarray(levels)), expected.detach(), rtol=1e-12
    )


def test_gate_is_hard_and_its_gradient_that_of_the_samples(x64):
    random = np.random.default_rng(1)
    logits, weights, key = random.normal(size=(20, 2)), random.normal(size=20), jax.random.key(3)
    gate, back = jax.vjp(jax.jit(lambda x: straight_through_gate(key, x, 5)), jnp.asarray(logits))
    gate = np.asarray(gate)
    assert set(gate.tolist()) == {0.0, 1.0} and gate.sum() == 5

    noisy = logits + np.asarray(jax.random.gumbel(key, (20, 2), jnp.float64))
    samples = np.exp(noisy[:, 1]) / np.exp(noisy).sum(1)
    assert samples[gate == 1].min() > samples[gate == 0].max()
    slope = weights * samples * (1 - samples)
    np.testing.assert_allclose(back(jnp.asarray(weights))[0], np.stack([-slope, slope], 1), rtol=1e-12)


def test_draws_differ_and_follow_the_logits():
    logits = jnp.stack([jnp.zeros(40), jnp.where(jnp.arange(40) < 20, 0.0, 2.0)], -1)
    draw = jax.jit(jax.vmap(lambda k: straight_through_gate(k, logits, 8)))
    gates = draw(jax.random.split(jax.random.key(0), 300))
    often = np.asarray(gates).mean(0)
    assert often[:20].min() > 0 and often.max() < 1
    assert often[20:].mean() > 2 * often[:20].mean()


def test_reversal(x64):
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(jnp.sin(reverse_gradient(x))))(jnp.asarray([0.3, 1.0]))
    np.testing.assert_allclose(value, np.sin([0.3, 1.0]).sum())
    np.testing.assert_allclose(gradient, -np.cos([0.3, 1.0]))
