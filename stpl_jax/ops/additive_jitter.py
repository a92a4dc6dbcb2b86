"""Additive colour jitter of clips: shifts in RGB and in HSV, then grey and blur, on RGB frames of 0 to 255.

`augment.py` has the multiplicative jitter, torchvision's. Here brightness moves a dark pixel as far as a bright one.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from stpl_jax.ops.augment import (
    REFERENCE_HEIGHT,
    check_frames,
    from_hue_chroma_value,
    gaussian_blur,
    grey,
    hue_chroma_value,
)


@dataclasses.dataclass(frozen=True)
class AdditiveSettings:
    """What `additive_photometric` draws from.

    Attributes:
      jitter_probability: share of draws that change colours: contrast, brightness and the three of HSV, all together.
      brightness: shift of RGB from [-brightness, brightness], as a share of 255.
      contrast: factor of RGB from [1 - contrast, 1 + contrast].
      hue: shift from [-hue, hue], in turns of the colour circle, at most 0.5.
      saturation: shift of HSV's saturation from [-saturation, saturation], as a share of the whole range.
      value: shift of HSV's value, the largest channel, from [-value, value], as a share of 255.
      grey_probability: share of draws that end as grey images.
      blur_probability: share of draws that blur.
      blur_radii: standard deviations of the Gaussian, drawn with equal chance, in pixels of a frame 512 high.

    Raises:
      ValueError: if a value is outside its range.

    Source: the public code of PixMatch and the defaults of albumentations 0.5, which it calls.
    """

    jitter_probability: float = 0.8
    brightness: float = 0.2
    contrast: float = 0.2
    hue: float = 20 / 180
    saturation: float = 30 / 255
    value: float = 20 / 255
    grey_probability: float = 0.2
    blur_probability: float = 0.5
    blur_radii: tuple[float, ...] = (0.71, 1.0, 1.0)

    def __post_init__(self):
        for name, found in dataclasses.asdict(self).items():
            highest = 0.5 if name == "hue" else 1
            if name != "blur_radii" and not 0 <= found <= highest:
                raise ValueError(f"augment.{name}: expected 0 to {highest}, got {found}")
        if not self.blur_radii or min(self.blur_radii) <= 0:
            raise ValueError(f"augment.blur_radii: expected one or more positive radii, got {self.blur_radii}")


class Draw(NamedTuple):
    """One draw of the random numbers of `additive_photometric`; scalars."""

    jitter: jax.Array  # bool
    brightness: jax.Array
    contrast: jax.Array
    hue: jax.Array
    saturation: jax.Array
    value: jax.Array
    grey: jax.Array  # bool
    blur: jax.Array  # bool
    sigma: jax.Array  # standard deviation, pixels of the frame


def additive_photometric(key: jax.Array, frames: jax.Array, settings: AdditiveSettings) -> jax.Array:
    """Shifts the colours of one clip at random, greys and blurs it; `jax.vmap` it, with one key a clip, over clips.

    All frames share one draw. Values stay real numbers: nothing is rounded to bytes.

    Args:
      key: a random key.
      frames: [T, H, W, 3] floating point RGB of 0 to 255.
      settings: probabilities and strengths; known when the function is traced.

    Returns:
      [T, H, W, 3] of the dtype of frames, values from 0 to 255. The same key gives the same result.

    Raises:
      ValueError: if frames are not [T, H, W, 3].
      TypeError: if frames are not floating point.

    Source: the public code of PixMatch; formulas as albumentations.
    """
    check_frames(frames)
    height = frames.shape[1]
    draw = sample(key, height, settings)
    max_sigma = max(settings.blur_radii) * height / REFERENCE_HEIGHT

    def perturb(frame: jax.Array) -> jax.Array:
        jittered = adjust_levels(frame, draw.contrast, draw.brightness)
        jittered = shift_hsv(jittered, draw.hue, draw.saturation, draw.value)
        frame = jnp.where(draw.jitter, jittered, frame)
        frame = jnp.where(draw.grey, jnp.broadcast_to(grey(frame), frame.shape), frame)
        blurred = gaussian_blur(frame, draw.sigma, max_sigma)
        return jnp.where(draw.blur, jnp.clip(blurred, 0, 255), frame)

    return jax.vmap(perturb)(frames)


def sample(key: jax.Array, height: int, settings: AdditiveSettings) -> Draw:
    """Draws one set of random numbers for frames of the given height; float32, whatever the frames' dtype."""
    keys = iter(jax.random.split(key, len(Draw._fields)))

    def happens(probability: float) -> jax.Array:
        return jax.random.uniform(next(keys), (), jnp.float32) < probability

    def within(centre: float, strength: float) -> jax.Array:
        return jax.random.uniform(next(keys), (), jnp.float32, centre - strength, centre + strength)

    sigmas = jnp.asarray([radius * height / REFERENCE_HEIGHT for radius in settings.blur_radii], jnp.float32)
    return Draw(
        jitter=happens(settings.jitter_probability),
        brightness=within(0.0, settings.brightness),
        contrast=within(1.0, settings.contrast),
        hue=within(0.0, settings.hue),
        saturation=within(0.0, settings.saturation),
        value=within(0.0, settings.value),
        grey=happens(settings.grey_probability),
        blur=happens(settings.blur_probability),
        sigma=jax.random.choice(next(keys), sigmas),
    )


def adjust_levels(image: jax.Array, contrast: jax.Array, brightness: jax.Array) -> jax.Array:
    """contrast · RGB + brightness · 255 of an image [H, W, 3] of 0..255, cut to 0..255."""
    contrast, brightness = (jnp.asarray(x, image.dtype) for x in (contrast, brightness))
    return jnp.clip(contrast * image + 255 * brightness, 0, 255)


def shift_hsv(image: jax.Array, hue: jax.Array, saturation: jax.Array, value: jax.Array) -> jax.Array:
    """Adds to the hue, the saturation and the value of RGB [H, W, 3] of 0..255.

    HSV as OpenCV has it: value is the largest channel, saturation is chroma over value, 0 for black, and the hue of a
    grey pixel is red. So a grey pixel whose saturation rises turns towards red, turned by `hue`.

    Args:
      image: [H, W, 3] floating point.
      hue: scalar, in turns of the colour circle.
      saturation: scalar, as a share of the whole range; the sum is cut to it.
      value: scalar, as a share of 255; the sum is cut to 0..255.

    Returns:
      [H, W, 3] of the dtype of image.
    """
    hue, saturation, value = (jnp.asarray(x, image.dtype) for x in (hue, saturation, value))
    old_hue, chroma, old_value = hue_chroma_value(image)
    old_saturation = chroma / jnp.where(old_value == 0, 1, old_value)
    new_saturation = jnp.clip(old_saturation + saturation, 0, 1)
    new_value = jnp.clip(old_value + 255 * value, 0, 255)
    shifted = from_hue_chroma_value(old_hue + 6 * hue, new_saturation * new_value, new_value)
    return jnp.clip(shifted, 0, 255)
