"""The training loop: one for source training, every adaptation method and the oracle."""

import collections
import dataclasses
import json
from pathlib import Path

import jax
import numpy as np

from input_pipeline import run_folder
from input_pipeline.domains import check_same_data
from input_pipeline.errors import UserError
from input_pipeline.labels import CLASSES
from input_pipeline.loader import train_batches
from stpl_jax import checkpoint, checkpoint_places, model_choice, parallel, processes
from stpl_jax.checkpoint_places import SOURCE
from stpl_jax.methods import make_method
from stpl_jax.models.accel import initial_variables, make_segmenter
from stpl_jax.optim import poly_schedule
from stpl_jax.records import RowScores
from stpl_jax.run_log import RunLog
from stpl_jax.settings import check_same_run
from stpl_jax.stopping import StopAfterStep
from stpl_jax.train_state import create_state, make_train_step
from stpl_jax.validation import Validation, open_together


class NonFiniteLoss(UserError):
    """A loss, or the state after the step, that is infinite or not a number."""


def build_segmenter(config):
    """Builds the segmentation network of a run's configuration: the label setting gives the number of classes."""
    sync_axis = parallel.AXIS if config.batch_norm.mode == "sync" else None
    return make_segmenter(config.model, len(CLASSES[config.data.classes]), sync_axis)


def train(config, workdir, row, init_from=None, progress=print):
    """Trains one row of the results table and scores it; goes on where an earlier call stopped.

    Where the state comes from, first match: the row's newest checkpoint; the checkpoint given; random.

    Args:
      config: the row's configuration, see `rows.row_config`.
      workdir: the run's folder; the row's own is `workdir/row`.
      row: name of the row.
      init_from: checkpoint whose segmentation network training starts from, or None.
      progress: called with lines of text.

    Raises:
      NonFiniteLoss: with the step and this process's clips; the last checkpoint before it stays.
      Stopped: after SIGTERM or Ctrl-C to any process, once the state is saved; in all processes at the same step.
      CheckpointError: a checkpoint that does not fit.
    """
    folder, steps = Path(workdir) / row, config.optim.steps
    segmenter = build_segmenter(config)
    method = make_method(config, segmenter)
    optimisers = method.optimisers(config.optim)
    sources = {
        domain: open_together(config, workdir, domain, needs, progress) for domain, needs in method.needs.items()
    }
    validation = Validation(config, workdir, segmenter, progress)
    seed_key = jax.random.key(config.seed)
    clips = config.clips_per_device * config.optim.accumulate * jax.device_count()

    with processes.in_turn(
        lambda: checkpoint.open_manager(run_folder.checkpoints(workdir, row), config.checkpoint.keep)
    ) as manager:
        template = jax.eval_shape(
            lambda: create_state(method, optimisers, initial_variables(segmenter, seed_key), seed_key)
        )
        found = checkpoint.restore_newest(manager, template, progress, processes.from_first)
        newest, start, positions, best = None, 0, {}, None
        if found is not None:
            state, meta, newest = found
            start = newest
            check_same_run(config, meta.config, folder)
            if row != SOURCE:
                model_choice.check_origin(config, row, meta.source)
            check_same_data(meta.data or {}, sources, folder)
            if start > steps:
                raise checkpoint.CheckpointError(
                    f"{folder} has a checkpoint of step {start}, and optim.steps={steps} ends before it: set as many "
                    "steps or more, or another --workdir."
                )
            positions, best, origin = meta.positions, meta.best, meta.source
            progress(f"{row}  goes on from step {start}")
            if before := other_batch(config, meta, clips):
                progress(f"{row}  {before}")
        else:
            variables, origin = starting_variables(config, segmenter, init_from, progress)
            state = jax.jit(lambda v: create_state(method, optimisers, v, seed_key))(variables)
        state = parallel.replicate(state)

        meta = checkpoint.CheckpointMeta(
            config=json.loads(config.to_json_best_effort()),
            classes=CLASSES[config.data.classes],
            label_setting=config.data.classes,
            row=row,
            method=config.method,
            batch_norm=config.batch_norm.mode,
            source=origin,
            versions=checkpoint.versions(),
            clips_per_step=clips,
            data={domain: source.digest for domain, source in sources.items()},
        )

        def save(step, positions):
            nonlocal newest
            newest = step
            now = dataclasses.replace(meta, step=step, positions=positions, best=best)
            checkpoint.save(manager, step, parallel.unreplicate(state), now)

        one_step = make_train_step(method, optimisers, config.seed, config.optim.accumulate)
        train_step = parallel.pmap(one_step, donate_state=True)
        schedule = poly_schedule(config.optim)
        log = RunLog(folder, row, steps, start, clips, config.log_every, jax.process_index() == 0, progress)
        pending = collections.deque()  # (step, clip names, metrics on the device, whether to stop)
        several, stop = jax.process_count() > 1, False

        def settle(keep=0):
            # Reads results a step late, so that the devices never wait for the host.
            nonlocal stop
            while len(pending) > keep:
                done, names, metrics, told = pending.popleft()
                values = {name: float(value) for name, value in parallel.unreplicate(metrics).items()}
                if not all(np.isfinite(value) for value in values.values()):
                    raise NonFiniteLoss(
                        f"{row}: step {done} gave {values} on clips {', '.join(names)}. "
                        + (f"The checkpoint of step {newest} in {manager.directory} is kept. " if newest else "")
                        + "Look at these clips, or lower optim.learning_rate."
                    )
                log.step(done, values | {"learning_rate": float(schedule(done - 1))})
                stop = stop or (several and parallel.is_set(told))

        stream = parallel.prefetch(device_batches(config, method, sources, positions, steps - start))
        with StopAfterStep() as stopping:
            for step, (batch, names, positions) in enumerate(stream, start + 1):
                with jax.transfer_guard("disallow"):  # everything the step needs is on the devices
                    state, metrics = train_step(state, batch)
                # The signal may reach one process alone, or each at another step: all stop where they have agreed to.
                pending.append((step, names, metrics, parallel.any_process(bool(stopping.seen)) if several else None))
                settle(keep=1)
                stop = stop or (bool(stopping.seen) and not several)
                if config.evaluate.every and step % config.evaluate.every == 0 and step < steps:
                    best = _better(best, validation.score(state, step))
                    log.write(step, {"validation/miou": validation.last["miou"]})
                    progress(f"{row}  step {step}/{steps}  validation mIoU {validation.last['miou']:.2f}")
                due = step % config.checkpoint.every == 0 or step == steps
                if due or stop:
                    settle()
                    save(step, positions)
                if stop:
                    processes.from_first(manager.wait_until_finished)
                    raise stopping.stopped(f"{row}  stopped at step {step}")
            processes.from_first(manager.wait_until_finished)
        last = validation.score(state, steps)
        best = _better(best, last)
        log.write(steps, {"validation/miou": last["miou"]})
        log.close()
    progress(f"{row}  mIoU {last['miou']:.2f} at the last step, {steps}")
    if processes.is_first():
        scores = (last, best, meta.config, log.seconds_per_step(), meta.data)
        RowScores(row, config.method, origin, *scores).write(workdir)


