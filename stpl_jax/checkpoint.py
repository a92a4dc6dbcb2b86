"""Checkpoints: Orbax, written beside the training and moved into place when whole.

A checkpoint has three items: `model` (the segmentation network's `params` and `batch_stats`: all that inference needs;
see `Method.inference`), `train` (the rest of the state) and `meta` (JSON: configuration, classes, versions, position in
the data, digests).
Arrays are stored once, without a device axis, so that any number of devices restores them. Of several processes, which
hold the same state, the first writes; each reads by itself. So Orbax is told that every process is alone.

Whatever is read is compared with its digests (`checkpoint_digests`). A damaged checkpoint is refused where it was named
itself; where a folder was named, the newest whole one is taken instead, and that is said.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import warnings
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization, traverse_util

import stpl_jax
from input_pipeline import run_folder
from input_pipeline.errors import capped
from stpl_jax import checkpoint_digests as digests
from stpl_jax import checkpoint_places as places
from stpl_jax import checkpoint_reading as reading
from stpl_jax.checkpoint_meta import CheckpointMeta
from stpl_jax.checkpoint_places import SEGMENTATION, CheckpointError, DamagedCheckpoint
from stpl_jax.train_state import NETWORK

warn = functools.partial(warnings.warn, stacklevel=4)


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


def _stored_as(name, inference):
    """Returns the item that holds an array of a `TrainState`, and the array's name in it.

    The parameters at `inference` and the running statistics are in the item `model`; all else is in the item `train`.
    """
    for start, inside in ((f"{inference}/", "params/"), ("batch_stats/", "batch_stats/")):
        if name.startswith(start):
            return "model", inside + name.removeprefix(start)
    return "train", name


def _items(named, inference):
    """Divides what belongs to the arrays of a `TrainState`: name -> value to item -> name -> value."""
    items = {"model": {}, "train": {}}
    for name, value in named.items():
        item, inside = _stored_as(name, inference)
        items[item][inside] = value
    return items


def open_manager(folder, keep=2):
    """Opens a folder of checkpoints for writing, keeping the newest `keep`; leftovers of a killed run are cleared.

    All processes but the first open it for reading.
    """
    alone, folder, first = reading.alone(), Path(folder).absolute(), jax.process_index() == 0
    if first:
        folder.mkdir(parents=True, exist_ok=True)

    def list_files():
        # Orbax calls it when all items are written, and then gives the folder its name: the list is there or no
        # checkpoint is. It saves one checkpoint at a time, so that this is the only unfinished one.
        for unfinished in folder.glob("*.orbax-checkpoint-tmp*"):
            digests.write_files(unfinished)

    options = ocp.CheckpointManagerOptions(
        create=False,
        multiprocessing_options=alone,
        async_options=ocp.AsyncOptions(post_finalization_callback=list_files),
        max_to_keep=keep if first else None,
        cleanup_tmp_directories=first,
    )
    # Naming the handlers lets a manager describe checkpoints that it has neither saved nor restored.
    handlers = {
        "model": ocp.StandardCheckpointHandler(multiprocessing_options=alone),
        "train": ocp.StandardCheckpointHandler(multiprocessing_options=alone),
        "meta": ocp.JsonCheckpointHandler(multiprocessing_options=alone),
    }
    return _Manager(folder, options=options, item_handlers=handlers)


class _Manager(ocp.CheckpointManager):
    """Orbax's, which writes beside the training, and raises what went wrong there in whichever call comes next."""

    def save(self, *args, **kwargs):
        with _named(self.directory):
            return super().save(*args, **kwargs)

    def wait_until_finished(self):
        with _named(self.directory):
            super().wait_until_finished()

    def close(self):
        with _named(self.directory):
            super().close()


@contextlib.contextmanager
def _named(folder):
    """Says of an error in writing where it was, and what there is still."""
    try:
        yield
    except CheckpointError:
        raise
    # TensorStore tells of a full disk by a ValueError, Orbax of other threads' errors by several types.
    except Exception as error:
        kept = [where.name for where in places.in_folder(folder)]
        raise CheckpointError(
            f"A checkpoint cannot be written into {folder}: {' '.join(str(error).split())[:400]}. "
            + (f"That of step {kept[0]} is kept. " if kept else "")
            + "Make room, or the folder writable, and give the same command again."
        ) from error


