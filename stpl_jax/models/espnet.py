"""ESPNet: Efficient Spatial Pyramid of Dilated Convolutions for Semantic Segmentation (Mehta et al., ECCV 2018).

Encoder on three levels of ESP blocks, the small image beside each level's features; a light decoder that goes back up
through the second and the first level. What the methods contrast are the encoder's last features, at an eighth of the
image; what the classifier scores are the decoder's last ones, at half of it. The decoder has batch normalisation, so
that it is run in the same pass (`PerClassifier.scored`); scores have the image's own size.

Values are those of the public code. Its differences from here:
- It normalises a frame first and resizes it then, by bilinear interpolation; here frames arrive resized.
- The decoder of test/Model.py takes the first level's features by themselves, that of train/Model.py those with the
  image beside them. Both are here: `reinforced_skip`.
- Images whose height or width is not a multiple of 8 fit there only by chance. Here a level's map is cut to the finer
  level's below and right where doubling made it larger; scores of an odd side have one more row or column.
- The last output means void. It is trained there; here it is left out of the scores.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from input_pipeline.errors import UserError
from stpl_jax.models.batch_norm import GroupedBatchNorm
from stpl_jax.models.initialisers import torch_default
from stpl_jax.models.network import SMALLEST_SIZE, Network, PerClassifier, apply_to_groups
from stpl_jax.ops.convolution import convolve
from stpl_jax.ops.dtypes import compute_dtype

EPSILON = 1e-3
DILATIONS = (1, 2, 4, 8, 16)
# Fewer outputs leave the decoder's ESP block, which splits them in five, without a channel.
FEWEST_OUTPUTS = len(DILATIONS)


def normalise_images(rgb, dtype, mean, deviation):
    """Turns RGB images of 0-255 into what the network takes: BGR, (x - mean) / deviation / 255.

    Args:
      rgb: `[..., 3]`, uint8 or float.
      dtype: type of the result.
      mean, deviation: of each channel, BGR, 0-255.

    Returns:
      `[..., 3]`.
    """
    bgr = rgb[..., ::-1].astype(compute_dtype(dtype))
    mean, deviation = (
        jnp.asarray(values, bgr.dtype).reshape((1,) * (bgr.ndim - 1) + (3,)) for values in (mean, deviation)
    )
    return ((bgr - mean) / deviation / 255).astype(dtype)


def halve(images):
    """Averages 3×3 windows, stride 2, zeros around and counted: `[B, H, W, C]` to `[B, ⌈H/2⌉, ⌈W/2⌉, C]`."""
    # Flax's avg_pool mixes whole numbers and floats.
    return nn.pooling.pool(images, 0.0, jax.lax.add, (3, 3), (2, 2), ((1, 1), (1, 1))) / 9


def cut(coarse, fine):
    """Cuts a map that was doubled to the size of `fine`, which it exceeds by one row or column at most."""
    return coarse[:, : fine.shape[1], : fine.shape[2]]


class _Layers(nn.Module):
    """What all parts share: types, statistics, and the layers with their names."""

    sync_axis: str | None
    dtype: Any
    param_dtype: Any

    def conv(self, name, outputs, x, kernel=3, stride=1, dilation=1):
        """A convolution without bias that keeps the grid, or halves it."""
        return nn.Conv(
            outputs,
            (kernel, kernel),
            strides=stride,
            kernel_dilation=dilation,
            padding=dilation * (kernel // 2),
            use_bias=False,
            kernel_init=torch_default(kernel * kernel * x.shape[-1]),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            conv_general_dilated=convolve,
            name=name,
        )(x)

    def norm(self, name, x, *statistics):
        """Batch normalisation; `statistics`, here and below: groups, averaged, share of `GroupedBatchNorm`."""
        return GroupedBatchNorm(self.sync_axis, self.param_dtype, EPSILON, name=name)(x, *statistics)

    def prelu(self, name, x):
        """max(x, 0) + slope · min(x, 0), a slope for each channel."""
        slope = self.param(name, nn.initializers.constant(0.25), (x.shape[-1],), self.param_dtype)
        return jnp.where(x > 0, x, slope.astype(x.dtype)[None, None, None] * x)

    @property
    def shared(self):
        """What parts of this one are made with, as keyword arguments."""
        return dict(sync_axis=self.sync_axis, dtype=self.dtype, param_dtype=self.param_dtype)


class Doubled(_Layers):
    """A transposed convolution of 2×2 with stride 2: `[B, h, w, I]` to `[B, 2h, 2w, outputs]`, a pixel to four."""

    outputs: int

    @nn.compact
    def __call__(self, x):
        height, width, channels = x.shape[1:]
        # PyTorch's default counts the outputs of a transposed convolution.
        init = torch_default(4 * self.outputs)
        kernel = self.param("kernel", init, (2, 2, self.outputs, channels), self.param_dtype)
        out = jnp.einsum("bhwi,yxoi->bhywxo", x, kernel.astype(x.dtype))
        return out.reshape(-1, 2 * height, 2 * width, self.outputs)


class Activated(_Layers):
    """Batch normalisation and PReLU; before them a 3×3 convolution, if `outputs` is given."""

    outputs: int | None = None
    stride: int = 1

    @nn.compact
    def __call__(self, x, *statistics):
        if self.outputs is not None:
            x = self.conv("conv", self.outputs, x, stride=self.stride)
        return self.prelu("slope", self.norm("bn", x, *statistics))


class ESP(_Layers):
    """The ESP module (section 3): reduce, split to five dilations, merge by hierarchical feature fusion.

    Attributes:
      outputs: channels. A fifth of them, rounded down, for each dilation; the rest for the first.
      downsamples: reduce by a 3×3 convolution of stride 2 instead of a 1×1 convolution.
      residual: add the input.
    """

    outputs: int
    downsamples: bool = False
    residual: bool = False

    @nn.compact
    def __call__(self, x, *statistics):
        narrow = self.outputs // len(DILATIONS)
        reduced = self.conv("c1", narrow, x, 3, 2) if self.downsamples else self.conv("c1", narrow, x, 1)
        first, *others = (
            self.conv(
                f"d{dilation}",
                self.outputs - (len(DILATIONS) - 1) * narrow if dilation == 1 else narrow,
                reduced,
                dilation=dilation,
            )
            for dilation in DILATIONS
        )
        # Sums from the smallest of the other dilations on (equation 2) take the gridding away; the first stays out.
        merged, total = [first], None
        for part in others:
            total = part if total is None else total + part
            merged.append(total)
        y = jnp.concatenate(merged, -1)
        y = x + y if self.residual else y
        return self.prelu("slope", self.norm("bn", y, *statistics))


class Encoder(_Layers):
    """The encoder, ESPNet-C without its classifier; attributes as `ESPNet`'s."""

    p: int
    q: int
    widths: tuple[int, int, int]

    @nn.compact
    def __call__(self, images, *statistics):
        """Returns each level's features, finest first: at 1/2 without and with the image, at 1/4, at 1/8."""

        def level(number, x, width, count):
            first = out = ESP(**self.shared, outputs=width, downsamples=True, name=f"level{number}_0")(x, *statistics)
            for i in range(count):
                out = ESP(**self.shared, outputs=width, residual=True, name=f"level{number}_block{i}")(out, *statistics)
            return first, out

        half = halve(images)
        first = Activated(**self.shared, outputs=self.widths[0], stride=2, name="level1")(images, *statistics)
        reinforced = Activated(**self.shared, name="b1")(jnp.concatenate([first, half], -1), *statistics)
        down, second = level(2, reinforced, self.widths[1], self.p)
        second = Activated(**self.shared, name="b2")(jnp.concatenate([second, down, halve(half)], -1), *statistics)
        down, third = level(3, second, self.widths[2], self.q)
        third = Activated(**self.shared, name="b3")(jnp.concatenate([down, third], -1), *statistics)
        return first, reinforced, second, third


