"""Histogram matching against a reading in numpy over the levels that occur."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stpl_jax.ops.histogram import match_histograms


def by_unique_levels(channel, reference):
    """Interpolates the reference's levels over its quantiles, at the quantiles of the channel's levels; float64."""
    _, where, counts = np.unique(channel.ravel(), return_inverse=True, return_counts=True)
    levels, wanted = np.unique(reference.ravel(), return_counts=True)
    quantiles = np.cumsum(counts) / channel.size
    return np.interp(quantiles, np.cumsum(wanted) / reference.size, levels)[where].reshape(channel.shape)


def frames(seed, size, spread, count=2):
    random = np.random.default_rng(seed)
    return np.clip(random.normal(110, spread, (count, *size, 3)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    "images, reference",
    [
        (frames(1, (12, 17), 40), frames(2, (12, 17), 9, 1)[0]),
        (frames(3, (8, 16), 90), frames(4, (11, 21), 60, 1)[0]),  # another number of pixels; many at 0 and 255
        (frames(5, (6, 5), 3), (frames(6, (9, 9), 70, 1)[0] // 64 * 64).astype(np.uint8)),  # few levels occur
        (np.full((2, 4, 4, 3), 200, np.uint8), frames(7, (5, 5), 30, 1)[0]),  # one level takes all: the brightest
        (frames(8, (7, 7), 50), np.full((3, 3, 3), 77, np.uint8)),
    ],
)
def test_against_numpy(images, reference):
    found = np.asarray(jax.jit(match_histograms)(images, reference))
    assert found.dtype == np.float32
    for image, matched in zip(images, found, strict=True):
        for c in range(3):
            expected = by_unique_levels(image[..., c], reference[..., c])
            np.testing.assert_allclose(matched[..., c], expected, atol=2e-3)


def test_a_frame_matched_to_itself_is_itself():
    image = frames(9, (20, 30), 60, 1)
    np.testing.assert_allclose(jax.jit(match_histograms)(image, image[0]), image, atol=1e-3)


def test_distributions_agree_afterwards():
    image, reference = frames(10, (40, 50), 20, 1), frames(11, (40, 50), 45, 1)[0]
    found = np.asarray(jax.jit(match_histograms)(image, reference))[0]
    for c in range(3):
        ours, theirs = (np.sort(x[..., c].ravel().astype(float)) for x in (found, reference))
        # Ties in the image stay ties: a level's pixels all go to the level at the upper end of their quantiles.
        assert np.abs(ours - theirs).mean() < 3
        assert np.abs(np.sort(image[0, ..., c].ravel().astype(float)) - theirs).mean() > 15


def test_clips_by_their_own_reference_under_vmap():
    clips = np.stack([frames(12, (6, 8), 30), frames(13, (6, 8), 70)])
    references = frames(14, (6, 8), 15)
    found = jax.jit(jax.vmap(match_histograms))(clips, references)
    for clip, reference, matched in zip(clips, references, found, strict=True):
        for frame, c in np.ndindex(2, 3):
            expected = by_unique_levels(clip[frame, ..., c], reference[..., c])
            np.testing.assert_allclose(matched[frame, ..., c], expected, atol=2e-3)


def test_wrong_input():
    image = jnp.zeros((4, 5, 3), jnp.uint8)
    with pytest.raises(ValueError, match=r"one reference \[H', W', C\]"):
        match_histograms(image, image[None])
    with pytest.raises(ValueError, match=r"got \(4, 5, 3\) and \(4, 5, 1\)"):
        match_histograms(image, image[..., :1])
    with pytest.raises(TypeError, match="reference must be uint8, got float32"):
        match_histograms(image, image.astype(jnp.float32))
