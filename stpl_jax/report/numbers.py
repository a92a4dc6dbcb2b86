"""The numbers of a report, out of the files that a run leaves behind."""

import itertools
import json
import math

import jax

from input_pipeline import run_folder
from input_pipeline.errors import UserError
from input_pipeline.labels import shown_classes
from stpl_jax import checkpoint, unlabelled
from stpl_jax.records import read_scores
from stpl_jax.rows import row_names
from stpl_jax.run_log import read_log

_SCORES = ("temporal_consistency", "temporal_consistency_warped")


def read_evaluations(config, workdir):
    """Reads the scores of every row that has been evaluated.

    Returns:
      row -> `RowScores`, in the order of the results table.

    Raises:
      UserError: there are none.
    """
    rows = row_names(config)
    found = {row: scores for row in rows if (scores := read_scores(workdir, row))}
    if not found:
        raise UserError(
            f"{workdir}: no {run_folder.EVALUATION} in any of {', '.join(rows)}. Train or score something first: "
            "--mode=auto, or --mode=evaluate where there are checkpoints."
        )
    return found


def make_report(config, evaluations, comparison=None, moved=None):
    """Puts the rows' scores together.

    What needs labels is left out where the validation set has none; what takes the place of it is left out elsewhere.
    The shares of the gap, from mIoU at the last step (null where a row is missing, or there is no gap):

        gap_closed                   (method - source_only) / (oracle - source_only)
        gap_closed_by_bn_statistics  (bn_statistics - source_only) / (oracle - source_only)
        gap_closed_beyond_bn         (method - bn_statistics) / (oracle - bn_statistics)

    Args:
      config: the run's configuration.
      evaluations: of `read_evaluations`.
      comparison: `unlabelled.Comparison` of the rows, or None.
      moved: row -> of `unlabelled.moved`, or None.

    Returns:
      JSON-able dict: `classes` and `label_setting` (of `labels.shown_classes`), `results` (row -> scores in percent),
      `settings` (row -> its method and the weights it came from), `config`, `versions`, `device`, `device_count`; with
      labels the three shares; without them `warnings` (sentences), `agreement` (of each two rows), `compared_clips`,
      and where a person labelled frames `labelled_frames`, how many: null where rows were scored on different masks.
    """
    labelled = any("iou" in evaluation.last for evaluation in evaluations.values())
    without = any("shares" in evaluation.last for evaluation in evaluations.values())
    results, settings = {}, {}
    for row, evaluation in evaluations.items():
        last, best = evaluation.last, evaluation.best_on_validation
        results[row] = {name: _number(last[name]) for name in _SCORES}
        if labelled:
            results[row]["miou"] = _number(last["miou"])
            results[row]["iou"] = {name: _number(value) for name, value in last.get("iou", {}).items()}
            results[row]["best_on_validation"] = {"miou": _number(best["miou"]), "step": best["step"]}
        if labelled and without:
            results[row] |= {"labels": last.get("labels"), "labelled": last.get("labelled")}
        if without:
            results[row]["confidence"] = _number(last.get("confidence"))
            results[row] |= {"shares": last.get("shares", {}), "clips": last.get("clips")}
            results[row]["statistics_moved"] = (moved or {}).get(row)
        results[row] |= {
            "step": last["step"],
            "data": last.get("data"),
            "seconds_per_step": _number(evaluation.seconds_per_step),
        }
        settings[row] = {"method": evaluation.method, "source": evaluation.source}
    classes, setting = shown_classes(config.data)
    scored = [evaluation.last for evaluation in evaluations.values() if evaluation.last.get("labelled")]
    same_masks = len({last.get("labels") for last in scored}) == 1
    return {
        "classes": list(classes),
        "label_setting": setting,
        "results": results,
        **(_without_labels(results, comparison) if without else _gap(results, config.method)),
        **(
            {
                "labelled_frames": scored[-1]["labelled"] if same_masks else None,
                "labelled_classes": scored[-1].get("classes"),
            }
            if labelled and without and scored
            else {}
        ),
        "settings": settings,
        "config": json.loads(config.to_json_best_effort()),
        "versions": checkpoint.versions(),
        "device": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
    }


def _gap(results, method):
    def miou(row):
        return results[row]["miou"] if row in results else None

    method, source, bn, oracle = (miou(row) for row in (method, "source_only", "bn_statistics", "oracle"))
    return {
        "gap_closed": _share(source, method, oracle),
        "gap_closed_by_bn_statistics": _share(source, bn, oracle),
        "gap_closed_beyond_bn": _share(bn, method, oracle),
    }


def _without_labels(results, comparison):
    source, lines, agreement = results.get("source_only"), [], []
    for row, figures in results.items():
        if row != "source_only" and source and source["shares"] and figures["shares"]:
            lines += unlabelled.warnings(row, figures, source, figures["statistics_moved"])
    clips = [figures["clips"] for figures in results.values() if figures["clips"]]
    lines += unlabelled.too_few_clips(min(clips)) if clips else []
    lines += _different_masks(results)
    if comparison:
        for a, b in itertools.combinations(comparison.maps, 2):
            pixels, classes = comparison.agreement(a, b)
            agreement.append({"rows": [a, b], "pixels": pixels, "classes": [_number(float(x)) for x in classes]})
    return {
        "warnings": lines,
        "agreement": agreement,
        "compared_clips": len(comparison.clips) if comparison else 0,
    }


def _different_masks(results):
    """A warning where rows were scored on different masks, or some on none: [sentence], or nothing."""
    if len({figures.get("labels") for figures in results.values()}) < 2:
        return []
    counts = ", ".join(f"{row} on {figures['labelled'] or 'no'} frames" for row, figures in results.items())
    return [
        f"The rows were scored on different masks ({counts}), and their mIoU cannot be compared; --mode=evaluate "
        "scores all of them again."
    ]


def _number(value):
    """JSON has no NaN: a score that is not defined, such as the IoU of a class that does not occur, is null."""
    return None if value is None or not math.isfinite(value) else value


def _share(low, value, high):
    if None in (low, value, high) or high == low:
        return None
    return (value - low) / (high - low)


def read_curves(workdir, row, progress=print):
    """Reads what a row logged as it was trained.

    Args:
      workdir: the run's folder.
      row: name of the row.
      progress: told once how many lines are damaged, if there are any; they are left out.

    Returns:
      name -> ((step, value), ...) of each `loss/...` and of `validation/miou`; values that are not finite are left out.
    """
    file, curves = run_folder.metrics(workdir, row), {}
    entries, damaged = read_log(file)
    for entry in entries:
        for name, value in entry.items():
            if (name.startswith("loss/") or name == "validation/miou") and math.isfinite(value):
                curves.setdefault(name, []).append((entry["step"], value))
    if damaged:
        progress(f"report  {file}: {damaged} damaged lines are left out of the curves")
    return {name: tuple(points) for name, points in curves.items()}
