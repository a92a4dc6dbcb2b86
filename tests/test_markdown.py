"""Names in Markdown show as they are: read by another reader of Markdown, in all places where the report has them."""

import random
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest
from markdown_it import MarkdownIt

from stpl_jax.report import markdown

READER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
HOSTILE = [
    "source_only",
    "_private_ and __dunder__",
    "a|b",
    "a\\|b\\",
    "**bold** *it*",
    "`code` ``",
    "<script>alert(1)</script>",
    '<img src=x onerror="alert(1)">&amp;&lt;',
    "[link](http://example.org) ![image](x.png)",
    "~~gone~~ $x$",
    "# heading",
    "- item",
    "1. item",
    "2) item",
    "+ item",
    "---",
    "===",
    "```",
    "> quoted",
    "    indented",
    "<!-- comment",
    "/data/Straße (neu)/日本語",
]


class Shown(HTMLParser):
    """Text and elements of a page; of a picture, what is told of it and where it lies."""

    def __init__(self, page):
        super().__init__()
        self.text, self.elements, self.pictures = "", [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        if tag == "img":
            self.pictures.append((dict(attrs)["alt"], unquote(dict(attrs)["src"], errors="surrogateescape")))

    def handle_data(self, data):
        self.text += data


def assert_shown(name):
    text, expected = markdown.text(name), name.strip()
    for form, elements in (
        (f"{text}\n", ["p"]),
        (f"# {text}\n", ["h1"]),
        (f"- {text}\n", ["ul", "li"]),
        (f"| {text} |\n| --- |\n", ["table", "thead", "tr", "th"]),
        (f"| **{text}** |\n| --- |\n", ["table", "thead", "tr", "th", "strong"]),
    ):
        shown = Shown(READER.render(form))
        assert (shown.text.strip(), shown.elements) == (expected, elements), form
    path = f"frames/{name}.png"
    shown = Shown(READER.render(f"![{text}]({markdown.link(path)})"))
    assert (shown.pictures, shown.elements) == ([(expected, path)], ["p", "img"])


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_shows_as_it_is(name):
    assert_shown(name)


def test_any_mix_of_marks_shows_as_it_is():
    draw = random.Random(0)
    for _ in range(300):
        middle = "".join(draw.choices("ab1_*`[]()<>|\\~&#$!-+=:. {}\"'", k=draw.randint(1, 12)))
        assert_shown(f"{middle}x")
        assert_shown(f"x{middle}x")


def test_what_cannot_be_printed_is_shown_by_its_number():
    assert markdown.printable("a\nb\x1b[31m\u2028\udce9é") == "a\\nb\\x1b[31m\\u2028\\udce9é"
    assert "\n" not in markdown.text("a\r\n\r\n# heading") and markdown.text(3) == "3"
    assert markdown.link("frames/caf\udce9 (1).png") == "frames/caf%E9%20%281%29.png"