class Decoder(_Layers):
    """The decoder, all but its last layer; `outputs` is how many scores there are, K + 1."""

    outputs: int

    @nn.compact
    def __call__(self, first, second, third, *statistics):
        """Returns `[B, h, w, K + 1]` at the grid of `first`, from features of three levels, finest first."""
        x = self.norm("br", self.conv("encoder_classifier", self.outputs, third, 1), *statistics)
        x = Doubled(**self.shared, outputs=self.outputs, name="up_l3")(x)
        second = self.conv("level3_C", self.outputs, second, 1)
        x = jnp.concatenate([second, cut(x, second)], -1)
        x = Activated(**self.shared, name="combine_l2_l3_0")(x, *statistics)
        x = ESP(**self.shared, outputs=self.outputs, name="combine_l2_l3_1")(x, *statistics)
        x = Doubled(**self.shared, outputs=self.outputs, name="up_l2_0")(x)
        x = Activated(**self.shared, name="up_l2_1")(x, *statistics)
        x = jnp.concatenate([cut(x, first), first], -1)
        return Activated(**self.shared, outputs=self.outputs, name="conv")(x, *statistics)


class ESPNet(_Layers):
    """The whole network.

    Attributes:
      sync_axis: see `GroupedBatchNorm`.
      dtype: type of the arithmetic; scores are float32 at least.
      param_dtype: type of parameters and running averages.
      num_classes: K; there is one output more, the last, which means void.
      p, q: residual ESP blocks of the second and of the third level.
      widths: channels of the three levels.
      reinforced_skip: whether the decoder takes the first level's features with the image beside them.
      mean, deviation: see `normalise_images`.
    """

    num_classes: int
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]
    p: int = 2
    q: int = 8
    widths: tuple[int, int, int] = (16, 64, 128)
    reinforced_skip: bool = False

    def setup(self):
        self.encoder = Encoder(**self.shared, p=self.p, q=self.q, widths=self.widths)
        self.decoder = Decoder(**self.shared, outputs=self.num_classes + 1)
        self.classifier = Doubled(**self.shared, outputs=self.num_classes + 1)

    def features(self, images, groups=0, averaged=0, share=1.0):
        """Runs encoder and decoder: images `[G·B, H, W, 3]`, `GroupedBatchNorm`'s arguments.

        Returns:
          The encoder's last features `[G·B, ⌈H/8⌉, ⌈W/8⌉, C]`, and the decoder's, `[G·B, ⌈H/2⌉, ⌈W/2⌉, K + 1]`.
        """
        first, reinforced, second, third = self.encoder(images, groups, averaged, share)
        skip = reinforced if self.reinforced_skip else first
        return third, self.decoder(skip, second, third, groups, averaged, share)

    def classify(self, decoded):
        """Scores the decoder's features `[B, h, w, K + 1]`: `[B, 2h, 2w, K]`, without void."""
        return self.classifier(decoded)[..., :-1].astype(compute_dtype(decoded.dtype))

    def __call__(self, images):
        """Touches every parameter once, for initialisation."""
        return self.classify(self.features(images, 1)[1])


