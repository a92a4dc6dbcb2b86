"""Additive colour jitter against numbers worked out by hand and against loops of OpenCV's and NumPy's operations."""

import dataclasses

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from stpl_jax.ops import additive_jitter
from stpl_jax.ops.additive_jitter import AdditiveSettings, additive_photometric

ALWAYS = AdditiveSettings(jitter_probability=1.0, grey_probability=0.0, blur_probability=0.0)


def scalars(*values):
    return [jnp.asarray(value, jnp.float32) for value in values]


def scene(size, seed=0):
    """A picture of smooth colours with some noise, dark and bright parts, bytes."""
    random = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(random.normal(size=(*size, 3)), (6, 6, 0), mode="wrap")
    shared = ndimage.gaussian_filter(random.normal(size=(*size, 1)), (9, 9, 0), mode="wrap")
    picture = 90 + 40 * smooth / smooth.std() * 0.5 + 45 * shared / shared.std() + random.normal(0, 4, (*size, 3))
    return np.clip(picture, 0, 255).astype(np.uint8)


def test_levels_by_hand():
    image = jnp.asarray([[[0, 100, 250], [10, 20, 200]]], jnp.float32)
    # 1.2 x + 25.5, cut to 255
    found = additive_jitter.adjust_levels(image, *scalars(1.2, 0.1))
    np.testing.assert_allclose(found, [[[25.5, 145.5, 255], [37.5, 49.5, 255]]], rtol=1e-6)
    # 0.8 x - 51, cut to 0
    found = additive_jitter.adjust_levels(image, *scalars(0.8, -0.2))
    np.testing.assert_allclose(found, [[[0, 29, 149], [0, 0, 109]]], rtol=1e-6)


@pytest.mark.parametrize(
    "pixel, shifts, expected",
    [
        # Hue 0, chroma 100, value 200; saturation 0.5.
        ((200, 100, 100), (0, 0.1, 0), (200, 80, 80)),  # chroma 0.6 · 200
        ((200, 100, 100), (0, -0.6, 0), (200, 200, 200)),  # cut to 0
        ((200, 100, 100), (0, 0.6, 0), (200, 0, 0)),  # cut to 1
        ((200, 100, 100), (0, 0, 0.2), (251, 125.5, 125.5)),  # value + 51, saturation kept
        ((200, 100, 100), (0, 0, 0.4), (255, 127.5, 127.5)),  # cut to 255
        ((200, 100, 100), (0, 0, -1), (0, 0, 0)),
        ((200, 100, 100), (1 / 12, 0, 0), (200, 150, 100)),  # 30°, half the way from red to yellow
        ((200, 100, 100), (-1 / 3, 0, 0), (100, 100, 200)),  # blue
        ((20, 60, 100), (1 / 6, -0.3, 0.2), (113.25, 75.5, 151)),  # 210° to 270°; 0.8 to 0.5; 100 to 151
        # A grey pixel counts as red; black has saturation 0.
        ((100, 100, 100), (0, 0.1, 0), (100, 90, 90)),
        ((100, 100, 100), (1 / 3, 0.1, 0), (90, 100, 90)),
        ((0, 0, 0), (0, 0.1, 0.2), (51, 45.9, 45.9)),
    ],
)
def test_shifts_of_hsv_by_hand(pixel, shifts, expected):
    found = jax.jit(additive_jitter.shift_hsv)(jnp.asarray([[pixel]], jnp.float32), *scalars(*shifts))
    np.testing.assert_allclose(found[0, 0], expected, atol=1e-3)


def test_shifts_of_hsv_agree_with_opencv():
    image = np.random.default_rng(0).uniform(0, 255, (20, 30, 3)).astype(np.float32)
    for hue, saturation, value in ((0.11, 0.1, -0.05), (-0.09, -0.11, 0.07)):
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)  # hue in degrees, saturation of 1, value of 255
        hsv[..., 0] = (hsv[..., 0] + 360 * hue) % 360
        hsv[..., 1] = np.clip(hsv[..., 1] + saturation, 0, 1)
        hsv[..., 2] = np.clip(hsv[..., 2] + 255 * value, 0, 255)
        found = jax.jit(additive_jitter.shift_hsv)(jnp.asarray(image), *scalars(hue, saturation, value))
        np.testing.assert_allclose(found, cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), atol=2e-2)


