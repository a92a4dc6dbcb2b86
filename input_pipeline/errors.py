"""The one base class of errors that a person can mend."""


class UserError(ValueError):
    """An input, a file or a setting that does not fit.

    The message says which one, what was expected, what was found and what to do. `main.py` prints it without a
    traceback and ends with `exit_code`.
    """

    exit_code = 1


class Incomplete(UserError):
    """The work is done and its results are written, but part of the input was left out; the message says which."""

    exit_code = 3


def capped(lines, most=20):
    """Returns the first lines, and how many more there are.

    Args:
      lines: list of text lines.
      most: number of lines that are shown.

    Returns:
      A list of at most `most + 1` lines.
    """
    lines = list(lines)
    return lines[:most] + ([f"  ... and {len(lines) - most} more"] if len(lines) > most else [])
