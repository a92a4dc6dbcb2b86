"""Tent: two steps on eight devices against PyTorch's SGD in float64."""

import jax
import numpy as np
import pytest
import torch
from patch_network import patch_network
from torch_reference import torch_patch
from torch_reference.torch_entropy import pixel_entropy, sgd_steps

from input_pipeline.errors import UserError
from stpl_jax import models, parallel
from stpl_jax.methods import make_method
from stpl_jax.models.network import Network
from stpl_jax.train_state import create_state, make_train_step


@pytest.mark.usefixtures("x64")
def test_two_steps_against_pytorch(tiny_config, drawn_variables, clips):
    torch.set_num_threads(1)
    tiny_config.method = "tent"
    segmenter = models.with_frame_statistics(patch_network(), models.frame_statistics(tiny_config))
    variables = drawn_variables(segmenter)
    method = make_method(tiny_config, segmenter)
    assert method.online and list(method.needs) == ["target"] and not method.needs["target"].labels
    optimisers = method.optimisers(tiny_config.optim)
    state = jax.tree.map(np.asarray, create_state(method, optimisers, variables, jax.random.key(0)))
    state = parallel.replicate(state)
    step = parallel.pmap(make_train_step(method, optimisers, 0), donate_state=True)
    batches = [clips(8, seed=seed, frames=1, pairs=(), size=(16, 32)) for seed in (1, 2)]

    def loss_of(params, frame):
        return pixel_entropy(params, frame).mean()

    expected = sgd_steps(variables["params"], tiny_config.optim, batches, loss_of)
    first = torch_patch.trainable(variables["params"])
    losses = [np.mean([loss_of(first, frames[0]).item() for frames in batches[0]["frames"]])]
    for batch, params in zip(batches, expected, strict=True):
        state, metrics = step(state, {"target": parallel.split_over_devices(batch)})
        losses.append(parallel.unreplicate(metrics)["loss/network"])
        found = parallel.unreplicate(state).params["network"]["segmenter"]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), found, params)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-9)
    moved = jax.tree.map(lambda a, b: np.any(a != b), found, variables["params"])
    assert {name for name, layer in moved.items() if any(jax.tree.leaves(layer))} == {"norm"}
    stats = parallel.unreplicate(state).batch_stats
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), stats, variables["batch_stats"])


@pytest.mark.parametrize("name", ["tent", "sar"])
def test_a_network_that_names_no_normalisation_is_refused(name, tiny_config):
    tiny_config.method = name
    network = Network(5, lambda rgb, dtype: rgb, lambda *_: None, lambda *_: None, {})
    with pytest.raises(UserError, match=f"method={name} trains scale and bias of normalisation alone"):
        make_method(tiny_config, network)
