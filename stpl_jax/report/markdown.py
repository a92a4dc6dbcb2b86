"""Text in Markdown that shows as it is, whatever it holds: names come from files and command lines."""

import re
import unicodedata
import urllib.parse

# What begins or ends a form somewhere, in CommonMark and in what its common readers add to it.
_ANYWHERE = re.compile(r"[\\`*\[\]<>|~&#$!]|(?<![^\W_])_|_(?![^\W_])")
# What makes a list, a heading or a line only where a text begins.
_AT_THE_BEGINNING = re.compile(r"([-+=:]|\d+(?=[.)]))")


def text(value):
    """Escapes a value: nothing in it is read as Markdown or HTML.

    Control characters, line ends among them, and what is no Unicode text are shown by their numbers: `\\n`, `\\x1b`.

    Args:
      value: anything; its `str` is meant.

    Returns:
      Markdown on one line.
    """
    shown = printable(value).strip()
    escaped = _ANYWHERE.sub(r"\\\g<0>", shown)
    begins = _AT_THE_BEGINNING.match(escaped)
    if not begins:
        return escaped
    # A number is no list where its point is escaped; an escaped digit would show the backslash.
    place = begins.end() if begins[0][0].isdigit() else 0
    return f"{escaped[:place]}\\{escaped[place:]}"


def printable(value):
    """Returns a value's `str` on one line, with control characters and lone surrogates as their escapes."""
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c
        for c in str(value)
    )


def link(path):
    """Returns a relative path as the target of a link: percent-encoded, but for its slashes."""
    return urllib.parse.quote(str(path), errors="surrogateescape")
