"""The correlation of two feature maps: how alike each pixel is to its neighbours in the other frame."""

import jax
import jax.numpy as jnp
from jax import lax

from stpl_jax.ops.dtypes import compute_dtype


def correlation(
    a: jax.Array,
    b: jax.Array,
    max_displacement: int = 20,
    stride: int = 2,
    precision: lax.PrecisionLike = lax.Precision.HIGHEST,
) -> jax.Array:
    """Compares each pixel of one map with the pixels around it in another.

        out(y, x, (j + r)·n + (i + r)) = (1/C) Σ_c a(y, x, c) · b(y + j·stride, x + i·stride, c),   i, j = -r … r

    with r = max_displacement / stride and n = 2r + 1: the vertical displacement j is the outer one. Outside its frame b
    is zero.

    One vertical displacement after another, a row of a is compared with a whole row of b by a matrix product (columns
    that differ by a multiple of the stride together), and the band of the n displacements asked for is cut out of it.
    That is about three times the arithmetic, in a form that matrix units and CPU libraries run at full speed, and b is
    never copied for each displacement. At 512×1024 (maps of 64×128×256, 8 MiB) XLA's CPU compiler reports, per clip, 14
    MiB for the result and 56 MiB of temporaries: both maps rearranged, one displacement's products, and the result
    before its axes are put in order. b shifted 441 times would take 3.5 GiB. The backward pass computes the products
    again.

    Args:
      a: [B, h, w, C] floating point, features of frame 0.
      b: [B, h, w, C], features of frame 1.
      max_displacement: largest displacement along each axis, pixels, a multiple of `stride`.
      stride: pixels between two displacements.
      precision: of the products on accelerators. Less than HIGHEST (TF32, bfloat16) is felt in the flow.

    Returns:
      [B, h, w, n²] of a's dtype; sums are float32, or a's dtype where that is finer.

    Raises:
      ValueError: the maps differ in shape, or max_displacement is no multiple of stride.

    Source: FlowNet2's correlation layer (kernel 1, mean over channels).
    """
    if a.ndim != 4 or a.shape != b.shape:
        raise ValueError(f"correlation: expected two maps [B, h, w, C] of one shape, got {a.shape} and {b.shape}")
    if stride < 1 or max_displacement < 0 or max_displacement % stride:
        raise ValueError(f"correlation: max_displacement {max_displacement} is no multiple of stride {stride}")
    batch, h, w, channels = a.shape
    reach = max_displacement // stride
    count = 2 * reach + 1
    columns = -(-w // stride)
    fill = columns * stride - w
    pad = reach * stride

    def by_residue(x: jax.Array, width: int) -> jax.Array:
        """[B, rows, width·stride, C] to [B, rows, stride, width, C]: columns a stride apart become neighbours."""
        return x.reshape(*x.shape[:2], width, stride, channels).transpose(0, 1, 3, 2, 4)

    a = by_residue(jnp.pad(a, ((0, 0), (0, 0), (0, fill), (0, 0))), columns)
    b = by_residue(jnp.pad(b, ((0, 0), (pad, pad), (pad, pad + fill), (0, 0))), columns + 2 * reach)
    dtype = compute_dtype(a.dtype)

    # Checkpointed: the backward pass would otherwise keep b's rows of every displacement, n copies of it.
    @jax.checkpoint
    def one_vertical(j: jax.Array) -> jax.Array:
        rows = lax.dynamic_slice_in_dim(b, j * stride, h, 1)
        products = jnp.einsum("bysnc,bysmc->bysnm", a, rows, precision=precision, preferred_element_type=dtype)
        return _band(products, count)  # [B, h, stride, columns, count]

    out = lax.map(one_vertical, jnp.arange(count))  # [count, B, h, stride, columns, count]
    out = out.transpose(1, 2, 4, 3, 0, 5).reshape(batch, h, columns * stride, count**2)[:, :, :w]
    return (out / channels).astype(a.dtype)  # [B, h, w, count²]


def _band(x: jax.Array, count: int) -> jax.Array:
    """Cuts out n diagonals: [..., rows, rows + n - 1] to [..., rows, n], out(i, k) = x(i, i + k).

    In memory, x(i, i + k) lies i·(rows + n) + k places from the start: a grid with one more column has it at (i, k).
    """
    *lead, rows, width = x.shape
    flat = jnp.pad(x.reshape(*lead, rows * width), [(0, 0)] * len(lead) + [(0, rows)])
    return flat.reshape(*lead, rows, width + 1)[..., :count]
