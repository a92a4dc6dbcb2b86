"""Every device at once: the one place that says pmap.

A replicated tree has a leading axis of this process's devices; a batch is split along it. The same code runs on one
device and on many, in one process and in several.
"""

import collections

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "devices"


def device_sharding():
    """Returns the sharding that a pmapped function's inputs have: leading axis over this process's devices."""
    return NamedSharding(Mesh(np.array(jax.local_devices()), (AXIS,)), PartitionSpec(AXIS))


def replicate(tree):
    """Copies every leaf to each local device: `[...]` to `[devices, ...]`, each copy a buffer of its own."""
    sharding, count = device_sharding(), jax.local_device_count()
    return jax.tree.map(
        lambda x: jax.device_put(np.broadcast_to(np.asarray(x)[None], (count, *np.shape(x))), sharding), tree
    )


def unreplicate(tree):
    """Returns one replica as numpy arrays: `[devices, ...]` to `[...]`. Waits for the values."""
    return jax.tree.map(lambda x: np.array(x.addressable_data(0))[0], tree)


def split_over_devices(batch):
    """Puts a batch on the devices: each leaf `[devices·B, ...]` becomes `[devices, B, ...]`. Returns at once.

    Raises:
      ValueError: the batch does not divide by the number of devices.
    """
    sharding, count = device_sharding(), jax.local_device_count()

    def put(x):
        if x.shape[0] % count:
            raise ValueError(f"A batch of {x.shape[0]} clips does not divide over {count} devices.")
        return jax.device_put(x.reshape(count, x.shape[0] // count, *x.shape[1:]), sharding)

    return jax.tree.map(put, batch)


def pmap(function, donate_state=False, devices=None):
    """Compiles a function of (state, ...) for all devices; with `donate_state` the state's buffers are reused.

    `devices` names others than this process's: those of a topology that is not there can be compiled for, not run on.
    """
    return jax.pmap(function, axis_name=AXIS, donate_argnums=(0,) if donate_state else (), devices=devices)


def any_process(flag):
    """Starts to find out whether a flag is set in any process; every process has to ask at the same step.

    Args:
      flag: bool of this process.

    Returns:
      An array to be read by `is_set`, which waits for the answer; asking does not.
    """
    return _sum_over_devices(replicate(np.int32(flag)))


def is_set(answer):
    """Reads an answer of `any_process`, the same in every process."""
    return bool(unreplicate(answer))


_sum_over_devices = pmap(lambda x: jax.lax.psum(x, AXIS))


def prefetch(items, size=2):
    """Draws `size` items ahead, so that transfers to the devices run beside computation; `items` may be endless."""
    queue = collections.deque()
    for item in items:
        queue.append(item)
        if len(queue) > size:
            yield queue.popleft()
    yield from queue
