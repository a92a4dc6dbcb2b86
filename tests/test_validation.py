"""Scoring with and without the flow that temporal consistency needs."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.labels import CLASSES
from stpl_jax import methods, parallel, validation
from stpl_jax.evaluate import evaluate, segment_clips
from stpl_jax.ops.resize import argmax_resized, resize_align_corners
from stpl_jax.records import RowScores
from stpl_jax.report import writing
from stpl_jax.report.numbers import make_report
from stpl_jax.train_state import TrainState

NAMES = [f"class {i}" for i in range(5)]


@pytest.fixture(scope="module")
def scored(tiny_segmenter, tiny_variables, clips):
    """Scores of eight clips, by the number of frames that are read; and the clips."""
    batch = clips(8, frames=3, pairs=((0, 1), (1, 2)), label=True) | {"valid": np.arange(8) < 7}
    variables = parallel.replicate(tiny_variables)
    step = validation.compiled_eval_step(tiny_segmenter, "align_corners")
    found = {}
    for count in (2, 3):
        part = batch | {"frames": batch["frames"][:, :count], "flow": batch["flow"][:, : count - 1]}
        model = (variables["params"], variables["batch_stats"])
        found[count] = evaluate(step, model, [part], NAMES, np.ones(len(NAMES), bool))
    return found, batch


def test_miou_needs_two_frames(scored):
    found, _ = scored
    np.testing.assert_array_equal(found[2].confusion, found[3].confusion)
    assert found[2].miou == found[3].miou > 0


def test_classes_that_count_as_others_are_scored_as_these(scored, tiny_segmenter, tiny_variables):
    _, batch = scored
    part = batch | {"frames": batch["frames"][:, :2], "flow": batch["flow"][:, :1], "label": batch["label"] % 2}
    variables, groups = parallel.replicate(tiny_variables), (1, 0, -1, 1, -1)
    step = validation.compiled_eval_step(tiny_segmenter, "align_corners", groups, 2)
    found = evaluate(step, (variables["params"], variables["batch_stats"]), [part], ("a", "b"), np.ones(2, bool))
    run = jax.jit(lambda frames, flow: segment_clips(tiny_segmenter, tiny_variables, frames, flow, "align_corners")[0])
    expected = np.zeros((2, 2), int)
    for frames, flow, label in zip(part["frames"][:7], part["flow"][:7], part["label"][:7], strict=True):
        scores = resize_align_corners(run(frames[None], flow[None])[0], label.shape)
        shares = np.asarray(jax.nn.softmax(scores, -1))
        classes = (shares[..., 0] + shares[..., 3] > shares[..., 1]).astype(int)
        np.add.at(expected, (label, classes), 1)
    assert expected.min(1).sum() > 0
    np.testing.assert_array_equal(found.confusion, expected)


def test_temporal_consistency_needs_three(scored):
    found, _ = scored
    assert 0 < found[3].as_json()["temporal_consistency"] < 100
    text = json.dumps(found[2].as_json(), allow_nan=False)
    assert json.loads(text)["temporal_consistency"] is json.loads(text)["temporal_consistency_warped"] is None


def test_scores_are_those_of_the_fused_frame(scored, tiny_segmenter, tiny_variables):
    """An independent count, clip by clip, of the clips that are valid."""
    found, batch = scored
    size = batch["label"].shape[1:]

    @jax.jit
    def predict(frames, flow):
        (scores,) = segment_clips(tiny_segmenter, tiny_variables, frames, flow, "align_corners")
        return jnp.stack([argmax_resized(x, size) for x in scores])

    classes = np.asarray(predict(batch["frames"][:7, :2], batch["flow"][:7, :1]))
    label = batch["label"][:7]
    expected = [[np.sum((label == i) & (classes == j)) for j in range(5)] for i in range(5)]
    # Another program rounds differently: a pixel here and there may change its class.
    assert np.abs(found[2].confusion - expected).sum() < 1e-3 * np.sum(expected)


class Source:
    def __init__(self, pairs):
        self.spec = type("Spec", (), {"flow_pairs": pairs})


def test_what_scoring_reads_is_what_the_set_holds():
    assert validation.scored_parts(Source(((0, 1),))) == ((0, 1), ((0, 1),))
    assert validation.scored_parts(Source(((0, 1), (1, 2)))) == ((0, 1, 2), ((0, 1), (1, 2)))


def test_a_report_without_temporal_consistency_has_dashes_and_says_why(tiny_config):
    classes = CLASSES["viper"]
    last = {"miou": 40.0, "temporal_consistency": None, "temporal_consistency_warped": None, "step": 4, "confusion": []}
    last |= {"iou": dict.fromkeys(classes, 40.0)}
    entry = RowScores("stpl", "stpl", "random", last, last, {})
    measured = last | {"temporal_consistency": 90.0, "temporal_consistency_warped": 91.0}
    whole = dataclasses.replace(entry, last=measured)
    numbers = make_report(tiny_config, {"source_only": entry, "stpl": whole})
    assert numbers["results"]["source_only"]["temporal_consistency"] is None
    json.dumps(numbers, allow_nan=False)
    text = writing.report_text(numbers, "stpl")
    assert "| source_only | 40.0 | +0.0 | - | - |" in text and "| 90.0 | 91.0 |" in text
    page = writing.report_page(numbers, "stpl", {}, {})
    for told in (text, page):
        assert "not measured, because there was no flow into the frame before the earlier one" in told
    numbers = make_report(tiny_config, {"stpl": whole})
    assert "not measured" not in writing.report_text(numbers, "stpl")


def test_the_model_of_a_state_is_where_the_method_says():
    class Teacher(methods.base.Method):
        inference = "extra/teacher"
        loss = None

    state = TrainState(0, {"network": {"segmenter": "student"}}, "statistics", {}, {"teacher": "teacher"})
    assert validation.model_of(state, Teacher()) == ("teacher", "statistics")
    Teacher.inference = methods.base.Method.inference
    assert validation.model_of(state, Teacher()) == ("student", "statistics")
