"""Reading one checkpoint: whatever is missing, cut or changed in it is a `DamagedCheckpoint` that names it."""

import errno

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization, traverse_util

from input_pipeline.errors import capped
from stpl_jax import checkpoint_digests as digests
from stpl_jax.checkpoint_meta import CheckpointMeta
from stpl_jax.checkpoint_places import CheckpointError, DamagedCheckpoint

# What the machine denies says nothing about the files.
_NOT_DAMAGE = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def alone():
    """Returns what tells Orbax that this process is the only one."""
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=index, active_processes={index})


def read_meta(where, items):
    """Looks whether the files of items are whole, and reads `meta`.

    Args:
      where: a checkpoint's numbered folder.
      items: names of the items that will be read.

    Returns:
      A `CheckpointMeta`, and the digests; {} where there are none.
    """
    problems = _guarded(where, lambda: digests.damaged_files(where, (*items, "meta")))
    if problems:
        raise DamagedCheckpoint(where, "; ".join(line.strip() for line in capped(problems, 3)))
    for item in ("meta", *items):
        if not (where / item).is_dir():
            advice = ": it is not a training run's" if item == "train" else ""
            raise DamagedCheckpoint(where, f"it has no item {item!r}{advice}")
    handler = ocp.JsonCheckpointHandler(multiprocessing_options=alone())
    meta = _guarded(where / "meta", lambda: handler.restore(where / "meta"))
    if not isinstance(meta, dict):
        raise DamagedCheckpoint(where, f"meta is {type(meta).__name__}, and an object is expected")
    stored = meta.pop(digests.KEY, {})
    if stored and (not isinstance(stored, dict) or stored.get("meta") != digests.of_json(meta)):
        raise DamagedCheckpoint(where, "meta: other values than were saved")
    return CheckpointMeta.of_json(meta), stored


def read_arrays(where, item, stored):
    """Returns an item's arrays, nested.

    Args:
      where: a checkpoint's numbered folder.
      item: `model` or `train`.
      stored: the digests of `read_meta`, which the arrays are compared with where there are any.
    """
    shapes = stored_shapes(where, item)
    empty = {tuple(name.split("/")): np.empty(shape, dtype) for name, (shape, dtype) in shapes.items()}
    arguments = ocp.args.StandardRestore(traverse_util.unflatten_dict(empty))
    tree = _guarded(where / item, lambda: _handler().restore(where / item, args=arguments))
    if stored:
        problems = digests.differing(stored.get(item, {}), flat(tree))
        if problems:
            lines = "; ".join(line.strip() for line in capped(problems, 3))
            raise DamagedCheckpoint(where, f"item {item}: {lines}")
    return tree


def _handler():
    return ocp.StandardCheckpointHandler(multiprocessing_options=alone())


def _guarded(path, function):
    """Calls a function that reads below `path`: whatever a library says of it, the checkpoint is damaged."""
    try:
        return function()
    # Orbax, TensorStore and JSON fail in a dozen ways on files that are missing, cut or changed.
    except Exception as error:
        if isinstance(error, MemoryError) or getattr(error, "errno", None) in _NOT_DAMAGE:
            raise
        where = next(p for p in (path, *path.parents) if p.name.isdigit())
        reason = " ".join(str(error).split())[:300]
        raise DamagedCheckpoint(where, f"{path.name} cannot be read ({type(error).__name__}: {reason})") from error


def flat(tree):
    """Returns a tree's leaves by their names, such as `params/backbone/conv1/kernel`; what is None is left out."""
    leaves = traverse_util.flatten_dict(serialization.to_state_dict(tree), sep="/")
    return {name: leaf for name, leaf in leaves.items() if leaf is not None}


def shapes_of(tree):
    """Returns name -> (shape, dtype) of a tree's leaves."""
    return {name: (tuple(leaf.shape), np.dtype(leaf.dtype)) for name, leaf in flat(tree).items()}


def stored_shapes(where, item):
    """Returns name -> (shape, dtype) of what a checkpoint holds under an item."""

    def read():
        metadata = _handler().metadata(where / item)
        return shapes_of(metadata.tree if hasattr(metadata, "tree") else metadata)

    return _guarded(where / item, read)


def check_same(expected, found, where):
    """Raises `CheckpointError` where two of `shapes_of` differ; it lists both sides."""
    if expected == found:
        return
    lines = []
    for name in sorted(expected.keys() | found.keys()):
        sides = [f"{side[name][0]} {side[name][1]}" if name in side else "missing" for side in (expected, found)]
        if sides[0] != sides[1]:
            lines.append(f"  {name}: expected {sides[0]}, found {sides[1]}")
    raise CheckpointError(
        f"Checkpoint {where} holds another network than the configuration describes (number of classes, depth, width, "
        "or method):\n" + "\n".join(capped(lines))
    )
