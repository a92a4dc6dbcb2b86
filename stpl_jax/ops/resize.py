"""Align-corners bilinear resizing, as two small matrix products.

Output pixel i of n_out lies at input position i·(n_in − 1)/(n_out − 1): the corner pixels of both grids coincide.
`jax.image.resize` is half-pixel and cannot do this. Products rather than gathers, because matrix units do them fast and
their gradient is a product too. A product multiplies every pixel by its weight, zeros included: one infinity or NaN in
the input spreads over its row and column.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from stpl_jax.ops.dtypes import compute_dtype

FLOW_SCALES = ("align_corners", "public")


def interpolation_matrix(size_in: int, size_out: int) -> np.ndarray:
    """Weights of align-corners linear interpolation along one axis.

    Args:
      size_in: number of input pixels, at least 1.
      size_out: number of output pixels, at least 1. A single output pixel reads input pixel 0, as PyTorch's does.

    Returns:
      float64 [size_out, size_in]; each row sums to 1 and has at most two entries that are not zero.

    Raises:
      ValueError: if a size is below 1.
    """
    if size_in < 1 or size_out < 1:
        raise ValueError(f"a resize needs at least one pixel along each axis, got {size_in} -> {size_out}")
    steps = max(size_out - 1, 1)
    # Whole numbers until the last division, so that a position on a pixel is exactly on it.
    lower, remainder = np.divmod(np.arange(size_out) * (size_in - 1), steps)
    upper = np.minimum(lower + 1, size_in - 1)
    fraction = remainder / steps
    matrix = np.zeros((size_out, size_in))
    rows = np.arange(size_out)
    matrix[rows, lower] += 1.0 - fraction
    matrix[rows, upper] += fraction
    return matrix


def resize_align_corners(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Resizes maps bilinearly so that corner pixels stay on corner pixels.

    Args:
      x: floating point [..., h, w, C].
      size: (H, W) of the result, known when the function is traced.

    Returns:
      [..., H, W, C] of x's dtype; the products run in float32, or in x's dtype where that is finer.

    Raises:
      TypeError: if x is not floating point.
      ValueError: if x has fewer than three axes or a size is below 1.

    Source: `F.interpolate(mode="bilinear", align_corners=True)`, as the public code resizes all scores.
    """
    _check_maps("resize_align_corners", x)
    rows, columns = _matrices(x, size)
    h, w = x.shape[-3:-1]
    out = x.astype(rows.dtype)
    if w != size[1]:
        out = jnp.einsum("Ww,...hwc->...hWc", columns, out, precision=lax.Precision.HIGHEST)
    if h != size[0]:
        out = jnp.einsum("Hh,...hwc->...Hwc", rows, out, precision=lax.Precision.HIGHEST)
    return out.astype(x.dtype)  # [..., H, W, C]


def resize_flow(flow: jax.Array, size: tuple[int, int], scale: str = "align_corners") -> jax.Array:
    """Resizes a flow field and rescales its vectors to pixels of the new grid.

    Args:
      flow: [..., H, W, 2], (u, v) in pixels of its own grid.
      size: (h, w) of the result.
      scale: "align_corners" multiplies u by (w-1)/(W-1) and v by (h-1)/(H-1), which is exact for this resize. "public"
        multiplies both by h/H, as the public code of DA-VSN does (about 1.4% off at 512x1024 -> 65x129).

    Returns:
      [..., h, w, 2] of flow's dtype, in pixels of the new grid.

    Raises:
      ValueError: for an unknown scale, a last axis that is not 2, or an axis of one pixel that has to grow under
        "align_corners": a single pixel has no spacing to scale by.
      TypeError: if flow is not floating point.
    """
    _check_maps("resize_flow", flow)
    if flow.shape[-1] != 2:
        raise ValueError(f"resize_flow: expected flow of shape [..., H, W, 2], got {tuple(flow.shape)}")
    height, width = flow.shape[-3:-1]
    if scale == "align_corners":
        factors = (_spacing(width, size[1]), _spacing(height, size[0]))
    elif scale == "public":
        factors = (size[0] / height, size[0] / height)
    else:
        raise ValueError(f"resize_flow: unknown flow scale {scale!r}; expected one of {', '.join(FLOW_SCALES)}")
    dtype = compute_dtype(flow.dtype)
    resized = resize_align_corners(flow.astype(dtype), size)
    scaled = resized * jnp.asarray(factors, dtype).reshape((1,) * (flow.ndim - 1) + (2,))
    return scaled.astype(flow.dtype)  # [..., h, w, 2]


