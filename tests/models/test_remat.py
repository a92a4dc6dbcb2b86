"""Recomputing blocks in the backward pass changes memory and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np

from stpl_jax.models.accel import initial_variables, make_segmenter


def test_remat_gives_the_same_gradients_and_running_averages(tiny_config):
    images = jax.random.uniform(jax.random.key(1), (2, 2, 32, 64, 3)) * 255
    results = []
    for remat in (False, True):
        tiny_config.model.backbone.remat = remat
        segmenter = make_segmenter(tiny_config.model, 5)
        variables = initial_variables(segmenter, jax.random.key(0))

        @jax.jit
        def gradient(params, segmenter=segmenter, stats=variables["batch_stats"]):
            def loss(params):
                features, updated = segmenter.apply(
                    {"params": params, "batch_stats": stats},
                    images,
                    True,
                    2,
                    method="features",
                    mutable=["batch_stats"],
                )
                return jnp.square(features.main).mean(), updated

            return jax.grad(loss, has_aux=True)(params)

        results.append(gradient(variables["params"]))
        program = str(jax.make_jaxpr(lambda p, g=gradient: g(p))(variables["params"]))
        assert ("remat" in program or "checkpoint" in program) == remat
    plain, recomputed = results
    assert jax.tree.structure(plain) == jax.tree.structure(recomputed)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(recomputed), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