def save(manager, step, state, meta, inference=NETWORK):
    """Starts to save; returns when the values are copied, and the writing goes on beside the training.

    All processes but the first save nothing.

    Args:
      manager: of `open_manager`.
      step: steps done.
      state: one replica of a `TrainState`, numpy.
      meta: `CheckpointMeta`.
      inference: `Method.inference`: which parameters become the item `model`.

    Raises:
      CheckpointError: Orbax does not save, because there is a checkpoint of this step or a later one.
    """
    if jax.process_index():
        return
    _save(manager, step, _items(reading.flat(state), inference), meta)


def save_model(folder, variables, meta):
    """Writes a checkpoint that holds a network alone, as step 0 of a new folder of checkpoints.

    Args:
      folder: new folder.
      variables: nested dict of arrays.
      meta: `CheckpointMeta`.
    """
    with open_manager(Path(folder) / run_folder.CHECKPOINTS) as manager:
        _save(manager, 0, {"model": reading.flat(variables)}, meta)


def _save(manager, step, items, meta):
    items = {item: {name: np.asarray(x) for name, x in arrays.items()} for item, arrays in items.items()}
    arguments = {item: ocp.args.StandardSave(traverse_util.unflatten_dict(x, sep="/")) for item, x in items.items()}
    meta = digests.add(meta.as_json(), items)
    if not manager.save(step, args=ocp.args.Composite(**arguments, meta=ocp.args.JsonSave(meta))):
        raise CheckpointError(
            f"Step {step} was not saved: {manager.directory} has a checkpoint of step {manager.latest_step()}. Move it "
            "away, or use another --workdir."
        )


def restore(manager, step, template, inference=NETWORK):
    """Restores a `TrainState`.

    Args:
      manager: of `open_manager`.
      step: which one.
      template: a `TrainState` of arrays or shapes, as `create_state` builds it.
      inference: as `save` had it.

    Returns:
      The state, numpy, and its `CheckpointMeta`.

    Raises:
      DamagedCheckpoint: it cannot be read, or holds something else than was saved.
      CheckpointError: names or shapes differ; the message lists both sides.
    """
    return _read_state(Path(manager.directory) / str(step), template, inference)


def _read_state(where, template, inference):
    meta, stored = reading.read_meta(where, ("model", "train"))
    for item, shapes in _items(reading.shapes_of(template), inference).items():
        reading.check_same(shapes, reading.stored_shapes(where, item), where)
    found = {item: reading.flat(reading.read_arrays(where, item, stored)) for item in ("model", "train")}
    # Containers without arrays, of which Optax has many, are not stored.
    state = traverse_util.flatten_dict(serialization.to_state_dict(template), keep_empty_nodes=True, sep="/")
    for name, leaf in state.items():
        item, inside = _stored_as(name, inference)
        state[name] = found[item].get(inside, leaf)
    return serialization.from_state_dict(template, traverse_util.unflatten_dict(state, sep="/")), meta


def restore_newest(manager, template, progress=print, from_first=lambda function: function(), inference=NETWORK):
    """Restores the newest whole checkpoint, from which training goes on.

    Damaged ones that are newer are moved aside to `STEP.damaged`, where they do not keep later ones from being saved;
    nothing is deleted.

    Args:
      manager: of `open_manager`.
      template: see `restore`.
      progress: called with a line of text for each checkpoint that is left out.
      from_first: `processes.from_first` where there may be several processes: the first chooses.
      inference: see `restore`.

    Returns:
      The state, its `CheckpointMeta` and the step; None where there are no checkpoints.

    Raises:
      CheckpointError: there are checkpoints, but none is whole; or the newest whole one does not fit.
    """
    folder, found = Path(manager.directory), {}

    def choose():
        numbered = places.in_folder(folder)
        if not numbered:
            return None
        where, state, damaged = _newest(
            places.Place(folder, numbered), lambda where: _read_state(where, template, inference)
        )
        found[int(where.name)] = state
        for error in damaged:
            aside = _move_aside(error.where)
            progress(f"Checkpoint {error.where} is damaged: {error.what}. It is kept as {aside.name}")
        if damaged:
            progress(f"The older checkpoint {where} is whole, and is gone on from")
        return int(where.name)

    step = from_first(choose)
    if step is None:
        return None
    manager.reload()
    state, meta = found.get(step) or restore(manager, step, template, inference)
    return state, meta, step


