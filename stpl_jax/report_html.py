"""`report.html`: everything that a run found on one page, in one file that asks for no other."""

import json
import math

from stpl_jax.page import parts
from stpl_jax.page.charts import Line, line_chart, smoothed, thinned
from stpl_jax.page.features import features_section
from stpl_jax.page.style import STYLE
from stpl_jax.report_numbers import difference, seconds, settings_lines

# Nothing may be loaded from elsewhere, and nothing runs.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_MOST_POINTS = 240


def page(report, method, curves, confusion, pictures=(), strip=None, analysis=None, drawings=None):
    """Sets the report as one HTML file.

    Args:
      report: of `report_numbers.make_report`.
      method: name of the adapted row.
      curves: row -> of `report_numbers.read_curves`.
      confusion: row -> `[K][K]` pixel counts, rows are labels.
      pictures: of `report_pictures.write_pictures`.
      strip: of `report_pictures.write_video`, or None.
      analysis: of `analysis_files.read_results`, or None.
      drawings: of `analysis_files.read_drawings`, beside it.

    Returns:
      The text.
    """
    styles = parts.row_styles(report["results"], method)
    sections = [
        ("rows", "Results", _rows(report, method, styles)),
        ("video", "Before and after, moving", _video(strip)),
        ("frames", "Frames", _frames(report, pictures)),
        ("curves", "Curves", _curves(report, curves, styles)),
        ("classes", "IoU of each class", _classes(report, method, styles)),
        ("confusion", "Confusion matrix", _confusion(report, method, confusion)),
        ("features", "Feature space", features_section(analysis, drawings, styles, report["classes"])),
        ("settings", "How it was run", _settings(report)),
    ]
    sections = [section for section in sections if section[2]]
    title = f"Adaptation to {report['config']['data']['target']['name']} by {method}"
    links = "".join(f'<a href="#{name}">{heading}</a>' for name, heading, _ in sections)
    body = "".join(f'<section id="{name}"><h2>{heading}</h2>{text}</section>' for name, heading, text in sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{parts.text(title)}</title><style>{STYLE}</style></head>\n<body><main><header><h1>{parts.text(title)}</h1>"
        f"{_summary(report, method)}<nav>{links}</nav></header>\n{body}"
        f'<footer class="soft">Made by stpl_jax {report["versions"]["stpl_jax"]}. For programs, the same numbers and '
        "settings stand in report.json beside this file.</footer></main></body></html>\n"
    )


def _ordered(results):
    """The oracle last: what the others are measured by."""
    return [row for row in results if row != "oracle"] + [row for row in results if row == "oracle"]


def _summary(report, method):
    scores = {row: result["miou"] for row, result in report["results"].items()}
    sentences = []
    before, after, oracle = (scores.get(row) for row in ("source_only", method, "oracle"))
    if None not in (before, after) and method != "source_only":
        sentences.append(
            f"On the validation set, the mean IoU goes from {parts.score(before)} percent (source_only) to "
            f"<strong>{parts.score(after)}</strong> ({parts.text(method)})."
        )
    if oracle is not None:
        sentences.append(f"An oracle that is trained with the target's labels reaches {parts.score(oracle)}.")
    shares = (
        (f"of the gap between source_only and oracle is closed by {method}", "gap_closed"),
        ("of it is closed by bn_statistics, which trains nothing", "gap_closed_by_bn_statistics"),
        (f"of what bn_statistics leaves open is closed by {method}", "gap_closed_beyond_bn"),
    )
    tiles = ""
    for text, key in shares:
        value = "–" if report[key] is None else parts.minus(f"{100 * report[key]:.1f}") + "%"
        unknown = " (not known: a row is missing, or there is no gap)" if report[key] is None else ""
        tiles += f"<div><dt>{parts.text(text)}{unknown}</dt><dd>{value}</dd></div>"
    lede = f'<p class="lede">{" ".join(sentences)}</p>' if sentences else ""
    return f'{lede}<dl class="shares">{tiles}</dl>'


