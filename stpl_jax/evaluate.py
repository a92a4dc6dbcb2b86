"""Scoring: mIoU and temporal consistency of a segmentation network over a validation set."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from stpl_jax import parallel
from stpl_jax.forward import flow_on_grid, frames_first
from stpl_jax.metrics.segmentation import confusion_matrix, iou, mean_iou
from stpl_jax.metrics.temporal_consistency import ConsistencyCounts, consistency_counts, consistency_shares
from stpl_jax.ops.resize import argmax_resized


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores over a set.

    Attributes:
      miou: mean IoU over the evaluated classes, percent.
      iou: IoU of each evaluated class, percent; NaN for a class that does not occur.
      temporal_consistency: share of pixels whose class is the same in x_t and x_{t-1}, percent (paper, appendix A2);
        NaN where clips had no flow from x_{t-1} into x_{t-2}.
      temporal_consistency_warped: the same after moving x_{t-1}'s classes along the flow; NaN likewise.
      confusion: `[K, K]` int64 pixel counts, rows are labels.
    """

    miou: float
    iou: dict[str, float]
    temporal_consistency: float
    temporal_consistency_warped: float
    confusion: np.ndarray

    def as_json(self):
        """Returns the scores as JSON-able values; a class that does not occur, or what was not measured, is null."""
        return {
            "miou": self.miou,
            "iou": {name: or_null(value) for name, value in self.iou.items()},
            "temporal_consistency": or_null(self.temporal_consistency),
            "temporal_consistency_warped": or_null(self.temporal_consistency_warped),
            "confusion": self.confusion.tolist(),
        }


def or_null(value):
    """JSON has no NaN: what was not measured is null."""
    return None if np.isnan(value) else value


def segment_clips(segmenter, variables, frames, flow, flow_scale):
    """Scores the frames of each clip as inference does (`Network.features`), each fused with the frame before it.

    Args:
      segmenter: a `Network`.
      variables: its `params` and `batch_stats`.
      frames: `[B, T, H, W, 3]` RGB, x_t first.
      flow: `[B, T-1, H, W, 2]` int16, tenths of a pixel: x_t into x_{t-1}, x_{t-1} into x_{t-2}, ...
      flow_scale: `config.flow.scale`.

    Returns:
      Fused scores of every frame but the oldest, a tuple of T-1 times `[B, h, w, K]`.
    """
    params = variables["params"]
    features, _ = segmenter.features(variables, frames_first(frames))  # [T, B, h, w, C]
    scores = segmenter.classify(params, features.replace(auxiliary=None)).main  # [T, B, h', w', K]
    flow = flow_on_grid(flow, scores.shape[2:4], flow_scale)
    return tuple(segmenter.fuse(params, scores[k], scores[k + 1], flow[:, k]) for k in range(len(scores) - 1))


def _counts(eval_step, model, batches, update):
    arrays = ({name: value for name, value in batch.items() if name != "name"} for batch in batches)
    for batch in parallel.prefetch(map(parallel.split_over_devices, arrays)):
        yield eval_step(*model, batch)
        if update:
            model = update(batch)


def _one_behind(results):
    """Reads results one late: that must not hold up the next batch."""
    waiting = collections.deque()
    for result in results:
        waiting.append(result)
        if len(waiting) > 1:
            yield parallel.unreplicate(waiting.popleft())
    yield from map(parallel.unreplicate, waiting)


def count_over(step, model, batches, update=None):
    """Counts over a set.

    Args:
      step: compiled for all devices, of `params`, `batch_stats` and a batch; returns summed counts on each device.
      model, batches, update: as `evaluate` takes them.

    Returns:
      The counts of each batch, stacked: a tree of numpy arrays with a leading axis.

    Raises:
      ValueError: there are no clips.
    """
    counts = list(_one_behind(_counts(step, model, batches, update)))
    if not counts:
        raise ValueError("The validation set has no clips to score.")
    return jax.tree.map(lambda *each: np.stack(each), *counts)


def clip_consistency(classes, flow, flow_scale):
    """Counts one clip's consistent pixels on the devices.

    Args:
      classes: class maps `[H, W]` of x_t and, unless clips have two frames only, of x_{t-1}.
      flow: `[H', W', 2]` int16, x_t into x_{t-1}.
      flow_scale: `config.flow.scale`.

    Returns:
      `ConsistencyCounts`, 0 for clips of two frames.
    """
    if len(classes) < 2:
        return ConsistencyCounts(*[jnp.zeros((), jnp.int32)] * 4)
    return consistency_counts(*classes[:2], flow_on_grid(flow, classes[0].shape, flow_scale))


def make_eval_step(segmenter, flow_scale, groups=None, num_classes=None):
    """Builds and compiles the evaluation of one batch on all devices.

    Class maps are made at the label's own size by blocks of rows; full-size scores never exist.

    Args:
      segmenter: a `Network`.
      flow_scale: `config.flow.scale`.
      groups: [K] which class of the set each of the network's counts as, -1 for none (`class_maps.class_indices`);
        None where they are the same.
      num_classes: of the set; None for the network's.

    Returns:
      A function of replicated `params` and `batch_stats` and a batch split over devices, as `eval_batches` gives it,
      that returns summed counts on each device: the confusion matrix and `ConsistencyCounts`, which stay 0 for clips of
      two frames.
    """

    def eval_step(params, batch_stats, batch):
        variables = {"params": params, "batch_stats": batch_stats}
        scores = segment_clips(segmenter, variables, batch["frames"], batch["flow"], flow_scale)
        size = batch["label"].shape[1:]

        def score_clip(clip):
            scores, flow, label, valid = clip
            classes = [argmax_resized(x, size, groups=groups) for x in scores]
            counts = confusion_matrix(label, classes[0], num_classes or segmenter.num_classes)
            consistency = clip_consistency(classes, flow, flow_scale)
            return jax.tree.map(lambda x: jnp.where(valid, x, 0), (counts, consistency))

        clips = (scores, batch["flow"][:, 0], batch["label"], batch["valid"])
        counts = jax.tree.map(lambda x: x.sum(0), jax.lax.map(score_clip, clips))
        return jax.lax.psum(counts, parallel.AXIS)

    return parallel.pmap(eval_step)


def evaluate(eval_step, model, batches, classes, evaluated, update=None):
    """Scores a network over a validation set.

    Args:
      eval_step: of `make_eval_step`.
      model: the segmentation network's `params` and `batch_stats`, replicated.
      batches: of `input_pipeline.loader.eval_batches`.
      classes: names of the classes.
      evaluated: `[K]` bool, the classes that count.
      update: called with each batch, on the devices, once it is predicted; returns the model that predicts the next
        one. None: one model predicts all.

    Returns:
      An `Evaluation`.

    Raises:
      ValueError: there are no clips.
    """
    confusions, consistency = count_over(eval_step, model, batches, update)
    confusion = confusions.sum(0, dtype=np.int64)
    raw, warped = consistency_shares(consistency)
    per_class = iou(confusion)
    return Evaluation(
        miou=mean_iou(confusion, evaluated),
        iou={name: float(per_class[i]) for i, name in enumerate(classes) if evaluated[i]},
        temporal_consistency=raw,
        temporal_consistency_warped=warped,
        confusion=confusion,
    )
