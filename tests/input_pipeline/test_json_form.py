"""The form of what JSON files hold: the first place that does not fit is named."""

import pytest

from input_pipeline.json_form import NUMBER, NUMBER_OR_NULL, OBJECT, TEXT, WHOLE, Each, misfit

FORM = {"name": TEXT, "points": [[NUMBER]], "scores": Each({"miou": NUMBER_OR_NULL}), "step": WHOLE, "more": OBJECT}
GOOD = {"name": "a", "points": [[1, 2.5], []], "scores": {"x": {"miou": None}, "y": {"miou": 3}}, "step": 7, "more": {}}


def test_what_fits():
    assert misfit(GOOD, FORM) is None
    assert misfit(GOOD | {"extra": object()}, FORM) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 3}, ".name: expected text, found 3"),
        ({"points": {}}, ".points: expected a list, found {}"),
        ({"points": [[1], ["x"]]}, ".points[1][0]: expected a number, found 'x'"),
        ({"points": [[True]]}, ".points[0][0]: expected a number, found True"),
        ({"points": [[float("nan")]]}, ".points[0][0]: expected a number, found nan"),
        ({"points": [[10**400]]}, ".points[0][0]: expected a number, found 1000"),
        ({"scores": []}, ".scores: expected an object, found []"),
        ({"scores": {"x": {}}}, ".scores.x: miou missing"),
        ({"scores": {"x": {"miou": "3"}}}, ".scores.x.miou: expected a number or null, found '3'"),
        ({"step": 1.0}, ".step: expected a whole number, found 1.0"),
        ({"more": None}, ".more: expected an object, found None"),
    ],
)
def test_the_first_misfit_is_named(change, message):
    assert misfit(GOOD | change, FORM).startswith(message)


def test_something_else_altogether():
    assert misfit([], FORM) == ": expected an object, found []"
    assert misfit({}, FORM) == ": name, points, scores, step, more missing"