def other_batch(config, meta, clips):
    """Says that a row goes on with another number of clips in a step than before; None where it is the same.

    Args:
      config: the row's configuration.
      meta: of the checkpoint that it goes on from.
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
      CheckpointError: the checkpoint holds another network, or was trained on other classes.
    """
    key = jax.random.key(config.seed)
    if init_from is None:
        return initial_variables(segmenter, key), "random"
    template = jax.eval_shape(lambda: initial_variables(segmenter, key))
    stored = checkpoint.load_model(checkpoint_places.source_model(init_from), template=template, tell=progress)
    classes = list(CLASSES[config.data.classes])
    stored.meta.require(stored.path, "classes")
    if list(stored.meta.classes) != classes:
        raise checkpoint.CheckpointError(
            f"Checkpoint {stored.path} was trained on classes {list(stored.meta.classes)}, and data.classes="
            f"{config.data.classes} has {classes}."
        )
    return stored.variables, str(stored.path)


def device_batches(config, method, sources, positions, count):
    """Yields `count` batches on the devices, with clip names and the positions after each, by domain."""
    streams = {}
    for number, (domain, needs) in enumerate(sorted(method.needs.items())):
        streams[domain] = train_batches(
            sources[domain],
            batch_size=config.clips_per_device * config.optim.accumulate * jax.local_device_count(),
            seed=2 * config.seed + number,
            offsets=needs.offsets,
            flow_pairs=needs.flow_pairs,
            label=needs.labels,
            flip=config.data.flip and needs.labels,
            crop=tuple(config.data.crop) if needs.labels and any(config.data.crop) else None,
            num_workers=config.data.workers,
            num_threads=config.data.threads,
            prefetch=config.data.prefetch,
            shard=(jax.process_index(), jax.process_count()),
            state=positions.get(domain),
        )
    for _ in range(count):
        batches, names, after = {}, [], {}
        for domain, stream in streams.items():
            batch, after[domain] = next(stream)
            names += batch["name"]
            arrays = {name: value for name, value in batch.items() if name != "name"}
            batches[domain] = parallel.split_over_devices(arrays)
        yield batches, names, after


def _better(best, new):
    return new if best is None or new["miou"] > best["miou"] else best
