"""The discriminator against the same layers in PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from stpl_jax.models.discriminator import Discriminator


@pytest.fixture(scope="module", autouse=True)
def fast():
    """Programs here run once: most of their time would be the compiler's."""
    torch.set_num_threads(1)
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def in_pytorch(classes, width):
    widths = [classes, width, 2 * width, 4 * width, 8 * width, 1]
    layers = []
    for inputs, outputs in zip(widths, widths[1:], strict=False):
        layers += [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers[:-1]).double()


def test_logits_and_gradients(x64):
    network = Discriminator(jnp.float64, width=3)
    maps = np.random.default_rng(0).uniform(0, 1, (2, 37, 64, 5))
    params = jax.jit(network.init)(jax.random.key(0), jnp.asarray(maps))["params"]
    twin = in_pytorch(5, 3)
    convolutions = [layer for layer in twin if isinstance(layer, nn.Conv2d)]
    assert len(params) == len(convolutions) == 5
    for number, layer in enumerate(convolutions, 1):
        mine = params[f"conv{number}"]
        # Starts as PyTorch does: uniform, with a standard deviation that is a √3rd of the bound.
        bound = (16 * layer.in_channels) ** -0.5
        assert 0.98 * bound < np.abs(mine["kernel"]).max() <= bound and np.abs(mine["bias"]).max() <= bound
        np.testing.assert_allclose(np.std(mine["kernel"]), bound / 3**0.5, rtol=0.1)
        layer.weight.data = torch.tensor(np.asarray(mine["kernel"])).permute(3, 2, 0, 1).contiguous()
        layer.bias.data = torch.tensor(np.asarray(mine["bias"]))

    weights = np.random.default_rng(1).normal(size=(2, 1, 2, 1))

    @jax.jit
    def with_gradients(params, maps):
        logits, back = jax.vjp(lambda p, x: network.apply({"params": p}, x), params, maps)
        return logits, back(jnp.asarray(weights))

    logits, (to_params, to_maps) = with_gradients(params, jnp.asarray(maps))

    x = torch.tensor(maps).permute(0, 3, 1, 2).requires_grad_()
    expected = twin(x)
    (expected * torch.tensor(weights).permute(0, 3, 1, 2)).sum().backward()
    np.testing.assert_allclose(logits, expected.detach().permute(0, 2, 3, 1), rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(to_maps, x.grad.permute(0, 2, 3, 1), rtol=1e-9, atol=1e-14)
    for number, layer in enumerate(convolutions, 1):
        mine = to_params[f"conv{number}"]
        np.testing.assert_allclose(mine["kernel"], layer.weight.grad.permute(2, 3, 1, 0), rtol=1e-9, atol=1e-14)
        np.testing.assert_allclose(mine["bias"], layer.bias.grad, rtol=1e-9, atol=1e-14)


def test_shapes_and_size_of_the_public_one():
    shape = jax.eval_shape(lambda: Discriminator().init_with_output(jax.random.key(0), jnp.zeros((3, 512, 1024, 15))))
    logits, variables = shape
    assert logits.shape == (3, 16, 32, 1)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}
    sizes = sum(leaf.size for leaf in jax.tree.leaves(variables))
    assert sizes == sum(p.numel() for p in in_pytorch(15, 64).parameters())


def test_too_small_frames():
    with pytest.raises(ValueError, match="maps of 32×32 pixels or more, found 31×64"):
        jax.eval_shape(Discriminator().init, jax.random.key(0), jnp.zeros((1, 31, 64, 5)))
