"""Gaussian blur and colour jitter in PyTorch, on the device: the augmentation of the step that ours is timed against.

What a draw leaves out is not computed, as in the field's code; our compiled program computes it all and selects.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

# The height, in pixels, at which blur radii are given, and the standard deviations at which a Gaussian is cut.
REFERENCE_HEIGHT = 512
TRUNCATE = 3.0


@dataclass(frozen=True)
class Draw:
    """One clip's random numbers: whether to blur and by which deviation in pixels, whether to jitter and by what."""

    blur: bool
    sigma: float
    jitter: bool
    brightness: float
    contrast: float
    saturation: float
    hue: float


def sample(random, height, settings):
    """Draws for one clip.

    Args:
      random: a `random.Random`.
      height: of the frames, pixels.
      settings: `config.methods.stpl.augment`.

    Returns:
      A `Draw`.
    """

    def factor(strength):
        return random.uniform(max(0.0, 1 - strength), 1 + strength)

    return Draw(
        blur=random.random() < settings.blur_probability,
        sigma=random.choice(tuple(settings.blur_radii)) * height / REFERENCE_HEIGHT,
        jitter=random.random() < settings.jitter_probability,
        brightness=factor(settings.brightness),
        contrast=factor(settings.contrast),
        saturation=factor(settings.saturation),
        hue=random.uniform(-settings.hue, settings.hue),
    )


def blur(frames, sigma):
    """Blurs `[T, 3, H, W]` with a Gaussian of the given deviation in pixels; the border's pixels are repeated."""
    reach = int(TRUNCATE * sigma + 0.5)
    offsets = torch.arange(-reach, reach + 1, dtype=frames.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(frames.device, non_blocking=True).expand(3, 1, -1)
    padded = F.pad(frames, (reach, reach, reach, reach), mode="replicate")
    rows = F.conv2d(padded, kernel[..., None], groups=3)
    return F.conv2d(rows, kernel[:, :, None], groups=3)


def jitter(frames, factors):
    """Changes brightness, contrast, saturation and hue of `[T, 3, H, W]` RGB, in this order, each cut to 0..255.

    Args:
      frames: 0..255.
      factors: tensor `[4]`: three factors, and the turn of the colour circle.

    Returns:
      As `frames`.
    """

    def grey(x):
        return 0.299 * x[:, 0:1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:3]

    brightness, contrast, saturation, hue = factors.unbind()
    x = (frames * brightness).clamp(0, 255)
    x = (contrast * x + (1 - contrast) * grey(x).mean((1, 2, 3), keepdim=True)).clamp(0, 255)
    x = (saturation * x + (1 - saturation) * grey(x)).clamp(0, 255)

    red, green, blue = x.unbind(1)
    value = x.amax(1)
    chroma = value - x.amin(1)
    safe = torch.where(chroma == 0, 1, chroma)
    of_green = 2 + (blue - red) / safe
    of_blue = 4 + (red - green) / safe
    sixths = torch.where(green >= blue, of_green, of_blue)
    sixths = torch.where((red >= green) & (red >= blue), (green - blue) / safe, sixths) + 6 * hue

    def channel(start):
        k = torch.remainder(sixths + start, 6)
        return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)

    return torch.stack([channel(5), channel(3), channel(1)], 1).clamp(0, 255)


def augment(frames, draw, jitter=jitter):
    """Augments one clip, `[T, 3, H, W]` RGB of 0..255, all frames by one `Draw`; `jitter` may be a compiled one."""
    if draw.blur:
        frames = blur(frames, draw.sigma).clamp(0, 255)
    if draw.jitter:
        factors = torch.tensor([draw.brightness, draw.contrast, draw.saturation, draw.hue], dtype=frames.dtype)
        frames = jitter(frames, factors.to(frames.device, non_blocking=True))
    return frames
