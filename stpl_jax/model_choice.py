"""Which model a run means: the one rule for predict, adapt, evaluate, analyse and the report (docs/weights.md).

What is asked for by name is what is taken, or an error says what there is: a row by `--row`; a model by
`config.init_from`, which stands for the row source_only; else the row of `config.method`. Where two could be meant,
none is taken.
"""

from pathlib import Path

from input_pipeline import run_folder
from input_pipeline.files import expand
from stpl_jax import checkpoint
from stpl_jax import checkpoint_places as places
from stpl_jax.checkpoint_places import SOURCE, CheckpointError
from stpl_jax.rows import row_names

HOW_TO_TRAIN = (
    "Either train it here, with the source data: --mode=pretrain --config.data.source.raw_dir=FOLDER; or name one that "
    "is trained: --config.init_from=CHECKPOINT."
)


def to_apply(config, workdir, row=None):
    """Chooses what `--mode=predict` applies.

    Args:
      config: the run's configuration.
      workdir: the run's folder, or, as `checkpoint.load_model` takes it, a row's folder or a folder of checkpoints.
      row: the row that was asked for, or None.

    Returns:
      Path for `checkpoint.load_model`, and in words how it was chosen.

    Raises:
      CheckpointError: what is asked for is not there, or two models could be meant; says what there is.
    """
    there = _models(workdir)
    if row is None and config.init_from:
        given = places.source_model(config.init_from)
        others = [name for name, path in there.items() if not _same(path, given)]
        if others:
            apart = None in others or SOURCE in others
            raise CheckpointError(
                f"Two models could be meant: config.init_from={config.init_from}, and those of {workdir} "
                f"({places.list_rows(workdir)}). To apply what init_from names, "
                + ("use another --workdir" if apart else f"give --row={SOURCE}")
                + "; to apply one of the others, leave init_from out, and give --row=ROW."
            )
        return given, f"config.init_from={config.init_from}"
    if None in there:
        checkpoint.peek(there[None], row)  # refuses another row
        return there[None], f"--workdir={workdir}"
    asked = f"config.method={config.method}, no --row" if row is None else f"--row={row}"
    asked += "; config.init_from is not used" if config.init_from and row != SOURCE else ""
    row = config.method if row is None else row
    found = row_model(config, workdir, row) if row == SOURCE or row in there else None
    if found is None:
        given = f"config.init_from={config.init_from} is applied by --row={SOURCE}." if config.init_from else ""
        advice = given or ("--row=ROW applies one of them." if there else "Run --mode=auto, pretrain or adapt first.")
        raise places.no_row(workdir, row, asked, advice)
    return found, asked


def source_model(config, workdir):
    """Chooses what adaptation starts from: `config.init_from`, or else the row source_only of the working directory.

    Returns:
      Path for `checkpoint.load_model`.

    Raises:
      CheckpointError: neither is there; says how to get one.
    """
    if config.init_from:
        return places.source_model(config.init_from)
    own = run_folder.checkpoints(workdir, SOURCE)
    if not places.in_folder(own):
        raise CheckpointError(
            f"Adapting needs a source model, and neither config.init_from nor {own} has one ({workdir} has "
            f"{places.list_rows(workdir)}). {HOW_TO_TRAIN}"
        )
    return own


def row_model(config, workdir, row):
    """Finds the model of a row: path for `checkpoint.load_model`, or None where it has none.

    A source model that was given, and not trained here, stays where it is.

    Raises:
      CheckpointError: source_only was trained here, and `config.init_from` names another.
    """
    own = run_folder.checkpoints(workdir, row)
    return given_model(config, workdir, row) or (own if places.in_folder(own) else None)


def given_model(config, workdir, row):
    """Finds the model that `config.init_from` names where it stands for this row: its path, or None.

    Raises:
      CheckpointError: source_only was trained here, and `config.init_from` names another.
    """
    if row != SOURCE or not config.init_from:
        return None
    own, given = run_folder.checkpoints(workdir, row), places.source_model(config.init_from)
    if not places.in_folder(own):
        return given
    if _same(own, given):
        return None
    raise CheckpointError(
        f"Two models could be the row {SOURCE}: {own}, which was trained here, and "
        f"config.init_from={config.init_from}. To take the one that was trained here, leave init_from out; to take the "
        "other, use another --workdir."
    )


