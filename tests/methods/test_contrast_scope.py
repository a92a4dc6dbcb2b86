"""Which pixels contrast: two devices that share their pixels compute what one device with all clips does."""

import jax
import numpy as np
import pytest
from patch_network import patch_network

from stpl_jax.methods import make_method
from stpl_jax.train_state import TrainState


def run(config, variables, batch, devices, scope, sync):
    """Loss, gradients and running averages of one step without an update, averaged over devices."""
    config.methods.stpl.contrast.scope = scope
    segmenter = patch_network(sync_axis="devices" if sync else None)
    config.batch_norm.mode = "sync" if sync else "batch"
    method = make_method(config, segmenter)
    network = method.init(jax.random.key(2), variables)[0]["network"]

    def step(network, stats, batch):
        def loss(network):
            state = TrainState(0, {"network": network}, stats, {}, None)
            losses, aux = method.loss({"network": network}, state, {"target": batch}, jax.random.key(0))
            return losses["network"], aux.batch_stats

        return jax.lax.pmean(jax.value_and_grad(loss, has_aux=True)(network), "devices")

    batch = {name: value.reshape(devices, -1, *value.shape[1:]) for name, value in batch.items()}
    mapped = jax.pmap(step, "devices", in_axes=(None, None, 0), devices=jax.devices()[:devices])
    return jax.tree.map(lambda x: np.asarray(x)[0], mapped(network, variables["batch_stats"], batch))


@pytest.mark.parametrize("per_class, class_power", [(False, 0.0), (True, -0.5)])
def test_global_scope_is_one_device_with_all_clips(
    x64, small_config, drawn_variables, small_clips, per_class, class_power
):
    # With per_class and class weights, devices differ in numbers of pixels and weights: a mean of means is wrong.
    settings = small_config.methods.stpl
    settings.objective = "temporal"
    settings.topk.per_class = per_class
    settings.contrast.class_power = class_power
    variables, batch = drawn_variables(patch_network()), small_clips(2, seed=2)
    settings.contrast.block = 32  # of about 90 pixels a clip: the gradient of gathered keys comes out of several blocks
    two = run(small_config, variables, batch, 2, "global", sync=True)
    settings.contrast.block = 1024
    one = run(small_config, variables, batch, 1, "device", sync=False)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9), two, one)
    apart = run(small_config, variables, batch, 1, "clip", sync=False)
    assert abs(apart[0][0] - one[0][0]) > 1e-3