def published(image, random):
    """The published operations on bytes, in their order and strengths; OpenCV."""
    if random.random() < 0.8:
        contrast, brightness = random.uniform(0.8, 1.2), random.uniform(-0.2, 0.2)
        image = np.clip(contrast * image.astype(np.float32) + 255 * brightness, 0, 255).astype(np.uint8)
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV).astype(np.float32)
        shifted = hsv + [random.uniform(-20, 20), random.uniform(-30, 30), random.uniform(-20, 20)]
        hsv = np.stack([shifted[..., 0] % 180, *np.clip(shifted[..., 1:], 0, 255).transpose(2, 0, 1)], -1)
        image = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)
    if random.random() < 0.2:
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if random.random() < 0.5:
        size = random.choice([3, 5, 5])
        image = cv2.GaussianBlur(image, (size, size), sigmaX=0)
    return image


def test_a_pixel_changes_as_much_as_published():
    image, draws = scene((48, 48)), 1500
    random = np.random.default_rng(1)
    expected = [np.abs(published(image, random).astype(float) - image).mean() for _ in range(draws)]
    # The blur of a frame 512 high, on one of 48.
    settings = AdditiveSettings(blur_radii=tuple(radius * 512 / 48 for radius in AdditiveSettings().blur_radii))
    frames = jnp.asarray(image, jnp.float32)[None]

    @jax.jit
    def change(keys):
        return jax.lax.map(lambda key: jnp.abs(additive_photometric(key, frames, settings) - frames).mean(), keys)

    found = np.asarray(change(jax.random.split(jax.random.key(0), draws)))
    assert 20 < np.mean(expected) < 35
    assert found.mean() == pytest.approx(np.mean(expected), rel=0.05)
    shares = (10, 25, 50, 75, 90)
    np.testing.assert_allclose(np.percentile(found, shares), np.percentile(expected, shares), rtol=0.12, atol=1)


def test_blurred_as_by_opencv():
    image = scene((64, 64)).astype(np.float32)
    for size, radius in ((3, 0.71), (5, 1.0)):
        settings = dataclasses.replace(
            ALWAYS, jitter_probability=0.0, blur_probability=1.0, blur_radii=(radius * 512 / 64,)
        )
        found = additive_photometric(jax.random.key(0), jnp.asarray(image)[None], settings)[0]
        inside = np.s_[4:-4, 4:-4]
        expected = cv2.GaussianBlur(image, (size, size), sigmaX=0)
        change = np.abs(expected - image)[inside].mean()
        assert np.abs(found - expected)[inside].mean() < 0.12 * change, size


def test_sequence_of_its_parts_in_float64():
    settings = dataclasses.replace(ALWAYS, grey_probability=1.0, blur_probability=1.0, blur_radii=(4.0, 8.0))
    frames = np.stack([scene((32, 24)), scene((32, 24), seed=1)]).astype(np.float64)
    key = jax.random.key(3)
    with jax.enable_x64(True):
        found = jax.jit(additive_photometric, static_argnums=2)(key, jnp.asarray(frames), settings)
        assert found.dtype == jnp.float64 and found.shape == frames.shape
        draw = additive_jitter.sample(key, 32, settings)
        expected = [additive_jitter.adjust_levels(jnp.asarray(f), draw.contrast, draw.brightness) for f in frames]
        expected = [additive_jitter.shift_hsv(f, draw.hue, draw.saturation, draw.value) for f in expected]
    assert float(draw.sigma) in (0.25, 0.5)  # 4 and 8 of 512, at 32
    for frame, result in zip(expected, found, strict=True):
        luma = np.asarray(frame) @ [0.299, 0.587, 0.114]
        blurred = ndimage.gaussian_filter(luma, float(draw.sigma), mode="nearest", truncate=3.0)
        np.testing.assert_allclose(result, np.repeat(blurred[..., None], 3, -1), atol=1e-6)


