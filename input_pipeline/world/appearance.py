"""The two looks of the generated street: a clean game, and a camera in the real world.

A look turns what the renderer knows (materials, depth, instances, a position on each surface) into a picture. Texture
and shadows are read at positions on the surfaces, so that they move exactly with the flow; light, lens and sensor do
not.
"""

import functools
from dataclasses import dataclass, replace

import cv2
import numpy as np

from input_pipeline.world.shapes import MATERIAL_CLASS, MATERIALS, WORLD_CLASSES
from input_pipeline.world.street import INFINITY

_TILE = 256
# Haze stops thickening here, so that sky and skyline do not vanish in it (metres).
_HAZE_REACH = 160.0
# How much of the haze the sky takes: it is bright already.
_SKY_HAZE = 0.3
# The real camera's colour cast: log gain of red, green and blue at gap 1; each scene's white balance varies about it.
_CAST = np.array([0.1, 0.0, -0.18])


@dataclass(frozen=True)
class Look:
    """How one scene is photographed.

    Attributes:
      colours: `[M, 3]` float32 colour of each material, 0-255 RGB.
      paint: `[M]` float32 share of an instance's own paint in each material.
      texture: strength of the surface texture (1 gives ±40 of 255 on the strongest materials).
      shadow: how much darker the shadowed ground is, 0-1.
      shadow_offset: where on the ground the shadows lie, in texture samples.
      light: `(across, down)` slope of brightness over the picture, a share of it from edge to edge.
      haze: per metre; the share of the haze colour is `1 - exp(-haze * depth)`.
      haze_colour: RGB.
      balance: gain of each channel.
      contrast, brightness: about mid-grey, and as an offset of 0-255.
      saturation: 1 leaves colours alone.
      flicker: standard deviation of the log exposure of a frame.
      blur: standard deviation in pixels of a picture 128 rows high.
      noise: standard deviation of the sensor's noise, 0-255.
      vignette: how much darker the corners are, 0-1.
      quality: of the JPEG that the camera stores, 1-100; None for none.
    """

    colours: np.ndarray
    paint: np.ndarray
    texture: float
    shadow: float
    shadow_offset: tuple[float, float]
    light: tuple[float, float]
    haze: float
    haze_colour: tuple[float, float, float]
    balance: tuple[float, float, float]
    contrast: float
    brightness: float
    saturation: float
    flicker: float
    blur: float
    noise: float
    vignette: float
    quality: int | None = None


@functools.cache
def _noise_tile():
    """Returns `[256, 256]` float32 seamless noise, mean 0, deviation 1, stronger in large structures."""
    white = np.fft.fft2(np.random.default_rng(20240607).standard_normal((_TILE, _TILE)))
    frequency = np.hypot(np.fft.fftfreq(_TILE)[:, None], np.fft.fftfreq(_TILE)[None])
    frequency[0, 0] = np.inf
    tile = np.fft.ifft2(white / (frequency + 0.01) ** 0.9).real
    return ((tile - tile.mean()) / tile.std()).astype(np.float32)


@functools.cache
def _material_table():
    """Returns game colours `[M, 3]`, real colours `[M, 3]`, paint, contrast and grain `[M]`, all float32."""
    columns = ([getattr(m, key) for m in MATERIALS] for key in ("game", "real", "paint", "contrast", "grain"))
    return tuple(np.array(column, np.float32) for column in columns)


def sample_look(rng, gap):
    """Draws how a scene is photographed.

    Args:
      rng: numpy Generator.
      gap: 0 is the clean game; 1 is a strong real look: every effect grows with it.

    Returns:
      The `Look`.
    """
    game, real, paint, _, _ = _material_table()
    # Colours drift per class, so that all parts of a class shift together, as under other paints and other plants.
    drift = rng.normal(0, 3 + 4 * gap, (len(WORLD_CLASSES), 3))[MATERIAL_CLASS]
    grey_haze = rng.uniform(190, 225)
    return Look(
        colours=np.clip(game + 0.75 * gap * (real - game) + drift, 4, 250).astype(np.float32),
        paint=(paint * (1 - 0.25 * min(gap, 1.0))).astype(np.float32),
        texture=0.16 + 0.45 * gap * rng.uniform(0.7, 1.2),
        shadow=0.12 + 0.3 * gap * rng.uniform(0.3, 1.0),
        shadow_offset=tuple(rng.uniform(0, _TILE, 2)),
        light=tuple(gap * rng.uniform(-0.3, 0.3, 2)),
        haze=0.001 + gap * rng.uniform(0.003, 0.010),
        haze_colour=tuple(grey_haze + rng.normal(0, 6, 3) * gap),
        balance=tuple(np.exp(gap * (_CAST + rng.normal(0, 0.05, 3)))),
        contrast=float(np.exp(rng.normal(-0.3 * gap, 0.1 * gap))),
        brightness=rng.normal(8 * gap, 2 + 6 * gap),
        saturation=1 - 0.3 * gap * rng.uniform(0.3, 1.0),
        flicker=0.05 * gap,
        blur=0.45 + 0.45 * gap * rng.uniform(0.3, 1.2),
        noise=0.6 + 4 * gap * rng.uniform(0.5, 1.2),
        vignette=0.3 * gap * rng.uniform(0.4, 1.0),
    )


