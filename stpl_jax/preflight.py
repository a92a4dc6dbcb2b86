"""What a run will need is looked at before its first long step, and everything that is wrong is said at once."""

import contextlib
import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax

from input_pipeline import own_labels, run_folder
from input_pipeline import prepare as preparing
from input_pipeline.clips import open_clips
from input_pipeline.domains import (
    SCORED_OFFSETS,
    SCORED_PAIRS,
    check_flow,
    check_same_data,
    domain_spec,
    flow_files_there,
    with_world,
)
from input_pipeline.errors import UserError
from input_pipeline.labels import model_classes
from input_pipeline.loader import check_crop
from input_pipeline.needs import DomainNeeds
from input_pipeline.spec import DatasetSpec, merged, prepared_path
from stpl_jax import checkpoint, disk_space, flow_estimators, flow_extraction, model_choice, processes, to_label
from stpl_jax.checkpoint_places import SOURCE
from stpl_jax.flow_estimators import FlowError
from stpl_jax.methods import make_method
from stpl_jax.models.network import initial_variables
from stpl_jax.records import RowScores, read_scores
from stpl_jax.rows import row_config
from stpl_jax.settings import check_same_run
from stpl_jax.starting_point import starting_variables
from stpl_jax.train import build_segmenter
from stpl_jax.validation import check_online, is_scored_online

# Bytes in a prepared set for each pixel of a frame, and of a flow field; of photographs, measured roughly.
_FRAME_BYTES, _FLOW_BYTES = 1.8, 1.2


class PreflightError(UserError):
    """Several things that a run needs are missing or wrong; the message lists all of them."""


@dataclasses.dataclass(frozen=True)
class _Row:
    """A row of the table.

    Attributes:
      name: of the row.
      settings: its configuration.
      needs: domain -> what its method reads of it; None for what is always read.
      scored: its `RowScores`, None where there are none.
      before: `CheckpointMeta` of its newest checkpoint, None where it begins.
      done: whether there is nothing left to do.
      method: its `Method`, None where nothing is trained.
    """

    name: str
    settings: Any
    needs: dict
    scored: RowScores | None = None
    before: checkpoint.CheckpointMeta | None = None
    done: bool = False
    method: Any = None


@dataclasses.dataclass(frozen=True)
class _Set:
    """A prepared set that rows read.

    Attributes:
      domain: `val`, `target` or `source`.
      spec: what is in it: all that any of the rows needs.
      settings: configuration of one of the rows.
    """

    domain: str
    spec: DatasetSpec
    settings: Any


class _Problems:
    """Collects the errors that a person can mend, each once."""

    def __init__(self):
        self.errors = []

    def look(self, function, *args):
        """Calls a function and returns its value, or None where it raised such an error."""
        try:
            return function(*args)
        except (UserError, OSError) as error:
            if str(error) not in map(str, self.errors):
                self.errors.append(error)
            return None

    def say(self):
        """Raises what was found; a single error as it is."""
        if len(self.errors) == 1:
            raise self.errors[0]
        if self.errors:
            texts = "\n".join(f"{i}. {error}" for i, error in enumerate(self.errors, 1))
            raise PreflightError(f"{len(self.errors)} things stand in the way of this run:\n{texts}")


def check(config, workdir, rows, progress=print, training=True):
    """Looks at everything that rows will need, and prepares all of their sets.

    To be called once, before the first row. Looked at are the settings of rows that are begun or done, weights, folders
    and list files, whether the output can be written, every file of every set that is not prepared yet, and whether a
    row's clips are those that it was begun with. Only when all of that is right are flow files and sets written; the
    generated world, which needs no files, comes before. From then on the run does not compare its sets with their raw
    files again: all rows read the same clips. Of several processes, the first does it.

    Args:
      config: the run's configuration.
      workdir: the run's folder.
      rows: names of the rows that are about to be run, in their order.
      progress: called with lines of text.
      training: False where the rows' checkpoints are scored, and nothing else.

    Raises:
      PreflightError: lists everything that is wrong; a single error is raised as it is.
    """
    preparing.settle(processes.from_first(lambda: _check(config, Path(workdir), rows, progress, training)))


