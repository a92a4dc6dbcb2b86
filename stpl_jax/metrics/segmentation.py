"""Confusion matrices on the device, IoU and mIoU on the host."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from stpl_jax.ops.resize import argmax_resized

# Pixels per product of one-hot rows: float32 counts whole numbers exactly up to 2^24, far above this.
_BLOCK = 1 << 15


def confusion_matrix(labels: jax.Array, predictions: jax.Array, num_classes: int, ignored: int = 255) -> jax.Array:
    """Counts the pixels of each pair of label and predicted class, exactly.

    One-hot rows of labels times one-hot rows of predictions, block by block: fast on matrix units, where adding up by
    index is not.

    Args:
      labels: integer train ids, any shape.
      predictions: integer classes, the same shape.
      num_classes: K.
      ignored: the label that is not counted.

    Returns:
      int32 [K, K]; entry (i, j) counts pixels of label i predicted as j. A pixel whose label or prediction is outside
      0..K-1 is not counted: checking labels is the preparation's task.

    Raises:
      ValueError: if the shapes differ or num_classes is below 1.
      TypeError: if an array is not of integers.
    """
    if labels.shape != predictions.shape:
        raise ValueError(
            f"confusion_matrix: labels {tuple(labels.shape)} and predictions {tuple(predictions.shape)} differ in shape"
        )
    if num_classes < 1:
        raise ValueError(f"confusion_matrix: num_classes must be at least 1, got {num_classes}")
    for name, x in (("labels", labels), ("predictions", predictions)):
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise TypeError(f"confusion_matrix: {name} must be integers, got {x.dtype}")
    labels = labels.astype(jnp.int32).reshape(-1)
    # -1 matches no class: its one-hot row is empty.
    labels = jnp.where(labels == ignored, -1, labels)
    predictions = predictions.astype(jnp.int32).reshape(-1)
    block_size = max(1, min(_BLOCK, labels.size))
    padding = -labels.size % block_size
    labels, predictions = (jnp.pad(x, (0, padding), constant_values=-1) for x in (labels, predictions))
    classes = jnp.arange(num_classes, dtype=jnp.int32)[:, None]

    def add_block(total: jax.Array, block: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        # Zeros and ones are exact at any matrix precision; the sums are float32.
        label_rows, prediction_rows = ((classes == x[None, :]).astype(jnp.float32) for x in block)  # [K, pixels]
        counts = jnp.einsum("in,jn->ij", label_rows, prediction_rows, preferred_element_type=jnp.float32)
        return total + counts.astype(jnp.int32), None

    empty = jnp.zeros((num_classes, num_classes), jnp.int32)
    total, _ = lax.scan(add_block, empty, (labels.reshape(-1, block_size), predictions.reshape(-1, block_size)))
    return total


def confusion_of_scores(scores: jax.Array, label: jax.Array, ignored: int = 255) -> jax.Array:
    """The confusion matrix of one frame's scores at the label's own size, without holding scores of that size.

    Args:
      scores: [h, w, K] fused scores at feature resolution.
      label: integer train ids [H, W]; the scores are resized to it, corner on corner.
      ignored: the label that is not counted.

    Returns:
      int32 [K, K], rows are labels.

    Source: the evaluation of the public code: bilinear resize with corners aligned, argmax, one matrix over the set.
    """
    if label.ndim != 2:
        raise ValueError(f"confusion_of_scores: expected a label [H, W], got shape {tuple(label.shape)}")
    return confusion_matrix(label, argmax_resized(scores, label.shape), scores.shape[-1], ignored)


def iou(confusion: np.ndarray) -> np.ndarray:
    """Intersection over union of each class, in percent.

    IoU_c = 100 · n_cc / (Σ_j n_cj + Σ_i n_ic − n_cc)

    Args:
      confusion: counts [..., K, K], rows are labels; leading axes (frames, devices) are summed first, in int64.

    Returns:
      float64 [K] from 0 to 100; NaN for a class that is in neither labels nor predictions.

    Raises:
      ValueError: if the last two axes are not square.
    """
    confusion = np.asarray(confusion)
    if confusion.ndim < 2 or confusion.shape[-1] != confusion.shape[-2]:
        raise ValueError(f"iou: expected counts [..., K, K], got shape {confusion.shape}")
    counts = confusion.astype(np.int64).reshape(-1, *confusion.shape[-2:]).sum(axis=0)
    intersection = np.diagonal(counts)
    union = counts.sum(axis=0) + counts.sum(axis=1) - intersection
    return np.where(union > 0, 100.0 * intersection / np.maximum(union, 1), np.nan)


def mean_iou(confusion: np.ndarray, evaluated: np.ndarray) -> float:
    """Mean of the evaluated classes' IoU, in percent.

    A class that is in neither labels nor predictions has no IoU and is left out of the mean, as in the public code.

    Args:
      confusion: counts [..., K, K], as for `iou`. Pixels of a class that is not evaluated still count against the
        classes that they are confused with.
      evaluated: bool [K].

    Returns:
      The mean, 0 to 100; NaN if no evaluated class has an IoU.

    Raises:
      ValueError: if evaluated is not bool [K].
    """
    per_class = iou(confusion)
    evaluated = np.asarray(evaluated)
    if evaluated.dtype != np.bool_ or evaluated.shape != per_class.shape:
        raise ValueError(
            f"mean_iou: expected evaluated bool {per_class.shape}, got {evaluated.dtype} {evaluated.shape}"
        )
    chosen = per_class[evaluated & ~np.isnan(per_class)]
    return float(chosen.mean()) if chosen.size else float("nan")