def _move_aside(where):
    names = [f"{where.name}.damaged", *(f"{where.name}.damaged.{i}" for i in range(2, 1000))]
    aside = next(where.with_name(name) for name in names if not where.with_name(name).exists())
    return where.rename(aside)


@dataclasses.dataclass(frozen=True)
class ModelCheckpoint:
    """A network as stored: `variables` (numpy `params` and `batch_stats`; None of `peek`), `meta`, `path`."""

    variables: dict
    meta: CheckpointMeta
    path: Path

    @property
    def row(self):
        """The row that it is of, by its `meta` or else by its folder's name."""
        return self.meta.row or self.path.parent.parent.name

    @property
    def description(self):
        """One line for the log: row, step, path and classes."""
        line = f"row {self.row}, step {self.path.name}, {self.path}"
        classes = self.meta.classes or ()
        return f"{line}, {len(classes)} classes: {', '.join(classes)}" if classes else line


def load_model(path, row=None, template=None, network=SEGMENTATION, tell=warn):
    """Loads the network of a checkpoint.

    Args:
      path: a working directory, a row's folder in it, a folder of checkpoints, or one checkpoint (a numbered folder).
      row: with a working directory, which row of its table; default the method that it adapted with.
      template: variables as arrays or shapes that must fit, or None to take what is there.
      network: the name of the network that is expected, see `CheckpointMeta`; None for any.
      tell: called with a line of text where a damaged checkpoint is left out, or one has no digests.

    Returns:
      A `ModelCheckpoint`.

    Raises:
      DamagedCheckpoint: the one that was named is.
      CheckpointError: nothing there, none whole, another row or another network; the message lists both sides.
    """
    return _load(path, row, network, tell, ("model",), template, arrays=True)


def peek(path, row=None, network=SEGMENTATION, tell=warn, items=("model",)):
    """As `load_model`, without the variables: looks whether the files of items are whole, and reads `meta` alone."""
    return _load(path, row, network, tell, items)


def _load(path, row, network, tell, items, template=None, arrays=False):
    def read(where):
        meta, stored = reading.read_meta(where, items)
        if network is not None and meta.network != network:
            found, expected = (
                "a segmentation network" if name == SEGMENTATION else f"the optical flow network {name}"
                for name in (meta.network, network)
            )
            raise CheckpointError(
                f"Checkpoint {where} holds {found}, and {expected} is expected here: segmentation networks go into "
                "config.init_from and config.pretrain_from, flow networks into config.flow.weights."
            )
        if template is not None:
            reading.check_same(reading.shapes_of(template), reading.stored_shapes(where, "model"), where)
        # A network without running statistics has stored none.
        variables = {"batch_stats": {}} | reading.read_arrays(where, "model", stored) if arrays else None
        return ModelCheckpoint(variables, meta, where), stored

    place = places.find(path, row, network)
    where, (found, stored), damaged = _newest(place, read)
    if place.row not in (None, found.row):
        raise CheckpointError(
            f"{path} is the row {found.row}, and the row {place.row} is asked for. Give the working directory, or "
            "leave the row out."
        )
    for error in damaged:
        tell(f"Checkpoint {error.where} is damaged: {error.what}. The older checkpoint {where} is used instead")
    if not stored:
        tell(f"Checkpoint {where} was written without digests: damage to its numbers would not be noticed")
    return found


def _newest(place, read):
    """Reads the newest whole checkpoint: returns its folder, what `read` returns, and the errors of newer ones."""
    damaged = []
    for where in place.checkpoints:
        try:
            return where, read(where), damaged
        except DamagedCheckpoint as error:
            if place.exactly:
                raise
            damaged.append(error)
    raise CheckpointError(
        f"{place.folder} has no whole checkpoint:\n"
        + "\n".join(capped([f"  {error.where}: {error.what}" for error in damaged]))
        + "\nRestore one from a copy, or move the folder away to begin anew."
    )