def _rows(report, method, styles):
    results = report["results"]
    source = results.get("source_only", {}).get("miou")
    top = max([r["miou"] for r in results.values() if r["miou"] is not None], default=0)
    top = max(10, math.ceil(top / 10) * 10)
    bars, lines = "", []
    for row in _ordered(results):
        scores = results[row]
        width = 0 if scores["miou"] is None else 100 * scores["miou"] / top
        name = ' class="method"' if row == method else ""
        bars += (
            f'<li{name}><span class="name">{parts.text(row)}</span><span class="track {styles[row]}">'
            f'<span class="fill" style="width:{width:.1f}%"></span></span>'
            f'<span class="value">{parts.score(scores["miou"])}</span></li>'
        )
        best = scores["best_on_validation"]
        lines.append(
            (
                parts.key(styles[row]) + parts.text(row),
                parts.score(scores["miou"]),
                parts.minus(difference(scores["miou"], source)),
                parts.score(scores["temporal_consistency"]),
                parts.score(scores["temporal_consistency_warped"]),
                parts.text(scores["step"]),
                f"{parts.score(best['miou'])} (step {parts.text(best['step'])})",
                parts.minus(seconds(scores["seconds_per_step"])),
            )
        )
    head = ("row", "mIoU, last step", "to source_only", "temporal consistency", "the same, warped", "steps")
    head += ("best on validation", "seconds per step")
    classes = ["method" if row == method else "" for row in _ordered(results)]
    return (
        f'<p>Mean IoU at the last step, in percent, on a scale to {top}:</p><ol class="bars">{bars}</ol>'
        + parts.table(head, lines, "Scores on the validation set, in percent.", classes)
        + '<p class="soft">The main figure is the last step’s. The best on validation looks at validation labels to '
        "choose the step, as the public code of the field does, and is there for comparison only. Temporal "
        "consistency is the share of pixels whose class is the same in a frame and the one before it; warped: after "
        "moving the earlier frame’s classes along the flow.</p>"
    )


def _video(strip):
    if strip is None:
        return ""
    seen = ", ".join(strip.captions[1:])
    height, width = strip.size
    return (
        '<figure class="strip"><picture>'
        f'<source media="(prefers-reduced-motion: reduce)" srcset="{strip.still}">'
        f'<source media="(max-width: 760px)" srcset="{strip.tall}">'
        f'<img src="{strip.wide}" width="{width}" height="{height}" alt="A drive through a street, looping: the frame, '
        f'and the classes that {parts.text(seen)} see in it."></picture>'
        "<figcaption>One more street, without labels, frame by frame: the camera’s picture and what "
        f"{parts.text(seen)} see in it. The same is in video.mp4.</figcaption></figure>"
    )


def _frames(report, pictures):
    if not pictures:
        return ""
    text = "<p>Frame, prediction before and after adaptation, and the label; its ignored pixels are black.</p>"
    text += parts.class_legend(report["classes"])
    for picture in pictures:
        panels = {caption: (uri, _panel_text(caption, picture.name)) for caption, uri in picture.panels.items()}
        text += parts.panel_row(panels, "", picture.name)
    return text


def _panel_text(caption, clip):
    told = {"frame": "The frame", "label": "The label"}.get(caption, f"Classes that {caption} predicts")
    return f"{told}, clip {clip}"


def _curves(report, curves, styles):
    results = report["results"]
    source = results.get("source_only", {}).get("miou")
    lines, legend = [], ""
    for row in _ordered(results):
        points = curves.get(row, {}).get("validation/miou", ())
        if not points:
            continue
        # What adaptation starts from is the source model, and that has been scored.
        starts = row != "source_only" and source is not None and report["settings"][row]["source"] != "random"
        points = (((0, source),) if starts and points[0][0] > 0 else ()) + points
        lines.append(Line(row, points, styles[row]))
        legend += (
            f"<li>{parts.key(styles[row])}<span>{parts.text(row)}</span><span>{parts.score(points[-1][1])}</span></li>"
        )
    text = ""
    if lines:
        told = "; ".join(f"{line.name} ends at {parts.score(line.points[-1][1])}" for line in lines)
        chart = line_chart(lines, "step", "mIoU, percent", f"Validation mIoU over training steps: {told}.")
        text += f'<h3>Validation mIoU</h3><div class="beside">{chart}<ul class="legend">{legend}</ul></div>'
    cards = "".join(_loss_card(row, curves.get(row, {}), styles[row]) for row in _ordered(results))
    if cards:
        text += (
            f'<h3>Loss</h3><p class="soft">As logged, thin; its running mean, bold.</p><div class="cards">{cards}</div>'
        )
    return text


