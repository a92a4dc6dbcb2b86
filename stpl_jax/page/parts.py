"""Pieces that several sections of a page use; all return HTML."""

import html

from input_pipeline.labels import PALETTE
from stpl_jax.report_numbers import percent

HUES = 6


def row_styles(rows, method):
    """Gives each row the class name of its colour, the same one in all charts: row -> name."""
    known = {"source_only": "s-source", "oracle": "s-oracle", method: "s-method"}
    others = [row for row in rows if row not in known]
    return known | {row: f"s-{i % HUES}" for i, row in enumerate(others)}


def text(value):
    """A value as text in a page."""
    return html.escape(str(value))


def minus(number):
    """A number as text with the sign that print has; the dash of one that is not defined gets its own, too."""
    return number.replace("-", "−") if number != "-" else "–"


def score(value):
    """A score in percent with one digit, or a dash where it is not defined."""
    return minus(percent(value))


def key(style):
    """A short line in a row's colour."""
    return f'<i class="key {style}"></i>'


def swatch(name):
    """A square in a class's colour."""
    return f'<i class="swatch" style="background:rgb{PALETTE[name]}"></i>'


def table(head, lines, told, classes=()):
    """A table: the first cell of each line is its heading; cells are HTML. `told` stands above it."""
    body = ""
    for i, (first, *cells) in enumerate(lines):
        name = f' class="{classes[i]}"' if i < len(classes) and classes[i] else ""
        body += f'<tr{name}><th scope="row">{first}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    heads = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    told = text(told)
    return (
        f'<p class="soft">{told}</p><div class="box"><table aria-label="{told}"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def panel_row(panels, style, name=""):
    """Images beside each other, each under its caption: caption -> (data URI, what is told of it)."""
    cells = "".join(
        f'<div><span>{text(caption)}</span><img src="{uri}" alt="{text(told)}"></div>'
        for caption, (uri, told) in panels.items()
    )
    under = f"<figcaption>{text(name)}</figcaption>" if name else ""
    return f'<figure><div class="panels {style}">{cells}</div>{under}</figure>'


def class_legend(names):
    """Classes with their colours."""
    return '<ul class="legend">' + "".join(f"<li>{swatch(name)}{name}</li>" for name in names) + "</ul>"


def figure(value):
    """A variance, or a dash where it is not defined."""
    return "–" if value is None else f"{value:.4f}"
