"""Photometric augmentation of clips on the device: Gaussian blur and colour jitter, on RGB frames of 0 to 255."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from stpl_jax.ops.dtypes import compute_dtype

# The height, in pixels, at which blur radii are given: the training size of the public code.
REFERENCE_HEIGHT = 512
# A Gaussian kernel ends at this many standard deviations.
TRUNCATE = 3.0


@dataclasses.dataclass(frozen=True)
class AugmentSettings:
    """What `photometric` draws from.

    Attributes:
      blur_probability: share of draws that blur.
      blur_radii: standard deviations of the Gaussian, drawn with equal chance, in pixels of a frame 512 high; a frame
        of height H is blurred by radius·H/512. The public code of TPS gives these to PIL's GaussianBlur, whose radius
        is the standard deviation.
      jitter_probability: share of draws that jitter colours.
      brightness: factor from [max(0, 1 - brightness), 1 + brightness].
      contrast: the same for contrast.
      saturation: the same for saturation.
      hue: shift from [-hue, hue], in turns of the colour circle, at most 0.5.
      per_frame: True draws once for each frame; False lets all frames of a clip share one draw.
      grey_probability: share of draws that end as grey images; 0 in the paper, more than that in TPS.

    Raises:
      ValueError: if a value is outside its range.

    Source: the paper names blur and colour jitter; probabilities and strengths as in the code that it builds on.
    """

    blur_probability: float = 0.6
    blur_radii: tuple[float, ...] = (5.0, 7.0, 9.0)
    jitter_probability: float = 0.8
    brightness: float = 0.8
    contrast: float = 0.8
    saturation: float = 0.8
    hue: float = 0.2
    per_frame: bool = False
    grey_probability: float = 0.0

    def __post_init__(self):
        for name in ("blur_probability", "jitter_probability", "grey_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"augment.{name}: expected a probability from 0 to 1, got {getattr(self, name)}")
        for name in ("brightness", "contrast", "saturation"):
            if getattr(self, name) < 0:
                raise ValueError(f"augment.{name}: expected at least 0, got {getattr(self, name)}")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"augment.hue: expected 0 to 0.5 turns, got {self.hue}")
        if not self.blur_radii or min(self.blur_radii) <= 0:
            raise ValueError(f"augment.blur_radii: expected one or more positive radii, got {self.blur_radii}")


class Draw(NamedTuple):
    """One draw of the random numbers of `photometric`; scalars."""

    blur: jax.Array  # bool
    sigma: jax.Array  # standard deviation, pixels of the frame
    jitter: jax.Array  # bool
    brightness: jax.Array
    contrast: jax.Array
    saturation: jax.Array
    hue: jax.Array
    grey: jax.Array  # bool


def photometric(key: jax.Array, frames: jax.Array, settings: AugmentSettings) -> jax.Array:
    """Blurs and colour-jitters the frames of one clip at random; `jax.vmap` it, with one key a clip, over clips.

    Blur comes first, then brightness, contrast, saturation and hue in this order, each cut to 0..255. torchvision's
    ColorJitter permutes the four at random; a fixed order keeps one program for all draws. Contrast blends with the
    mean grey of each frame by itself (the public code stacks the two frames into one tall image and takes its mean).
    Values stay real numbers: nothing is rounded to bytes. Turning grey, where the settings have it, comes last.

    Args:
      key: a random key.
      frames: [T, H, W, 3] floating point RGB of 0 to 255.
      settings: probabilities and strengths; known when the function is traced.

    Returns:
      [T, H, W, 3] of the dtype of frames, values from 0 to 255. The same key gives the same result.

    Raises:
      ValueError: if frames are not [T, H, W, 3].
      TypeError: if frames are not floating point.

    Source: paper, section 3.1, "cross-frame augmentation"; order and formulas as the public code of TPS.
    """
    check_frames(frames)
    height = frames.shape[1]
    max_sigma = max(settings.blur_radii) * height / REFERENCE_HEIGHT

    def augment(frame: jax.Array, draw: Draw) -> jax.Array:
        blurred = gaussian_blur(frame, draw.sigma, max_sigma)
        frame = jnp.where(draw.blur, jnp.clip(blurred, 0, 255), frame)
        jittered = adjust_brightness(frame, draw.brightness)
        jittered = adjust_contrast(jittered, draw.contrast)
        jittered = adjust_saturation(jittered, draw.saturation)
        jittered = adjust_hue(jittered, draw.hue)
        frame = jnp.where(draw.jitter, jittered, frame)
        if settings.grey_probability == 0:
            return frame
        return jnp.where(draw.grey, jnp.broadcast_to(grey(frame), frame.shape), frame)

    if settings.per_frame:
        frame_keys = jax.vmap(lambda t: jax.random.fold_in(key, t))(jnp.arange(frames.shape[0]))
        draws = jax.vmap(lambda k: sample(k, height, settings))(frame_keys)
        return jax.vmap(augment)(frames, draws)
    return jax.vmap(augment, in_axes=(0, None))(frames, sample(key, height, settings))


def check_frames(frames: jax.Array) -> None:
    """Raises ValueError or TypeError if frames are not [T, H, W, 3] of floating point."""
    if frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"augmentation: expected frames [T, H, W, 3], got shape {tuple(frames.shape)}")
    if not jnp.issubdtype(frames.dtype, jnp.floating):
        raise TypeError(f"augmentation: expected floating point frames of 0 to 255, got {frames.dtype}")


def sample(key: jax.Array, height: int, settings: AugmentSettings) -> Draw:
    """Draws one set of random numbers for frames of the given height; float32, whatever the frames' dtype."""
    keys = jax.random.split(key, 7)

    def uniform(k: jax.Array, low: float, high: float) -> jax.Array:
        return jax.random.uniform(k, (), jnp.float32, low, high)

    def factor(k: jax.Array, strength: float) -> jax.Array:
        return uniform(k, max(0.0, 1.0 - strength), 1.0 + strength)

    sigmas = jnp.asarray([radius * height / REFERENCE_HEIGHT for radius in settings.blur_radii], jnp.float32)
    return Draw(
        blur=uniform(keys[0], 0.0, 1.0) < settings.blur_probability,
        sigma=jax.random.choice(keys[1], sigmas),
        jitter=uniform(keys[2], 0.0, 1.0) < settings.jitter_probability,
        brightness=factor(keys[3], settings.brightness),
        contrast=factor(keys[4], settings.contrast),
        saturation=factor(keys[5], settings.saturation),
        hue=uniform(keys[6], -settings.hue, settings.hue),
        # Not an eighth key of the split: draws without grey stay what they were.
        grey=uniform(jax.random.fold_in(key, 7), 0.0, 1.0) < settings.grey_probability,
    )


