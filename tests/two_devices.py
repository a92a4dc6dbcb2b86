"""Real train steps on two devices, for tests of whole methods."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stpl_jax import parallel
from stpl_jax.optim import parameter_path
from stpl_jax.train_state import create_state, make_train_step


def states_of_steps(method, settings, variables, batches):
    """Trains on two devices, the state donated.

    Args:
      method: a method.
      settings: `config.optim`.
      variables: the segmentation network's.
      batches: of each step, by domain: leaves `[2·B, ...]`.

    Returns:
      The states, as numpy: at the start and after each step; and each step's metrics. Both devices' are equal.
    """
    sharding = NamedSharding(Mesh(np.array(jax.devices()[:2]), (parallel.AXIS,)), PartitionSpec(parallel.AXIS))

    def read(tree):
        tree = jax.tree.map(np.array, tree)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            assert (leaf[0] == leaf[1]).all(), f"devices differ: {path}"
            assert np.isfinite(leaf).all(), path
        return jax.tree.map(lambda leaf: leaf[0], tree)

    optimisers = method.optimisers(settings)
    state = jax.jit(lambda v: create_state(method, optimisers, v, jax.random.key(0)))(variables)
    state = jax.tree.map(lambda x: jax.device_put(np.stack([x, x]), sharding), state)
    step = parallel.pmap(make_train_step(method, optimisers, 0), donate_state=True)
    states, metrics = [read(state)], []
    for batch in batches:
        batch = jax.tree.map(lambda x: jax.device_put(x.reshape(2, -1, *x.shape[1:]), sharding), batch)
        state, seen = step(state, batch)
        states.append(read(state))
        metrics.append(read(seen))
    return states, metrics


def changed(before, after):
    """Names of the leaves that differ."""
    before, after = jax.tree_util.tree_leaves_with_path(before), jax.tree_util.tree_leaves_with_path(after)
    return {parameter_path(p) for (p, a), (_, b) in zip(before, after, strict=True) if not np.array_equal(a, b)}


def names(tree):
    """Names of all leaves."""
    return {parameter_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}


def first_updates(method, settings, variables):
    """What the optimiser adds to each of the network's parameters in a first step: by name, one number each.

    All parameters and gradients are one.
    """
    params, _ = jax.eval_shape(method.init, jax.random.key(0), variables)
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), params["network"])
    optimiser = method.optimisers(settings)["network"]
    updates, _ = jax.jit(lambda tree: optimiser.update(tree, optimiser.init(tree), tree))(ones)
    values = {parameter_path(p): np.unique(leaf) for p, leaf in jax.tree_util.tree_leaves_with_path(updates)}
    return {name: value.item() for name, value in values.items()}


def is_batch_norm(name):
    """Whether a parameter is batch normalisation's scale or bias, which nothing trains."""
    return name.split("/")[-2] in ("norm", "bn1", "bn2", "bn3", "downsample_1") and name.endswith(("/scale", "/bias"))
