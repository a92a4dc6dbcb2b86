"""What the tests of the video methods ask of each of them."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from patch_network import patch_network

from stpl_jax.train_state import TrainState


class PatchJudge(nn.Module):
    """Stands in for `Discriminator`, which is tested apart and takes long to compile: a verdict on each 8×8 patch."""

    param_dtype: Any = jnp.float32
    width: int = 64

    @nn.compact
    def __call__(self, maps):
        clips, height, width, channels = maps.shape
        x = maps.reshape(clips, height // 8, 8, width // 8, 8, channels).mean((2, 4))
        bias = nn.initializers.normal(0.3)
        options = {"param_dtype": self.param_dtype, "dtype": self.param_dtype, "bias_init": bias}
        x = jnp.tanh(nn.Dense(self.width, name="first", **options)(x))
        return nn.Dense(1, name="second", **options)(x)


def losses_and_gradients(method, params, stats, batch, key, steps=(0,)):
    """At each step: every group's loss, its gradient with respect to every group, and the loss's `Aux`."""

    @jax.jit
    def run(step):
        def losses(params):
            losses, aux = method.loss(params, TrainState(step, params, stats, {}, None), batch, key)
            return losses, (losses, aux)

        gradients, (values, aux) = jax.jacrev(losses, has_aux=True)(params)
        return values, gradients, aux

    return [jax.tree.map(np.asarray, run(np.int32(step))) for step in steps]


def assert_tree_close(found, expected, rtol=1e-6, atol=2e-9):
    """Compares two trees of arrays leaf by leaf."""

    def close(path, a, b):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(close, found, expected)


def assert_groups_apart(gradients):
    """No loss has a gradient in another group's parameters, and each has one in its own."""
    for loss, by_group in gradients.items():
        for group, gradient in by_group.items():
            largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient))
            assert (largest > 0) == (group == loss), f"loss of {loss}, parameters of {group}: {largest}"


def single_precision():
    """The small network in float32."""
    return patch_network(dtype=jnp.float32, param_dtype=jnp.float32)
