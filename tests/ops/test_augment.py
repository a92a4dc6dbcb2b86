import colorsys
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy import ndimage

from stpl_jax.ops import augment

ALWAYS = augment.AugmentSettings(blur_probability=1.0, jitter_probability=1.0)
# At 64 high the radii 5, 7, 9 are standard deviations of 0.625, 0.875 and 1.125 pixels.
SHAPE = (2, 64, 40, 3)


def random_frames(shape=SHAPE, seed=0):
    return np.random.default_rng(seed).integers(0, 256, size=shape).astype(np.float32)


def scalar(value):
    return jnp.asarray(value, jnp.float32)


@pytest.mark.parametrize("sigma", [0.1, 0.625, 2.5, 7.0])
def test_blur_agrees_with_scipy(sigma):
    image = random_frames((30, 45, 3))
    result = jax.jit(augment.gaussian_blur, static_argnums=2)(jnp.asarray(image), scalar(sigma), 9.0)
    expected = ndimage.gaussian_filter(image.astype(np.float64), (sigma, sigma, 0), mode="nearest", truncate=3.0)
    np.testing.assert_allclose(np.asarray(result), expected, atol=2e-3)


def test_blur_runs_in_float64_where_the_frames_are():
    image = random_frames((12, 10, 3)).astype(np.float64)
    with jax.enable_x64(True):
        result = np.asarray(augment.gaussian_blur(jnp.asarray(image), jnp.float64(1.3), 2.0))
    expected = ndimage.gaussian_filter(image, (1.3, 1.3, 0), mode="nearest", truncate=3.0)
    np.testing.assert_allclose(result, expected, atol=1e-11)


@pytest.mark.parametrize("factor", [0.2, 0.7, 1.0, 1.8])
def test_brightness_contrast_and_saturation_agree_with_pil(factor):
    image = random_frames((20, 30, 3))
    image[:10] *= 0.3  # so that the mean is not the middle of the range
    image = np.floor(image)
    picture = Image.fromarray(image.astype(np.uint8))
    for adjust, enhancer in (
        (augment.adjust_brightness, ImageEnhance.Brightness),
        (augment.adjust_contrast, ImageEnhance.Contrast),
        (augment.adjust_saturation, ImageEnhance.Color),
    ):
        result = np.asarray(adjust(jnp.asarray(image), scalar(factor)))
        # PIL rounds the grey, or its mean, (0.5, times 1 - factor) and the result (cut to a whole number, below 1).
        np.testing.assert_allclose(result, np.asarray(enhancer(picture).enhance(factor), np.float32), atol=1.5)
        assert result.min() >= 0 and result.max() <= 255


def test_contrast_and_saturation_closed_forms():
    image = random_frames((4, 5, 3)).astype(np.float64)
    grey = image @ [0.299, 0.587, 0.114]
    with jax.enable_x64(True):
        contrast = np.asarray(augment.adjust_contrast(jnp.asarray(image), jnp.float64(1.4)))
        saturation = np.asarray(augment.adjust_saturation(jnp.asarray(image), jnp.float64(0.3)))
        bright = np.asarray(augment.adjust_brightness(jnp.asarray(image), jnp.float64(1.5)))
    np.testing.assert_allclose(contrast, np.clip(1.4 * image - 0.4 * grey.mean(), 0, 255), atol=1e-10)
    np.testing.assert_allclose(saturation, np.clip(0.3 * image + 0.7 * grey[..., None], 0, 255), atol=1e-10)
    np.testing.assert_allclose(bright, np.minimum(1.5 * image, 255), atol=1e-10)


@pytest.mark.parametrize("shift", [-0.2, -0.07, 0.0, 0.13, 0.5])
def test_hue_agrees_with_colorsys(shift):
    image = random_frames((9, 11, 3))
    image[0, :7] = [[0, 0, 0], [255, 255, 255], [80, 80, 80], [255, 0, 0], [0, 255, 0], [0, 0, 255], [90, 90, 20]]
    expected = np.zeros(image.shape)
    for index in np.ndindex(image.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*image[index].astype(float) / 255)
        expected[index] = np.asarray(colorsys.hsv_to_rgb((hue + shift) % 1.0, saturation, value)) * 255
    np.testing.assert_allclose(np.asarray(augment.adjust_hue(jnp.asarray(image), scalar(shift))), expected, atol=2e-3)