def _loss_card(row, curves, style):
    """One row's losses; those of other parameter groups than the network's, discriminators say, in other colours."""
    lines = []
    for name, points in curves.items():
        # bn_statistics trains nothing: its loss is 0 throughout.
        if not name.startswith("loss/") or not any(value for _, value in points):
            continue
        window = max(1, len(points) // 25)
        mean = thinned(smoothed(points, window), _MOST_POINTS)
        colour = style if name == "loss/network" else f"s-{len(lines) % parts.HUES}"
        lines.append(Line(name.removeprefix("loss/"), mean, colour, thinned(points, _MOST_POINTS)))
    if not lines:
        return ""
    told = "; ".join(f"{line.name} from {line.points[0][1]:.3g} to {line.points[-1][1]:.3g}" for line in lines)
    chart = line_chart(lines, "step", "loss", f"Loss of {row} over training steps: {told}.")
    keys = "".join(f"<li>{parts.key(line.style)}{parts.text(line.name)}</li>" for line in lines)
    legend = f'<ul class="legend">{keys}</ul>' if len(lines) > 1 else ""
    return f"<figure><h3>{parts.text(row)}</h3>{chart}{legend}</figure>"


def _classes(report, method, styles):
    results = report["results"]
    names = list(dict.fromkeys(name for scores in results.values() for name in scores["iou"]))

    def value(row, name):
        return results.get(row, {}).get("iou", {}).get(name)

    legend = "".join(
        f"<li>{parts.key(styles[row])}{parts.text(row)}{' (mark)' if row == 'oracle' else ''}</li>"
        for row in dict.fromkeys(("source_only", method, "oracle"))
        if row in results
    )
    bars = ""
    for name in names:
        before, after, oracle = (value(row, name) for row in ("source_only", method, "oracle"))
        marks = ""
        for share, place, style in ((before, "before", "s-source"), (after, "after", "s-method")):
            if share is not None:
                marks += f'<span class="fill {place} {style}" style="width:{share:.1f}%"></span>'
        if oracle is not None:
            marks += f'<span class="mark" style="left:calc({oracle:.1f}% - 1px)"></span>'
        change = f"<b>{parts.minus(difference(after, before))}</b>"
        bars += (
            f'<li><span class="name">{parts.swatch(name)}{name}</span><span class="track">{marks}</span>'
            f'<span class="value">{parts.score(before)} → {parts.score(after)} {change}</span></li>'
        )
    rows = _ordered(results)
    lines = [(parts.swatch(name) + name, *(parts.score(value(row, name)) for row in rows)) for name in names]
    lines.append(("mean", *(parts.score(results[row]["miou"]) for row in rows)))
    table = parts.table(("class", *map(parts.text, rows)), lines, "IoU in percent.", [""] * len(names) + ["mean"])
    return (
        f'<ul class="legend">{legend}</ul><ol class="bars classes">{bars}</ol>'
        f"<details><summary>All rows as a table</summary>{table}</details>"
    )


def _confusion(report, method, confusion):
    tables = ""
    for row in dict.fromkeys(("source_only", method)):
        if row in confusion and sum(map(sum, confusion[row])):
            tables += _confusion_table(row, report["classes"], confusion[row])
    if not tables:
        return ""
    return (
        "<p>Of the pixels that the label gives a class (line), the share in percent that is predicted as each class "
        f'(column), at the last step.</p><div class="plots">{tables}</div>'
    )


def _confusion_table(row, classes, counts):
    heads = "".join(f'<th scope="col"><span>{name}</span></th>' for name in classes)
    body = ""
    for name, line in zip(classes, counts, strict=True):
        total = sum(line)
        cells = ""
        for count in line:
            share = count / total if total else 0
            # Print that stays legible: on dark pages the middle shades are bright already.
            shade = ' class="high"' if share > 0.75 else ' class="mid"' if share > 0.55 else ""
            shown = "–" if not total else f"{100 * share:.0f}" if share >= 0.005 else ""
            cells += f'<td{shade} style="--share:{share:.2f}">{shown}</td>'
        body += f'<tr><th scope="row">{name}</th>{cells}</tr>'
    return (
        f'<div><h3>{parts.text(row)}</h3><div class="box"><table class="confusion" aria-label="{parts.text(row)}">'
        f"<thead><tr><th>label</th>{heads}</tr></thead><tbody>{body}</tbody></table></div></div>"
    )


def _settings(report):
    lines = "".join(f"<li>{parts.text(line)}</li>" for line in settings_lines(report))
    config = parts.text(json.dumps(report["config"], indent=1))
    return f'<ul class="plain">{lines}</ul><details><summary>All settings</summary><pre>{config}</pre></details>'