def _check(config, workdir, rows, progress, training):
    preparing.settle(())
    problems = _Problems()
    found = [problems.look(_find_row, config, workdir, row, training) for row in rows]
    work = [row for row in found if row is not None and not row.done]
    if training:
        _look_at_weights(config, workdir, rows, work, problems)
    problems.look(disk_space.try_to_write, workdir)
    if config.world.generate:
        # Rendering takes minutes, and nothing that is wrong so far depends on it.
        problems.say()
        config = with_world(config, workdir, progress)
        found = [dataclasses.replace(row, settings=row_config(config, row.name)) for row in found]
        work = [row for row in found if not row.done]
    for row in work:
        if row.method is not None:
            problems.look(_check_online, row, workdir)
    prepared = run_folder.prepared(config, workdir)
    sets = _find_sets(work, workdir, prepared, problems)
    checked = _look_at_files(config, sets, prepared, problems, progress)
    problems.say()
    of_sets, of_checkpoints = _bytes_to_write(config, work, sets, checked)
    disk_space.warn_where_full(((prepared, of_sets), (workdir, of_checkpoints)), progress)
    for wanted in sets.values():
        if wanted.spec.flow_estimator:
            needs = {wanted.domain: DomainNeeds(wanted.spec.offsets, wanted.spec.flow_pairs)}
            flow_extraction.extract(wanted.settings, workdir, needs, progress, unprepared_only=True)
    used = [preparing.prepare(s.spec, prepared, progress, checked=checked.get(path)) for path, s in sets.items()]
    preparing.settle(used)
    for row in work:
        problems.look(_compare_data, row, workdir, prepared)
    for path, wanted in zip(used, sets.values(), strict=True):
        if wanted.domain == "val" and wanted.spec.classes is None:
            # A bad mask is better known of now than once training has ended.
            problems.look(to_label.read_masks, workdir, open_clips(path), model_classes(wanted.settings.data))
    problems.say()
    for wanted in sets.values():
        _tell_of_consistency(wanted.spec, progress)
    for row in found if training else ():
        _tell_of_other_data(row, workdir, prepared, progress)
    if not training and own_labels.holds_masks(run_folder.own_video(workdir)):
        _tell_of_trained_on(found, workdir, prepared, progress)
    return list(map(str, used))


def _find_row(config, workdir, row, training):
    """Returns what a row needs; distinguishes the cases that `modes.run_row` does."""
    settings, val, scored = row_config(config, row), {"val": None}, None
    check_flow(settings)
    # Where they are damaged, the row is not done, and is scored again.
    with contextlib.suppress(UserError):
        scored = read_scores(workdir, row)
    if not training or (row == SOURCE and config.init_from):
        return _Row(row, settings, val, scored)
    method = make_method(settings, build_segmenter(settings))
    needs = dict(method.needs) | val
    if is_done(settings, scored):
        check_same_run(settings, scored.config, workdir / row)
        return _Row(row, settings, needs, scored, done=True)
    if settings.optim.frozen or settings.optim.multipliers:
        _check_parameters(settings, method)
    meta = None
    # Where it cannot be read, nothing was saved yet, or the training loop says what is wrong.
    with contextlib.suppress(checkpoint.CheckpointError):
        meta = checkpoint.peek(run_folder.checkpoints(workdir, row), tell=lambda line: None).meta
    if meta is not None:
        check_same_run(settings, meta.config, workdir / row)
    return _Row(row, settings, needs, scored, meta, method=method)


