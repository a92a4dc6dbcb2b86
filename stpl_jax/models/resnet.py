"""ResNet in the Caffe layout with dilated last stages: DeepLabv2's backbone.

Layers carry the names of the public PyTorch checkpoints (`layer1.0.conv1` is `layer1_0/conv1` here), so that reading
one is a table of names.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from stpl_jax.models.batch_norm import GroupedBatchNorm
from stpl_jax.ops.convolution import convolve


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
    def __call__(self, x, groups, averaged):
        def conv(name, features, kernel, stride=1, dilation=1):
            return nn.Conv(
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

        def norm(name, y):
            return GroupedBatchNorm(self.sync_axis, self.param_dtype, name=name)(y, groups, averaged)

        out = self.width * self.expansion
        y = nn.relu(norm("bn1", conv("conv1", self.width, 1, stride=self.stride)(x)))
        y = nn.relu(norm("bn2", conv("conv2", self.width, 3, dilation=self.dilation)(y)))
        y = norm("bn3", conv("conv3", out, 1)(y))
        if self.downsample:
            x = norm("downsample_1", conv("downsample_0", out, 1, stride=self.stride)(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """The backbone. Depth and width are data: the embedded benchmark's small network is this class too.

    Attributes:
      blocks: residual blocks per stage, (3, 4, 23, 3) for ResNet-101.
      widths: inner width of each stage's blocks; a stage has `expansion` times as many channels.
      strides, dilations: of each stage.
      stem_width, stem_kernel, stem_pool: the first convolution (stride 2), and whether max-pooling follows.
      remat: compute each block's inner values again in the backward pass instead of keeping them: a third more
        arithmetic, a fraction of the memory.
    """

    blocks: tuple[int, ...] = (3, 4, 23, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    strides: tuple[int, ...] = (1, 2, 1, 1)
    dilations: tuple[int, ...] = (1, 1, 2, 4)
    expansion: int = 4
    stem_width: int = 64
    stem_kernel: int = 7
    stem_pool: bool = True
    remat: bool = False
    sync_axis: str | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images, groups, averaged):
        """Computes features.

        Args:
          images: `[G·B, H, W, 3]`, BGR with the mean taken off.
          groups, averaged: as `GroupedBatchNorm` takes them.

        Returns:
          The last two stages' features, `[G·B, h, w, C3]` and `[G·B, h, w, C4]`.
        """
        stem = nn.Conv(
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
        x = nn.relu(GroupedBatchNorm(self.sync_axis, self.param_dtype, name="bn1")(stem(images), groups, averaged))
        if self.stem_pool:
            x = max_pool_ceil(x)
        block = nn.remat(Bottleneck, static_argnums=(2, 3)) if self.remat else Bottleneck
        stages = []
        for s, (blocks, width) in enumerate(zip(self.blocks, self.widths, strict=True)):
            for b in range(blocks):
                x = block(
                    width=width,
                    expansion=self.expansion,
                    stride=self.strides[s] if b == 0 else 1,
                    dilation=self.dilations[s],
                    downsample=b == 0,
                    sync_axis=self.sync_axis,
                    dtype=self.dtype,
                    param_dtype=self.param_dtype,
                    name=f"layer{s + 1}_{b}",
                )(x, groups, averaged)
            stages.append(x)
        return stages[-2], stages[-1]