@functools.lru_cache
def as_network(module):
    """Fills a `Network` with an `ESPNet`; the same one for equal modules."""

    def initial(key):
        # Shapes of parameters do not depend on the image's.
        return module.init(key, jnp.zeros((1, *SMALLEST_SIZE, 3), module.dtype))

    def backbone(variables, images, share, averaged):
        (main, scored), stats = apply_to_groups(module, variables, images, share, averaged)
        return PerClassifier(main, scored=scored), stats

    return Network(
        num_classes=module.num_classes,
        initial=initial,
        normalise=functools.partial(normalise_images, mean=module.mean, deviation=module.deviation),
        backbone=backbone,
        main_classifier=lambda params, decoded: module.apply({"params": params}, decoded, method="classify"),
        blends_statistics=True,
        groups={
            "normalisation": r"/(bn|br)/(scale|bias)$",
            "backbone": "^encoder/",
            "main_classifier": "^(decoder|classifier)/",
        },
        dtype=module.dtype,
        param_dtype=module.param_dtype,
    )


def make_espnet(model, num_classes, sync_axis=None):
    """Builds ESPNet as a `Network`, see `models.make_segmenter`.

    Raises:
      UserError: fewer classes than its decoder takes.
    """
    if num_classes + 1 < FEWEST_OUTPUTS:
        raise UserError(
            f"config.model.name=espnet: expected {FEWEST_OUTPUTS - 1} classes or more, since its decoder splits them "
            f"and void to {len(DILATIONS)} dilations, found {num_classes}. Choose another network."
        )
    settings = model["espnet"]
    return as_network(
        ESPNet(
            num_classes=num_classes,
            p=settings["p"],
            q=settings["q"],
            widths=tuple(settings["widths"]),
            reinforced_skip=settings["reinforced_skip"],
            mean=tuple(settings["mean"]),
            deviation=tuple(settings["deviation"]),
            sync_axis=sync_axis,
            dtype=jnp.dtype(model["dtype"]),
            param_dtype=jnp.float32,
        )
    )
