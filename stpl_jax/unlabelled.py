"""What can be said about networks without labels: shares of classes, consistency, confidence, and where two differ.

None of it says how good a network is. It says what has changed, and some of what goes wrong shows in it.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.clips import read_clip
from input_pipeline.flow_files import to_pixels
from stpl_jax import parallel
from stpl_jax.evaluate import clip_consistency, count_over, or_null, segment_clips
from stpl_jax.metrics.segmentation import iou
from stpl_jax.metrics.temporal_consistency import ConsistencyCounts, consistency_shares
from stpl_jax.ops.resize import argmax_resized

# A class has vanished where its share fell below a tenth of what it was, and below this, percent. What was rarer than
# a tenth of that before may have been noise.
_VANISHED, _NOISE = 0.1, 0.01
# A change of a share by this, percentage points, is much; a class that has most pixels then has taken over.
_MUCH, _TAKEN_OVER = 20.0, 50.0
# Percentage points that confidence gains and consistency loses, so that it is worth a word.
_RISES, _FALLS = 1.0, 1.0
# Relative change of running statistics, percent.
_HARDLY = 1.0
_FEW_CLIPS = 20
# Clips whose class maps are kept for comparing networks.
_MOST_COMPARED = 40


class Counts(NamedTuple):
    """Summed over the clips of a batch.

    Attributes:
      pixels: `[K]` int32, of each class in x_t.
      consistency: `ConsistencyCounts`.
      confidence: float, the clips' mean confidences, added up.
      clips: int32.
    """

    pixels: jax.Array
    consistency: ConsistencyCounts
    confidence: jax.Array
    clips: jax.Array


@dataclasses.dataclass(frozen=True)
class Unlabelled:
    """Figures of one network over a set without labels.

    Attributes:
      shares: class -> share of the pixels that are predicted as it, percent.
      confidence: mean of the highest probability of each pixel of the scores, before they are enlarged; percent.
      temporal_consistency, temporal_consistency_warped: as `evaluate.Evaluation` has them.
      clips: number of clips.
    """

    shares: dict[str, float]
    confidence: float
    temporal_consistency: float
    temporal_consistency_warped: float
    clips: int

    def as_json(self):
        """Returns the figures as JSON-able values; what was not measured, mIoU first of all, is null."""
        return {"miou": None} | {
            name: value if isinstance(value, dict) else or_null(value) for name, value in vars(self).items()
        }


def make_unlabelled_step(segmenter, flow_scale):
    """Builds and compiles the figures of one batch on all devices.

    Args:
      segmenter: a `Network`.
      flow_scale: `config.flow.scale`.

    Returns:
      A function of replicated `params` and `batch_stats` and a batch split over devices, as `eval_batches` gives it
      without labels, that returns `Counts` on each device.
    """

    def step(params, batch_stats, batch):
        variables = {"params": params, "batch_stats": batch_stats}
        scores = segment_clips(segmenter, variables, batch["frames"], batch["flow"], flow_scale)
        size, numbers = batch["frames"].shape[2:4], jnp.arange(segmenter.num_classes, dtype=jnp.uint8)

        def look(clip):
            scores, flow, valid = clip
            classes = [argmax_resized(x, size) for x in scores]
            pixels = jnp.sum(classes[0][None] == numbers[:, None, None], (1, 2), dtype=jnp.int32)
            confidence = jax.nn.softmax(scores[0].astype(jnp.result_type(float)), -1).max(-1).mean()
            one = jnp.ones((), jnp.int32)
            counts = Counts(pixels, clip_consistency(classes, flow, flow_scale), confidence, one)
            return jax.tree.map(lambda x: jnp.where(valid, x, jnp.zeros_like(x)), counts)

        counts = jax.lax.map(look, (scores, batch["flow"][:, 0], batch["valid"]))
        return jax.lax.psum(jax.tree.map(lambda x: x.sum(0, dtype=x.dtype), counts), parallel.AXIS)

    return parallel.pmap(step)


def measure(step, model, batches, classes, update=None):
    """Looks at a network over a set without labels.

    Args:
      step: of `make_unlabelled_step`.
      model, batches, update: as `evaluate.evaluate` takes them.
      classes: names of the network's classes.

    Returns:
      An `Unlabelled`.

    Raises:
      ValueError: there are no clips.
    """
    counts = count_over(step, model, batches, update)
    pixels, clips = counts.pixels.sum(0, dtype=np.int64), int(counts.clips.sum())
    raw, warped = consistency_shares(counts.consistency)
    return Unlabelled(
        shares={name: float(share) for name, share in zip(classes, 100 * pixels / pixels.sum(), strict=True)},
        confidence=100 * float(counts.confidence.sum(dtype=np.float64)) / clips,
        temporal_consistency=raw,
        temporal_consistency_warped=warped,
        clips=clips,
    )


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Class maps of several networks on the same clips.

    Attributes:
      clips: indices of N clips of the set, rising.
      names: their names.
      maps: row -> `[N, H, W]` uint8, classes of x_t.
      num_classes: K.
    """

    clips: tuple[int, ...]
    names: tuple[str, ...]
    maps: dict[str, np.ndarray]
    num_classes: int

    def differing(self):
        """Returns the share of each clip's pixels on which not all networks agree, `[N]`."""
        first, *others = self.maps.values()
        different = np.zeros(first.shape, bool)
        for other in others:
            different |= other != first
        return different.mean((1, 2))

    def most_differing(self, count):
        """Chooses clips spread over the set: of as many parts of it, each the clip on which networks differ most.

        Returns:
          Places in `clips`, rising; all of them where there are no more than `count`.
        """
        parts = np.array_split(np.arange(len(self.clips)), min(count, len(self.clips))) if count else []
        differing = self.differing()
        return [int(part[differing[part].argmax()]) for part in parts]

    def agreement(self, a, b):
        """Returns the share of the pixels that two rows give the same class, and that of each class; percent.

        A class's is the number of pixels that both give it over that which either does; NaN where neither does.
        """
        counts = np.zeros(self.num_classes**2, np.int64)
        for x, y in zip(self.maps[a], self.maps[b], strict=True):
            counts += np.bincount((x.astype(np.int64) * self.num_classes + y).ravel(), minlength=len(counts))
        counts = counts.reshape(self.num_classes, -1)
        return 100 * float(np.trace(counts) / counts.sum()), iou(counts)


