"""Pictures of an analysis: curves over k, t-SNE, feature maps; drawn by Matplotlib on white."""

import math

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator

from input_pipeline.labels import PALETTE

_DPI = 150
# More networks than these go on in another row.
_COLUMNS = 3
# Told apart by those who see red and green alike, too: Okabe and Ito's.
_LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#444444")


def draw_neighbours(path, results):
    """Draws the share of same-class pixels among the k nearest, a line for each network (paper, Figure 7).

    Args:
      path: PNG to write.
      results: the analysis.
    """
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    ks = results["neighbours"]
    for i, (name, entry) in enumerate(results["checkpoints"].items()):
        shares = [math.nan if share is None else 100 * share for share in entry["same_class_share"]]
        style = ("-", "--", ":")[i // len(_LINES) % 3]
        axes.plot(ks, shares, style, marker="o", markersize=3.5, color=_LINES[i % len(_LINES)], label=name)
    axes.set(xscale="log", xlabel="k nearest neighbours", ylabel="same class, percent", xticks=ks)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda k, _: f"{k:.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=_DPI)


def draw_embeddings(path, results, subset, embeddings, members, classes):
    """Draws t-SNE's layout of each network's features, coloured by class (paper, Figures 6 and 8).

    Args:
      path: PNG to write.
      results: the analysis.
      subset: which of its sets of classes.
      embeddings: name -> `[P, 2]`.
      members: `[P]` train ids.
      classes: names of the classes.
    """
    count = len(embeddings)
    columns = min(_COLUMNS, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(3.4 * columns, 3.7 * rows + 0.8), layout="constrained")
    colours = np.array([PALETTE[name] for name in classes]) / 255
    for i, (name, places) in enumerate(embeddings.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        axes.scatter(*places.T, s=9, c=colours[members], edgecolors="white", linewidths=0.2)
        variances = results["checkpoints"][name]["variances"][subset]
        axes.set_title(f"{name}\n{_variances(variances)}", fontsize=9)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color("#cccccc")
    handles = [
        Line2D([], [], linestyle="", marker="o", markersize=5, color=colours[c], label=classes[c])
        for c in np.unique(members)
    ]
    columns = max(1, min(len(handles), 5))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    figure.savefig(path, dpi=_DPI)


def draw_feature_maps(path, shown, maps):
    """Draws each network's features of whole frames, beside frame and label.

    Args:
      path: PNG to write.
      shown: (frame, painted label), `[H, W, 3]` uint8 RGB, of each of n clips.
      maps: name -> `[n, h, w, 3]` uint8 RGB.
    """
    height, width = shown[0][0].shape[:2]
    titles = ["frame", "label", *maps]
    columns = min(_COLUMNS + 1, len(titles))
    # Each clip is a block of its own, as many rows as its panels need.
    block = -(-len(titles) // columns)
    panel = 3.0
    figure = Figure(
        figsize=(panel * columns, (panel * height / width + 0.3) * block * len(shown)), layout="constrained"
    )
    for n, (frame, label) in enumerate(shown):
        for i, (title, pixels) in enumerate(zip(titles, (frame, label, *(x[n] for x in maps.values())), strict=True)):
            axes = figure.add_subplot(block * len(shown), columns, n * block * columns + i + 1)
            axes.imshow(pixels, interpolation="nearest", aspect="auto")
            axes.set_box_aspect(height / width)
            axes.set_title(title, fontsize=9)
            axes.set_axis_off()
    figure.savefig(path, dpi=_DPI)


def _variances(values):
    if None in values.values():
        return "too few pixels"
    return f"σ_intra {values['intra']:.3f}   σ_inter {values['inter']:.3f}"