def row_or_path(config, workdir, text, asked):
    """Finds what a person named: a row of the working directory, or else a path, as `checkpoint.load_model` takes it.

    Args:
      config: the run's configuration.
      workdir: the run's folder.
      text: the row or path.
      asked: the flag and its value, for the message.

    Returns:
      Path for `checkpoint.load_model`.

    Raises:
      CheckpointError: it is neither; says what there is.
    """
    found = row_model(config, workdir, text)
    if found is None and not expand(text).exists():
        raise places.no_row(workdir, text, asked, f"There is no folder {expand(text)} either.")
    return found or places.find(text).path


def table_models(config, workdir, advice=""):
    """Chooses what `--mode=evaluate` scores and `--mode=analyse` compares: the rows of the table that have a model.

    Args:
      config: the run's configuration.
      workdir: the run's folder.
      advice: what else may be done where there is nothing, the end of the message.

    Returns:
      dict of row -> path for `checkpoint.load_model`, text; and lines about what is left out.

    Raises:
      CheckpointError: there is none; or the row of `config.method` has none, and rows that were not asked for do.
    """
    wanted = row_names(config)
    found = {row: str(path) for row in wanted if (path := row_model(config, workdir, row))}
    others = [row for row in places.rows(workdir) if row not in wanted]
    if not found or (config.method not in found and others):
        raise places.no_row(
            workdir,
            config.method,
            f"config.method={config.method}",
            f"Set --config.method to one of them, or run --mode=auto, pretrain or adapt first{advice}.",
        )
    missing = [row for row in wanted if row not in found]
    left_out = [f"left out, without a checkpoint: {', '.join(missing)}"] * bool(missing)
    left_out += [f"left out, not in config.method or config.compare_with: {', '.join(others)}"] * bool(others)
    return found, left_out


def check_origin(config, row, source):
    """Checks that a row that is begun or done came from the model that `config.init_from` names.

    Args:
      config: the run's configuration.
      row: name of the row.
      source: path of the checkpoint that it was begun from, as its record says.

    Raises:
      CheckpointError: it came from another, which is still there to compare with.
    """
    if config.init_from and Path(source).is_dir():
        given = places.source_model(config.init_from)
        if not _same(given, source):
            raise CheckpointError(
                f"The row {row} was begun from {source}, and config.init_from={config.init_from} names another model. "
                "Use another --workdir for that, or leave init_from out."
            )


def start_lines(config, workdir, row, origin):
    """Returns the first lines of a row's training: which model it goes on from or starts from.

    Args:
      config: the row's configuration.
      workdir: the run's folder.
      row: the row.
      origin: path of the model that it starts from, or None for random weights.
    """
    own, notes = run_folder.checkpoints(workdir, row), []
    if places.in_folder(own):
        found = checkpoint.peek(own, tell=notes.append, items=("model", "train"))
        return [f"{row}  goes on from {found.description}", *notes]
    if origin is None:
        return [f"{row}  starts from random weights, seed {config.seed}"]
    found = checkpoint.peek(places.source_model(origin), tell=notes.append)
    key = "pretrain_from" if row == SOURCE else "init_from"
    how = f" (config.{key}={config[key]})" if config[key] else ""
    unused = run_folder.checkpoints(workdir, SOURCE)
    if row != SOURCE and places.in_folder(unused) and not _same(unused, origin):
        notes.append(f"{row}  does not start from {unused}, which was trained here")
    return [f"{row}  starts from {found.description}{how}", *notes]


def _models(workdir):
    """Row -> folder of checkpoints; where the folder itself is a row's or holds checkpoints: None -> that path."""
    workdir = Path(workdir)
    for folder in (workdir, workdir / run_folder.CHECKPOINTS):
        if places.in_folder(folder):
            return {None: folder}
    return {row: run_folder.checkpoints(workdir, row) for row in places.rows(workdir)}


def _same(a, b):
    newest = [places.find(path).checkpoints[0].resolve() for path in (a, b)]
    return newest[0] == newest[1]
