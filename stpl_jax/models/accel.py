"""ACCEL on DeepLabv2: the video segmentation network of the paper (section 4.1) and of its baselines' public code."""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.core import FrozenDict

from stpl_jax.models.network import SMALLEST_SIZE, Network, PerClassifier, apply_to_groups, propagation_of
from stpl_jax.models.resnet import ResNet
from stpl_jax.ops.convolution import convolve
from stpl_jax.ops.dtypes import compute_dtype

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

    Its three steps are methods, since a step along the flow comes between them: `features`, `classify`, `fuse`.

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

    def features(self, images, groups=0, averaged=0, share=1.0):
        """Runs the backbone: images `[G·B, H, W, 3]`, `GroupedBatchNorm`'s arguments, to both stages' features."""
        return self.resnet(images, groups, averaged, share)

    def classify(self, name, features):
        """Scores with one of the classifiers: `[B, h, w, C]` to `[B, h, w, K]`, not fused."""
        return getattr(self, name)(features)

    def fuse(self, current, brought):
        """Fuses scores of the current frame with those of the earlier one, brought to it; both `[B, h, w, K]`."""
        return self.sf_layer(jnp.concatenate([current, brought], -1))

    def __call__(self, images):
        """Touches every parameter once, for initialisation."""
        auxiliary, main = self.features(images, 1)
        self.layer5(auxiliary)
        scores = self.layer6(main)
        return self.fuse(scores, scores)


@functools.lru_cache
def as_network(module, propagation="warp"):
    """Fills a `Network` with an `Accel`, or with another module of its methods; the same one for equal arguments."""

    def initial(key):
        # Shapes of parameters do not depend on the image's.
        return module.init(key, jnp.zeros((1, *SMALLEST_SIZE, 3), jnp.float32))

    def backbone(variables, images, share, averaged):
        (auxiliary, main), stats = apply_to_groups(module, variables, images, share, averaged)
        return PerClassifier(main, auxiliary), stats

    def classifier(name):
        return lambda params, features: module.apply({"params": params}, name, features, method="classify")

    return Network(
        num_classes=module.num_classes,
        initial=initial,
        normalise=normalise_images,
        backbone=backbone,
        main_classifier=classifier("layer6"),
        auxiliary_classifier=classifier("layer5"),
        blends_statistics=True,
        fusion=lambda params, current, brought: module.apply({"params": params}, current, brought, method="fuse"),
        propagation=propagation,
        groups={
            "normalisation": r"/(bn\d|downsample_1)/(scale|bias)$",
            "backbone": "^backbone/",
            "main_classifier": "^layer6/",
            "auxiliary_classifier": "^layer5/",
            "score_fusion": "^sf_layer/",
        },
        rematerialise=module.backbone["remat"] != "none",
        new_classifier=functools.partial(
            DilatedClassifier, module.num_classes, module.classifier_dilations, module.param_dtype
        ),
        dtype=module.dtype,
        param_dtype=module.param_dtype,
    )


def accel_module(model, num_classes, sync_axis=None):
    """Builds the Flax module that `config.model` describes, see `models.make_segmenter`."""
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


def make_accel(model, num_classes, sync_axis=None):
    """Builds ACCEL as a `Network`, see `models.make_segmenter`."""
    return as_network(accel_module(model, num_classes, sync_axis), propagation_of(model))
