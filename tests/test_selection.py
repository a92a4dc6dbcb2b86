"""Choosing a row without labels, against plain numpy."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.errors import UserError
from stpl_jax import selection
from stpl_jax.models.network import PerClassifier

CLIPS, SIZE, CLASSES = 50, (4, 6), 3


@dataclasses.dataclass(frozen=True)
class Linear:
    """Scores are colours times a matrix, plus what the statistics say; the earlier frame counts a third."""

    def features(self, variables, frames):
        shift = jnp.outer(jnp.arange(SIZE[1], dtype=jnp.float32), variables["batch_stats"]["shift"])
        scores = frames @ variables["params"]["w"]
        return PerClassifier(scores + jnp.broadcast_to(shift, scores.shape), None), None  # not the same in a mirror

    def classify(self, params, features):
        return features

    def fuse(self, params, current, earlier, flow):
        return (2 * current + earlier + flow[..., :1] @ jnp.arange(CLASSES, dtype=jnp.float32)[None]) / 3


def model(w, shift):
    variables = {"params": {"w": w}, "batch_stats": {"shift": shift}}
    return SimpleNamespace(segmenter=Linear(), variables=variables, flow_scale="align_corners")


@pytest.fixture
def clips(monkeypatch):
    rng = np.random.default_rng(0)
    frames = rng.uniform(0, 2, (CLIPS, 2, *SIZE, 3)).astype(np.float32)
    flow = rng.integers(-30, 30, (CLIPS, 1, *SIZE, 2)).astype(np.int16)
    read = []

    def read_clip(source, i, offsets, pairs, label):
        assert source is frames and (offsets, pairs, label) == ((0, 1), ((0, 1),), False)
        read.append(i)
        return {"frames": frames[i], "flow": flow[i]}

    monkeypatch.setattr(selection, "read_clip", read_clip)
    return SimpleNamespace(frames=frames, flow=flow, read=read)


def models():
    rng = np.random.default_rng(1)
    w = rng.normal(size=(3, CLASSES)).astype(np.float32)
    found = {
        name: model(w.copy(), np.float32(size) * rng.normal(size=CLASSES).astype(np.float32))
        for name, size in (("source_only", 0.3), ("alpha_bn", 0.05), ("bn_statistics", 0.3))
    }
    return found | {"stpl": model(w + np.float32(0.1), np.zeros(CLASSES, np.float32)), "naive": model(-w, w[0])}


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def predicted(row, frames, flow):
    """Probabilities `[h, w, K]` of one clip, `frames` `[2, h, w, 3]` and `flow` `[h, w, 2]` in tenths of a pixel."""
    w, shift = row.variables["params"]["w"], row.variables["batch_stats"]["shift"]
    current, earlier = (f @ w + np.arange(SIZE[1])[:, None] * shift for f in frames)
    return softmax((2 * current + earlier + flow[..., :1] / 10 * np.arange(CLASSES)) / 3)


def plain_costs(rows, clips, which):
    found = []
    for row in rows.values():
        seen, cross = [], []
        for i in which:
            p, m = both_views(row, clips, i)
            cross.append(np.mean([-(p[y, x] * np.log(m[y, x])).sum() for y, x in np.ndindex(SIZE)]))
            seen.append(p)
        mean = np.mean(seen, (0, 1, 2))
        found.append(np.mean(cross) + sum(mean * np.log(mean)))
    return found


def both_views(row, clips, i):
    frames, flow = clips.frames[i], clips.flow[i, 0]
    mirrored_flow = flow[:, ::-1] * np.array([-1, 1])
    return predicted(row, frames, flow), predicted(row, frames[:, :, ::-1], mirrored_flow)[:, ::-1]


def plain(rows, clips, which, reference):
    agreeing = {row: [] for row in rows}
    for i in which:
        total = sum(weight * sum(both_views(rows[row], clips, i)) for row, weight in reference.items())
        for row in rows:
            same = both_views(rows[row], clips, i)[0].argmax(-1) == total.argmax(-1)
            agreeing[row].append(same.mean())
    return {row: 100 * np.mean(values) for row, values in agreeing.items()}


def test_the_row_that_agrees_most_with_untrained_ones_is_chosen(clips):
    rows = models()
    lines = []
    found = selection.select(rows, clips.frames, lines.append)
    assert lines[-1].startswith("select: clips: 80/80, ")
    # Spread evenly over the set, its ends included.
    which = np.unique(np.round(np.linspace(0, CLIPS - 1, 40)).astype(int)).tolist()
    assert clips.read == 2 * which and found.clips == 40
    untrained = ("source_only", "alpha_bn", "bn_statistics")
    cost = np.array(plain_costs({row: rows[row] for row in untrained}, clips, which))
    weights = np.exp(-cost / selection.TEMPERATURE) / np.exp(-cost / selection.TEMPERATURE).sum()
    assert found.cost == pytest.approx(dict(zip(untrained, cost, strict=True)), abs=1e-5)
    assert found.reference == pytest.approx(dict(zip(untrained, weights, strict=True)), abs=1e-3)
    assert max(weights) < 0.9, "more than one row counts"
    expected = plain(rows, clips, which, found.reference)
    assert found.agreement == pytest.approx(expected, abs=1e-3)
    assert found.chosen == max(expected, key=expected.get)
    assert found.agreement["naive"] < found.agreement["stpl"]
    assert json.loads(json.dumps(found.as_json()))["chosen"] == found.chosen
    lines = found.lines()
    assert lines[0].startswith("compared with the mean of source_only 0.")
    assert lines[1].startswith(f"{found.chosen}  agrees") and lines[1].endswith("<- chosen")
    assert len(lines) == 1 + len(rows) and lines[-1].startswith("naive")


def test_a_source_model_alone_is_chosen(clips):
    rows = {"source_only": models()["source_only"]}
    found = selection.select(rows, clips.frames)
    assert found.chosen == "source_only"


def test_without_a_source_model_there_is_nothing_to_compare_with(clips):
    rows = models()
    del rows["source_only"]
    with pytest.raises(UserError, match="source_only, which has no model; there are alpha_bn, bn_statistics"):
        selection.select(rows, clips.frames)


def test_other_parameters_are_no_reference():
    rows = models()
    other = model(np.zeros((4, CLASSES), np.float32), np.zeros(CLASSES, np.float32))
    assert selection._same(rows["source_only"], rows["alpha_bn"])
    assert not selection._same(rows["source_only"], rows["stpl"])
    assert not selection._same(rows["source_only"], other)
    bigger = SimpleNamespace(variables={"params": {"w": jax.device_put(np.eye(3)), "b": np.zeros(3)}})
    assert not selection._same(rows["source_only"], bigger)
