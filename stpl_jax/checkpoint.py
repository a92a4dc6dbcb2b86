"""Checkpoints: Orbax, written beside the training and moved into place when whole.

A checkpoint has three items: `model` (the segmentation network's `params` and `batch_stats`: all that inference needs),
`train` (the rest of the state) and `meta` (JSON: configuration, classes, versions, position in the data). Arrays are
stored once, without a device axis, so that any number of devices restores them. Of several processes, which hold the
same state, the first writes; each reads by itself. So Orbax is told that every process is alone.
"""

import dataclasses
import importlib.metadata
import json
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization, traverse_util

import stpl_jax
from input_pipeline import run_folder
from input_pipeline.errors import UserError

# What a checkpoint's `meta["network"]` names; one without the entry holds a segmentation network.
NETWORKS = {"accel": "a segmentation network", "flownet2": "an optical flow network"}


class CheckpointError(UserError):
    """A checkpoint that is not there or does not fit."""


def versions():
    """Returns the versions of what produced a result: this package and the libraries below it."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")
    found = {"stpl_jax": stpl_jax.__version__}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _to_tree(state):
    """A nested dict of arrays; containers without arrays (Optax has many) are left out."""
    flat = traverse_util.flatten_dict(serialization.to_state_dict(state))
    return traverse_util.unflatten_dict({path: np.asarray(leaf) for path, leaf in flat.items() if leaf is not None})


def _from_tree(template, tree):
    flat = traverse_util.flatten_dict(serialization.to_state_dict(template), keep_empty_nodes=True)
    stored = traverse_util.flatten_dict(tree)
    filled = {path: stored.get(path, leaf) for path, leaf in flat.items()}
    return serialization.from_state_dict(template, traverse_util.unflatten_dict(filled))


def _items(state):
    """Splits a `TrainState` into the items `model` and `train`."""
    network = dict(state.params["network"])
    model = {"params": network.pop("segmenter"), "batch_stats": state.batch_stats}
    rest = state.replace(params=state.params | {"network": network}, batch_stats=None)
    return _to_tree(model), _to_tree(rest)


def _join(template, model, rest):
    model_template = {"params": template.params["network"]["segmenter"], "batch_stats": template.batch_stats}
    network = {name: value for name, value in template.params["network"].items() if name != "segmenter"}
    rest_template = template.replace(params=template.params | {"network": network}, batch_stats=None)
    model, rest = _from_tree(model_template, model), _from_tree(rest_template, rest)
    network = {"segmenter": model["params"]} | rest.params["network"]
    return rest.replace(params=rest.params | {"network": network}, batch_stats=model["batch_stats"])


def open_manager(folder, keep=2):
    """Opens a folder of checkpoints for writing, keeping the newest `keep`; leftovers of a killed run are cleared.

    All processes but the first open it for reading.
    """
    if jax.process_index():
        return _manager(folder)
    Path(folder).mkdir(parents=True, exist_ok=True)
    return _manager(folder, max_to_keep=keep, cleanup_tmp_directories=True)


def _manager(folder, **options):
    index = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=index, active_processes={index})
    options = ocp.CheckpointManagerOptions(create=False, multiprocessing_options=alone, **options)
    # Naming the handlers lets a manager describe checkpoints that it has neither saved nor restored.
    handlers = {
        "model": ocp.StandardCheckpointHandler(multiprocessing_options=alone),
        "train": ocp.StandardCheckpointHandler(multiprocessing_options=alone),
        "meta": ocp.JsonCheckpointHandler(multiprocessing_options=alone),
    }
    return ocp.CheckpointManager(Path(folder).absolute(), options=options, item_handlers=handlers)


def save(manager, step, state, meta):
    """Starts to save; returns when the values are copied, and the writing goes on beside the training.

    All processes but the first save nothing.

    Args:
      manager: of `open_manager`.
      step: steps done.
      state: one replica of a `TrainState`, numpy.
      meta: JSON-able.
    """
    if jax.process_index():
        return
    model, rest = _items(state)
    manager.save(
        step,
        args=ocp.args.Composite(
            model=ocp.args.StandardSave(model), train=ocp.args.StandardSave(rest), meta=ocp.args.JsonSave(meta)
        ),
    )


def save_model(folder, variables, meta):
    """Writes a checkpoint that holds a network alone, as step 0 of a new folder of checkpoints.

    Args:
      folder: new folder.
      variables: nested dict of arrays.
      meta: JSON-able; `network` is a name of `NETWORKS`, a segmentation network's if left out.
    """
    with open_manager(Path(folder) / run_folder.CHECKPOINTS) as manager:
        manager.save(
            0,
            args=ocp.args.Composite(model=ocp.args.StandardSave(_to_tree(variables)), meta=ocp.args.JsonSave(meta)),
        )


def restore(manager, step, template):
    """Restores a `TrainState`.

    Args:
      manager: of `open_manager`.
      step: which one.
      template: a `TrainState` of arrays or shapes, as `create_state` builds it.

    Returns:
      The state, numpy, and `meta`.

    Raises:
      CheckpointError: names or shapes differ; the message lists both sides.
    """
    model, rest = _items(jax.tree.map(lambda x: np.empty(x.shape, x.dtype), template))
    where = Path(manager.directory) / str(step)
    _check_same(_shapes(model), _stored_shapes(manager, step, "model"), where)
    _check_same(_shapes(rest), _stored_shapes(manager, step, "train"), where)
    out = manager.restore(
        step,
        args=ocp.args.Composite(
            model=ocp.args.StandardRestore(model),
            train=ocp.args.StandardRestore(rest),
            meta=ocp.args.JsonRestore(),
        ),
    )
    return _join(template, out.model, out.train), out.meta


@dataclasses.dataclass(frozen=True)
class ModelCheckpoint:
    """A network as stored: `variables` (numpy `params` and `batch_stats`), `meta`, `path`."""

    variables: dict
    meta: dict
    path: Path


def load_model(path, row=None, template=None, network="accel"):
    """Loads the network of a checkpoint.

    Args:
      path: a working directory, a row's folder in it, a folder of checkpoints, or one checkpoint (a numbered folder).
      row: with a working directory, which row of its table; default the method that it adapted with.
      template: variables as arrays or shapes that must fit, or None to take what is there.
      network: a name of `NETWORKS`, what is expected; None for any.

    Returns:
      A `ModelCheckpoint`.

    Raises:
      CheckpointError: nothing there, or another network; the message lists both sides.
    """
    where = find_checkpoint(path, row)
    with _manager(where.parent) as manager:
        step = int(where.name)
        stored = _stored_shapes(manager, step, "model")
        meta = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
        found = meta.get("network", "accel")
        if network is not None and found != network:
            raise CheckpointError(
                f"Checkpoint {where} holds {NETWORKS.get(found, found)}, and {NETWORKS[network]} is expected here: "
                "segmentation networks go into config.init_from and config.pretrain_from, flow networks into "
                "config.flow.weights."
            )
        if template is not None:
            _check_same(_shapes(template), stored, where)
        empty = traverse_util.unflatten_dict(
            {tuple(name.split("/")): np.empty(shape, dtype) for name, (shape, dtype) in stored.items()}
        )
        out = manager.restore(step, args=ocp.args.Composite(model=ocp.args.StandardRestore(empty)))
    return ModelCheckpoint(out.model, meta, where)


def find_checkpoint(path, row=None):
    """Finds the newest checkpoint under a path, as `load_model` takes it; returns its numbered folder."""
    path = Path(path)
    if path.name.isdigit() and (path / "model").is_dir():
        return path
    candidates = [path, path / run_folder.CHECKPOINTS]
    settings = path / run_folder.CONFIG
    if settings.is_file() and not (path / run_folder.CHECKPOINTS).is_dir():
        candidates.append(path / (row or json.loads(settings.read_text())["method"]) / run_folder.CHECKPOINTS)
    for folder in candidates:
        steps = [int(p.name) for p in folder.glob("*") if p.name.isdigit() and (p / "model").is_dir()]
        if steps:
            return folder / str(max(steps))
    looked = ", ".join(str(c) for c in candidates)
    raise CheckpointError(
        f"No checkpoint in {path} (looked in {looked}). Expected a working directory of a finished run, a folder of "
        "checkpoints, or one numbered checkpoint."
    )


def _shapes(tree):
    flat = traverse_util.flatten_dict(serialization.to_state_dict(tree), sep="/")
    return {name: (tuple(leaf.shape), np.dtype(leaf.dtype)) for name, leaf in flat.items() if leaf is not None}


def _stored_shapes(manager, step, item):
    metadata = manager.item_metadata(step).get(item)
    if metadata is None:
        raise CheckpointError(
            f"{Path(manager.directory) / str(step)} has no item {item!r}: it is not a training run's."
        )
    tree = metadata.tree if hasattr(metadata, "tree") else metadata
    return _shapes(tree)


def _check_same(expected, found, where):
    if expected == found:
        return
    lines = []
    for name in sorted(expected.keys() | found.keys()):
        sides = [f"{side[name][0]} {side[name][1]}" if name in side else "missing" for side in (expected, found)]
        if sides[0] != sides[1]:
            lines.append(f"  {name}: expected {sides[0]}, found {sides[1]}")
    shown = lines[:20] + ([f"  ... and {len(lines) - 20} more"] if len(lines) > 20 else [])
    raise CheckpointError(
        f"Checkpoint {where} holds another network than the configuration describes (number of classes, depth, width, "
        "or method):\n" + "\n".join(shown)
    )
