"""What a run writes down about each of its rows: the scores, in `evaluation.json`, by one writer and one reader."""

import dataclasses
import json
from typing import Any

from input_pipeline import run_folder
from input_pipeline.errors import UserError
from input_pipeline.files import read_json, write_atomically

_REMEDY = "Delete it: --mode=evaluate scores the row's checkpoint again."


@dataclasses.dataclass(frozen=True)
class RowScores:
    """The scores of one row of the results table.

    Attributes:
      row: its name.
      method: name of its method.
      source: where its first weights came from: a checkpoint's path, or `random`.
      last: scores at the last step, `Evaluation.as_json()` and `step`.
      best_on_validation: the same of the best step.
      config: the row's configuration, JSON-able.
      seconds_per_step: median time of a step, or None where none was trained.
      data: domain -> digest of the prepared set that it was trained on, or None where none was trained.
    """

    row: str
    method: str
    source: str
    last: dict
    best_on_validation: dict
    config: dict[str, Any] = dataclasses.field(repr=False)
    seconds_per_step: float | None = None
    data: dict[str, str] | None = None

    def write(self, workdir):
        """Writes the record into the run's folder."""
        text = json.dumps(dataclasses.asdict(self), indent=1)
        write_atomically(run_folder.evaluation(workdir, self.row), text)


def read_scores(workdir, row):
    """Reads one row's record.

    Args:
      workdir: the run's folder.
      row: name of the row.

    Returns:
      A `RowScores`, or None where the row has not been scored.

    Raises:
      UserError: the file is damaged; names it and what to do.
    """
    path = run_folder.evaluation(workdir, row)
    names = [field.name for field in dataclasses.fields(RowScores)]
    needed = [name for name in names if name not in ("seconds_per_step", "data")]
    found = read_json(path, _REMEDY, needed)
    if found is None:
        return None
    for name in ("last", "best_on_validation"):
        if not isinstance(found[name], dict) or not {"miou", "step"} <= found[name].keys():
            raise UserError(f"{path}: expected {name} with miou and step, found {found[name]!r}. {_REMEDY}")
    return RowScores(**{name: found[name] for name in names if name in found})
