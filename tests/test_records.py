"""A row's scores on disk."""

import json

import pytest

from input_pipeline.errors import UserError
from stpl_jax.records import RowScores, read_scores

SCORE = {"miou": 41.5, "step": 7, "iou": {"road": None}}


def test_what_is_written_is_read(tmp_path):
    scores = RowScores("stpl", "stpl", "random", SCORE, SCORE | {"step": 5}, {"seed": 1}, 0.25)
    scores.write(tmp_path)
    assert read_scores(tmp_path, "stpl") == scores
    assert read_scores(tmp_path, "other") is None


@pytest.mark.parametrize(
    "change, found",
    [
        (lambda text: "", "an empty file"),
        (lambda text: text[:40], "break early"),
        (lambda text: "[]", "found list"),
        (lambda text: json.dumps({"row": "stpl"}), "method, source, last, best_on_validation, config is missing"),
        (lambda text: json.dumps(json.loads(text) | {"last": {"miou": 1}}), "last with miou and step"),
        (lambda text: json.dumps(json.loads(text) | {"last": 3}), "last with miou and step"),
    ],
)
def test_a_damaged_file_is_named_with_the_way_out(tmp_path, change, found):
    RowScores("stpl", "stpl", "random", SCORE, SCORE, {}).write(tmp_path)
    path = tmp_path / "stpl" / "evaluation.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(UserError, match=found) as caught:
        read_scores(tmp_path, "stpl")
    assert str(path) in str(caught.value) and "--mode=evaluate" in str(caught.value)
