"""SAR: steps on eight devices against PyTorch's autograd and SGD in float64, and recovery."""

import jax
import numpy as np
import pytest
import torch
from patch_network import patch_network
from torch_reference.torch_entropy import pixel_entropy, sgd_steps

from stpl_jax import models, parallel
from stpl_jax.methods import make_method
from stpl_jax.train_state import create_state, make_train_step

RELIABLE = 0.88


def sharp_loss(params, frame, seen=None):
    """L(Θ + ε) of one frame; appends the loss and its number of pixels to `seen`."""
    certain, trained = RELIABLE * np.log(5), list(params["norm"].values())
    nats = pixel_entropy(params, frame)
    reliable = nats < certain
    gradients = torch.autograd.grad(nats[reliable].mean(), trained)
    length = torch.sqrt(sum((g**2).sum() for g in gradients))
    sharper = dict(zip(params["norm"], trained, strict=True))
    for (name, p), g in zip(list(sharper.items()), gradients, strict=True):
        sharper[name] = p + 0.05 * g / (length + 1e-12)
    nats = pixel_entropy(params | {"norm": sharper}, frame)
    counted = reliable & (nats < certain)
    if seen is not None:
        seen.append((nats[counted].mean().item(), counted.sum().item(), counted.numel()))
    return nats[counted].mean()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("recovers", [False, True])
def test_steps_against_pytorch(recovers, tiny_config, drawn_variables, clips):
    torch.set_num_threads(1)
    tiny_config.method = "sar"
    tiny_config.methods.sar.update(dict(reliable=RELIABLE, recovered_below=10.0 if recovers else 0.0))
    segmenter = models.with_frame_statistics(patch_network(), models.frame_statistics(tiny_config))
    variables = drawn_variables(segmenter)
    method = make_method(tiny_config, segmenter)
    optimisers = method.optimisers(tiny_config.optim)
    before = jax.tree.map(np.asarray, create_state(method, optimisers, variables, jax.random.key(0)))
    state, step = parallel.replicate(before), parallel.pmap(make_train_step(method, optimisers, 0), donate_state=True)
    batches = [clips(8, seed=seed, frames=1, pairs=(), size=(16, 32)) for seed in (1, 2)]
    seen = []
    expected = sgd_steps(variables["params"], tiny_config.optim, batches, lambda *args: sharp_loss(*args, seen))
    assert all(0 < count < total for _, count, total in seen), "the threshold would not be noticed"
    means = [sum(m * n for m, n, _ in part) / sum(n for _, n, _ in part) for part in (seen[:8], seen[8:])]
    averages = [means[0], 0.9 * means[0] + 0.1 * means[1]]
    for batch, params, average in zip(batches, expected, averages, strict=True):
        state, metrics = step(state, {"target": parallel.split_over_devices(batch)})
        found = parallel.unreplicate(state)
        np.testing.assert_allclose(found.extra["average"], -1 if recovers else average, rtol=1e-9)
        params = variables["params"] if recovers else params
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12),
            found.params["network"]["segmenter"],
            params,
        )
        if recovers:
            jax.tree.map(np.testing.assert_array_equal, found.opt_state, before.opt_state)


@pytest.mark.usefixtures("x64")
def test_without_a_reliable_pixel_nothing_is_trained(tiny_config, drawn_variables, clips):
    tiny_config.method, tiny_config.optim.weight_decay = "sar", 0.0
    tiny_config.methods.sar.reliable = 0.0
    segmenter = models.with_frame_statistics(patch_network(), 1.0)
    variables = drawn_variables(segmenter)
    method = make_method(tiny_config, segmenter)
    optimisers = method.optimisers(tiny_config.optim)
    state = create_state(method, optimisers, variables, jax.random.key(0))
    batch = jax.tree.map(lambda x: x[None], {"target": clips(1, frames=1, pairs=(), size=(16, 32))})
    after, _ = jax.jit(jax.vmap(make_train_step(method, optimisers, 0), (None, 0), axis_name="devices"))(state, batch)
    assert after.extra["average"] == -1
    found = after.params["network"]["segmenter"]
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b), found, variables["params"])
