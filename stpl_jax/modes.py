"""What `main.py --mode=...` does: which rows are trained, from which weights, and what follows."""

import contextlib
import dataclasses
import json
from pathlib import Path

from input_pipeline import run_folder
from input_pipeline.domains import domain_spec, open_domain, with_own_video
from input_pipeline.errors import UserError
from input_pipeline.files import write_atomically
from input_pipeline.labels import model_classes
from input_pipeline.needs import DomainNeeds
from stpl_jax import (
    checkpoint,
    flow_estimators,
    flow_extraction,
    model_choice,
    preflight,
    processes,
    selection,
    source_settings,
    to_label,
)
from stpl_jax import predict as prediction
from stpl_jax.checkpoint_places import SOURCE
from stpl_jax.flow_estimators import FlowError
from stpl_jax.methods import make_method
from stpl_jax.models import frame_statistics, make_segmenter
from stpl_jax.parallel import replicate
from stpl_jax.records import RowScores, in_words, read_scores
from stpl_jax.report import analysis
from stpl_jax.report import writing as report
from stpl_jax.report.analysis_files import read_results
from stpl_jax.rows import row_config, row_names
from stpl_jax.settings import check as check_settings
from stpl_jax.settings import check_same_run
from stpl_jax.starting_point import check_propagation
from stpl_jax.train import build_segmenter, train
from stpl_jax.validation import Validation


def with_inputs(config, workdir, progress=print):
    """Fills in what comes from the source model and from one's own videos; of all modes but predict, the beginning.

    Raises:
      UserError: something in the settings, the checkpoint or the folder of videos that a person can mend.
    """
    if config.from_checkpoint:
        config = source_settings.complete(source_settings.as_before(config, workdir))
        check_settings(config)
    if config.data.target.name == "own_video":
        if config.data.target.raw_dir:
            _check_needs(config, workdir)
        frames = 1 + max(_needs(config, "target").offsets, default=1)
        config = config.copy_and_resolve_references()
        config.data.target.update(processes.from_first(lambda: _own_video(config, workdir, frames, progress)))
    return config


def _check_needs(config, workdir):
    """Raises `UserError` where a row needs what own videos do not have: before hours of them are looked at."""
    for row in row_names(config):
        if row != SOURCE:
            settings = row_config(config, row)
            for domain, needs in _method_needs(settings).items():
                domain_spec(settings, domain, needs, workdir)


def _own_video(config, workdir, frames, progress):
    section = with_own_video(config, workdir, progress, frames).data.target
    return {"raw_dir": section.raw_dir, "size": tuple(section.size)}


def auto(config, workdir, progress=print):
    """Does what is missing of source training, adaptation, evaluation and report."""
    _run_rows(config, workdir, row_names(config), progress)
    _estimate_flow(config, workdir, {"val": None}, progress)
    _report(config, workdir, progress)


def pretrain(config, workdir, progress=print):
    """Trains the source model."""
    _run_rows(config, workdir, (SOURCE,), progress)


def adapt(config, workdir, progress=print):
    """Adapts the source model by `config.method`.

    Raises:
      CheckpointError: there is no source model.
    """
    _run_rows(config, workdir, (config.method,), progress)


def flow(config, workdir, progress=print):
    """Writes the flow files that the run's rows need, of every domain whose raw folder is configured.

    Raises:
      FlowError: there is nothing to estimate, or nothing to estimate it with.
    """
    if config.flow.files == "read":
        raise FlowError(
            "--mode=flow estimates flow, and config.flow.files=read reads what others estimated: choose "
            "--config.flow.files=write."
        )
    given = [domain for domain in ("source", "target") if config.data[domain].raw_dir or config.world.generate]
    if not given:
        raise FlowError(
            "No data set is configured: set --config.data.source.raw_dir=FOLDER or --config.data.target.raw_dir=FOLDER."
        )
    needs = {domain: _needs(config, domain) for domain in given}
    if "target" in given:
        needs["val"] = None
    processes.from_first(lambda: flow_extraction.extract(config, workdir, needs, progress))


def evaluate(config, workdir, progress=print):
    """Scores again every row of the table that has a checkpoint, and writes the report anew.

    Raises:
      CheckpointError: the row of `config.method` has none although others have; see `model_choice.table_models`.
    """
    rows, left_out = processes.from_first(lambda: model_choice.table_models(config, workdir))
    _note_settings(config, workdir)
    preflight.check(config, workdir, tuple(rows), progress, training=False)
    for row, path in rows.items():
        before = _known_scores(workdir, row, progress)
        settings = row_config(config, row)
        stored = _said(checkpoint.load_model, path, f"evaluate  {row}: ", "", progress)
        if row != SOURCE:
            model_choice.check_origin(config, row, stored.meta.source or "")
        own = path == str(run_folder.checkpoints(workdir, row))
        source = stored.meta.source or "unknown" if own else str(stored.path)
        on_the_way = (before.last if before else own and stored.meta.best) or {}
        if on_the_way.get("online"):
            # The network as it is now has seen all of the clips.
            progress(f"evaluate  {row} keeps its score, taken on the way: only training it anew would score it again")
            score = _with_masks(settings, workdir, stored, on_the_way, progress)
        else:
            if settings.evaluate.online:
                progress(f"evaluate  {row}: evaluate.online is of training; the stored network is scored as it is")
            score = _score(settings, workdir, stored, progress)
        _record(settings, workdir, row, source, score, before)
        progress(f"{row}  {in_words(score)} at step {score['step']}")
    for line in left_out:
        progress(f"evaluate  {line}")
    _report(config, workdir, progress)


