"""The projection head H (paper, section 3.2): a small network at each pixel, as in SimCLR."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from stpl_jax.ops.convolution import convolve
from stpl_jax.ops.dtypes import compute_dtype


def _plus_minus(key, shape, dtype):
    """`[.., C, 2C]`: x to (x, -x)."""
    eye = jnp.eye(shape[-2], dtype=dtype)
    return jnp.concatenate([eye, -eye], -1).reshape(shape)


def _difference(key, shape, dtype):
    """`[.., 2C, C]`: (a, b) to a - b."""
    eye = jnp.eye(shape[-1], dtype=dtype)
    return jnp.concatenate([eye, -eye], 0).reshape(shape)


def l2_normalise(x):
    """Scales the last axis to length one, in float32 or better; a zero vector stays zero and its gradient finite."""
    x = x.astype(compute_dtype(x.dtype))
    square = jnp.square(x).sum(-1, keepdims=True)
    return x * jnp.where(square > 0, jnp.where(square > 0, square, 1.0) ** -0.5, 0.0)


class Projection(nn.Module):
    """1×1 convolution, ReLU, 1×1 convolution, L2 normalisation.

    Attributes:
      initial: `random`: `hidden` and `dim` wide (the paper does not say; 2048 and 128 as SimCLR's public code).
        `identity`: starts as the exact identity, relu(x) - relu(-x), so that the first gradients move features and not
        a head that knows nothing; `hidden` and `dim` are then twice and once the input's width, whatever is configured.
    """

    hidden: int = 2048
    dim: int = 128
    initial: str = "random"
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features):
        """Projects `[..., h, w, C]`, in their type, to unit vectors `[..., h, w, D]`, float32 or better."""
        channels = features.shape[-1]
        settings = {
            "random": (self.hidden, self.dim, nn.initializers.he_normal(), nn.initializers.lecun_normal()),
            "identity": (2 * channels, channels, _plus_minus, _difference),
        }
        if self.initial not in settings:
            raise ValueError(f"projection.init is one of {sorted(settings)}, found {self.initial!r}.")
        hidden, dim, first, second = settings[self.initial]

        def conv(name, width, kernel_init):
            return nn.Conv(
                width,
                (1, 1),
                kernel_init=kernel_init,
                dtype=features.dtype,
                param_dtype=self.param_dtype,
                conv_general_dilated=convolve,
                name=name,
            )

        x = nn.relu(conv("conv1", hidden, first)(features))
        x = conv("conv2", dim, second)(x)
        return l2_normalise(x)
