"""The end of a run: `report.json`, `report.md`, `report.html`, pictures and a video of the network before and after."""

import json
from pathlib import Path

import jax

from input_pipeline import run_folder
from input_pipeline.files import write_atomically
from stpl_jax.report import analysis, charts, pictures, tables
from stpl_jax.report.analysis_files import read_results
from stpl_jax.report.numbers import make_report, read_curves, read_evaluations
from stpl_jax.report.render import render

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


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
    models = pictures.load_models(config, workdir, evaluations, progress)
    shown = pictures.write_pictures(config, workdir, models, progress) if models else []
    video = pictures.write_video(config, workdir, models, progress) if models and config.world.generate else None
    text = report_text(report, config.method, shown, run_folder.VIDEO if video else None)
    write_atomically(workdir / run_folder.REPORT_TEXT, text)
    curves = {row: read_curves(workdir, row, progress) for row in evaluations}
    confusion = {row: evaluation.last["confusion"] for row, evaluation in evaluations.items()}
    results = read_results(workdir, progress)
    if results and not analysis.is_true(results, config, workdir):
        progress("report  without feature space: a network has changed since; --mode=analyse looks at it again")
        results = None
    page = report_page(report, config.method, curves, confusion, shown, video, results)
    write_atomically(workdir / run_folder.REPORT_PAGE, page)
    progress(f"report  {workdir / run_folder.REPORT_TEXT}, and to look at: {workdir / run_folder.REPORT_PAGE}")


def report_text(report, method, shown=(), video=None):
    """Sets the report as Markdown; as `report_page`, and `video` is the video's path relative to it, or None."""
    return render("report.md", **_tables(report, method), pictures=shown, video=video)


def _tables(report, method):
    return dict(report=report, method=method, results=tables.results_table(report), iou=tables.iou_table(report))


def report_page(report, method, curves, confusion, shown=(), strip=None, results=None):
    """Sets the report as one HTML file.

    Args:
      report: of `numbers.make_report`.
      method: name of the adapted row.
      curves: row -> of `numbers.read_curves`.
      confusion: row -> `[K][K]` pixel counts, rows are labels.
      shown: of `pictures.write_pictures`.
      strip: of `pictures.write_video`, or None.
      results: of `analysis_files.read_results`, or None.

    Returns:
      The text.
    """
    rows = ["source_only", *report["config"]["compare_with"], *report["results"]]
    colours = charts.row_colours([*rows, *(results["checkpoints"] if results else ())], method)
    drawn = _curve_charts(report, curves, colours)
    compared = [row for row in dict.fromkeys(("source_only", method)) if row in confusion]
    counted = {row: confusion[row] for row in compared if sum(map(sum, confusion[row]))}
    sections = (
        ("rows", "Results", True),
        ("video", "Before and after, moving", strip),
        ("frames", "Frames", shown),
        ("curves", "Curves", drawn),
        ("classes", "IoU of each class", True),
        ("confusion", "Confusion matrix", counted),
        ("features", "Feature space", results),
        ("settings", "How it was run", True),
    )
    return render(
        "report.html",
        **_tables(report, method),
        policy=POLICY,
        sections=[(name, heading) for name, heading, content in sections if content],
        row_colours=colours,
        classes=tables.class_scores(report, ("source_only", method, "oracle")),
        strip=strip,
        pictures=shown,
        curves=drawn,
        confusion=counted,
        analysis=results,
    )


def _curve_charts(report, curves, colours):
    """Charts of what was logged: [(title, SVG, what is told of it, class name of the style sheet)]."""
    results, scores, losses = report["results"], {}, []
    source = results.get("source_only", {}).get("miou")
    for row in tables.oracle_last(results):
        logged = curves.get(row, {})
        points = logged.get("validation/miou", ())
        # What adaptation starts from is the source model, and that has been scored.
        starts = row != "source_only" and source is not None and report["settings"][row]["source"] != "random"
        if points:
            scores[row] = (((0, source),) if starts and points[0][0] > 0 else ()) + points
        if chart := charts.loss_chart(logged, colours[row]):
            losses.append((f"Loss of {row}", chart, f"Loss of {row} over training steps", ""))
    if not scores:
        return losses
    told = "; ".join(f"{row} ends at {points[-1][1]:.1f}" for row, points in scores.items())
    told = f"Validation mIoU over training steps: {told}"
    return [("Validation mIoU", charts.validation_chart(scores, colours), told, "wide"), *losses]
