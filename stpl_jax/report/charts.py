"""Charts of a report, drawn by Matplotlib: lines as SVG, for light and dark pages, and scatter plots as PNG."""

import io
import re
import textwrap

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter
from PIL import Image

from stpl_jax.report.markdown import printable

# name -> colour on light and on dark pages. `source`, `method` and `oracle` are rows, the others take c0 to c5 in turn.
COLOURS = {
    "card": ("#ffffff", "#1d2024"),
    "soft": ("#5d646c", "#a2a8af"),
    "rule": ("#dedbd3", "#33383e"),
    "source": ("#8b9198", "#8d949c"),
    "method": ("#0a6b66", "#4dc4b6"),
    "oracle": ("#22262b", "#e7e5e0"),
    "c0": ("#c2571a", "#f0965a"),
    "c1": ("#3767b5", "#7fa8ec"),
    "c2": ("#8e4a9c", "#cf92dc"),
    "c3": ("#7d7410", "#cdc04e"),
    "c4": ("#b3315b", "#ee7fa2"),
    "c5": ("#6f5848", "#c2a48e"),
}
_HUES = [name for name in COLOURS if re.fullmatch(r"c\d", name)]
_DARK = dict(COLOURS.values())
_MOST_POINTS = 240
# Width and height in CSS pixels: no wider than a phone's screen, where letters of this size can still be read.
_WIDE, _NARROW, _FONT = (400, 250), (330, 220), 14
_STYLE = {
    "svg.fonttype": "none",  # letters stay letters
    "svg.hashsalt": "stpl_jax",  # the same file from the same values
    "text.parse_math": False,  # names may hold dollars
    "font.size": _FONT * 72 / 96,
    "figure.constrained_layout.use": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": COLOURS["rule"][0],
    "legend.frameon": False,
    "ytick.left": False,
    **dict.fromkeys(("axes.spines.left", "axes.spines.right", "axes.spines.top"), False),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor"), COLOURS["card"][0]),
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), COLOURS["soft"][0]),
    **dict.fromkeys(("xtick.color", "ytick.color"), COLOURS["soft"][0]),
}


def row_colours(rows, method):
    """Gives each row a name of `COLOURS`, the same one in all charts: row -> name."""
    known = {"source_only": "source", "oracle": "oracle", method: "method"}
    others = [row for row in dict.fromkeys(rows) if row not in known]
    return known | {row: _HUES[i % len(_HUES)] for i, row in enumerate(others)}


def validation_chart(scores, colours):
    """Draws validation mIoU over training steps as SVG, bytes: row -> ((step, percent), ...), at least one of each."""
    lines = [(f"{row}  {points[-1][1]:.1f}", points, colours[row]) for row, points in scores.items()]
    return _line_chart(lines, "step", "mIoU, percent", _WIDE)


def loss_chart(curves, colour):
    """Draws one row's losses: as logged, thin, and their running mean.

    Args:
      curves: name -> ((step, value), ...), of `numbers.read_curves`.
      colour: of the network's loss, a name of `COLOURS`; other parameter groups, discriminators say, have others.

    Returns:
      SVG, bytes; None where there is no loss but 0, as of bn_statistics, which trains nothing.
    """
    names = [name for name, points in curves.items() if name.startswith("loss/") and any(y for _, y in points)]
    own = {name: colour if name == "loss/network" else _HUES[i % len(_HUES)] for i, name in enumerate(names)}
    lines = [(None, thinned(curves[name]), own[name]) for name in names]
    lines += [(name.removeprefix("loss/"), thinned(running_mean(curves[name])), own[name]) for name in names]
    return _line_chart(lines, "step", "loss", _NARROW) if lines else None


def neighbours_chart(results, colours):
    """Draws the share of same-class pixels among the k nearest, a line for each network (paper, Figure 7): SVG, bytes.

    Args:
      results: the analysis, of `analysis.analyse`.
      colours: of `row_colours`.
    """
    lines = []
    for name, entry in results["checkpoints"].items():
        shares = [np.nan if share is None else 100 * share for share in entry["same_class_share"]]
        points = list(zip(results["neighbours"], shares, strict=True))
        lines.append((f"{name}  {shares[-1]:.1f}" if shares else name, points, colours[name]))
    return _line_chart(lines, "k nearest neighbours", "same class, percent", _WIDE, log_x=True)


def _line_chart(lines, x_label, y_label, size, log_x=False):
    """Draws (name, points, colour); a line without a name lies thin behind the others."""
    # The legend stands below the axes, and takes no space from them.
    names = [textwrap.fill(printable(name), 48) for name, _, _ in lines if name is not None]
    names = names if len(names) > 1 or size == _WIDE else []
    height = size[1] + 23 * sum(1 + name.count("\n") for name in names)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(size[0] / 96, height / 96))
        axes = figure.add_subplot(xlabel=x_label, ylabel=y_label)
        if log_x:
            axes.set_xscale("log")
            axes.xaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), minor_locator=NullLocator())
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
        else:
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=(1, 2, 5, 10)))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 5, 10)))
        drawn = []
        for name, points, colour in lines:
            style = dict(color=COLOURS[colour][0], linestyle="--" if colour == "oracle" and size == _WIDE else "-")
            if name is None:
                style |= dict(linewidth=0.75, alpha=0.35, linestyle="-")
            else:
                # A long curve needs no marks, and one point has nothing else.
                marks = dict(marker="o", markersize=5) if len(points) < 20 else {}
                style |= dict(linewidth=2.7 if colour == "method" else 1.8) | marks
            drawn += axes.plot(*np.transpose(points), **style)
        if names:
            figure.legend(drawn[-len(names) :], names, loc="outside lower left")
        return _saved(figure, format="svg", metadata={"Date": None})


def in_the_dark(svg):
    """Returns a chart in the colours of dark pages."""
    return re.sub(rb"#[0-9a-f]{6}", lambda found: _DARK.get(found[0].decode(), found[0].decode()).encode(), svg)


def scatter_plot(places, colours):
    """Draws t-SNE's layout of one network's features (paper, Figures 6 and 8).

    Args:
      places: `[P, 2]`.
      colours: `[P, 3]` uint8 RGB; later points lie above.

    Returns:
      PNG, bytes: a white square.
    """
    figure = Figure(figsize=(4, 4), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), aspect="equal")
    axes.set_axis_off()
    axes.scatter(*places.T, s=14, c=colours / 255, edgecolors="white", linewidths=0.25)
    image = Image.open(io.BytesIO(_saved(figure, format="png", dpi=150))).convert("RGB")
    file = io.BytesIO()
    # A third of the size, and the classes' colours stay what they are.
    image.quantize(256).save(file, format="PNG", optimize=True)
    return file.getvalue()


def _saved(figure, **settings):
    file = io.BytesIO()
    figure.savefig(file, **settings)
    return file.getvalue()


def running_mean(points):
    """Running mean of `[N, 2]` over the last 25th of the values: `[N, 2]`."""
    steps, values = np.transpose(points)
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - max(1, len(values) // 25), 0)
    sums = np.cumsum([0, *values])
    return np.stack([steps, (sums[ends] - sums[starts]) / (ends - starts)], 1)


def thinned(points):
    """Leaves out points `[N, 2]` evenly, so that a chart stays small; the first and the last stay."""
    chosen = np.linspace(0, len(points) - 1, min(len(points), _MOST_POINTS)).round().astype(int)
    return np.asarray(points)[chosen]
