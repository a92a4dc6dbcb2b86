"""ACCEL on DeepLabv2: the video segmentation network of the paper (section 4.1) and of its baselines' public code."""

import functools
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from flax.core import FrozenDict

from stpl_jax.models.resnet import ResNet
from stpl_jax.ops.convolution import convolve
from stpl_jax.ops.resize import compute_dtype

# Mean of ImageNet in the Caffe convention, BGR, 0-255.
MEAN_BGR = (104.00698793, 116.66876762, 122.67891434)


def normalise_images(rgb, dtype=jnp.float32):
    """Turns RGB images of 0-255 into what the network takes: BGR with the mean taken off.

    Args:
      rgb: `[..., 3]`, uint8 or float.
      dtype: type of the result.

    Returns:
      `[..., 3]`.
    """
    # Rounded once, at the end: in half precision the mean itself would be up to 0.2 off.
    bgr = rgb[..., ::-1].astype(compute_dtype(dtype))
    mean = jnp.asarray(MEAN_BGR, bgr.dtype)
    return (bgr - mean.reshape((1,) * (bgr.ndim - 1) + (3,))).astype(dtype)


class Features(struct.PyTreeNode):
    """Backbone features `[..., h, w, C]`: `auxiliary` of the last stage but one, `main` of the last."""

    auxiliary: Any
    main: Any


class Scores(struct.PyTreeNode):
    """Class scores before softmax, `[..., h, w, K]`, of the auxiliary and the main classifier."""

    auxiliary: Any
    main: Any


class DilatedClassifier(nn.Module):
    """DeepLabv2's classifier: the SUM of 3×3 convolutions with bias, one for each dilation."""

    num_classes: int
    dilations: tuple[int, ...]
    param_dtype: Any

    @nn.compact
    def __call__(self, x):
        out = None
        for i, dilation in enumerate(self.dilations):
            scores = nn.Conv(
                self.num_classes,
                (3, 3),
                kernel_dilation=dilation,
                padding=dilation,
                kernel_init=nn.initializers.normal(0.01),
                param_dtype=self.param_dtype,
                dtype=x.dtype,
                name=f"conv2d_list_{i}",
            )(x).astype(compute_dtype(x.dtype))
            out = scores if out is None else out + scores
        return out


def keep_current(key, shape, dtype):
    """Initialises score fusion as [I | 0]: before training, the fused scores are the current frame's."""
    num_classes = shape[-1]
    return jnp.eye(2 * num_classes, num_classes, dtype=dtype).reshape(shape)


class Accel(nn.Module):
    """The segmentation network: DeepLabv2 on each frame, and a 1×1 convolution that fuses the scores of two frames.

    Its three steps are methods, since a training method puts the warp between them: `features`, `classify`, `fuse`.

    Attributes:
      num_classes: K.
      backbone: settings of `ResNet`, as keyword arguments.
      classifier_dilations: of both classifiers.
      sync_axis: see `GroupedBatchNorm`.
      dtype: type of the backbone's arithmetic; scores are float32 at least.
      param_dtype: type of parameters and running averages.
    """

    num_classes: int
    backbone: Any
    classifier_dilations: tuple[int, ...] = (6, 12, 18, 24)
    sync_axis: str | None = None
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @property
    def channels(self):
        """Number of channels C4 of the last stage's features."""
        resnet = ResNet(**self.backbone)
        return resnet.widths[-1] * resnet.expansion

    def setup(self):
        self.resnet = ResNet(
            **self.backbone, sync_axis=self.sync_axis, dtype=self.dtype, param_dtype=self.param_dtype, name="backbone"
        )
        self.layer5 = DilatedClassifier(self.num_classes, self.classifier_dilations, self.param_dtype)
        self.layer6 = DilatedClassifier(self.num_classes, self.classifier_dilations, self.param_dtype)
        self.sf_layer = nn.Conv(
            self.num_classes,
            (1, 1),
            use_bias=False,
            kernel_init=keep_current,
            dtype=compute_dtype(self.dtype),
            param_dtype=self.param_dtype,
            conv_general_dilated=convolve,
        )

    def features(self, rgb, batch_statistics=False, averaged=0):
        """Runs the backbone on groups of images, all in one batch.

        Args:
          rgb: `[G, B, H, W, 3]`, 0-255.
          batch_statistics: normalise each group by its own statistics; otherwise all by the running averages.
          averaged: how many groups, from the first on, enter the running averages.

        Returns:
          `Features`, `[G, B, h, w, C]`.
        """
        count = rgb.shape[0]
        images = einops.rearrange(normalise_images(rgb, self.dtype), "g b h w c -> (g b) h w c")
        auxiliary, main = self.resnet(images, count if batch_statistics else 0, averaged)
        return Features(*(einops.rearrange(f, "(g b) h w c -> g b h w c", g=count) for f in (auxiliary, main)))

    def classify(self, features):
        """Scores each frame by itself: `Features` `[..., h, w, C]` to `Scores` `[..., h, w, K]`, not fused."""

        def run(layer, x):
            scores = layer(x.reshape(-1, *x.shape[-3:]))
            return scores.reshape(*x.shape[:-3], *scores.shape[-3:])

        return Scores(run(self.layer5, features.auxiliary), run(self.layer6, features.main))

    def classify_main(self, features):
        """Scores with the main classifier alone: `[B, h, w, C4]` to `[B, h, w, K]`."""
        return self.layer6(features)

    def fuse(self, current, warped):
        """Fuses scores of the current frame with those of the earlier one, already warped; both `[B, h, w, K]`."""
        return self.sf_layer(jnp.concatenate([current, warped], -1))

    def __call__(self, rgb):
        """Touches every parameter once, for initialisation: `[G, B, H, W, 3]` to main scores `[B, h, w, K]`."""
        scores = self.classify(self.features(rgb, batch_statistics=True))
        return self.fuse(scores.main[0], scores.main[-1])


def make_segmenter(model, num_classes, sync_axis=None):
    """Builds the segmentation network that `config.model` describes.

    Args:
      model: `config.model`, or the mapping that a checkpoint stores of it.
      num_classes: K.
      sync_axis: name of the pmapped axis, for `batch_norm.mode=sync`.

    Returns:
      An `Accel`.
    """
    backbone = {
        name: tuple(value) if isinstance(value, list | tuple) else value for name, value in model["backbone"].items()
    }
    return Accel(
        num_classes=num_classes,
        backbone=FrozenDict(backbone),
        classifier_dilations=tuple(model["classifier_dilations"]),
        sync_axis=sync_axis,
        dtype=jnp.dtype(model["dtype"]),
    )


@functools.partial(jax.jit, static_argnums=0)
def initial_variables(segmenter, key):
    """Draws a segmentation network's variables: a dict of `params` and `batch_stats`."""
    # Shapes of parameters do not depend on the image's; this is the smallest that every stage takes.
    return dict(segmenter.init(key, jnp.zeros((2, 1, 32, 32, 3), jnp.float32)))
