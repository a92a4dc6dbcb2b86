"""FlowNet2: optical flow by five networks that correct each other (Ilg et al., CVPR 2017).

Layers carry the names of the public PyTorch checkpoint (`flownetc.conv1.0` is `flownetc/conv1` here), so that reading
it is a table of names: `stpl_jax/convert/flownet2_names.py`. Channel orders, scales and places without an activation
are those of the public PyTorch implementation that this checkpoint belongs to.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from stpl_jax.ops.correlation import correlation
from stpl_jax.ops.dtypes import compute_dtype
from stpl_jax.ops.warp import warp

# The deepest features have a 64th of the frame's sides.
MULTIPLE = 64
# The networks give flow in this many pixels; the fusion network alone gives it in pixels.
_FLOW_UNIT = 20.0
_RGB_MAX = 255.0


def leaky_relu(x):
    """x where x ≥ 0, else x/10."""
    return nn.leaky_relu(x, 0.1)


def channel_norm(x):
    """Length of each pixel's vector: `[..., C]` to `[..., 1]`. The gradient at length 0 is 0."""
    squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    positive = squares > 0
    # The inner `where` keeps the root's infinite slope at 0 out of the backward pass, where 0·∞ would be NaN.
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, jnp.ones_like(squares))), jnp.zeros_like(squares))


def upsample_bilinear(x):
    """Enlarges `[B, h, w, C]` four times, half-pixel bilinear (PyTorch's `align_corners=False`)."""
    batch, h, w, channels = x.shape
    return jax.image.resize(x, (batch, 4 * h, 4 * w, channels), "bilinear", precision=lax.Precision.HIGHEST)


def upsample_nearest(x):
    """Enlarges `[B, h, w, C]` four times: each pixel becomes 4×4 of its kind."""
    return x.repeat(4, axis=1).repeat(4, axis=2)


