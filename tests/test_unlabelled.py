"""What is said of networks without labels, against counts by numpy."""

import json
import types

import jax
import numpy as np
import pytest

from stpl_jax import parallel, unlabelled
from stpl_jax.evaluate import segment_clips
from stpl_jax.ops.resize import argmax_resized
from stpl_jax.records import as_metrics, better, in_words

NAMES = [f"class {i}" for i in range(5)]


@pytest.fixture(scope="module")
def measured(tiny_segmenter, tiny_variables, clips):
    """Figures of eight clips, of which seven are valid; and the clips."""
    batch = clips(8, frames=3, pairs=((0, 1), (1, 2))) | {"valid": np.arange(8) < 7}
    variables = parallel.replicate(tiny_variables)
    model = (variables["params"], variables["batch_stats"])
    step = unlabelled.make_unlabelled_step(tiny_segmenter, "align_corners")
    return unlabelled.measure(step, model, [batch, batch], NAMES), batch


def test_figures_are_those_of_the_class_maps(measured, tiny_segmenter, tiny_variables):
    found, batch = measured

    @jax.jit
    def look(frames, flow):
        scores = segment_clips(tiny_segmenter, tiny_variables, frames[None], flow[None], "align_corners")
        return [argmax_resized(x[0], frames.shape[1:3]) for x in scores], scores[0][0]

    pixels, same, confidences = np.zeros(5), [], []
    for frames, flow in zip(batch["frames"][:7], batch["flow"][:7], strict=True):
        (current, earlier), scores = look(frames, flow)
        pixels += np.bincount(np.ravel(current), minlength=5)
        same.append(np.mean(np.asarray(current) == np.asarray(earlier)))
        scores = np.asarray(scores, np.float64)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        confidences.append((shares.max(-1) / shares.sum(-1)).mean())
    np.testing.assert_allclose(list(found.shares.values()), 100 * pixels / pixels.sum(), rtol=1e-6)
    assert list(found.shares) == NAMES and (pixels > 0).sum() > 1 and found.clips == 14
    assert found.temporal_consistency == pytest.approx(100 * np.mean(same))
    assert found.confidence == pytest.approx(100 * np.mean(confidences), rel=1e-5)
    assert 0 < found.temporal_consistency_warped < 100
    text = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert text["miou"] is None and text["clips"] == 14 and text["shares"]["class 0"] == found.shares["class 0"]


def comparison(rows=("a", "b", "c"), clips=6):
    random = np.random.default_rng(0)
    maps = {row: random.integers(0, 3, (clips, 4, 5)).astype(np.uint8) for row in rows}
    return unlabelled.Comparison(tuple(range(clips)), tuple(map(str, range(clips))), maps, 4)


def test_agreement_of_two_and_where_all_differ():
    found = comparison()
    a, b, c = found.maps.values()
    pixels, classes = found.agreement("a", "c")
    assert pixels == pytest.approx(100 * (a == c).mean())
    expected = [((a == k) & (c == k)).sum() / ((a == k) | (c == k)).sum() for k in range(3)]
    np.testing.assert_allclose(classes[:3], 100 * np.array(expected))
    assert np.isnan(classes[3])
    different = [np.mean((x != y) | (x != z)) for x, y, z in zip(a, b, c, strict=True)]
    np.testing.assert_allclose(found.differing(), different)
    halves = [int(np.argmax(different[:3])), 3 + int(np.argmax(different[3:]))]
    assert found.most_differing(2) == halves
    assert found.most_differing(50) == list(range(6)) and found.most_differing(0) == []
    assert comparison(("a",)).differing().tolist() == [0] * 6 and len(comparison(("a",)).most_differing(3)) == 3


def test_how_far_statistics_moved():
    source = {"mean": np.array([3.0, 4.0]), "var": np.array([2.0])}
    assert unlabelled.moved({"mean": np.array([3.0, 3.0]), "var": np.array([2.2])}, source) == pytest.approx(15)
    assert unlabelled.moved({}, {}) is None


def figures(shares=(60, 40), confidence=80.0, warped=90.0):
    names = dict(zip(("road", "person"), shares, strict=True))
    return {"shares": names, "confidence": confidence, "temporal_consistency_warped": warped}


@pytest.mark.parametrize(
    "after, moved, told",
    [
        (figures(), 20, []),
        (figures((99.96, 0.04)), 20, ["road has taken over", "person has almost vanished, from 40.0% to 0.040%"]),
        (
            figures((99.8, 0.2)),
            20,
            ["road has taken over, from 60.0% to 99.8%", "person has shrunk much, from 40.0% to 0.20%"],
        ),
        (figures((79, 21)), 20, []),
        (figures((39, 61)), 20, ["road has shrunk much, from 60.0% to 39.0%", "person has taken over"]),
        (figures(confidence=85.0, warped=87.0), 20, ["confidence rose by 5.0 points (to 85.0), and .* fell by 3.0"]),
        (figures(confidence=85.0), 20, []),
        (figures(warped=80.0), 20, []),
        (figures(confidence=85.0, warped=None), 20, []),
        (figures(), 0.25, ["statistics are nearly the source model's (moved by 0.25%)"]),
        (figures(), None, []),
    ],
)
def test_warnings(after, moved, told):
    lines = unlabelled.warnings("mine", after, figures(), moved)
    assert len(lines) == len(told)
    for line, part in zip(lines, told, strict=True):
        start, _, end = part.partition(" .* ")
        assert line.startswith("mine: ") and start in line and end in line


def test_what_was_rare_before_is_no_loss():
    assert not unlabelled.warnings("mine", figures((100, 0)), figures((99.995, 0.005)))
    assert unlabelled.too_few_clips(20) == [] and "Only 1 held-out clip:" in unlabelled.too_few_clips(1)[0]


def test_scores_in_words():
    without = {"miou": None, "temporal_consistency": None, "confidence": 71.234, "step": 3}
    assert in_words({"miou": 41.5}) == "mIoU 41.50" and as_metrics({"miou": 41.5}) == {"validation/miou": 41.5}
    assert in_words(without) == "no labels, confidence 71.23" and as_metrics(without) == {
        "validation/confidence": 71.234
    }
    scored = without | {"miou": 30.0, "labelled": 5, "temporal_consistency": 90.0}
    assert in_words(scored) == "mIoU 30.00 on 5 labelled frames, temporal consistency 90.00, confidence 71.23"
    assert better(None, without) is without and better(without, scored) is scored and better(scored, without) is without
    assert better({"miou": 4}, {"miou": 3}) == {"miou": 4}


def test_clips_are_compared_by_the_networks_class_maps(monkeypatch):
    """Frames come in the order of time, and the last one's classes count."""
    clips = [
        {"frames": np.array([[[[i]]], [[[i - 1]]]], np.uint8), "flow": np.zeros((1, 1, 1, 2), np.int16)}
        for i in range(1, 8)
    ]
    monkeypatch.setattr(unlabelled, "read_clip", lambda source, i, *rest, **how: clips[i] | {"name": f"clip {i}"})
    source = type("Source", (), {"spec": types.SimpleNamespace(size=(1, 1)), "__len__": lambda self: 7})()
    model = types.SimpleNamespace(segment=lambda frames, flow: frames[..., 0], classes=("a",) * 9)
    found = unlabelled.compare({"x": model}, source, 3)
    assert found.clips == (0, 3, 6) and found.names == ("clip 0", "clip 3", "clip 6")
    assert found.maps["x"].ravel().tolist() == [1, 4, 7] and found.num_classes == 9