def argmax_resized(scores: jax.Array, size: tuple[int, int], rows: int = 16, groups=None) -> jax.Array:
    """The most likely class of each pixel of the resized scores, without ever holding the resized scores.

    argmax_k resize(scores)[y, x, k], by blocks of `rows` output rows. Beside the scores stretched along x (h·W·K), only
    rows·W·K numbers are alive at a time: at 1024x2048 with 15 classes about 2 MiB a block instead of 120 MiB.

    Args:
      scores: [h, w, K] scores or logits of one frame, K at most 255 (255 itself is the ignored id).
      size: (H, W) of the class map.
      rows: output rows per block; H need not be a multiple of it.
      groups: [K] class of another list that each class counts as, -1 for none of them: the most likely group is
        returned, by the sum of its classes' softmax probabilities. None: the classes as they are.

    Returns:
      uint8 [H, W]; equal scores give the lower class.

    Raises:
      ValueError: if scores are not [h, w, K] with 1 <= K <= 255, or rows or a size is below 1.
      TypeError: if scores are not floating point.
    """
    _check_maps("argmax_resized", scores)
    if scores.ndim != 3 or not 1 <= scores.shape[-1] <= 255:
        raise ValueError(f"argmax_resized: expected scores [h, w, K], K from 1 to 255, got {tuple(scores.shape)}")
    if rows < 1:
        raise ValueError(f"argmax_resized: rows must be at least 1, got {rows}")
    height, width = size
    row_weights, column_weights = _matrices(scores, size)
    rows = min(rows, height)
    blocks = -(-height // rows)
    row_weights = jnp.pad(row_weights, ((0, blocks * rows - height), (0, 0))).reshape(blocks, rows, scores.shape[0])
    # Pixels last: the axis that fills vector lanes is then W and not K, which is small.
    stretched = jnp.einsum(
        "Ww,hwk->hkW", column_weights, scores.astype(column_weights.dtype), precision=lax.Precision.HIGHEST
    )

    def classes_of_block(weights: jax.Array) -> jax.Array:
        block = jnp.einsum("rh,hkW->rkW", weights, stretched, precision=lax.Precision.HIGHEST)  # [rows, K, W]
        if groups is not None:
            members = jax.nn.one_hot(jnp.asarray(groups), max(groups) + 1, dtype=block.dtype)  # [K, groups]
            block = jnp.einsum("rkW,kg->rgW", jax.nn.softmax(block, 1), members, precision=lax.Precision.HIGHEST)
        return lax.argmax(block, 1, jnp.uint8)  # [rows, W]

    return lax.map(classes_of_block, row_weights).reshape(blocks * rows, width)[:height]


def _check_maps(name: str, x: jax.Array) -> None:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{name}: expected a floating point array, got {x.dtype}")
    if x.ndim < 3:
        raise ValueError(f"{name}: expected an array [..., height, width, channels], got shape {tuple(x.shape)}")


def _matrices(x: jax.Array, size: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    dtype = compute_dtype(x.dtype)
    rows = interpolation_matrix(x.shape[-3], size[0])
    columns = interpolation_matrix(x.shape[-2], size[1])
    return jnp.asarray(rows, dtype), jnp.asarray(columns, dtype)


def _spacing(size_in: int, size_out: int) -> float:
    """How many output pixels one input pixel's distance is."""
    if size_in == size_out:
        return 1.0
    if size_in == 1:
        raise ValueError(
            f"resize_flow: an axis of 1 pixel cannot grow to {size_out} under scale 'align_corners'; use scale 'public'"
        )
    return (size_out - 1) / (size_in - 1)
