"""A method's losses with their gradients, as the train step takes them, for tests."""

import jax
import numpy as np

from stpl_jax.train_state import TrainState


def losses_and_gradients(method, params, batch_stats, batch, key):
    """Runs a method's loss as the train step does: the gradient is that of the sum over groups.

    Returns:
      Losses by group, gradients by group, and the `Aux`.
    """

    @jax.jit
    def run(params, batch_stats, batch):
        def total(params):
            losses, aux = method.loss(params, TrainState(0, params, batch_stats, {}, None), batch, key)
            return sum(losses.values()), (losses, aux)

        return jax.grad(total, has_aux=True)(params)

    gradients, (losses, aux) = run(params, batch_stats, batch)
    return losses, gradients, aux


def close(found, want, rtol=1e-5, atol=1e-8):
    """Compares two trees leaf by leaf."""

    def leaf(path, a, b):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(leaf, found, want)
