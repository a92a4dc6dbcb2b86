"""The four fusions of Table 4: features of several frames, aligned, into one feature map.

All take frames as the train step has them, `[T, B, h, w, C]`, newest first.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from stpl_jax.ops.convolution import convolve
from stpl_jax.ops.dtypes import compute_dtype


def _earliest_first(features):
    """The order of the paper's equations, and of the parameters: `[T, B, h, w, C]` to `[B, T, h, w, C]`, turned."""
    # Stacked one by one: XLA then sees the frames that were stacked, where an array that is turned costs a copy.
    return jnp.stack([*features[::-1]], 1)


def _frames_to_channels(features):
    batch, frames, height, width, channels = features.shape
    return jnp.moveaxis(features, 1, 3).reshape(batch, height, width, frames * channels)


def _largest(features, axes):
    """As `features.max(axes)`, with a gradient that is always finite.

    The gradient of a plain maximum looks for its value among the operands again. Where the compiler has computed the
    operands twice, with other rounding, it may find it nowhere and divide by zero matches; a position is found once.
    """
    kept = [axis for axis in range(features.ndim) if axis not in axes]
    values = features.transpose(*kept, *axes).reshape(*(features.shape[axis] for axis in kept), -1)
    position = jnp.argmax(jax.lax.stop_gradient(values), -1, keepdims=True)
    return jnp.take_along_axis(values, position, -1)[..., 0]


class Add(nn.Module):
    """Element-wise addition: `[T, B, h, w, C]` to `[B, h, w, C]`."""

    @nn.compact
    def __call__(self, features):
        return _earliest_first(features).sum(1)


class Concat(nn.Module):
    """Concatenation, earliest frame first: `[T, B, h, w, C]` to `[B, h, w, T·C]`."""

    @nn.compact
    def __call__(self, features):
        return _frames_to_channels(_earliest_first(features))


def average_frames(key, shape, dtype):
    """Initialises a 1×1 convolution from T·C to C channels as the mean over frames."""
    frames = shape[-2] // shape[-1]
    return (jnp.tile(jnp.eye(shape[-1], dtype=dtype), (frames, 1)) / frames).reshape(shape)


class Conv1x1(nn.Module):
    """A 1×1 convolution of the concatenated frames, earliest first: `[T, B, h, w, C]` to `[B, h, w, C]`.

    Attributes:
      initial: `random` (the paper does not say; LeCun normal) or `average` (starts as the mean over frames).
    """

    initial: str = "random"
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features):
        inits = {"random": nn.initializers.lecun_normal(), "average": average_frames}
        if self.initial not in inits:
            raise ValueError(f"fusion_init is one of {sorted(inits)}, found {self.initial!r}.")
        return nn.Conv(
            features.shape[-1],
            (1, 1),
            kernel_init=inits[self.initial],
            dtype=features.dtype,
            param_dtype=self.param_dtype,
            conv_general_dilated=convolve,
            name="conv",
        )(_frames_to_channels(_earliest_first(features)))


class Stam(nn.Module):
    """Spatio-Temporal Attention Module (paper, appendix A1, equations 5-7).

        A_tem = sigmoid(FC(avg) + FC(max)), pooled over C, h, w; one shared FC T → T, its bias counted in both terms
        A_spa = sigmoid(conv7×7([avg, max])), pooled over T and C of A_tem ⊗ z'
        z     = A_spa ⊗ (A_tem ⊗ z') ⊕ z', frames concatenated

    `[T, B, h, w, C]`, newest frame first, to `[B, h, w, T·C]`, earliest first. Maps have the features' type; what is
    pooled, and the attention that follows from it, are float32 or better.
    """

    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features):
        dtype, pooled_dtype, frames = features.dtype, compute_dtype(features.dtype), features.shape[0]
        features = _earliest_first(features)

        def pool(maps, axes):
            return maps.mean(axes, dtype=pooled_dtype), _largest(maps, axes).astype(pooled_dtype)

        shared = nn.Dense(frames, param_dtype=self.param_dtype, name="temporal")
        temporal = jax.nn.sigmoid(sum(shared(pooled) for pooled in pool(features, (2, 3, 4))))  # [B, T]
        attended = temporal.astype(dtype)[:, :, None, None, None] * features
        pooled = jnp.stack(pool(attended, (1, 4)), -1)  # [B, h, w, 2]
        spatial = nn.Conv(1, (7, 7), padding=3, param_dtype=self.param_dtype, name="spatial")(pooled)  # [B, h, w, 1]
        return _frames_to_channels(jax.nn.sigmoid(spatial).astype(dtype)[:, None] * attended + features)


def make_fusion(name, init="random", param_dtype=jnp.float32, remat=False):
    """Builds a fusion by its name in the paper's Table 4: `stam`, `concat`, `conv1x1` or `add`.

    With `remat`, STAM's maps, many and as large as the features themselves, are not kept for the backward pass.

    Raises:
      ValueError: no such fusion.
    """
    fusions = {
        "add": Add,
        "concat": Concat,
        "conv1x1": lambda: Conv1x1(init, param_dtype),
        "stam": lambda: (nn.remat(Stam) if remat else Stam)(param_dtype),
    }
    if name not in fusions:
        raise ValueError(f"fusion is one of {sorted(fusions)}, found {name!r}.")
    return fusions[name]()
