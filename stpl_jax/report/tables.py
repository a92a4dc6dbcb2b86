"""The tables of a report and of an analysis: (heads, [(name, cells)]), all of it text."""


def percent(value):
    """A score in percent with one digit, or a dash where it is not defined."""
    return "-" if value is None else f"{value:.1f}"


def difference(value, base):
    """How far a score lies above another, with its sign."""
    return "-" if value is None or base is None else f"{round(value - base, 1) + 0.0:+.1f}"  # never -0.0


def figure(value, form=".4f"):
    """Another number, a variance or a duration, or a dash where it is not defined."""
    return "-" if value is None else f"{value:{form}}"


def share(value):
    """A share in percent, small ones with another digit; a dash where it is not defined."""
    return figure(value, ".1f" if value and value >= 1 else ".2f")


def oracle_last(rows):
    """Orders rows, the oracle last: what the others are measured by."""
    return sorted(rows, key=lambda row: row == "oracle")


def results_table(report):
    """Scores of each row, of `numbers.make_report`'s report."""
    results = report["results"]
    source = results.get("source_only", {}).get("miou")
    lines = []
    for row in oracle_last(results):
        scores, best = results[row], results[row]["best_on_validation"]
        cells = (
            percent(scores["miou"]),
            difference(scores["miou"], source),
            percent(scores["temporal_consistency"]),
            percent(scores["temporal_consistency_warped"]),
            str(scores["step"]),
            f"{percent(best['miou'])} (step {best['step']})",
            figure(scores["seconds_per_step"], ".3g"),
        )
        lines.append((row, cells))
    heads = ("row", "mIoU, last step", "to source_only", "temporal consistency", "the same, warped", "steps")
    return (*heads, "best on validation", "seconds per step"), lines


def figures_table(report):
    """What is known of each row without labels, of `numbers.make_report`'s report."""
    results, lines = report["results"], []
    source = results.get("source_only", {}).get("confidence")
    for row, found in results.items():
        cells = (
            percent(found["temporal_consistency"]),
            percent(found["temporal_consistency_warped"]),
            percent(found["confidence"]),
            difference(found["confidence"], source),
            percent(found["statistics_moved"]),
            str(found["step"]),
            figure(found["seconds_per_step"], ".3g"),
        )
        lines.append((row, cells))
    heads = ("row", "temporal consistency", "the same, warped", "confidence", "to source_only", "statistics moved")
    return (*heads, "steps", "seconds per step"), lines


def share_table(report):
    """Share of the pixels that are predicted as each class, a column for each row."""
    rows = list(report["results"])
    return ("class", *rows), [(name, list(map(share, shares))) for name, shares in class_shares(report, rows)]


def class_shares(report, rows):
    """Share of each class, percent: [(class, (of each row, None where there is no such row))]."""
    found = [report["results"].get(row, {}).get("shares", {}) for row in rows]
    return [(name, tuple(shares.get(name) for shares in found)) for name in report["classes"]]


def agreement_table(report):
    """Share of the pixels that two rows give the same class, a column for each two."""
    pairs = report["agreement"]
    lines = [("all pixels", [percent(pair["pixels"]) for pair in pairs])]
    for i, name in enumerate(report["classes"]):
        lines.append((name, [percent(pair["classes"][i]) for pair in pairs]))
    return ("class", *(" / ".join(pair["rows"]) for pair in pairs)), lines


def class_scores(report, rows):
    """IoU of each class in percent: [(class, [of each row])], None where it is not defined or there is no such row."""
    found = [report["results"].get(row, {}).get("iou", {}) for row in rows]
    names = dict.fromkeys(name for scores in report["results"].values() for name in scores.get("iou", {}))
    return [(name, [scores.get(name) for scores in found]) for name in names]


def iou_table(report):
    """IoU of each class, a column for each row."""
    rows = oracle_last(report["results"])
    lines = [(name, [percent(score) for score in scores]) for name, scores in class_scores(report, rows)]
    return ("class", *rows), [*lines, ("mean", [percent(report["results"][row]["miou"]) for row in rows])]


def variance_table(analysis, subset):
    """Variances of each network within a set of classes, of `analysis.analyse`'s results."""
    lines = []
    for name, entry in analysis["checkpoints"].items():
        intra, inter = (entry["variances"][subset][key] for key in ("intra", "inter"))
        lines.append((name, (figure(intra), figure(inter), figure(inter / intra if intra else None))))
    return ("network", "σ_intra", "σ_inter", "σ_inter / σ_intra"), lines


def neighbours_table(analysis):
    """Share of same-class pixels among the k nearest, in percent, a column for each k."""
    lines = [
        (name, [percent(None if share is None else 100 * share) for share in entry["same_class_share"]])
        for name, entry in analysis["checkpoints"].items()
    ]
    return ("network", *(f"k={k}" for k in analysis["neighbours"])), lines
