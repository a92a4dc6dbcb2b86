"""Where a row's training begins: at its newest checkpoint, at a given network, or at random weights."""

from typing import Any, NamedTuple

import jax

from input_pipeline.domains import check_same_data
from input_pipeline.labels import model_classes
from stpl_jax import checkpoint, checkpoint_places, model_choice, processes
from stpl_jax.checkpoint_places import SOURCE
from stpl_jax.models.network import initial_variables, propagation_of
from stpl_jax.settings import check_same_run
from stpl_jax.train_state import create_state


class Start(NamedTuple):
    """Where training begins.

    Attributes:
      state: one replica of the `TrainState`.
      step: steps done.
      positions: domain -> where its stream of clips is.
      best: the best scores on validation so far, or None.
      origin: where the network's first weights came from: a checkpoint's path, or `random`.
    """

    state: Any
    step: int
    positions: dict
    best: dict | None
    origin: str


def starting_point(
    config, row, folder, manager, method, optimisers, sources, clips, init_from, prepare, progress=print
):
    """Finds where a row's training begins; first match: its newest checkpoint; the checkpoint given; random.

    Args:
      config: the row's configuration.
      row: its name.
      folder: its folder, for messages.
      manager: of `checkpoint.open_manager`.
      method, optimisers: what is trained, and how.
      sources: domain -> `ClipSource`.
      clips: clips in a step of all devices.
      init_from: checkpoint whose segmentation network training starts from, or None.
      prepare: changes the network's variables where training begins.
      progress: called with lines of text.

    Returns:
      A `Start`.

    Raises:
      CheckpointError: a checkpoint that does not fit.
      UserError: the row was begun with other clips or settings.
    """
    key, segmenter = jax.random.key(config.seed), method.segmenter
    template = jax.eval_shape(lambda: create_state(method, optimisers, initial_variables(segmenter, key), key))
    found = checkpoint.restore_newest(manager, template, progress, processes.from_first, method.inference)
    if found is None:
        variables, origin = starting_variables(config, segmenter, init_from, progress)
        state = jax.jit(lambda v: create_state(method, optimisers, v, key))(prepare(variables))
        return Start(state, 0, {}, None, origin)
    state, meta, step = found
    meta.require(folder, "config", "positions", "source")
    check_same_run(config, meta.config, folder)
    if row != SOURCE:
        model_choice.check_origin(config, row, meta.source)
    check_same_data(meta.data or {}, sources, folder)
    if step > config.optim.steps and not method.online:
        raise checkpoint.CheckpointError(
            f"{folder} has a checkpoint of step {step}, and optim.steps={config.optim.steps} ends before it: set as "
            "many steps or more, or another --workdir."
        )
    progress(f"{row}  goes on from step {step}")
    if before := other_batch(config, meta, clips):
        progress(f"{row}  {before}")
    return Start(state, step, meta.positions, meta.best, meta.source)


def other_batch(config, meta, clips):
    """Says that a row goes on with another number of clips in a step than before; None where it is the same.

    Args:
      config: the row's configuration.
      meta: `CheckpointMeta` of the checkpoint that it goes on from.
      clips: clips in a step of all devices now.

    Raises:
      CheckpointError: the settings changed it, and not the number of devices.
    """
    before = meta.clips_per_step or clips  # checkpoints of earlier versions do not have it
    if before == clips:
        return None
    devices, each = jax.device_count(), config.clips_per_device * config.optim.accumulate
    stored = meta.config
    if stored["clips_per_device"] * stored["optim"]["accumulate"] != each:
        raise checkpoint.CheckpointError(
            f"The row was begun with {before} clips a step, and clips_per_device={config.clips_per_device} with "
            f"optim.accumulate={config.optim.accumulate} on {devices} devices makes {clips}. Use another --workdir, or "
            "settings that make as many as before."
        )
    factor, rest = divmod(before, config.clips_per_device * devices)
    way = f": --config.optim.accumulate={factor} keeps it" if factor and not rest else ""
    return (
        f"WARNING: {clips} clips a step on {devices} devices, and {before} before on {before // each}. From here on it "
        f"is another run than one that was not stopped{way}"
    )


def starting_variables(config, segmenter, init_from, progress=print):
    """Returns the segmentation network's first variables, and where they come from.

    Raises:
      CheckpointError: the checkpoint holds another network, or was trained on other classes, or to fuse otherwise.
    """
    key = jax.random.key(config.seed)
    if init_from is None:
        return initial_variables(segmenter, key), "random"
    template = jax.eval_shape(lambda: initial_variables(segmenter, key))
    stored = checkpoint.load_model(checkpoint_places.source_model(init_from), template=template, tell=progress)
    classes = list(model_classes(config.data))
    stored.meta.require(stored.path, "classes")
    if list(stored.meta.classes) != classes:
        raise checkpoint.CheckpointError(
            f"Checkpoint {stored.path} was trained on classes {list(stored.meta.classes)}, and data.classes="
            f"{config.data.classes} has {classes}."
        )
    # What source training starts from may have been trained in any way.
    if init_from != config.pretrain_from:
        check_propagation(config, segmenter, stored)
    return stored.variables, str(stored.path)


def check_propagation(config, segmenter, stored):
    """Raises `CheckpointError` where a network was trained to fuse scores that came from x_{t-1} in another way.

    Args:
      config: the configuration of a row that adapts or scores it.
      segmenter: its `Network`; one that does not fuse fits whatever the settings say.
      stored: a `ModelCheckpoint`.
    """
    before, now = propagation_of((stored.meta.config or {}).get("model", {})), propagation_of(config.model)
    if segmenter.fusion is not None and before != now:
        raise checkpoint.CheckpointError(
            f"Checkpoint {stored.path} is of a network with model.fusion.propagation={before}, and this run has "
            f"{now}: set --config.model.fusion.propagation={before}, or convert the network anew with "
            f"--config.model.fusion.propagation={now} if it came from PyTorch."
        )
