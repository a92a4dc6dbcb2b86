"""The training loop: one for source training, every adaptation method and the oracle."""

import dataclasses
import json
import math
from pathlib import Path

import jax

from input_pipeline import run_folder
from input_pipeline.labels import model_classes
from input_pipeline.loader import train_batches
from stpl_jax import checkpoint, parallel, prior_choice, processes
from stpl_jax.methods import make_method, takes_prior
from stpl_jax.methods.alpha_bn import AlphaBN, blend
from stpl_jax.models import frame_statistics, make_segmenter
from stpl_jax.optim import poly_schedule
from stpl_jax.records import RowScores, as_metrics, better, in_words
from stpl_jax.run_log import RunLog
from stpl_jax.starting_point import starting_point
from stpl_jax.step_results import StepResults
from stpl_jax.stopping import StopAfterStep
from stpl_jax.train_state import create_state, make_train_step
from stpl_jax.validation import Validation, is_scored_online, open_together


def build_segmenter(config):
    """Builds the segmentation network of a run's configuration: the label setting gives the number of classes."""
    sync_axis = parallel.AXIS if config.batch_norm.mode == "sync" else None
    return make_segmenter(config.model, len(model_classes(config.data)), sync_axis, frame_statistics(config))


def train(config, workdir, row, init_from=None, progress=print):
    """Trains one row of the results table and scores it; goes on where an earlier call stopped.

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
    folder = Path(workdir) / row
    segmenter = build_segmenter(config)
    method = make_method(config, segmenter)
    optimisers = method.optimisers(on_the_way(config.optim) if method.online else config.optim)
    sources = {
        domain: open_together(config, workdir, domain, needs, progress) for domain, needs in method.needs.items()
    }
    validation = Validation(config, workdir, segmenter, progress)
    clips = config.clips_per_device * config.optim.accumulate * jax.device_count()
    # An online method's steps are those that it takes while it is scored.
    steps = 0 if method.online else config.optim.steps

    with processes.in_turn(
        lambda: checkpoint.open_manager(run_folder.checkpoints(workdir, row), config.checkpoint.keep)
    ) as manager:
        kept = {}

        def prepare(variables):
            if takes_prior(config):
                variables, kept["prior"] = blended(config, segmenter, sources, variables, row, progress)
            elif config.batch_norm.choose_prior:
                progress(f"{row}  method={config.method} leaves batch_norm.choose_prior alone")
            return variables

        start = starting_point(
            config, row, folder, manager, method, optimisers, sources, clips, init_from, prepare, progress
        )
        state, best = parallel.replicate(start.state), start.best
        meta = checkpoint.CheckpointMeta(
            config=json.loads(config.to_json_best_effort()),
            classes=model_classes(config.data),
            label_setting=config.data.classes,
            row=row,
            method=config.method,
            batch_norm="running" if takes_prior(config) else config.batch_norm.mode,
            source=start.origin,
            versions=checkpoint.versions(),
            clips_per_step=clips,
            data={domain: source.digest for domain, source in sources.items()},
        )
        train_step = compiled_step(config, method, optimisers)
        log = RunLog(folder, row, steps, start.step, clips, config.log_every, jax.process_index() == 0, progress)
        if kept:
            log.write(start.step, kept)

        stream = parallel.prefetch(device_batches(config, method, sources, start.positions, steps - start.step))
        with StopAfterStep() as stopping:
            results = StepResults(row, log, poly_schedule(config.optim), manager, stopping)
            for step, (batch, names, positions) in enumerate(stream, start.step + 1):
                with jax.transfer_guard("disallow"):  # everything the step needs is on the devices
                    state, metrics = train_step(state, batch)
                results.add(step, names, metrics)
                results.read(all_but=1)
                if config.evaluate.every and step % config.evaluate.every == 0 and step < steps:
                    best = better(best, validation.score(state, method, step))
                    log.write(step, as_metrics(validation.last))
                    progress(f"{row}  step {step}/{steps}  validation {in_words(validation.last)}")
                if results.stop or step % config.checkpoint.every == 0 or step == steps:
                    results.read()
                    now = dataclasses.replace(meta, step=step, positions=positions, best=best)
                    checkpoint.save(manager, step, parallel.unreplicate(state), now, method.inference)
                    if results.stop:
                        processes.from_first(manager.wait_until_finished)
                        raise stopping.stopped(f"{row}  stopped at step {step}")
            processes.from_first(manager.wait_until_finished)

        if method.online and best:  # the run ended between its checkpoint and its record
            last = best
        elif is_scored_online(config, method):
            if not method.online:
                train_step = compiled_step(config, method, method.optimisers(on_the_way(config.optim)))
            last, state = validation.score_online(state, train_step, method, None if method.online else steps)
        else:
            last = validation.score(state, method, steps)
        steps, best = last["step"], better(best, last)
        if method.online and start.best is None:
            now = dataclasses.replace(meta, step=steps, positions={}, best=best)
            checkpoint.save(manager, steps, parallel.unreplicate(state), now, method.inference)
            processes.from_first(manager.wait_until_finished)
        log.write(steps, as_metrics(last))
        log.close()
    progress(f"{row}  {in_words(last)} at the last step, {steps}")
    if processes.is_first():
        scores = (last, best, meta.config, log.seconds_per_step(), meta.data)
        RowScores(row, config.method, start.origin, *scores).write(workdir)


def compiled_step(config, method, optimisers):
    """Compiles the train step of a row's configuration for all devices; it donates the state."""
    step = make_train_step(method, optimisers, config.seed, config.optim.accumulate)
    return parallel.pmap(step, donate_state=True)


