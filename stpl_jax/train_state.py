"""What training carries from step to step, and the step itself: written once, for every method."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from stpl_jax.parallel import AXIS

# Where in a `TrainState` the parameters of the segmentation network are that is trained.
NETWORK = "params/network/segmenter"


class TrainState(struct.PyTreeNode):
    """Everything that changes in training; all of it is saved in checkpoints.

    Attributes:
      step: scalar int32, steps done.
      params: by group; `params["network"]["segmenter"]` is the segmentation network.
      batch_stats: the segmentation network's running averages.
      opt_state: by group.
      extra: what the method keeps besides (a teacher, say), or None.
    """

    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any
    extra: Any


def create_state(method, optimisers, variables, key):
    """Builds the state of step 0 around a segmentation network's variables."""
    params, extra = method.init(key, variables)
    opt_state = {group: optimiser.init(params[group]) for group, optimiser in optimisers.items()}
    return TrainState(jnp.zeros((), jnp.int32), params, variables["batch_stats"], opt_state, extra)


def make_train_step(method, optimisers, seed, accumulate=1):
    """Builds the train step of one device, to be pmapped.

    Every random number of step s comes from `fold_in(key(seed), s)`: nothing random is stored, so a resumed run is the
    same run.

    Args:
      method: a `methods.base.Method`.
      optimisers: one Optax transformation per group of parameters.
      seed: whole number.
      accumulate: how many parts a device's batch is cut into, one after the other; the step takes the mean of their
        gradients. Each part has batch statistics of its own, and running averages go from part to part.

    Returns:
      A function of (state, batch) that returns the next state and the step's metrics, averaged over devices.
    """

    def gradients_of(state, batch, key):
        def total_loss(params):
            losses, aux = method.loss(params, state, batch, key)
            return sum(losses.values(), jnp.zeros(())), (losses, aux)

        gradients, (losses, aux) = jax.grad(total_loss, has_aux=True)(state.params)
        return gradients, losses, aux

    def mean_over_parts(state, batch, key):
        parts = jax.tree.map(lambda x: x.reshape(accumulate, x.shape[0] // accumulate, *x.shape[1:]), batch)

        def add_part(carry, part):
            total, batch_stats = carry
            gradients, losses, aux = gradients_of(state.replace(batch_stats=batch_stats), part, key)
            found = (gradients, losses, aux.replace(batch_stats=None))
            return (jax.tree.map(jnp.add, total, found), aux.batch_stats), None

        gradients, losses, aux = jax.eval_shape(gradients_of, state, jax.tree.map(lambda x: x[0], parts), key)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (gradients, losses, aux.replace(batch_stats=None)))
        (total, batch_stats), _ = jax.lax.scan(add_part, (zeros, state.batch_stats), parts)
        gradients, losses, aux = jax.tree.map(lambda x: x / accumulate, total)
        return gradients, losses, aux.replace(batch_stats=batch_stats)

    def train_step(state, batch):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        found = (mean_over_parts if accumulate > 1 else gradients_of)(state, batch, key)
        gradients, losses, aux = jax.lax.pmean(found, AXIS)

        params, opt_state = dict(state.params), {}
        for group, optimiser in optimisers.items():
            updates, opt_state[group] = optimiser.update(gradients[group], state.opt_state[group], params[group])
            params[group] = optax.apply_updates(params[group], updates)
        state = state.replace(step=state.step + 1, params=params, batch_stats=aux.batch_stats, opt_state=opt_state)
        # A loss may be masked where its inputs are not numbers; a state that holds one cannot hide it in this norm.
        metrics = {f"loss/{group}": loss for group, loss in losses.items()} | aux.metrics
        metrics["state_norm"] = optax.tree.norm((params, aux.batch_stats))
        return method.after_update(state, aux), metrics

    return train_step