def gaussian_blur(image: jax.Array, sigma: jax.Array, max_sigma: float) -> jax.Array:
    """Blurs with a Gaussian cut at 3 standard deviations and normalised; beyond the border the edge is repeated.

    Separable, each axis a product with a banded matrix: unlike a convolution with a kernel per clip, that stays one
    batched matrix product under `jax.vmap`.

    Args:
      image: [H, W, C] floating point.
      sigma: scalar, positive: the standard deviation in pixels; may be traced.
      max_sigma: the largest sigma that can come, which fixes the width of the border; known when traced.

    Returns:
      [H, W, C] of the dtype of image.
    """
    reach = int(TRUNCATE * max_sigma + 0.5)
    sigma = jnp.asarray(sigma, compute_dtype(image.dtype))
    rows = _blur_matrix(image.shape[0], sigma, reach).astype(image.dtype)
    columns = _blur_matrix(image.shape[1], sigma, reach).astype(image.dtype)
    padded = jnp.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    out = jnp.einsum("hy,yxc->hxc", rows, padded, precision=lax.Precision.HIGHEST)
    return jnp.einsum("wx,hxc->hwc", columns, out, precision=lax.Precision.HIGHEST)


def _blur_matrix(size: int, sigma: jax.Array, reach: int) -> jax.Array:
    """Weights [size, size + 2·reach] from a padded axis to the blurred one."""
    offset = jnp.arange(size + 2 * reach)[None, :] - jnp.arange(size)[:, None] - reach
    offset = offset.astype(sigma.dtype)
    weights = jnp.where(jnp.abs(offset) <= jnp.floor(TRUNCATE * sigma + 0.5), jnp.exp(-0.5 * (offset / sigma) ** 2), 0)
    return weights / jnp.sum(weights, axis=1, keepdims=True)


def grey(image: jax.Array) -> jax.Array:
    """Luma of RGB [..., 3] -> [..., 1]: 0.299 R + 0.587 G + 0.114 B (ITU-R 601-2, as PIL and torchvision)."""
    return 0.299 * image[..., 0:1] + 0.587 * image[..., 1:2] + 0.114 * image[..., 2:3]


def adjust_brightness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiplies RGB [H, W, 3] of 0..255 by a scalar factor, cut to 0..255."""
    return _blend(image, jnp.zeros_like(image), factor)


def adjust_contrast(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends RGB [H, W, 3] of 0..255 with the mean of its grey: factor 0 gives a flat image, 1 the image itself."""
    return _blend(image, jnp.broadcast_to(jnp.mean(grey(image)), image.shape), factor)


def adjust_saturation(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends RGB [H, W, 3] of 0..255 with its grey: factor 0 gives a grey image, 1 the image itself."""
    return _blend(image, jnp.broadcast_to(grey(image), image.shape), factor)


def adjust_hue(image: jax.Array, shift: jax.Array) -> jax.Array:
    """Turns the hue of RGB [H, W, 3] of 0..255 by a scalar shift, in turns of the colour circle, in HSV."""
    hue, chroma, value = hue_chroma_value(image)
    hue = hue + 6 * jnp.asarray(shift, image.dtype)
    return jnp.clip(from_hue_chroma_value(hue, chroma, value), 0, 255)


def hue_chroma_value(image: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Hue, chroma and value of RGB [..., 3], the parts of HSV.

    Returns:
      hue [...] in sixths of a turn, from -1 to 5, 0 for grey; largest channel minus smallest; largest channel.
    """
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    safe = jnp.where(chroma == 0, 1, chroma)  # of a grey pixel: red minus green is 0, and so is its hue
    # Channels are compared with each other, never with `value`: the compiler may compute that one apart, with other
    # rounding, and then it equals none of them.
    hue = jnp.where(
        (red >= green) & (red >= blue),
        (green - blue) / safe,
        jnp.where(green >= blue, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    return hue, chroma, value


def from_hue_chroma_value(hue: jax.Array, chroma: jax.Array, value: jax.Array) -> jax.Array:
    """RGB [..., 3] of hue, any number of sixths of a turn, chroma and value [...]."""

    def channel(start: int) -> jax.Array:
        k = jnp.mod(hue + start, 6)
        return value - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)

    return jnp.stack([channel(5), channel(3), channel(1)], axis=-1)


def _blend(image: jax.Array, other: jax.Array, factor: jax.Array) -> jax.Array:
    factor = jnp.asarray(factor, image.dtype)
    return jnp.clip(factor * image + (1 - factor) * other, 0, 255)
