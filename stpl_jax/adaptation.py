"""Adapting from Python: a checkpoint, or someone's own network, and a folder of videos in; an adapted model out."""

import contextlib
import dataclasses
import json
import shutil
import signal
import tempfile
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from configs import own_video
from input_pipeline import run_folder
from input_pipeline.errors import UserError
from input_pipeline.files import expand
from stpl_jax import checkpoint, modes, predict, settings
from stpl_jax.checkpoint_meta import CheckpointMeta
from stpl_jax.checkpoint_places import SOURCE, in_folder
from stpl_jax.checkpoint_reading import flat
from stpl_jax.models import NETWORKS
from stpl_jax.models.network import Network
from stpl_jax.run_lock import run_lock
from stpl_jax.stopping import Stopped

# What `config.model.name` is of a network that is given from Python.
OWN = "own"


def adapt(
    model,
    videos,
    method="stpl_plus",
    steps=500,
    workdir=None,
    *,
    variables=None,
    classes=None,
    size=None,
    changes=None,
    progress=print,
):
    """Adapts a segmentation model to unlabelled video; what `--mode=adapt` does with `configs/own_video.py`.

    Args:
      model: path of a checkpoint as `load` takes it, or a `Network`.
      videos: folder of video files and folders of frames.
      method: what adapts; one that needs no source data.
      steps: training steps, over which the learning rate falls to 0.
      workdir: folder of the run, with checkpoints and logs; a later call with the same arguments goes on there. None: a
        temporary one, which is removed.
      variables: of a `Network`: its `params` and `batch_stats`, nested dicts of arrays.
      classes: of a `Network`: names of its K classes.
      size: (height, width) that frames are brought to; of a `Network`, or in place of the checkpoint's.
      changes: further settings of `configs/base.py`, {"optim.learning_rate": 1e-5}.
      progress: called with lines of text.

    Returns:
      The adapted `Model`.

    Raises:
      UserError: something that the caller can mend; the message says what and how.
      KeyboardInterrupt: Ctrl-C; where it came while training, the message says at which step.
    """
    folder = Path(tempfile.mkdtemp()) if workdir is None else expand(workdir)
    network = model if isinstance(model, Network) else None
    try:
        with contextlib.ExitStack() as stack:
            if network is not None:
                network, variables = _whole(network, variables, classes, size)
                stack.enter_context(_entered(network))
                model = folder / run_folder.OWN_NETWORK
            elif variables is not None or classes is not None:
                raise UserError("variables and classes belong to a Network; a checkpoint has its own.")
            config = _config(model, videos, method, steps, size, changes or {})
            stack.enter_context(_told(workdir is None))
            stack.enter_context(run_lock(folder, progress, flag="workdir"))
            if network is not None:
                _save(variables, classes, size, folder)
            modes.adapt(modes.with_inputs(config, folder, progress), folder, progress)
            return predict.load(folder, method, network)
    finally:
        if workdir is None:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _told(temporary):
    """Raises Ctrl-C as Python does; says of what ends a call in a temporary workdir that nothing of it is kept."""
    note = " (the temporary workdir is removed; give workdir=... to keep it)" if temporary else ""
    try:
        yield
    except Stopped as stopped:
        if stopped.code != 128 + signal.SIGINT:
            raise
        raise KeyboardInterrupt(stopped.message + note) from None
    except UserError as error:
        error.args = (f"{error}{note}",)
        raise


def _config(model, videos, method, steps, size, changes):
    config = own_video.get_config()
    config.init_from, config.data.target.raw_dir = str(model), str(videos)
    config.method, config.compare_with = method, ()
    config.optim.steps = config.optim.decay_steps = steps
    # What a row itself says comes last.
    if "optim" in config.rows.get(method, {}):
        with config.unlocked():
            config.rows[method].optim.update(dict(steps=steps, decay_steps=steps))
    if size is not None:
        config.data.target.size = tuple(size)
    unknown = changes.keys() - settings.flat(config).keys()
    if unknown:
        raise UserError(
            f"changes: there are no settings {', '.join(sorted(unknown))}. configs/base.py has all of them."
        )
    config.update_from_flattened_dict(changes)
    config = settings.expand_paths(config)
    settings.check(config)
    return config


