"""ResNet in the Caffe layout with dilated last stages: DeepLabv2's backbone.

Layers carry the names of the public PyTorch checkpoints (`layer1.0.conv1` is `layer1_0/conv1` here), so that reading
one is a table of names.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from stpl_jax.models.batch_norm import STATISTICS, GroupedBatchNorm
from stpl_jax.ops.convolution import convolve

# Names of what convolutions give: those to more channels than they take, and all others. The former give two thirds of
# the values for a quarter of the arithmetic.
WIDENING, CONVOLUTION = "widening", "convolution"
# By `ResNet.remat`: names of values that are kept for the backward pass.
REMAT = {
    "none": None,
    "convolutions": (WIDENING, CONVOLUTION, STATISTICS),
    "narrow": (CONVOLUTION, STATISTICS),
}
# Blocks of one stage that are computed again from the input of the first. Fewer keep more inputs, more hold more at
# once: for ResNet-101's 23 a TPU's compiler wanted more memory with 4, and with all of them, than with 8.
TOGETHER = 8


def max_pool_ceil(x):
    """Max-pools 3×3, stride 2, padding 1, with PyTorch's CEIL rounding: 256 rows become 129, 257 become 129.

    Args:
      x: `[B, H, W, C]`.

    Returns:
      `[B, ⌈(H-1)/2⌉+1, ⌈(W-1)/2⌉+1, C]`.
    """
    # An even side takes one more window, whose last two rows are padding; an odd side takes one row of padding.
    right = [2 if side % 2 == 0 else 1 for side in x.shape[1:3]]
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=tuple((1, r) for r in right))


class Bottleneck(nn.Module):
    """A residual block of 1×1, 3×3 and 1×1 convolutions, with the stride in the first (Caffe's place for it)."""

    width: int
    expansion: int
    stride: int
    dilation: int
    downsample: bool
    sync_axis: str | None
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x, groups, averaged, share=1.0):
        def conv(name, features, kernel, stride=1, dilation=1, kept=CONVOLUTION):
            layer = nn.Conv(
                features,
                (kernel, kernel),
                strides=stride,
                kernel_dilation=dilation,
                padding=dilation * (kernel // 2),
                use_bias=False,
                kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal"),
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                conv_general_dilated=convolve,
                name=name,
            )
            return lambda x: checkpoint_name(layer(x), kept)

        def norm(name, y):
            return GroupedBatchNorm(self.sync_axis, self.param_dtype, name=name)(y, groups, averaged, share)

        out = self.width * self.expansion
        y = nn.relu(norm("bn1", conv("conv1", self.width, 1, stride=self.stride)(x)))
        y = nn.relu(norm("bn2", conv("conv2", self.width, 3, dilation=self.dilation)(y)))
        y = norm("bn3", conv("conv3", out, 1, kept=WIDENING)(y))
        if self.downsample:
            x = norm("downsample_1", conv("downsample_0", out, 1, self.stride, kept=WIDENING)(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """The backbone. Depth and width are data: the embedded benchmark's small network is this class too.

    Attributes:
      blocks: residual blocks per stage, (3, 4, 23, 3) for ResNet-101.
      widths: inner width of each stage's blocks; a stage has `expansion` times as many channels.
      strides, dilations: of each stage.
      stem_width, stem_kernel, stem_pool: the first convolution (stride 2), and whether max-pooling follows.
      remat: what the backward pass computes again. `none`: nothing. `convolutions`: all but the results of convolutions
        and batch statistics; hardly more arithmetic. `narrow`: these and the results of convolutions to more channels;
        a tenth more arithmetic at most, the least memory.
    """

    blocks: tuple[int, ...] = (3, 4, 23, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    strides: tuple[int, ...] = (1, 2, 1, 1)
    dilations: tuple[int, ...] = (1, 1, 2, 4)
    expansion: int = 4
    stem_width: int = 64
    stem_kernel: int = 7
    stem_pool: bool = True
    remat: str = "none"
    sync_axis: str | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images, groups, averaged, share=1.0):
        """Computes features.

        Args:
          images: `[G·B, H, W, 3]`, BGR with the mean taken off.
          groups, averaged, share: as `GroupedBatchNorm` takes them.

        Returns:
          The last two stages' features, `[G·B, h, w, C3]` and `[G·B, h, w, C4]`.

        Raises:
          ValueError: no such `remat`.
        """
        if self.remat not in REMAT:
            raise ValueError(f"model.backbone.remat is one of {', '.join(REMAT)}; found {self.remat!r}.")

        def run(layers, x):
            """Applies functions of (module, x) one after another, as one part to be computed again."""

            def apply(module, x):
                for layer in layers:
                    x = layer(module, x)
                return x

            if REMAT[self.remat]:
                apply = nn.remat(apply, policy=jax.checkpoint_policies.save_only_these_names(*REMAT[self.remat]))
            return apply(self, x)

        def stem(module, x):
            del module
            layer = nn.Conv(
                self.stem_width,
                (self.stem_kernel, self.stem_kernel),
                strides=2,
                padding=self.stem_kernel // 2,
                use_bias=False,
                kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal"),
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name="conv1",
            )
            norm = GroupedBatchNorm(self.sync_axis, self.param_dtype, name="bn1")
            x = nn.relu(norm(checkpoint_name(layer(x), WIDENING), groups, averaged, share))
            return max_pool_ceil(x) if self.stem_pool else x

        def block(s, b):
            def layer(module, x):
                del module
                return Bottleneck(
                    width=self.widths[s],
                    expansion=self.expansion,
                    stride=self.strides[s] if b == 0 else 1,
                    dilation=self.dilations[s],
                    downsample=b == 0,
                    sync_axis=self.sync_axis,
                    dtype=self.dtype,
                    param_dtype=self.param_dtype,
                    name=f"layer{s + 1}_{b}",
                )(x, groups, averaged, share)

            return layer

        x = run([stem], images)
        stages = []
        for s, count in enumerate(self.blocks):
            for first in range(0, count, TOGETHER):
                x = run([block(s, b) for b in range(first, min(first + TOGETHER, count))], x)
            stages.append(x)
        return stages[-2], stages[-1]
