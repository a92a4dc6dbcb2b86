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
      last: scores at the last step and `step`: `Evaluation.as_json()`; of a set without labels
        `Unlabelled.as_json()`, and once frames of it are labelled, `labelled` (how many) and what `Evaluation` adds.
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


def in_words(scores):
    """Says the main scores of a set: mIoU, or what there is without labels."""
    found = [f"mIoU {scores['miou']:.2f}"] if scores["miou"] is not None else []
    if "confidence" in scores:
        steady = scores["temporal_consistency"]
        found = [f"{found[0]} on {scores['labelled']} labelled frames"] if found else ["no labels"]
        found += [f"temporal consistency {steady:.2f}"] if steady is not None else []
        found += [f"confidence {scores['confidence']:.2f}"]
    return ", ".join(found)


def as_metrics(scores):
    """Returns the main scores of a set, name -> value, as the log takes them."""
    names = ("miou", "temporal_consistency", "confidence") if "confidence" in scores else ("miou",)
    return {f"validation/{name}": scores[name] for name in names if scores[name] is not None}


def better(best, new):
    """Returns the scores with the higher mIoU; without labels the newer ones, since nothing says which are better."""
    if best is None or best["miou"] is None or new["miou"] is None:
        return new
    return new if new["miou"] > best["miou"] else best


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
