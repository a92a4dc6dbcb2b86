"""Auxiliary decoders against PyTorch's convolutions, and the draws that drop their channels."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from stpl_jax.models.accel import DilatedClassifier
from stpl_jax.models.decoders import AuxiliaryDecoders, draw_channel_masks

DILATIONS = (1, 2)


def test_against_pytorch(x64):
    random = np.random.default_rng(0)
    features, masks = random.normal(size=(2, 5, 6, 8)), 2.0 * random.integers(0, 2, (3, 2, 8))
    decoders = AuxiliaryDecoders(3, partial(DilatedClassifier, 4, DILATIONS, jnp.float64))
    shapes = jax.eval_shape(decoders.init, jax.random.key(0), features, masks)["params"]
    params = jax.tree.map(lambda leaf: random.normal(size=leaf.shape), shapes)
    found = decoders.apply({"params": params}, jnp.asarray(features), jnp.asarray(masks))
    assert found.shape == (3, 2, 5, 6, 4)
    for i in range(3):
        dropped = features * masks[i][:, None, None, :]
        expected = 0
        for j, dilation in enumerate(DILATIONS):
            layer = params[f"decoder_{i}"][f"conv2d_list_{j}"]
            expected = expected + F.conv2d(
                torch.tensor(dropped).permute(0, 3, 1, 2),
                torch.tensor(layer["kernel"]).permute(3, 2, 0, 1),
                torch.tensor(layer["bias"]),
                padding=dilation,
                dilation=dilation,
            )
        np.testing.assert_allclose(found[i], expected.permute(0, 2, 3, 1), rtol=1e-11, atol=1e-11)


def test_decoders_start_apart():
    decoders = AuxiliaryDecoders(2, partial(DilatedClassifier, 4, DILATIONS, jnp.float32))
    params = decoders.init(jax.random.key(1), jnp.zeros((1, 5, 6, 8)), jnp.ones((2, 1, 8)))["params"]
    first, second = (params[f"decoder_{i}"]["conv2d_list_0"]["kernel"] for i in range(2))
    assert np.abs(first - second).max() > 0
    np.testing.assert_allclose(np.std(first), 0.01, rtol=0.2)  # as the network's own classifiers


def test_masks_drop_their_share_and_keep_the_mean():
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(2), jnp.arange(3))
    masks = np.asarray(draw_channel_masks(keys, 4, 2000, 0.2))
    assert masks.shape == (4, 3, 2000)
    assert set(np.unique(masks)) == {np.float32(0), np.float32(1.25)}
    np.testing.assert_allclose((masks == 0).mean(-1), 0.2, atol=0.04)  # four standard deviations
    agreement = [(masks[a] == masks[b]).mean() for a, b in ((0, 1), (2, 3))]
    np.testing.assert_allclose(agreement, 0.68, atol=0.03)  # of independent draws
    np.testing.assert_array_equal(masks[:, 1:], draw_channel_masks(keys[1:], 4, 2000, 0.2))
    np.testing.assert_array_equal(draw_channel_masks(keys, 1, 5, 0.0), np.ones((1, 3, 5)))


def test_rates_that_are_no_probabilities():
    for rate in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"probability below 1, found {rate}"):
            draw_channel_masks(jax.random.split(jax.random.key(0), 1), 1, 4, rate)
