"""Which checkpoints a path means, and what there is instead where it means none."""

import dataclasses
import difflib
import re
from pathlib import Path

from input_pipeline import run_folder
from input_pipeline.errors import UserError
from input_pipeline.files import expand, read_json

SOURCE = "source_only"
# What `CheckpointMeta.network` is of every segmentation network, whichever `config.model.name` says.
SEGMENTATION = "accel"
ITEMS = ("model", "train", "meta")


class CheckpointError(UserError):
    """A checkpoint that is not there or does not fit."""


class DamagedCheckpoint(CheckpointError):
    """A checkpoint that is there and cannot be read, or holds something else than was saved.

    Attributes:
      where: its numbered folder.
      what: what is wrong, without a full stop.
    """

    def __init__(self, where, what):
        self.where, self.what = Path(where), what
        super().__init__(
            f"Checkpoint {where} is damaged: {what}. Restore it from a copy, or give the folder {self.where.parent}, "
            "whose newest whole checkpoint is then taken."
        )


@dataclasses.dataclass(frozen=True)
class Place:
    """What a path means.

    Attributes:
      folder: the folder of checkpoints.
      checkpoints: its numbered folders, the newest first; at least one.
      exactly: one checkpoint was named, in whose place no other is taken.
      row: the row that it has to be of, where the path is not a working directory; None for any.
    """

    folder: Path
    checkpoints: tuple[Path, ...]
    exactly: bool = False
    row: str | None = None

    @property
    def path(self):
        """A path that means the same."""
        return self.checkpoints[0] if self.exactly else self.folder


def find(path, row=None, network=SEGMENTATION):
    """Finds the checkpoints that a path means.

    Args:
      path: a working directory, a row's folder in it, a folder of checkpoints, or one checkpoint (a numbered folder);
        `~` is the home folder.
      row: with a working directory, which row of its table; default the method in its `config.json`.
      network: what is expected, for the message about a file that is no checkpoint.

    Returns:
      A `Place`.

    Raises:
      CheckpointError: there are none; the message says what there is.
    """
    path = expand(path)
    _refuse_other_weights(path, network)
    if _is_number(path.name) and any((path / item).is_dir() for item in ITEMS):
        return Place(path.parent, (path,), True, row)
    for folder in (path, path / run_folder.CHECKPOINTS):
        if numbered := in_folder(folder):
            return Place(folder, numbered, row=row)
    if not path.is_dir():
        raise CheckpointError(f"No checkpoint in {path}: there is no such folder. {_EXPECTED}")
    settings, there = path / run_folder.CONFIG, rows(path)
    if not settings.is_file() and not there:
        looked = f"{path} and {path / run_folder.CHECKPOINTS}"
        raise CheckpointError(f"No checkpoint in {path} (looked in {looked}). {_EXPECTED}")
    if row is None:
        found = read_json(settings, "It is written anew by the next --mode=auto, pretrain or adapt, or name a row.")
        row, asked = (found or {}).get("method"), f"the method in {run_folder.CONFIG}"
        if not isinstance(row, str):
            raise CheckpointError(f"{path} does not say which row is meant, and has {list_rows(path)}. Name one.")
    else:
        asked = "as asked for"
    if row not in there:
        raise no_row(path, row, asked)
    folder = run_folder.checkpoints(path, row)
    return Place(folder, in_folder(folder))


def _refuse_other_weights(path, network):
    """Raises `CheckpointError` where a path names weights in another form: a file, or a folder of such files alone."""
    if path.is_dir():
        inside = sorted(path.iterdir())
        file = next((file for file in inside if file.suffix.lower() in _OTHER_FORMS), None)
        if file is None or any(entry.is_dir() for entry in inside):
            return
        found = f"a folder with {file.name}"
    elif path.is_file() or path.suffix.lower() in _OTHER_FORMS:
        file, found = path, "a file" if path.is_file() else "no such file"
    else:
        return
    others = " (or deeplab, imagenet: docs/weights.md)" if network in (None, SEGMENTATION) else ""
    raise CheckpointError(
        f"{path}: expected a checkpoint, which is a folder, found {found}. Weights of PyTorch are converted once, "
        f"python -m stpl_jax.convert {network or SEGMENTATION} {file} OUT{others}; then give OUT in its place."
    )


_OTHER_FORMS = (".pth", ".pt", ".tar", ".ckpt", ".bin", ".pkl", ".pickle", ".safetensors", ".caffemodel", ".npz", ".h5")
_EXPECTED = "Expected a working directory of a run, a folder of checkpoints, or one numbered checkpoint."


def source_model(path):
    """Returns the path of the source model that a path means: of a working directory its row source_only.

    Anything else, such as a row's folder or one checkpoint, is taken as it is.

    Raises:
      CheckpointError: a working directory without that row; the message says what there is.
    """
    path = expand(path)
    # Where it is not a working directory, `find` says so.
    if in_folder(path) or in_folder(path / run_folder.CHECKPOINTS) or not rows(path):
        return path
    if SOURCE not in rows(path):
        raise no_row(path, SOURCE, "what a working directory means as a source model")
    return run_folder.checkpoints(path, SOURCE)


def in_folder(folder):
    """Lists the numbered folders in a folder of checkpoints, the newest first."""
    folder = Path(folder)
    found = [p for p in folder.iterdir() if _is_number(p.name) and p.is_dir()] if folder.is_dir() else []
    return tuple(sorted(found, key=lambda p: int(p.name), reverse=True))


def rows(workdir):
    """Returns the rows that a working directory has checkpoints of: row -> newest step."""
    found = {row: in_folder(run_folder.checkpoints(workdir, row)) for row in run_folder.rows(workdir)}
    return {row: int(numbered[0].name) for row, numbered in found.items() if numbered}


def list_rows(workdir):
    """Returns a text about the rows that a working directory has checkpoints of."""
    there = ", ".join(f"{row} (step {step})" for row, step in rows(workdir).items())
    return f"checkpoints of: {there}" if there else "no checkpoint of any row"


def no_row(workdir, row, asked, advice=""):
    """Returns the error that a working directory lacks a row.

    Args:
      workdir: the run's folder.
      row: the row that was asked for.
      asked: how it was.
      advice: what to do, a sentence.
    """
    near = difflib.get_close_matches(row, rows(workdir), 1)
    sentences = [
        f"No checkpoint of the row {row} ({asked}): looked in {run_folder.checkpoints(workdir, row)}.",
        f"{workdir} has {list_rows(workdir)}.",
        f"Did you mean {near[0]}?" if near else "",
        advice,
    ]
    return CheckpointError(" ".join(filter(None, sentences)))


def _is_number(name):
    return re.fullmatch("[0-9]+", name) is not None