def test_one_draw_for_a_clip_and_another_for_the_next():
    clips = jnp.asarray(np.broadcast_to(scene((16, 16)), (3, 2, 16, 16, 3)), jnp.float32)
    keys = jax.random.split(jax.random.key(1), 3)
    found = np.asarray(jax.jit(jax.vmap(lambda key, clip: additive_photometric(key, clip, ALWAYS)))(keys, clips))
    np.testing.assert_array_equal(found[:, 0], found[:, 1])
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(found[a] - found[b]).mean() > 1
    alone = np.asarray(additive_photometric(keys[1], clips[1], ALWAYS))
    np.testing.assert_allclose(alone, found[1], atol=5e-3)


def test_probability_zero_is_the_identity():
    frames = jnp.asarray(scene((16, 16)), jnp.float32)[None]
    for seed in range(3):
        found = additive_photometric(jax.random.key(seed), frames, dataclasses.replace(ALWAYS, jitter_probability=0.0))
        np.testing.assert_array_equal(found, frames)


def test_draws_have_the_stated_distribution():
    keys = jax.random.split(jax.random.key(4), 4000)
    draws = jax.vmap(lambda key: additive_jitter.sample(key, 256, AdditiveSettings()))(keys)
    draws = jax.tree.map(np.asarray, draws)
    for happened, probability in ((draws.jitter, 0.8), (draws.grey, 0.2), (draws.blur, 0.5)):
        assert happened.mean() == pytest.approx(probability, abs=0.03)
    assert (draws.jitter & draws.grey & draws.blur).mean() == pytest.approx(0.08, abs=0.02)
    for drawn, centre, strength in (
        (draws.brightness, 0, 0.2),
        (draws.contrast, 1, 0.2),
        (draws.hue, 0, 20 / 180),
        (draws.saturation, 0, 30 / 255),
        (draws.value, 0, 20 / 255),
    ):
        scaled = (drawn - centre) / strength
        assert -1.001 < scaled.min() < -0.98 and 0.98 < scaled.max() < 1.001
        assert scaled.mean() == pytest.approx(0, abs=0.05)
    values, counts = np.unique(draws.sigma, return_counts=True)
    np.testing.assert_allclose(values, [0.355, 0.5])  # at half of the reference height
    np.testing.assert_allclose(counts / 4000, [1 / 3, 2 / 3], atol=0.03)


def test_values_stay_in_range_and_finite():
    extremes = [np.zeros((8, 8, 3)), np.full((8, 8, 3), 255), np.eye(8)[..., None] * [255, 0, 0]]
    clips = jnp.asarray(np.stack(extremes)[:, None].repeat(4, 0), jnp.float32)
    settings = AdditiveSettings(1.0, 1.0, 1.0, 0.5, 1.0, 1.0)
    keys = jax.random.split(jax.random.key(2), len(clips))
    found = np.asarray(jax.vmap(lambda key, clip: additive_photometric(key, clip, settings))(keys, clips))
    assert np.isfinite(found).all() and found.min() >= 0 and found.max() <= 255


@pytest.mark.parametrize(
    "name, value",
    [("jitter_probability", 1.5), ("grey_probability", -0.1), ("brightness", -1.0), ("saturation", 30.0)]
    + [("value", 20.0), ("hue", 20.0), ("blur_radii", ()), ("blur_radii", (0.0, 1.0))],
)
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"augment.{name}: expected"):
        AdditiveSettings(**{name: value})


def test_other_frames_are_refused():
    with pytest.raises(TypeError, match="uint8"):
        additive_photometric(jax.random.key(0), jnp.zeros((2, 8, 8, 3), jnp.uint8), ALWAYS)
    with pytest.raises(ValueError, match=r"\[T, H, W, 3\]"):
        additive_photometric(jax.random.key(0), jnp.zeros((8, 8, 3)), ALWAYS)