def blended(config, segmenter, sources, variables, row, progress=print):
    """Blends a network's running statistics with those of the target's clips, as `alpha_bn` does.

    How much of the source's stays is `batch_norm.prior`, or what `prior_choice` finds with `batch_norm.choose_prior`.

    Args:
      config: the row's configuration.
      segmenter: a `Network`.
      sources: domain -> `ClipSource`; the target counts.
      variables: of the source model.
      row: its name, for the message.
      progress: called with lines of text.

    Returns:
      `variables` with other `batch_stats`, and the share of the source's in them.
    """
    config = config.copy_and_resolve_references()
    config.optim.accumulate = 1
    method = AlphaBN(config, segmenter)
    state = parallel.replicate(create_state(method, {}, variables, jax.random.key(config.seed)))
    step = compiled_step(config, method, {})
    steps = math.ceil(config.batch_norm.prior_clips / (config.clips_per_device * jax.device_count()))
    for batch, _, _ in device_batches(config, method, sources, {}, steps):
        state, _ = step(state, batch)
    source, target = state.extra["source"], state.extra["target"]
    prior, how = config.batch_norm.prior, ""
    if config.batch_norm.choose_prior:
        params, measures = state.params["network"]["segmenter"], prior_choice.make_measures(segmenter)
        found = [
            measures(params, source, target, batch["target"])
            for batch, _, _ in device_batches(config, method, sources, {}, steps)
        ]
        each = prior_choice.costs([parallel.unreplicate(measure) for measure in found])
        prior = 1 - prior_choice.lowest(each)
        listed = (f"{1 - share:.0%} {cost:.3f}" for share, cost in zip(prior_choice.SHARES, each, strict=True))
        how = f"; chosen for the lowest cost: {', '.join(listed)}"
    progress(
        f"{row}  statistics: {prior:.0%} the source's, the rest the target's, of "
        f"{steps * config.clips_per_device * jax.device_count()} clips drawn{how}"
    )
    return variables | {"batch_stats": blend(*map(parallel.unreplicate, (source, target)), 1 - prior)}, prior


def on_the_way(settings):
    """`config.optim` without warm-up and decay, for what is learnt while it is scored: a stream has no last step."""
    settings = settings.copy_and_resolve_references()
    settings.power, settings.warmup_steps = 0.0, 0
    return settings


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
            flip=needs.mirrored,
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