def is_done(settings, scores):
    """Whether a row is trained and scored as its configuration says, which `RowScores`, or None, tell."""
    if scores is None:
        return False
    method = make_method(settings, build_segmenter(settings))
    if bool(scores.last.get("online")) != is_scored_online(settings, method):
        return False  # it has the other kind of score
    # An online method takes as many steps as there are batches to score.
    return method.online or scores.last["step"] == settings.optim.steps


def _check_parameters(settings, method):
    """Raises `UserError` where settings of the optimiser name parameters that there are not; computes no values."""
    key = jax.random.key(0)

    def init():
        params, _ = method.init(key, initial_variables(method.segmenter, key))
        return {group: optimiser.init(params[group]) for group, optimiser in method.optimisers(settings.optim).items()}

    jax.eval_shape(init)


def _check_online(row, workdir):
    """Looks whether scoring on the way, which comes after the last step, gives a method what it needs."""
    if is_scored_online(row.settings, row.method):
        check_online(row.settings, row.method, domain_spec(row.settings, "val", workdir=workdir))


def _look_at_weights(config, workdir, rows, work, problems):
    seen = set()
    for row in work:
        if row.before is not None:
            continue  # it goes on from its own checkpoint
        if config.init_from:
            key, path = "init_from", config.init_from
        elif row.name == SOURCE:
            key, path = "pretrain_from", config.pretrain_from
        else:
            # Where source_only comes first, its model will be there.
            key, path = None, None if SOURCE in rows else problems.look(model_choice.source_model, config, workdir)
        segmenter = build_segmenter(row.settings)
        if path and (path, segmenter) not in seen:
            seen.add((path, segmenter))
            problems.look(_check_weights, key, path, row.settings, segmenter)


def _check_weights(key, path, settings, segmenter):
    try:
        starting_variables(settings, segmenter, path, progress=lambda line: None)
    except checkpoint.CheckpointError as error:
        raise (checkpoint.CheckpointError(f"config.{key}: {error}") if key else error) from None


def _find_sets(work, workdir, prepared, problems):
    """Describes the sets that rows read, one for all rows of a domain: path -> `_Set`, the validation set first."""
    sets = {}
    for domain in ("val", "target", "source"):
        wanted = {}
        for row in work:
            if domain not in row.needs:
                continue
            needs, crop = row.needs[domain], tuple(row.settings.data.crop)
            spec = problems.look(domain_spec, row.settings, domain, needs, workdir)
            # Its list file is read here.
            if spec is None or problems.look(prepared_path, spec, prepared) is None:
                continue
            wanted.setdefault(spec, row.settings)
            if needs is not None and needs.labels and any(crop):
                problems.look(check_crop, spec, crop, True)
        for spec, parts in merged(wanted).items():
            sets[prepared_path(spec, prepared)] = _Set(domain, spec, wanted[parts[0]])
    return sets


def _look_at_files(config, sets, prepared, problems, progress):
    """Reads all files of sets that are to be prepared; path -> `Checked` of what can be prepared as it is."""
    checked, unprepared = {}, {}
    for path, wanted in sets.items():
        spec = wanted.spec
        if problems.look(preparing.is_usable, spec, prepared, progress) is False:
            # Flow that the run estimates comes later, from frames that have to be whole.
            unprepared[path] = dataclasses.replace(spec, flow_pairs=()) if spec.flow_estimator else spec
    if unprepared:
        problems.look(disk_space.try_to_write, prepared)
    if any(spec.flow_estimator and _lacks_flow(sets[path].spec, prepared) for path, spec in unprepared.items()):
        problems.look(_check_flow_network, config)
    for error in problems.errors if unprepared else ():
        # To be mended while all files are read, which can take long.
        progress(f"in the way already: {error}")
    for path, spec in unprepared.items():
        found = problems.look(preparing.check, spec, prepared, progress)
        if not spec.flow_estimator:
            checked[path] = found
    return checked


def _lacks_flow(spec, prepared):
    counts = [flow_files_there(spec, pair) for pair in spec.flow_pairs]
    return any(there < wanted for there, wanted in counts) or bool(preparing.stale_flow(spec, prepared))


