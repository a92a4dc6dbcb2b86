"""Whether what was read from a JSON file has the form that its readers count on."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A value that holds no others.

    Attributes:
      words: what is expected, for the message.
      fits: value -> whether it is that.
    """

    words: str
    fits: Callable[[Any], bool] = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class Each:
    """An object with any names, all of whose values have one form."""

    form: Any


def is_number(value):
    """Whether a value is a finite number that fits a float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -_LARGEST <= value <= _LARGEST


_LARGEST = math.ldexp(1.0, 1023)

NUMBER = Leaf("a number", is_number)
NUMBER_OR_NULL = Leaf("a number or null", lambda value: value is None or is_number(value))
WHOLE = Leaf("a whole number", lambda value: isinstance(value, int) and is_number(value))
TEXT = Leaf("text", lambda value: isinstance(value, str))
OBJECT = Leaf("an object", lambda value: isinstance(value, dict))


def misfit(value, form, where=""):
    """Looks for the first place where a value has another form than expected.

    Args:
      value: what `json` has read.
      form: a `Leaf`; `[form]` for a list of any length; `{name: form}` for an object with these names at least; or
        `Each(form)`.
      where: names on the way to the value, for the message.

    Returns:
      What was expected and found where, or None if all fits.
    """
    if isinstance(form, Leaf):
        return None if form.fits(value) else f"{where}: expected {form.words}, found {value!r:.40}"
    kind, words = (list, "a list") if isinstance(form, list) else (dict, "an object")
    if not isinstance(value, kind):
        return f"{where}: expected {words}, found {value!r:.40}"
    if isinstance(form, list):
        inside = ((f"{where}[{i}]", item, form[0]) for i, item in enumerate(value))
    elif isinstance(form, Each):
        inside = ((f"{where}.{name}", item, form.form) for name, item in value.items())
    else:
        missing = [name for name in form if name not in value]
        if missing:
            return f"{where}: {', '.join(missing)} missing"
        inside = ((f"{where}.{name}", value[name], part) for name, part in form.items())
    return next((found for place, item, part in inside if (found := misfit(item, part, place))), None)
