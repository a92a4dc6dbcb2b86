"""The training loop: one for source training, every adaptation method and the oracle."""

import collections
import json
import signal
import threading
from pathlib import Path

import jax
import numpy as np

from input_pipeline import run_folder
from input_pipeline.errors import UserError
from input_pipeline.files import write_atomically
from input_pipeline.labels import CLASSES
from input_pipeline.loader import train_batches
from stpl_jax import checkpoint, parallel, processes
from stpl_jax.methods import make_method
from stpl_jax.models.accel import initial_variables, make_segmenter
from stpl_jax.optim import poly_schedule
from stpl_jax.run_log import RunLog
from stpl_jax.train_state import create_state, make_train_step
from stpl_jax.validation import Validation, open_together


class NonFiniteLoss(UserError):
    """A loss, or the state after the step, that is infinite or not a number."""


class Stopped(SystemExit):
    """Training ended early because the process was told to (SIGTERM); the state is saved."""


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
      Stopped: after SIGTERM to any process, once the state is saved; in all processes at the same step.
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

    with processes.in_turn(
        lambda: checkpoint.open_manager(run_folder.checkpoints(workdir, row), config.checkpoint.keep)
    ) as manager:
        newest = processes.from_first(manager.latest_step)
        start, positions, best = newest or 0, {}, None
        if newest is not None:
            template = jax.eval_shape(
                lambda: create_state(method, optimisers, initial_variables(segmenter, seed_key), seed_key)
            )
            state, meta = checkpoint.restore(manager, start, template)
            check_same_run(config, meta["config"], folder)
            positions, best, origin = meta["positions"], meta["best"], meta["source"]
            progress(f"{row}  goes on from step {start}")
        else:
            variables, origin = starting_variables(config, segmenter, init_from)
            state = jax.jit(lambda v: create_state(method, optimisers, v, seed_key))(variables)
        state = parallel.replicate(state)

        meta = {
            "config": json.loads(config.to_json_best_effort()),
            "row": row,
            "method": config.method,
            "label_setting": config.data.classes,
            "classes": list(CLASSES[config.data.classes]),
            "batch_norm": config.batch_norm.mode,
            "source": origin,
            "versions": checkpoint.versions(),
        }

        def save(step, positions):
            nonlocal newest
            newest = step
            details = {"step": step, "positions": positions, "best": best}
            checkpoint.save(manager, step, parallel.unreplicate(state), meta | details)

        one_step = make_train_step(method, optimisers, config.seed, config.optim.accumulate)
        train_step = parallel.pmap(one_step, donate_state=True)
        schedule = poly_schedule(config.optim)
        clips = config.clips_per_device * config.optim.accumulate * jax.device_count()
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
        with SigtermFlag() as sigterm:
            for step, (batch, names, positions) in enumerate(stream, start + 1):
                with jax.transfer_guard("disallow"):  # everything the step needs is on the devices
                    state, metrics = train_step(state, batch)
                # The signal may reach one process alone, or each at another step: all stop where they have agreed to.
                pending.append((step, names, metrics, parallel.any_process(sigterm.seen) if several else None))
                settle(keep=1)
                stop = stop or (sigterm.seen and not several)
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
                    progress(f"{row}  stopped at step {step} by SIGTERM; the same command goes on from there")
                    raise Stopped(128 + signal.SIGTERM)
            processes.from_first(manager.wait_until_finished)
        last = validation.score(state, steps)
        best = _better(best, last)
        log.write(steps, {"validation/miou": last["miou"]})
        log.close()
    progress(f"{row}  mIoU {last['miou']:.2f} at the last step, {steps}")
    if processes.is_first():
        text = {"row": row, "method": config.method, "source": origin, "last": last, "best_on_validation": best}
        text |= {"seconds_per_step": log.seconds_per_step(), "config": meta["config"]}
        write_atomically(run_folder.evaluation(workdir, row), json.dumps(text, indent=1))


def starting_variables(config, segmenter, init_from):
    """Returns the segmentation network's first variables, and where they come from.

    Raises:
      CheckpointError: the checkpoint holds another network, or was trained on other classes.
    """
    key = jax.random.key(config.seed)
    if init_from is None:
        return initial_variables(segmenter, key), "random"
    template = jax.eval_shape(lambda: initial_variables(segmenter, key))
    stored = checkpoint.load_model(init_from, row="source_only", template=template)
    classes = list(CLASSES[config.data.classes])
    if stored.meta["classes"] != classes:
        raise checkpoint.CheckpointError(
            f"Checkpoint {stored.path} was trained on classes {stored.meta['classes']}, and data.classes="
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


class SigtermFlag:
    """Notes SIGTERM instead of dying of it, while it is entered; `seen` tells."""

    seen = False

    def __enter__(self):
        self.main = threading.current_thread() is threading.main_thread()
        if self.main:
            self.before = signal.signal(signal.SIGTERM, self._note)
        return self

    def _note(self, number, frame):
        del number, frame
        self.seen = True

    def __exit__(self, *error):
        if self.main:
            signal.signal(signal.SIGTERM, self.before)


def _better(best, new):
    return new if best is None or new["miou"] > best["miou"] else best


# Settings that may change between the parts of one run: they do not change what is computed.
_FREE = (
    "steps",
    "log_every",
    "flow.batch",
    "compare_with",
    "cpu_devices",
    "cpu_xla_flags",
    "compilation_cache",
    "checkpoint",
    "report",
    "analysis",
    "rows",
    "init_from",
)


def check_same_run(config, stored, folder):
    """Compares a row's configuration with the one that it was begun with; what does not change the result may differ.

    Args:
      config: the row's configuration.
      stored: the same as a dict, from a checkpoint or an `evaluation.json`.
      folder: of the row, for the message.

    Raises:
      CheckpointError: lists every setting that differs.
    """

    def flat(tree, prefix=""):
        if not isinstance(tree, dict):
            return {prefix[1:]: tree}
        return {k: v for name, sub in tree.items() for k, v in flat(sub, f"{prefix}.{name}").items()}

    now = flat(json.loads(config.to_json_best_effort()))
    before = flat(stored)
    free = (*_FREE, "data.threads", "data.workers", "data.prefetch", "data.prepared_dir", "optim.steps", "world")
    changed = [
        f"  {name}: was {before[name]!r}, is {now[name]!r}"
        # A setting that did not exist when the row was begun, or no longer does, cannot be compared.
        for name in sorted(now.keys() & before.keys())
        if now[name] != before[name] and not any(name == f or name.startswith(f + ".") for f in free)
    ]
    if changed:
        raise checkpoint.CheckpointError(
            f"{folder} was begun with other settings:\n"
            + "\n".join(changed)
            + "\nUse another --workdir, or these settings."
        )