def _check_flow_network(config):
    if jax.process_count() > 1:
        raise FlowError(flow_extraction.IN_ONE_PROCESS)
    flow_estimators.load(config.flow)


def _bytes_to_write(config, work, sets, checked):
    """Roughly how many bytes the sets that are prepared will take, and the checkpoints."""
    of_sets = 0
    for path, found in checked.items():
        spec = sets[path].spec
        of_pixel = _FRAME_BYTES * len(spec.offsets) + _FLOW_BYTES * len(spec.flow_pairs)
        of_sets += len(found.clips if found else ()) * spec.size[0] * spec.size[1] * of_pixel
    # Parameters and momentum; the newest is written before the oldest goes.
    networks = [build_segmenter(row.settings) for row in work if set(row.needs) - {"val"}]
    return of_sets, sum(2 * _bytes_of(network) * (config.checkpoint.keep + 1) for network in networks)


@functools.cache
def _bytes_of(segmenter):
    shapes = jax.eval_shape(lambda: initial_variables(segmenter, jax.random.key(0)))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def _compare_data(row, workdir, prepared):
    """Checks that a row that was begun goes on with the same clips."""
    before = row.before.data or {} if row.before else {}
    sources = {
        domain: open_clips(preparing.find(domain_spec(row.settings, domain, needs, workdir), prepared), needs)
        for domain, needs in row.needs.items()
        if domain in before
    }
    check_same_data(before, sources, workdir / row.name)


def _tell_of_consistency(spec, progress):
    """Says where temporal consistency is not measured: of sets that keep the labels' own size, for scoring."""
    if spec.label_size is not None or SCORED_PAIRS[1] in spec.flow_pairs:
        return
    whole = dataclasses.replace(spec, offsets=SCORED_OFFSETS, flow_pairs=SCORED_PAIRS)
    there, asked = flow_files_there(whole, SCORED_PAIRS[1])
    progress(
        f"validation  without temporal consistency, which needs flow from x_(t-1) into x_(t-2): {there} of {asked} "
        f"files are in {spec.flow_dir}. mIoU does not need them"
    )


def _tell_of_other_data(row, workdir, prepared, progress):
    """Says where a score was reached with other clips than there are now."""
    if row.scored is None:
        return
    before = {"val": row.scored.last.get("data")} | (row.scored.data or {})
    changed = [
        domain
        for domain, needs in row.needs.items()
        if _Problems().look(_is_other_data, row, domain, needs, workdir, prepared, before.get(domain))
    ]
    if changed:
        progress(
            f"{row.name} was trained or scored on other clips than there are now ({', '.join(changed)}): its score "
            "cannot be compared with new ones. --mode=evaluate scores it again, another --workdir trains it again"
        )


def _tell_of_trained_on(rows, workdir, prepared, progress):
    """Says which rows were adapted on other clips than the target has now, some of which may have labels now."""
    changed = []
    for row in rows:
        digest = ((row.scored and row.scored.data) or {}).get("target")
        needs = make_method(row.settings, build_segmenter(row.settings)).needs if digest else {}
        if "target" in needs and _Problems().look(
            _is_other_data, row, "target", needs["target"], workdir, prepared, digest
        ):
            changed.append(row.name)
    if changed:
        progress(
            f"{', '.join(changed)}: adapted before the videos or their masks were as they are now. Frames that are "
            "scored may have been adapted on, and are not held out then; another --workdir adapts without them"
        )


def _is_other_data(row, domain, needs, workdir, prepared, digest):
    spec = domain_spec(row.settings, domain, needs, workdir)
    path = preparing.find(spec, prepared, lambda line: None)
    if path is None:
        return preparing.is_there(spec, prepared)  # otherwise there is nothing to compare with, and nobody needs it
    return digest is not None and open_clips(path, needs).digest != digest
