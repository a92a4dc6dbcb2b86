"""The end of a run: `report.json`, `report.md`, `report.html`, pictures and a video of the network before and after."""

import json
from pathlib import Path

import jax

from input_pipeline import run_folder
from input_pipeline.domains import open_domain
from input_pipeline.files import write_atomically
from input_pipeline.labels import PALETTE, colour_table
from stpl_jax import unlabelled
from stpl_jax.models import frame_statistics
from stpl_jax.report import analysis, charts, pictures, tables
from stpl_jax.report.analysis_files import read_results
from stpl_jax.report.numbers import make_report, read_curves, read_evaluations
from stpl_jax.report.render import render

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_report(config, workdir, progress=print):
    """Writes what a run found, from the `evaluation.json` of each of its rows.

    Writes `report.json`, `report.md`, `report.html` (all of it in one file), `frames/*.png` (frame, source-only,
    adapted, label) and, where the run generated its videos, `video.mp4` of a street that has no labels. Where the
    validation set has no labels, all rows are compared, and `video.mp4` is of held-out video. Only the first process
    writes.

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
    if any("shares" in evaluation.last for evaluation in evaluations.values()):
        report, shown, strip = _compare(config, workdir, evaluations, progress)
    else:
        report = _write_numbers(workdir, make_report(config, evaluations))
        rows = [row for row in dict.fromkeys(("source_only", config.method)) if row in evaluations]
        models = pictures.load_models(config, workdir, rows, progress)
        shown = pictures.write_pictures(config, workdir, models, progress) if models else []
        strip = pictures.write_street(config, workdir, models, progress) if models and config.world.generate else None
    write_atomically(workdir / run_folder.REPORT_TEXT, report_text(report, config.method, shown, strip))
    curves = {row: read_curves(workdir, row, progress) for row in evaluations}
    confusion = {row: e.last["confusion"] for row, e in evaluations.items() if "confusion" in e.last}
    results = read_results(workdir, progress)
    if results and not analysis.is_true(results, config, workdir):
        progress("report  without feature space: a network has changed since; --mode=analyse looks at it again")
        results = None
    page = report_page(report, config.method, curves, confusion, shown, strip, results)
    write_atomically(workdir / run_folder.REPORT_PAGE, page)
    progress(f"report  {workdir / run_folder.REPORT_TEXT}, and to look at: {workdir / run_folder.REPORT_PAGE}")


def _write_numbers(workdir, report):
    write_atomically(workdir / run_folder.REPORT_NUMBERS, json.dumps(report, indent=1, allow_nan=False))
    return report


def _compare(config, workdir, evaluations, progress):
    """Compares the rows where there are no labels, and writes numbers, pictures and film: returns these."""
    models = pictures.load_models(config, workdir, evaluations, progress)
    if not models:
        return _write_numbers(workdir, make_report(config, evaluations)), [], None
    source = open_domain(config, workdir, "val", progress=progress)
    comparison = unlabelled.compare(models, source)
    before, moved = models.get("source_only"), {}
    if before:
        statistics = before.variables["batch_stats"]
        moved = {
            row: unlabelled.moved(model.variables["batch_stats"], statistics)
            for row, model in models.items()
            # Methods that have the setting normalise by each frame's own and leave the running ones alone.
            if frame_statistics(evaluations[row].config) is None
        }
    report = _write_numbers(workdir, make_report(config, evaluations, comparison, moved))
    for line in report["warnings"]:
        progress(f"report  warning: {line}")
    shown = pictures.write_differing(config, workdir, models, source, comparison, progress)
    return report, shown, pictures.write_film(workdir, models, source, comparison, progress)


def report_text(report, method, shown=(), strip=None):
    """Sets the report as Markdown; arguments as `report_page` takes them."""
    return render("report.md", **_tables(report, method), pictures=shown, strip=strip, video=run_folder.VIDEO)


def _tables(report, method):
    labelled, without = _has(report, "miou"), _has(report, "confidence")
    return dict(
        report=report,
        method=method,
        labelled=labelled,
        without_labels=without,
        results=tables.results_table(report) if labelled else None,
        iou=tables.iou_table(report) if labelled else None,
        figures=tables.figures_table(report) if without else None,
        shares=tables.share_table(report) if without else None,
        agreement=tables.agreement_table(report) if without else None,
    )


def _has(report, score):
    return any(score in found for found in report["results"].values())


def report_page(report, method, curves, confusion, shown=(), strip=None, results=None):
    """Sets the report as one HTML file.

    Args:
      report: of `numbers.make_report`.
      method: name of the adapted row.
      curves: row -> of `numbers.read_curves`.
      confusion: row -> `[K][K]` pixel counts, rows are labels.
      shown: of `pictures.write_pictures`.
      strip: of `pictures.write_street` or `write_film`, or None.
      results: of `analysis_files.read_results`, or None.

    Returns:
      The text.
    """
    rows = ["source_only", *report["config"]["compare_with"], *report["results"]]
    colours = charts.row_colours([*rows, *(results["checkpoints"] if results else ())], method)
    drawn = _curve_charts(report, curves, colours)
    compared = [row for row in dict.fromkeys(("source_only", method)) if row in confusion]
    counted = {row: confusion[row] for row in compared if sum(map(sum, confusion[row]))}
    view = _tables(report, method)
    labelled, without = view["labelled"], view["without_labels"]
    sections = (
        ("warnings", "Warnings", without),
        ("rows", "Results", labelled and not without),
        ("video", "Before and after, moving", strip),
        ("frames", "Frames", shown),
        ("figures", "Figures without labels", without),
        ("shares", "Share of each class", without),
        ("rows", "Results on labelled frames", labelled and without),
        ("curves", "Curves", drawn),
        ("classes", "IoU of each class", labelled),
        ("confusion", "Confusion matrix", counted),
        ("features", "Feature space", results),
        ("settings", "How it was run", True),
    )
    return render(
        "report.html",
        **view,
        policy=POLICY,
        palette=_palette(report),
        sections=[(name, heading) for name, heading, content in sections if content],
        row_colours=colours,
        classes=tables.class_scores(report, ("source_only", method, "oracle")),
        class_shares=tables.class_shares(report, ("source_only", method)) if without else None,
        strip=strip,
        pictures=shown,
        curves=drawn,
        confusion=counted,
        analysis=results,
    )


def _palette(report):
    """Colour of each class's swatch: as in the pictures, and those that are known of other names."""
    colours = colour_table(report["classes"], report["label_setting"])
    return PALETTE | {name: tuple(map(int, colours[i])) for i, name in enumerate(report["classes"])}


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