def sample_camera(rng, gap):
    """Draws how a whole drive is photographed: a look with a colour cast of its own, stored as JPEG.

    Args:
      rng: numpy Generator.
      gap: as `sample_look` takes it.

    Returns:
      The `Look`.
    """
    look = sample_look(rng, gap)
    balance = np.exp(gap * rng.normal(0, 0.12, 3))
    return replace(look, balance=tuple(balance), quality=int(rng.integers(60, 95)))


def vary(rng, look):
    """Draws how one scene of a drive is photographed: white balance, brightness and light vary a little."""
    return replace(
        look,
        shadow_offset=tuple(rng.uniform(0, _TILE, 2)),
        light=tuple(np.array(look.light) + rng.normal(0, 0.05, 2)),
        balance=tuple(np.array(look.balance) * np.exp(rng.normal(0, 0.03, 3))),
        brightness=look.brightness + rng.normal(0, 4),
    )


def _read_tile(x, y):
    """Reads the repeating noise at `[H, W]` positions, in samples."""
    x, y = np.mod(x, _TILE).astype(np.float32), np.mod(y, _TILE).astype(np.float32)
    return cv2.remap(_noise_tile(), x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


def _surface_colours(view, scene, look):
    """Returns `[H, W, 3]` float32: material, own paint, texture and shadows; nothing of the camera yet."""
    _, _, _, contrast, grain = _material_table()
    materials, instances = view.materials, view.instances
    own = look.paint[materials][..., None]
    colours = look.colours[materials]
    colours += own * (scene.paint.astype(np.float32)[instances] - colours)
    samples = grain[materials]
    x, y = view.surface[..., 0] * samples, view.surface[..., 1] * samples
    # Each instance starts elsewhere on the tile, so that no two houses wear the same stains.
    texture = _read_tile(x + 37.7 * instances, y + 71.3 * instances)
    # Texture finer than a pixel averages out; without this it would sparkle in the distance.
    footprint = np.where(view.depth < INFINITY, view.depth / scene.focal, 0) * samples
    texture *= contrast[materials] / (1 + (0.6 * footprint) ** 2)
    gain = 1 + (0.16 * look.texture) * texture
    on_ground = (instances == 0) & (view.depth < INFINITY)
    shade = _read_tile(*(view.surface[..., k] * 1.1 + look.shadow_offset[k] for k in (0, 1)))
    covered = np.clip(shade * 2.5 - 0.3, 0, 1)
    gain = np.where(on_ground, gain * (1 - look.shadow * covered), gain)
    return colours * np.maximum(gain, 0.1)[..., None]


def paint(view, scene, look, rng):
    """Photographs a view.

    Args:
      view: what the renderer saw.
      scene: its street.
      look: how to photograph it.
      rng: numpy Generator of this frame: exposure flicker and sensor noise.

    Returns:
      `[H, W, 3]` uint8 RGB.
    """
    h, w = view.depth.shape
    picture = _surface_colours(view, scene, look)
    sky = view.depth >= INFINITY
    haze = 1 - np.exp(-look.haze * np.minimum(view.depth, _HAZE_REACH))
    haze[sky] *= _SKY_HAZE
    picture += haze[..., None] * (np.array(look.haze_colour, np.float32) - picture)
    across, down = np.linspace(-1, 1, w, dtype=np.float32), np.linspace(-1, 1, h, dtype=np.float32)[:, None]
    light = 1 + 0.5 * (look.light[0] * across + look.light[1] * down)
    light *= 1 - look.vignette * (across**2 + down**2) / 2
    light *= np.exp(rng.normal(0, look.flicker))
    picture *= light.astype(np.float32)[..., None] * np.array(look.balance, np.float32)
    grey = picture.mean(axis=-1, keepdims=True)
    picture = grey + np.float32(look.saturation) * (picture - grey)
    picture = (picture - 128) * np.float32(look.contrast) + np.float32(128 + look.brightness)
    picture = cv2.GaussianBlur(picture, (0, 0), look.blur * h / 128)
    picture += look.noise * rng.standard_normal((h, w, 3), dtype=np.float32)
    picture = np.clip(np.rint(picture), 0, 255).astype(np.uint8)
    if look.quality is None:
        return picture
    stored = cv2.imencode(".jpg", picture[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, look.quality))[1]
    return cv2.imdecode(stored, cv2.IMREAD_COLOR)[..., ::-1]
