"""Renders the templates: HTML for `*.html`, Markdown for `*.md`; no value is read as either."""

import base64
import json
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from input_pipeline.labels import PALETTE
from stpl_jax.report import charts, markdown, tables

_KINDS = {b"\x89PNG": "png", b"RIFF": "webp", b"<?xm": "svg+xml"}


def render(template, **view):
    """Returns a template's text.

    Args:
      template: name of a file in `templates`.
      view: what it shows.

    Raises:
      jinja2.UndefinedError: the template asks for something else.
    """
    return _ENVIRONMENTS[Path(template).suffix].get_template(template).render(view)


def data_uri(content):
    """Returns an image file, PNG, WebP or SVG as bytes, as an address that holds it."""
    return f"data:image/{_KINDS[content[:4]]};base64,{base64.b64encode(content).decode()}"


def _environment(show, number):
    """Builds an environment: `show` writes any value so that it shows as it is, `number` the text of a number."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        # Markup is what a template, or a filter below, has made.
        finalize=lambda value: value if isinstance(value, Markup) else show(value),
    )
    made.globals |= dict(palette=PALETTE, colours=charts.COLOURS)
    made.filters |= dict(
        number=lambda text: Markup(number(text)),
        percent=lambda value: Markup(number(tables.percent(value))),
        difference=lambda value, base: Markup(number(tables.difference(value, base))),
        share=lambda value: Markup(number(tables.share(value))),
        json=lambda value: Markup.escape(json.dumps(value, indent=1)),
        link=lambda path: Markup(markdown.link(path)),
        uri=data_uri,
        in_the_dark=charts.in_the_dark,
        variance_table=tables.variance_table,
        neighbours_table=tables.neighbours_table,
    )
    return made


_ENVIRONMENTS = {
    ".html": _environment(markdown.printable, lambda text: "–" if text == "-" else text.replace("-", "−")),
    ".md": _environment(lambda value: Markup(markdown.text(value)), str),
}