def test_photometric_is_the_sequence_of_its_parts():
    frames = random_frames()
    key = jax.random.key(3)
    draw = jax.tree.map(np.asarray, augment.sample(key, SHAPE[1], ALWAYS))
    assert draw.blur and draw.jitter
    expected = []
    for frame in frames:
        frame = ndimage.gaussian_filter(frame, (draw.sigma, draw.sigma, 0), mode="nearest", truncate=3.0)
        for adjust, amount in (
            (augment.adjust_brightness, draw.brightness),
            (augment.adjust_contrast, draw.contrast),
            (augment.adjust_saturation, draw.saturation),
            (augment.adjust_hue, draw.hue),
        ):
            frame = adjust(jnp.asarray(frame), amount)
        expected.append(np.asarray(frame))
    result = np.asarray(jax.jit(augment.photometric, static_argnums=2)(key, jnp.asarray(frames), ALWAYS))
    assert result.shape == SHAPE and result.dtype == np.float32
    np.testing.assert_allclose(result, np.stack(expected), atol=5e-3)


def test_frames_share_one_draw_unless_per_frame():
    frames = np.repeat(random_frames((1, *SHAPE[1:])), 2, axis=0)
    key = jax.random.key(0)
    shared = np.asarray(augment.photometric(key, jnp.asarray(frames), ALWAYS))
    np.testing.assert_array_equal(shared[0], shared[1])
    own = np.asarray(augment.photometric(key, jnp.asarray(frames), dataclasses.replace(ALWAYS, per_frame=True)))
    assert np.abs(own[0] - own[1]).mean() > 1


def test_same_key_same_result_and_clips_differ():
    clips = jnp.asarray(np.repeat(random_frames()[None], 3, axis=0))
    run = jax.jit(jax.vmap(lambda key, frames: augment.photometric(key, frames, ALWAYS)))
    keys = jax.random.split(jax.random.key(1), 3)
    first, second = np.asarray(run(keys, clips)), np.asarray(run(keys, clips))
    np.testing.assert_array_equal(first, second)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(first[a] - first[b]).mean() > 1
    alone = np.asarray(augment.photometric(keys[1], clips[1], ALWAYS))
    np.testing.assert_allclose(alone, first[1], atol=5e-3)


def test_probability_zero_is_the_identity():
    frames = random_frames()
    off = augment.AugmentSettings(blur_probability=0.0, jitter_probability=0.0)
    for seed in range(3):
        result = augment.photometric(jax.random.key(seed), jnp.asarray(frames), off)
        np.testing.assert_array_equal(np.asarray(result), frames)


def test_values_stay_in_range_and_finite():
    frames = np.stack([random_frames(SHAPE), np.zeros(SHAPE, np.float32), np.full(SHAPE, 255, np.float32)])
    clips = jnp.asarray(np.repeat(frames, 4, axis=0))
    settings = dataclasses.replace(ALWAYS, brightness=3.0, contrast=3.0, saturation=3.0, hue=0.5)
    keys = jax.random.split(jax.random.key(2), len(clips))
    result = np.asarray(jax.vmap(lambda key, clip: augment.photometric(key, clip, settings))(keys, clips))
    assert np.isfinite(result).all() and result.min() >= 0 and result.max() <= 255


def test_draws_have_the_stated_distribution():
    settings = augment.AugmentSettings(brightness=0.4, contrast=1.5)
    keys = jax.random.split(jax.random.key(4), 4000)
    draws = jax.tree.map(np.asarray, jax.vmap(lambda key: augment.sample(key, 256, settings))(keys))
    assert draws.blur.mean() == pytest.approx(0.6, abs=0.03)
    assert draws.jitter.mean() == pytest.approx(0.8, abs=0.03)
    assert (draws.blur & draws.jitter).mean() == pytest.approx(0.48, abs=0.03)
    values, counts = np.unique(draws.sigma, return_counts=True)
    np.testing.assert_array_equal(values, [2.5, 3.5, 4.5])  # half of the radii at half the reference height
    np.testing.assert_allclose(counts / 4000, 1 / 3, atol=0.03)
    for drawn, low, high in (
        (draws.brightness, 0.6, 1.4),
        (draws.contrast, 0.0, 2.5),
        (draws.saturation, 0.2, 1.8),
        (draws.hue, -0.2, 0.2),
    ):
        assert low <= drawn.min() < low + 0.01 * (high - low) and high - 0.01 * (high - low) < drawn.max() <= high
        assert drawn.mean() == pytest.approx((low + high) / 2, abs=0.03 * (high - low))


def test_settings_and_frames_out_of_range_are_refused():
    for name, value in (
        ("blur_probability", 1.5),
        ("jitter_probability", -0.1),
        ("brightness", -1.0),
        ("hue", 0.6),
        ("blur_radii", ()),
        ("blur_radii", (0.0, 5.0)),
    ):
        with pytest.raises(ValueError, match=name):
            augment.AugmentSettings(**{name: value})
    with pytest.raises(TypeError, match="uint8"):
        augment.photometric(jax.random.key(0), jnp.zeros((2, 8, 8, 3), jnp.uint8), ALWAYS)
    with pytest.raises(ValueError, match=r"\[T, H, W, 3\]"):
        augment.photometric(jax.random.key(0), jnp.zeros((8, 8, 3)), ALWAYS)