def compare(models, source, most=_MOST_COMPARED):
    """Segments clips of a set, spread evenly, with several networks.

    Args:
      models: row -> `predict.Model`, all of the same classes.
      source: `ClipSource`, with x_t, x_{t-1} and the flow between them.
      most: number of clips.

    Returns:
      A `Comparison`.
    """
    size, total = source.spec.size, len(source)
    clips = tuple(np.unique(np.linspace(0, total - 1, min(most, total)).round().astype(int)).tolist())
    names, maps = [], {row: np.empty((len(clips), *size), np.uint8) for row in models}
    for n, i in enumerate(clips):
        clip = read_clip(source, i, (0, 1), ((0, 1),), label=False)
        names.append(clip["name"])
        for row, model in models.items():
            # Clips are newest first, a video oldest first.
            maps[row][n] = model.segment(clip["frames"][::-1], to_pixels(clip["flow"]))[-1]
    return Comparison(clips, tuple(names), maps, len(next(iter(models.values())).classes))


def moved(batch_stats, source):
    """Measures how far running statistics are from the source model's.

    Args:
      batch_stats, source: trees of the same form.

    Returns:
      Mean over the arrays of |x - source| / |source|, percent; None where there are no statistics.
    """
    pairs = zip(jax.tree.leaves(batch_stats), jax.tree.leaves(source), strict=True)
    norms = [(np.linalg.norm(np.subtract(x, y, dtype=np.float64)), np.linalg.norm(y)) for x, y in pairs]
    found = [float(change / length) for change, length in norms if length > 0]
    return 100 * sum(found) / len(found) if found else None


def warnings(row, figures, source, statistics_moved=None):
    """Says what a person should look at in a row, with its numbers.

    Args:
      row: name of the row.
      figures: of the row, as `Unlabelled.as_json` returns them.
      source: the source model's.
      statistics_moved: of `moved`, or None.

    Returns:
      List of sentences.
    """
    lines = []
    for name, before in source["shares"].items():
        after, change = (
            figures["shares"][name],
            f"from {_share(before)} to {_share(figures['shares'][name])} of the pixels",
        )
        if before >= _NOISE and after < min(_VANISHED, before / 10):
            lines.append(f"{row}: the class {name} has almost vanished, {change}.")
        elif after >= _TAKEN_OVER and after - before >= _MUCH:
            lines.append(f"{row}: the class {name} has taken over, {change}.")
        elif abs(after - before) >= _MUCH:
            lines.append(f"{row}: the class {name} has {'grown' if after > before else 'shrunk'} much, {change}.")
    key = "temporal_consistency_warped"
    sure, steady = figures["confidence"] - source["confidence"], None
    if None not in (figures[key], source[key]):
        steady = figures[key] - source[key]
    if steady is not None and sure >= _RISES and steady <= -_FALLS:
        lines.append(
            f"{row}: confidence rose by {sure:.1f} points (to {figures['confidence']:.1f}), and warped temporal "
            f"consistency fell by {-steady:.1f} (to {figures[key]:.1f}): more sure of itself, and less steady."
        )
    if statistics_moved is not None and statistics_moved < _HARDLY:
        lines.append(
            f"{row}: the batch statistics are nearly the source model's (moved by {statistics_moved:.2f}%): the row "
            "learned little of this video, or the video looks like what the source model was trained on."
        )
    return lines


def too_few_clips(clips):
    """Says that figures are of too few clips to rely on; an empty list where they are not."""
    if clips >= _FEW_CLIPS:
        return []
    return [f"Only {clips} held-out clip{'' if clips == 1 else 's'}: the figures would be others on other scenes."]


def _share(percent):
    digits = 1 if percent >= 1 else min(6, 1 - math.floor(math.log10(percent))) if percent > 0 else 0
    return f"{percent:.{digits}f}%"
