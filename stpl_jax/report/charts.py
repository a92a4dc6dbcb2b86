"""Charts of a report, drawn by Matplotlib: lines as SVG, for light and dark pages, and scatter plots as PNG."""

import dataclasses
import io
import re
import textwrap

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter
from PIL import Image

from stpl_jax.report.markdown import printable

# name -> colour on light and on dark pages. `source`, `method` and `oracle` are rows, others take c0 to c5 in turn.
COLOURS = {
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
_HUES = sum(name.startswith("c") for name in COLOURS)
_DARK = dict(COLOURS.values())
# Of one unit of an SVG; as wide as a phone's screen, where letters of that size can be read.
_POINTS = 72 / 96
_WIDE, _NARROW = (400, 250), (330, 220)
_STYLE = {
    "svg.fonttype": "none",  # letters stay letters
    "svg.hashsalt": "stpl_jax",  # the same file from the same values
    "text.parse_math": False,  # names may hold dollars
    "font.size": 14 * _POINTS,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.color": COLOURS["rule"][0],
    "legend.frameon": False,
    "ytick.left": False,
} | dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), COLOURS["soft"][0])
_MOST_POINTS = 240


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
      name: what it shows.
      points: (x, y) in the order of x.
      colour: a name of `COLOURS`.
      faint: points drawn thin behind the line, such as values before smoothing.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    colour: str
    faint: tuple[tuple[float, float], ...] = ()


def row_colours(rows, method):
    """Gives each row a name of `COLOURS`, the same one in all charts: row -> name."""
    known = {"source_only": "source", "oracle": "oracle", method: "method"}
    others = [row for row in dict.fromkeys(rows) if row not in known]
    return known | {row: f"c{i % _HUES}" for i, row in enumerate(others)}


def validation_chart(lines):
    """Draws each row's validation mIoU over training steps: SVG, or None where there is no point."""
    return _line_chart([_with_value(line) for line in lines], "step", "mIoU, percent", _WIDE)


def loss_chart(curves, colour):
    """Draws one row's losses; those of other parameter groups than the network's, discriminators say, in other colours.

    Args:
      curves: name -> ((step, value), ...), of `numbers.read_curves`.
      colour: of the network's loss, a name of `COLOURS`.

    Returns:
      SVG, as bytes; None where there is no loss but 0, as of bn_statistics, which trains nothing.
    """
    lines = []
    for name, points in curves.items():
        if name.startswith("loss/") and any(value for _, value in points):
            own = colour if name == "loss/network" else f"c{len(lines) % _HUES}"
            mean = thinned(smoothed(points, max(1, len(points) // 25)), _MOST_POINTS)
            lines.append(Line(name.removeprefix("loss/"), mean, own, thinned(points, _MOST_POINTS)))
    return _line_chart(lines, "step", "loss", _NARROW)


def neighbours_chart(results, colours):
    """Draws the share of same-class pixels among the k nearest, a line for each network (paper, Figure 7).

    Args:
      results: the analysis, of `analysis.analyse`.
      colours: of `row_colours`.

    Returns:
      SVG, as bytes; without a share, its axes alone.
    """
    lines = []
    for name, entry in results["checkpoints"].items():
        shares = zip(results["neighbours"], entry["same_class_share"], strict=True)
        points = tuple((k, 100 * share) for k, share in shares if share is not None)
        lines.append(_with_value(Line(name, points, colours[name])))
    return _line_chart(lines, "k nearest neighbours", "same class, percent", _WIDE, log_x=True, empty=True)


def _with_value(line):
    """Adds the last value to a line's name."""
    return dataclasses.replace(line, name=f"{line.name}  {line.points[-1][1]:.1f}") if line.points else line


def _line_chart(lines, x_label, y_label, size, log_x=False, empty=False):
    lines = [line for line in lines if line.points]
    if not lines and not empty:
        return None
    with matplotlib.rc_context(_STYLE):
        # The legend stands below the axes, and takes no space from them.
        names = [textwrap.fill(printable(line.name), 48) for line in lines] if len(lines) > 1 or log_x else []
        height = size[1] + 20 * sum(1 + name.count("\n") for name in names)
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
        for line in lines:
            colour = COLOURS[line.colour][0]
            if line.faint:
                axes.plot(*zip(*line.faint, strict=True), color=colour, linewidth=0.75, alpha=0.35, zorder=1.5)
            drawn += axes.plot(
                *zip(*line.points, strict=True),
                color=colour,
                linewidth=2.7 if line.colour == "method" else 1.8,
                linestyle="--" if line.colour == "oracle" else "-",
                # A long curve needs no marks, and one point has nothing else.
                marker="o" if len(line.points) < 20 else None,
                markersize=5,
            )
        if names:
            figure.legend(drawn, names, loc="outside lower left")
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def in_the_dark(svg):
    """Returns a chart in the colours of dark pages."""
    return re.sub(rb"#[0-9a-f]{6}", lambda found: _DARK.get(found[0].decode(), found[0].decode()).encode(), svg)


def scatter_plot(places, colours):
    """Draws t-SNE's layout of one network's features (paper, Figures 6 and 8).

    Args:
      places: `[P, 2]`.
      colours: `[P, 3]` uint8 RGB; later points lie above.

    Returns:
      PNG, as bytes: a white square.
    """
    figure = Figure(figsize=(4, 4), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), aspect="equal")
    axes.set_axis_off()
    axes.scatter(*places.T, s=14, c=colours / 255, edgecolors="white", linewidths=0.25)
    drawn, file = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=150)
    # A third of the size, and the classes' colours stay what they are.
    Image.open(drawn).convert("RGB").quantize(256).save(file, format="PNG", optimize=True)
    return file.getvalue()


def smoothed(points, window):
    """Running mean over the last `window` values: [(x, y)] to [(x, y)]."""
    steps, values = zip(*points, strict=True)
    sums = np.cumsum((0.0, *values))
    first = np.maximum(np.arange(1, len(sums)) - window, 0)
    means = (sums[1:] - sums[first]) / (np.arange(1, len(sums)) - first)
    return tuple(zip(steps, means.tolist(), strict=True))


def thinned(points, most):
    """Leaves out points evenly until there are about `most`; the last stays."""
    step = max(1, -(-len(points) // most))
    return tuple(points[::step]) + (() if (len(points) - 1) % step == 0 else (points[-1],))
