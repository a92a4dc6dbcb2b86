"""Running statistics by numpy, step by step, and nothing else moves."""

import jax
import jax.numpy as jnp
import numpy as np
from patch_network import patch_network

from stpl_jax import parallel
from stpl_jax.methods import make_method
from stpl_jax.train_state import create_state, make_train_step


def test_three_steps_by_numpy(tiny_config, drawn_variables, clips):
    tiny_config.method = "ubna"
    tiny_config.methods.ubna.update(dict(momentum=0.3, decay_rate=0.5))
    segmenter = patch_network(dtype=jnp.float32, param_dtype=jnp.float32)
    variables = drawn_variables(segmenter)
    method = make_method(tiny_config, segmenter)
    assert list(method.needs) == ["target"] and not method.needs["target"].labels
    state = parallel.replicate(jax.tree.map(np.asarray, create_state(method, {}, variables, jax.random.key(0))))
    step = parallel.pmap(make_train_step(method, {}, 0), donate_state=True)
    expected = {name: np.asarray(value, float) for name, value in variables["batch_stats"]["norm"].items()}
    for k in range(3):
        batch = clips(16, seed=k, frames=1, pairs=())
        state, _ = step(state, {"target": parallel.split_over_devices(batch)})
        patches = batch["frames"][:, 0].reshape(8, 2, 8, 4, 16, 4, 3).astype(float)  # two clips on each device
        patches = patches.transpose(0, 1, 2, 4, 3, 5, 6).reshape(8, -1, 48)
        momentum = 0.3 * 2.718281828459045 ** (-0.5 * k)
        for name, target in (("mean", patches.mean(1).mean(0)), ("var", patches.var(1, ddof=1).mean(0))):
            expected[name] = (1 - momentum) * expected[name] + momentum * target
    found = parallel.unreplicate(state)
    for name in expected:
        np.testing.assert_allclose(found.batch_stats["norm"][name], expected[name], rtol=1e-5, atol=1e-3)
    jax.tree.map(np.testing.assert_array_equal, found.params["network"]["segmenter"], variables["params"])