def analyse(config, workdir, wanted=(), progress=print):
    """Compares networks in feature space, every row of the run or those that are named; see `analysis`.

    Args:
      config: the run's configuration.
      workdir: the run's folder.
      wanted: as `analysis.find_checkpoints` takes them.
      progress: called with lines of text.
    """
    _estimate_flow(config, workdir, {"val": None}, progress)

    def write():
        analysis.analyse(config, workdir, analysis.find_checkpoints(config, workdir, wanted), progress)
        if any(run_folder.evaluation(workdir, row).is_file() for row in row_names(config)):
            report.write_report(config, workdir, progress)

    processes.from_first(write)


def select(config, workdir, progress=print):
    """Chooses among the rows of the table that have a model, without labels; writes select.json. See `selection`.

    Raises:
      CheckpointError: there is none, or the row of `config.method` has none although others have.
      UserError: `source_only` has no model.
    """
    needs = DomainNeeds()
    _estimate_flow(config, workdir, {"target": needs}, progress)

    def write():
        rows, left_out = model_choice.table_models(config, workdir)
        source = open_domain(config, workdir, "target", needs, progress)
        # As they are scored: a source model that was given may come from another size.
        models = {
            row: dataclasses.replace(prediction.load(path, tell=progress), size=source.spec.size)
            for row, path in rows.items()
        }
        found = selection.select(models, source, progress)
        write_atomically(Path(workdir) / run_folder.SELECTION, json.dumps(found.as_json(), indent=1))
        for line in (*found.lines(), *left_out):
            progress(f"select  {line}")
        progress(f"select  --mode=predict --row={found.chosen} applies it")

    processes.from_first(write)


def choose_frames(config, workdir, progress=print):
    """Writes the held-out frames that are worth labelling into the run's folder; see `to_label`.

    Raises:
      CheckpointError: there is no model to choose by.
      UserError: the set has labels.
    """
    _estimate_flow(config, workdir, {"val": None}, progress)

    def write():
        rows, _ = model_choice.table_models(config, workdir)
        to_label.write_frames(config, workdir, rows, progress)

    processes.from_first(write)


def predict(config, workdir, row, source, output, progress=print):
    """Segments a video file or a folder of frames with the model that `model_choice.to_apply` chooses.

    The first process does it alone.
    """

    def write():
        # A run on one's own video names its source model by init_from; what it has adapted is what is applied.
        named = config.method if row is None and config.from_checkpoint else row
        path, asked = model_choice.to_apply(config, workdir, named)
        model = _said(prediction.load, path, "predict  applies ", f" ({asked})", progress)
        model = dataclasses.replace(model, estimate_flow=flow_estimators.load(config.flow).of_pair())
        prediction.predict_files(model, source, output, progress)

    processes.from_first(write)


def _run_rows(config, workdir, rows, progress):
    """Runs rows, once all that they need has been looked at; before that, it is said which model the first is of."""
    _note_settings(config, workdir)
    _introduce(config, workdir, rows[0], progress)
    preflight.check(config, workdir, rows, progress)
    for row in rows:
        if row != rows[0]:
            _introduce(config, workdir, row, progress)
        run_row(config, workdir, row, progress)


def run_row(config, workdir, row, progress=print):
    """Trains and scores one row of the table, or finds it done.

    Raises:
      CheckpointError: the row starts from a source model, and there is none; or it was done with other settings.
    """
    settings = row_config(config, row)
    before = _known_scores(workdir, row, progress)
    given = processes.from_first(lambda: str(model_choice.given_model(config, workdir, row) or ""))
    if given:
        stored = _said(checkpoint.load_model, given, f"{row}  is config.init_from={config.init_from}: ", "", progress)
        if before is None or before.source != str(stored.path):
            score = _score(settings, workdir, stored, progress)
            _record(settings, workdir, row, str(stored.path), score)
            progress(f"{row}  {in_words(score)}, from {stored.path}")
        return
    if before is not None and row != SOURCE:
        model_choice.check_origin(config, row, before.source)
    if preflight.is_done(settings, before):
        check_same_run(settings, before.config, Path(workdir) / row)
        progress(f"{row}  is done: {run_folder.evaluation(workdir, row)}")
        return
    origin = config.pretrain_from
    if row != SOURCE:
        origin = processes.from_first(lambda: str(model_choice.source_model(config, workdir)))
    _estimate_flow(settings, workdir, _method_needs(settings) | {"val": None}, progress)
    if settings.optim.steps > settings.optim.decay_steps and settings.optim.power:
        progress(
            f"{row}  WARNING: optim.steps={settings.optim.steps} is more than optim.decay_steps="
            f"{settings.optim.decay_steps}, from where on the learning rate is 0"
        )
    train(settings, workdir, row, origin, progress)


