"""Domain cross-entropy against PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from stpl_jax.losses.adversarial import SOURCE, TARGET, domain_cross_entropy


@pytest.mark.parametrize("label", [SOURCE, TARGET])
def test_values_and_gradients(x64, label):
    logits = np.append(np.random.default_rng(0).normal(0, 4, 30), [0.0, 800.0, -800.0])
    x = torch.tensor(logits, requires_grad=True)
    expected = F.binary_cross_entropy_with_logits(x, torch.full_like(x, label), reduction="none")
    expected.sum().backward()
    loss, back = jax.vjp(jax.jit(lambda x: domain_cross_entropy(x, label)), jnp.asarray(logits))
    np.testing.assert_allclose(loss, expected.detach(), rtol=1e-10, atol=1e-300)
    np.testing.assert_allclose(back(jnp.ones(33))[0], x.grad, rtol=1e-10, atol=1e-300)


def test_the_labels_are_those_of_the_public_code():
    assert (SOURCE, TARGET) == (0, 1)
    # A large answer says target.
    assert (
        float(domain_cross_entropy(jnp.float32(9), TARGET)) < 1e-3 < float(domain_cross_entropy(jnp.float32(9), SOURCE))
    )


def test_shape_and_type_stay():
    loss = domain_cross_entropy(jnp.zeros((2, 3, 4, 1), jnp.bfloat16), TARGET)
    assert loss.shape == (2, 3, 4, 1) and loss.dtype == jnp.bfloat16
