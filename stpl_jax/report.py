"""The end of a run: `report.json`, `report.md`, `report.html`, pictures and a video of the network before and after."""

import json
from pathlib import Path

import jax

from input_pipeline import run_folder
from input_pipeline.files import write_atomically
from stpl_jax import analysis, report_html, report_pictures
from stpl_jax.report_numbers import (
    difference,
    make_report,
    percent,
    read_curves,
    read_evaluations,
    seconds,
    settings_lines,
)


def write_report(config, workdir, progress=print):
    """Writes what a run found, from the `evaluation.json` of each of its rows.

    Writes `report.json`, `report.md`, `report.html` (all of it in one file), `frames/*.png` (frame, source-only,
    adapted, label) and, where the run generated its videos, `video.mp4` of a street that has no labels. Only the first
    process writes.

    Args:
      config: the run's configuration; `config.report.frames` is the number of pictures.
      workdir: the run's folder.
      progress: called with lines of text.

    Raises:
      UserError: no row has been evaluated yet.
    """
    if jax.process_index():
        return
    workdir = Path(workdir)
    evaluations = read_evaluations(config, workdir)
    report = make_report(config, evaluations)
    write_atomically(workdir / run_folder.REPORT_NUMBERS, json.dumps(report, indent=1, allow_nan=False))
    models = report_pictures.load_models(config, workdir, evaluations, progress)
    pictures = report_pictures.write_pictures(config, workdir, models, progress) if models else []
    video = report_pictures.write_video(config, workdir, models, progress) if models and config.world.generate else None
    named = [(picture.name, picture.path) for picture in pictures]
    text = report_text(report, config.method, named, run_folder.VIDEO if video else None)
    write_atomically(workdir / run_folder.REPORT_TEXT, text)
    curves = {row: read_curves(workdir, row) for row in evaluations}
    confusion = {row: evaluation.last["confusion"] for row, evaluation in evaluations.items()}
    results = analysis.read_results(workdir)
    if results and not analysis.is_true(results, config, workdir):
        progress("report  without feature space: a network has changed since; --mode=analyse looks at it again")
        results = None
    drawings = analysis.read_drawings(workdir) if results else None
    page = report_html.page(report, config.method, curves, confusion, pictures, video, results, drawings)
    write_atomically(workdir / run_folder.REPORT_PAGE, page)
    progress(f"report  {workdir / run_folder.REPORT_TEXT}, and to look at: {workdir / run_folder.REPORT_PAGE}")


def report_text(report, method, pictures=(), video=None):
    """Sets the report as Markdown.

    Args:
      report: of `make_report`.
      method: name of the adapted row.
      pictures: (clip name, path relative to the report) of each picture.
      video: path of the video relative to the report, or None.

    Returns:
      The text.
    """
    results, config = report["results"], report["config"]
    source = results.get("source_only", {}).get("miou")
    target = config["data"]["target"]["name"]
    parts = [
        f"# Adaptation to {target} by {method}",
        "Scores on the validation set, in percent. The main figure is the last step's; the best on validation looks at "
        "validation labels to choose the step, as the public code of the field does, and is there for comparison only.",
        _table(
            ("row", "mIoU, last step", "to source_only", "temporal consistency", "the same, warped", "steps")
            + ("best on validation", "seconds per step"),
            [
                (
                    f"**{row}**" if row == method else row,
                    percent(scores["miou"]),
                    difference(scores["miou"], source),
                    percent(scores["temporal_consistency"]),
                    percent(scores["temporal_consistency_warped"]),
                    str(scores["step"]),
                    f"{percent(scores['best_on_validation']['miou'])} (step {scores['best_on_validation']['step']})",
                    seconds(scores["seconds_per_step"]),
                )
                for row, scores in results.items()
            ],
        ),
        "Temporal consistency is the share of pixels whose class is the same in x_t and x_{t-1}; *warped*: after "
        "moving x_{t-1}'s classes along the flow.",
        "## The gap between source_only and oracle",
        _gap_text(report, method),
        "## IoU of each class",
        _iou_table(results),
    ]
    if pictures:
        parts += ["## Pictures", "Ignored pixels of the label are black."]
        parts += [f"{name}\n\n![{name}]({path})" for name, path in pictures]
    if video:
        parts += ["## Video", f"[{video}]({video}): one more street, without labels, frame by frame."]
    parts += [
        "## How it was run",
        "\n".join(f"- {line}" for line in settings_lines(report)),
        "All settings are in `report.json`, under `config`.",
    ]
    return "\n\n".join(parts) + "\n"


def _gap_text(report, method):
    shares = (
        (f"{method} closes (mIoU of {method} - source_only) / (oracle - source_only)", "gap_closed"),
        ("bn_statistics, which trains nothing, closes", "gap_closed_by_bn_statistics"),
        (f"of what bn_statistics leaves open, {method} closes", "gap_closed_beyond_bn"),
    )
    unknown = "not known: a row is missing, or there is no gap"
    return "\n".join(
        f"- {text}: {unknown if report[key] is None else f'{100 * report[key]:.1f}%'}" for text, key in shares
    )


def _iou_table(results):
    names = list(dict.fromkeys(name for scores in results.values() for name in scores["iou"]))
    lines = [(name, *(percent(scores["iou"].get(name)) for scores in results.values())) for name in names]
    lines.append(("**mean**", *(percent(scores["miou"]) for scores in results.values())))
    return _table(("class", *results), lines)


def _table(head, lines):
    rows = [head, ["---", *["---:"] * (len(head) - 1)], *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