@contextlib.contextmanager
def _entered(network):
    """Enters a network under `OWN` for as long as it is adapted."""
    NETWORKS[OWN] = lambda model, num_classes, sync_axis=None: network
    try:
        yield
    finally:
        del NETWORKS[OWN]


def _whole(network, variables, classes, size):
    """Checks what is given beside a network; returns it with these weights as its first ones, and all of these."""
    given = {"variables": variables, "classes": classes, "size": size}
    missing = [name for name, value in given.items() if value is None]
    if missing:
        raise UserError(f"A Network needs {', '.join(missing)}, too: adapt(network, videos, variables=..., ...).")
    if len(classes) != network.num_classes:
        raise UserError(f"classes: expected {network.num_classes} names (Network.num_classes), found {len(classes)}.")
    wrong = []
    variables = {"batch_stats": {}} | _plain(variables, "variables", wrong)
    if wrong:
        raise UserError(
            f"variables: expected nested dicts of arrays, with names that are text without /; found {wrong[0]}."
            + (f" There are {len(wrong)} of them." if len(wrong) > 1 else "")
        )
    if network.running_statistics and not jax.tree.leaves(variables["batch_stats"]):
        raise UserError("variables has no batch_stats: a network without any has Network(running_statistics=False).")
    return dataclasses.replace(network, initial=lambda key: variables), variables


def _plain(tree, where, wrong):
    """Returns nested dicts of JAX's arrays; what cannot be stored is described in `wrong`."""
    if isinstance(tree, Mapping):
        for name in tree:
            if not isinstance(name, str):
                wrong.append(f"the name {name!r} in {where}: rename it to {str(name)!r}")
            elif "/" in name:
                new = name.replace("/", ".")
                wrong.append(f"the name {name!r} in {where}: rename it, {new!r} say, and back within backbone")
        return {name: _plain(value, f"{where}[{name!r}]", wrong) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        wrong.append(f"a {type(tree).__name__}, {where}: make it a dict with the names '0', '1', ...")
    elif not isinstance(tree, np.ndarray | np.number | jax.Array | float | int) or np.asarray(tree).dtype == object:
        wrong.append(f"{type(tree).__name__}, {where}: make it an array of numbers, or leave it out")
    else:
        # Of the precision that JAX computes in: float64 becomes float32.
        return jnp.asarray(tree)
    return None


def _save(variables, classes, size, folder):
    """Writes an own network's weights as a source model; where an earlier call has, compares them with these."""
    path = folder / run_folder.OWN_NETWORK
    if in_folder(path / run_folder.CHECKPOINTS):
        _compare(checkpoint.load_model(path), variables, classes, folder)
        return
    config = own_video.get_config()
    config.data.target.size = tuple(size)
    with config.unlocked():
        config.model = ConfigDict({"name": OWN})
    meta = CheckpointMeta(
        config=json.loads(config.to_json_best_effort()),
        classes=tuple(classes),
        row=SOURCE,
        source="a Network given from Python",
        versions=checkpoint.versions(),
    )
    checkpoint.save_model(path, variables, meta)


def _compare(stored, variables, classes, folder):
    """Raises `UserError` where a run was begun with other weights or classes than are given now."""
    renamed = tuple(stored.meta.classes) != tuple(classes)
    before, now = flat(stored.variables), flat(variables)
    differing = sorted(
        name
        for name in before.keys() | now.keys()
        if name not in before or name not in now or not _same(before[name], now[name])
    )
    if renamed or differing:
        what = f"its classes are {', '.join(stored.meta.classes)}" if renamed else f"{differing[0]} differs"
        raise UserError(
            f"{folder}: other weights or classes than this workdir was begun with ({what}): use another workdir, or "
            "give those."
        )


def _same(before, now):
    before, now = np.asarray(before), np.asarray(now)
    return before.dtype == now.dtype and before.tobytes() == now.tobytes() and before.shape == now.shape
