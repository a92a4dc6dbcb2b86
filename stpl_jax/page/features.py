"""The section of a report about feature space."""

from input_pipeline.labels import PALETTE
from stpl_jax.analysis_text import subset_title
from stpl_jax.page import parts
from stpl_jax.page.charts import Line, line_chart, scatter_chart


def features_section(analysis, drawings, styles, classes):
    """Sets an analysis of feature space.

    Args:
      analysis: of `analysis_files.read_results`, or None.
      drawings: of `analysis_files.read_drawings`.
      styles: row -> class name of its colour.
      classes: names of the K classes.

    Returns:
      HTML, empty without an analysis.
    """
    if analysis is None:
        return ""
    found, counts = analysis["checkpoints"], analysis["pixels"]
    text = (
        f"<p>L2-normalised features of the backbone’s last stage, of {sum(counts.values())} pixels out of "
        f"{analysis['clips']} validation clips; every network is asked about the same pixels.</p>"
    )
    strangers = [name for name in found if name not in styles]
    styles = styles | {name: f"s-{i % parts.HUES}" for i, name in enumerate(strangers)}
    lines = [
        Line(
            name,
            tuple(
                (k, 100 * share)
                for k, share in zip(analysis["neighbours"], entry["same_class_share"], strict=True)
                if share is not None
            ),
            styles[name],
        )
        for name, entry in found.items()
    ]
    lines = [line for line in lines if line.points]
    if lines:
        told = "; ".join(
            f"{line.name} from {parts.score(line.points[0][1])} to {parts.score(line.points[-1][1])}" for line in lines
        )
        chart = line_chart(
            lines,
            "k nearest neighbours",
            "same class, %",
            f"Share of same-class pixels among the k nearest: {told}.",
            x_ticks=analysis["neighbours"],
            log_x=True,
        )
        legend = "".join(
            f"<li>{parts.key(line.style)}<span>{parts.text(line.name)}</span>"
            f"<span>{parts.score(line.points[-1][1])}</span></li>"
            for line in lines
        )
        text += "<h3>Same-class pixels among the k nearest</h3>"
        text += f'<div class="beside">{chart}<ul class="legend">{legend}</ul></div>'
    text += _variances(analysis, styles)
    for subset, members in analysis["subsets"].items():
        text += _scatter(analysis, drawings["tsne"][subset], subset, members, classes, styles)
    text += (
        "<h3>Feature maps</h3><p>The three directions in which the features of all networks together vary most, as "
        "red, green and blue.</p>"
    )
    for panels in drawings["maps"]:
        told = {"frame": "The frame", "label": "The label"}
        text += parts.panel_row({c: (uri, told.get(c, f"Feature map of {c}")) for c, uri in panels.items()}, "maps")
    return text


def _scatter(analysis, layout, subset, members, classes, styles):
    title = subset_title(subset, members)
    cards = ""
    for name, places in layout["places"].items():
        groups = [
            (f"rgb{PALETTE[label]}", [p for p, c in zip(places, layout["classes"], strict=True) if c == i])
            for i, label in enumerate(classes)
        ]
        chart = scatter_chart(groups, f"Pixels laid out by t-SNE of {name}'s features, coloured by class: {title}.")
        variances = analysis["checkpoints"][name]["variances"][subset]
        told = f"σ_intra {parts.figure(variances['intra'])}, σ_inter {parts.figure(variances['inter'])}"
        heading = f"<h3>{parts.key(styles[name])}{parts.text(name)}</h3>"
        cards += f"<figure>{heading}{chart}<figcaption>{told}</figcaption></figure>"
    heading = f"<h3>t-SNE: {parts.text(title[0].lower() + title[1:])}</h3>"
    return f'{heading}{parts.class_legend(members)}<div class="cards">{cards}</div>'


def _variances(analysis, styles):
    tables = ""
    for subset, members in analysis["subsets"].items():
        lines = []
        for name, entry in analysis["checkpoints"].items():
            intra, inter = (entry["variances"][subset][key] for key in ("intra", "inter"))
            ratio = inter / intra if intra else None
            lines.append((parts.key(styles[name]) + parts.text(name), *map(parts.figure, (intra, inter, ratio))))
        head = ("network", "σ_intra", "σ_inter", "ratio")
        tables += f"<div>{parts.table(head, lines, subset_title(subset, members))}</div>"
    return (
        "<h3>Variance within and between classes</h3><p>σ_intra is the mean squared distance of a class’s pixels to "
        "their mean (lower is better), σ_inter that of the class means to theirs (higher is better); the ratio is "
        "σ_inter / σ_intra.</p>"
        f'<div class="plots">{tables}</div>'
    )