class Doubling(nn.Module):
    """A transposed convolution with a 4×4 kernel, stride 2 and padding 1: `[B, h, w, I]` to `[B, 2h, 2w, O]`.

    Each output row sees two rows of the input, even ones by the kernel's rows 3 and 1, odd ones by 2 and 0. So it is
    four convolutions of 2×2, one for each place in a 2×2 of outputs, without the zeros between inputs that the usual
    form has: on a CPU the whole network is nearly three times as fast.

    Attributes:
      features: O.
      use_bias: whether there is a bias.
      dtype, param_dtype, precision: as Flax's modules take them.
    """

    features: int
    use_bias: bool
    dtype: Any
    param_dtype: Any
    precision: Any

    @nn.compact
    def __call__(self, x):
        shape = (4, 4, self.features, x.shape[-1])  # as PyTorch's (I, O, 4, 4), axes turned round
        init = nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)
        kernel = self.param("kernel", init, shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        kernel = kernel.transpose(0, 1, 3, 2)
        # Of even and odd outputs: rows of the kernel (3 1, 2 0), padding.
        phases = ((slice(3, None, -2), (1, 0)), (slice(2, None, -2), (0, 1)))

        def convolve(vertical, horizontal):
            (rows, above), (columns, left) = vertical, horizontal
            part, dimensions = kernel[rows, columns], ("NHWC", "HWIO", "NHWC")
            return lax.conv_general_dilated(
                x, part, (1, 1), (above, left), dimension_numbers=dimensions, precision=self.precision
            )

        y = jnp.stack([jnp.stack([convolve(v, h) for h in phases], 3) for v in phases], 2)  # [B, h, 2, w, 2, O]
        y = y.reshape(x.shape[0], 2 * x.shape[1], 2 * x.shape[2], self.features)
        return y if bias is None else y + bias.reshape(1, 1, 1, -1)


@dataclasses.dataclass(frozen=True)
class Layers:
    """Makes the layers of all five networks, within the calling module's `nn.compact` method.

    Attributes:
      dtype, param_dtype, precision: as Flax's modules take them.
    """

    dtype: Any
    param_dtype: Any
    precision: Any

    def conv(self, x, name, features, kernel=3, stride=1, activate=True):
        """A convolution with bias, padded by (kernel - 1)/2 on BOTH sides, as a rule with LeakyReLU."""
        # Not "SAME": with a stride it pads unevenly.
        x = nn.Conv(
            features,
            (kernel, kernel),
            strides=stride,
            padding=(kernel - 1) // 2,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            precision=self.precision,
            name=name,
        )(x)
        return leaky_relu(x) if activate else x

    def deconv(self, x, name, features, activate=True, bias=True):
        """A transposed convolution of 4×4 that doubles the sides."""
        x = Doubling(features, bias, self.dtype, self.param_dtype, self.precision, name=name)(x)
        return leaky_relu(x) if activate else x

    def flow(self, x, level):
        """Flow `[B, h, w, 2]` from features."""
        return self.conv(x, f"predict_flow{level}", 2, activate=False)

    def enlarge_flow(self, flow, level, bias=True):
        """Flow of the next finer level, by learned weights."""
        return self.deconv(flow, f"upsampled_flow{level + 1}_to_{level}", 2, activate=False, bias=bias)


def _encode_deep(layers, x):
    """Levels 3 to 6 of an encoder, shared by three of the networks: features of level 3 to those of 3_1, 4, 5, 6."""
    skips = {3: x}
    for level, width in ((4, 512), (5, 512), (6, 1024)):
        x = layers.conv(x, f"conv{level}", width, stride=2)
        x = skips[level] = layers.conv(x, f"conv{level}_1", width)
    return skips


def _decode(layers, skips, inter=False, flow_bias=True):
    """Refines flow from level 6 to level 2.

    Args:
      layers: `Layers`.
      skips: level -> encoder features, after their activation.
      inter: whether flow is predicted from an `inter_conv` of the features.
      flow_bias: whether the layers that enlarge flow have a bias.

    Returns:
      Flow `[B, H/4, W/4, 2]`, in units of 20 pixels.
    """
    features, flow = skips[6], layers.flow(skips[6], 6)
    for level, width in ((5, 512), (4, 256), (3, 128), (2, 64)):
        finer = layers.deconv(features, f"deconv{level}", width)
        features = jnp.concatenate([skips[level], finer, layers.enlarge_flow(flow, level, flow_bias)], -1)
        # The next level is fed by the features themselves, not by what `inter_conv` makes of them.
        inner = layers.conv(features, f"inter_conv{level}", width, activate=False) if inter else features
        flow = layers.flow(inner, level)
    return flow


class FlowNetC(nn.Module):
    """Flow from the correlation of two frames' features: two `[B, H, W, 3]` to `[B, H/4, W/4, 2]`, 20 px."""

    layers: Layers

    @nn.compact
    def __call__(self, frame0, frame1):
        conv, count = self.layers.conv, frame0.shape[0]
        # Both frames pass the same weights, as one batch.
        x = conv(jnp.concatenate([frame0, frame1]), "conv1", 64, kernel=7, stride=2)
        second = conv(x, "conv2", 128, kernel=5, stride=2)
        third = conv(second, "conv3", 256, kernel=5, stride=2)
        redirected = conv(third[:count], "conv_redir", 32, kernel=1)
        compared = leaky_relu(correlation(third[:count], third[count:], precision=self.layers.precision))
        x = conv(jnp.concatenate([redirected, compared], -1), "conv3_1", 256)
        return _decode(self.layers, _encode_deep(self.layers, x) | {2: second[:count]})


class FlowNetS(nn.Module):
    """Flow from frames laid over each other: `[B, H, W, 12]` to `[B, H/4, W/4, 2]`, 20 px."""

    layers: Layers

    @nn.compact
    def __call__(self, x):
        conv = self.layers.conv
        x = conv(x, "conv1", 64, kernel=7, stride=2)
        second = conv(x, "conv2", 128, kernel=5, stride=2)
        x = conv(conv(second, "conv3", 256, kernel=5, stride=2), "conv3_1", 256)
        return _decode(self.layers, _encode_deep(self.layers, x) | {2: second}, flow_bias=False)


class FlowNetSD(nn.Module):
    """Flow of small displacements: small kernels, `[B, H, W, 6]` to `[B, H/4, W/4, 2]`, twentieths of a pixel."""

    layers: Layers

    @nn.compact
    def __call__(self, x):
        conv = self.layers.conv
        x = conv(x, "conv0", 64)
        x = conv(conv(x, "conv1", 64, stride=2), "conv1_1", 128)
        second = conv(conv(x, "conv2", 128, stride=2), "conv2_1", 128)
        x = conv(conv(second, "conv3", 256, stride=2), "conv3_1", 256)
        return _decode(self.layers, _encode_deep(self.layers, x) | {2: second}, inter=True)


class FlowNetFusion(nn.Module):
    """Puts two flows together: `[B, H, W, 11]` to `[B, H, W, 2]`, pixels."""

    layers: Layers

    @nn.compact
    def __call__(self, x):
        layers = self.layers
        full = layers.conv(x, "conv0", 64)
        half = layers.conv(layers.conv(full, "conv1", 64, stride=2), "conv1_1", 128)
        quarter = layers.conv(layers.conv(half, "conv2", 128, stride=2), "conv2_1", 128)
        features, flow = quarter, layers.flow(quarter, 2)
        for level, skip, width in ((1, half, 32), (0, full, 16)):
            finer = layers.deconv(features, f"deconv{level}", width)
            features = jnp.concatenate([skip, finer, layers.enlarge_flow(flow, level)], -1)
            flow = layers.flow(layers.conv(features, f"inter_conv{level}", width, activate=False), level)
        return flow


class FlowNet2(nn.Module):
    """The whole network: 162,518,834 parameters.

    At 512×1024, XLA's CPU compiler reports 473 MiB of temporaries for one pair, beside 620 MiB of parameters.

    Attributes:
      dtype: type of the convolutions' arithmetic; images, flow and warping are float32 at least.
      param_dtype: type of the parameters.
      precision: of convolutions and correlation on accelerators. HIGHEST keeps float32 what it says; TF32 and bfloat16
        products are faster and move flow by more than the ports of this network differ from each other.
    """

    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    precision: Any = lax.Precision.HIGHEST

    def setup(self):
        layers = Layers(self.dtype, self.param_dtype, self.precision)
        self.flownetc = FlowNetC(layers)
        self.flownets_1 = FlowNetS(layers)
        self.flownets_d = FlowNetSD(layers)
        self.flownets_2 = FlowNetS(layers)
        self.flownetfusion = FlowNetFusion(layers)

    def __call__(self, frame0, frame1):
        """Estimates flow.

        Args:
          frame0: `[B, H, W, 3]` RGB, 0-255, uint8 or floating point; H and W are multiples of 64.
          frame1: likewise, the frame that flow points into.

        Returns:
          `[B, H, W, 2]` (u, v), pixels, u right and v down, at least float32: `frame0(y, x) ≈ frame1(y + v, x + u)`.

        Raises:
          ValueError: the frames' shapes differ or do not fit.
        """
        _check_frames(frame0, frame1)
        if frame0.shape[1] % MULTIPLE or frame0.shape[2] % MULTIPLE:
            raise ValueError(
                f"FlowNet2 takes sides that are multiples of {MULTIPLE}, found {frame0.shape[1:3]}: use estimate_flow."
            )
        dtype = compute_dtype(self.dtype)
        frames = jnp.stack([frame0, frame1], 1).astype(dtype)  # [B, 2, H, W, 3]
        # One mean for both frames, so that a change of brightness between them stays.
        frames = (frames - frames.mean((1, 2, 3), keepdims=True)) / _RGB_MAX
        a, b = frames[:, 0], frames[:, 1]
        pair = jnp.concatenate([a, b], -1)

        def pixels(flow):
            return flow.astype(dtype) * _FLOW_UNIT

        def corrected(network, flow):
            """Lets a network correct a flow, by showing it what that flow makes of the other frame."""
            warped = warp(b, flow)
            return network(jnp.concatenate([pair, warped, flow / _FLOW_UNIT, channel_norm(a - warped)], -1))

        flow = upsample_bilinear(pixels(self.flownetc(a, b)))
        flow = upsample_bilinear(pixels(corrected(self.flownets_1, flow)))
        large = upsample_nearest(pixels(corrected(self.flownets_2, flow)))
        # Divided, not multiplied: this network was trained on flow times 20.
        small = upsample_nearest(self.flownets_d(pair).astype(dtype) / _FLOW_UNIT)
        differences = [channel_norm(a - warp(b, flow)) for flow in (small, large)]
        norms = [channel_norm(flow) for flow in (small, large)]
        return self.flownetfusion(jnp.concatenate([a, small, large, *norms, *differences], -1)).astype(dtype)


def estimate_flow(network, params, frames, earlier):
    """Estimates flow between frames of any size.

    Frames are resized to the next multiples of 64, and the flow back; u is scaled by W/W64 and v by H/H64. Both resizes
    are half-pixel bilinear without antialiasing (PyTorch's `align_corners=False`).

    Args:
      network: `FlowNet2`.
      params: its parameters.
      frames: `[B, H, W, 3]` RGB, 0-255, uint8 or floating point: the frames on whose grid flow lies.
      earlier: likewise, the frames that flow points into.

    Returns:
      `[B, H, W, 2]` (u, v), pixels.

    Raises:
      ValueError: the frames' shapes differ or do not fit.
    """
    _check_frames(frames, earlier)
    batch, height, width, _ = frames.shape
    inner = tuple(-(-side // MULTIPLE) * MULTIPLE for side in (height, width))
    dtype = compute_dtype(network.dtype)

    def resize(x, size):
        shape = (batch, *size, x.shape[-1])
        return jax.image.resize(x.astype(dtype), shape, "bilinear", antialias=False, precision=lax.Precision.HIGHEST)

    if inner == (height, width):
        return network.apply({"params": params}, frames, earlier)
    flow = network.apply({"params": params}, resize(frames, inner), resize(earlier, inner))
    scale = jnp.asarray([width / inner[1], height / inner[0]], dtype)
    return resize(flow, (height, width)) * scale.reshape(1, 1, 1, 2)


def parameter_shapes(network):
    """Returns the parameters as shapes and types, without making them: a nested dict."""
    frame = jax.ShapeDtypeStruct((1, MULTIPLE, MULTIPLE, 3), jnp.float32)
    return jax.eval_shape(network.init, jax.random.key(0), frame, frame)["params"]


def _check_frames(frame0, frame1):
    if frame0.ndim != 4 or frame0.shape[-1] != 3 or frame0.shape != frame1.shape:
        raise ValueError(f"Expected two RGB batches [B, H, W, 3] of one shape, found {frame0.shape}, {frame1.shape}.")