def _introduce(config, workdir, row, progress):
    """Says which model a row starts or goes on from, before anything else is said of it."""

    def lines():
        settings = row_config(config, row)
        # What is wrong is said later, with all else that is.
        with contextlib.suppress(UserError):
            done = preflight.is_done(settings, read_scores(workdir, row))
            if not done and not model_choice.given_model(config, workdir, row):
                origin = config.pretrain_from if row == SOURCE else model_choice.source_model(config, workdir)
                return model_choice.start_lines(settings, workdir, row, origin)
        return []

    for line in processes.from_first(lines):
        progress(line)


def _said(load, path, before, after, progress):
    """Loads a model and says which, first of all; then what there is to say about its checkpoint."""
    notes = []
    found = load(path, tell=notes.append)
    for line in (f"{before}{found.description}{after}", *notes):
        progress(line)
    return found


def _report(config, workdir, progress):
    """Writes the report; with it, if that is set, an analysis of the network before and after."""

    def write():
        if config.report.analysis:
            found = analysis.present_checkpoints(config, workdir, dict.fromkeys((SOURCE, config.method)))
            try:
                # One of more networks, asked for by --mode=analyse, stays while it is true.
                if found and not analysis.is_enough(read_results(workdir, progress), config, workdir, found):
                    analysis.analyse(config, workdir, found, progress)
            except (analysis.AnalysisError, checkpoint.CheckpointError) as error:
                # The numbers are there all the same.
                progress(f"report  no analysis: {error}")
        report.write_report(config, workdir, progress)

    processes.from_first(write)


def _note_settings(config, workdir):
    """Writes the run's settings down; several processes make sure that they are one run."""
    file, text = Path(workdir) / run_folder.CONFIG, config.to_json_best_effort(indent=1)
    processes.from_first(lambda: write_atomically(file, text))
    processes.check_together(file, text)


def _method_needs(settings):
    return dict(make_method(settings, build_segmenter(settings)).needs)


def _needs(config, domain):
    """What all rows together need of a training domain."""
    needs = [_method_needs(row_config(config, row)).get(domain) for row in row_names(config)]
    offsets = {offset for n in needs if n for offset in n.offsets}
    pairs = {tuple(pair) for n in needs if n for pair in n.flow_pairs}
    return DomainNeeds(tuple(sorted(offsets)), tuple(sorted(pairs)))


def _estimate_flow(settings, workdir, needs, progress):
    """Writes the flow files that sets are about to be prepared from, where the run makes them."""
    if settings.flow.files == "write":
        processes.from_first(lambda: flow_extraction.extract(settings, workdir, needs, progress, unprepared_only=True))


def _score(settings, workdir, stored, progress):
    validation, model = _validation(settings, workdir, stored, progress)
    return validation.score_model(model, stored.meta.step)


def _with_masks(settings, workdir, stored, scores, progress):
    """Scores that were taken on the way, with what masks say now where the network was stored after all updates."""
    if not make_method(settings, build_segmenter(settings)).online:
        return scores
    validation, model = _validation(settings, workdir, stored, progress)
    return validation.with_masks(scores, model)


def _validation(settings, workdir, stored, progress):
    """The `Validation` of a stored network and its replicated variables.

    It infers as the method that it was stored by: what predict and the pictures show. No statistics cross devices.
    """
    share = frame_statistics(stored.meta.config or {})
    segmenter = make_segmenter(settings.model, len(model_classes(settings.data)), frame_statistics=share)
    check_propagation(settings, segmenter, stored)
    _estimate_flow(settings, workdir, {"val": None}, progress)
    variables = replicate(stored.variables)
    return Validation(settings, workdir, segmenter, progress), (variables["params"], variables["batch_stats"])


def _record(settings, workdir, row, source, score, before=None):
    """Writes a row's score down; what is known of its training from `before` stays."""
    best, seconds, data = score, None, None
    if before:
        # The best of other clips, or by other labels, is none of these.
        same = all(before.last.get(key) == score.get(key) for key in ("data", "labels"))
        best = before.best_on_validation if same else score
        seconds, data = before.seconds_per_step, before.data
    if processes.is_first():
        config = json.loads(settings.to_json_best_effort())
        RowScores(row, settings.method, source, score, best, config, seconds, data).write(workdir)


def _known_scores(workdir, row, progress):
    """Returns a row's `RowScores`, or None where there are none or the file is damaged: they can be had again."""

    def read():
        try:
            found = read_scores(workdir, row)
        except UserError as error:
            progress(f"{row}  is scored again: {error}")
            return None
        return found and dataclasses.asdict(found)

    found = processes.from_first(read)
    return found and RowScores(**found)
