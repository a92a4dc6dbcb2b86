"""Computing again in the backward pass changes memory and nothing else."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stpl_jax.models import make_segmenter, resnet
from stpl_jax.models.network import initial_variables


def test_gradients_and_running_averages_are_the_same_and_less_is_kept(tiny_config, monkeypatch):
    monkeypatch.setattr(resnet, "TOGETHER", 2)
    tiny_config.model.backbone.blocks = (1, 1, 5, 1)
    images = jax.random.uniform(jax.random.key(1), (2, 2, 32, 64, 3)) * 255
    variables = initial_variables(make_segmenter(tiny_config.model, 5), jax.random.key(0))
    results, kept = {}, {}
    for remat in ("none", "convolutions", "narrow"):
        tiny_config.model.backbone.remat = remat
        segmenter = make_segmenter(tiny_config.model, 5)

        def loss(params, segmenter=segmenter):
            values = {"params": params, "batch_stats": variables["batch_stats"]}
            features, updated = segmenter.features(values, images, True, 2)
            return jnp.square(features.main).mean(), updated

        results[remat] = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
        _, pull, _ = jax.eval_shape(functools.partial(jax.vjp, loss, has_aux=True), variables["params"])
        kept[remat] = sum(leaf.size for leaf in jax.tree.leaves(pull))
    for remat in ("convolutions", "narrow"):
        assert jax.tree.structure(results[remat]) == jax.tree.structure(results["none"])
        for a, b in zip(jax.tree.leaves(results[remat]), jax.tree.leaves(results["none"]), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    less, least = ((kept[remat] - parameters) / (kept["none"] - parameters) for remat in ("convolutions", "narrow"))
    assert least < less < 0.6


def test_another_word_is_refused(tiny_config):
    tiny_config.model.backbone.remat = "some"
    with pytest.raises(ValueError, match="none, convolutions, narrow; found 'some'"):
        initial_variables(make_segmenter(tiny_config.model, 5), jax.random.key(0))
