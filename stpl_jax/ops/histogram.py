"""Histogram matching of images on the device: colours of one frame given the distribution of another's."""

import jax
import jax.numpy as jnp

LEVELS = 256


def match_histograms(images: jax.Array, reference: jax.Array) -> jax.Array:
    """Maps each channel's levels so that its cumulative distribution becomes the reference's.

        matched = F_reference⁻¹(F_image(level)),

    F⁻¹ linear between the levels that occur in the reference, as scikit-image's `match_histograms`. One table of 256
    levels per channel does it, whatever the size of the frames. No gradient flows.

    Args:
      images: [..., H, W, C] uint8; each image by itself, apart from the others along the leading axes.
      reference: [H', W', C] uint8.

    Returns:
      [..., H, W, C] float32, values from 0 to 255, not rounded.

    Raises:
      ValueError: if the shapes do not go together.
      TypeError: if an array is not uint8.

    Source: the public code of TPS, which calls scikit-image on the host.
    """
    if images.ndim < 3 or reference.ndim != 3 or images.shape[-1] != reference.shape[-1]:
        raise ValueError(
            "match_histograms: expected images [..., H, W, C] and one reference [H', W', C], got "
            f"{tuple(images.shape)} and {tuple(reference.shape)}"
        )
    for name, array in (("images", images), ("reference", reference)):
        if array.dtype != jnp.uint8:
            raise TypeError(f"match_histograms: {name} must be uint8, got {array.dtype}")
    height, width, channels = images.shape[-3:]
    planes = jnp.moveaxis(images.reshape(-1, height * width, channels), -1, 1)  # [N, C, H·W]
    wanted = reference.reshape(-1, channels).T  # [C, H'·W']
    matched = jax.vmap(jax.vmap(_match_plane), (0, None))(planes, wanted)
    return jnp.moveaxis(matched, 1, -1).reshape(images.shape)


def _match_plane(plane: jax.Array, wanted: jax.Array) -> jax.Array:
    """One channel: [P] and [Q] uint8 to [P] float32."""
    levels = jnp.arange(LEVELS, dtype=jnp.float32)
    share, _ = _cumulative(plane)
    wanted_share, occurs = _cumulative(wanted)
    # A level that does not occur takes the place of the nearest one below that does (before the first, of the first):
    # then it adds no step of its own, and the interpolation runs from one occurring level to the next.
    first = jnp.argmax(occurs).astype(jnp.float32)
    stands_for = jax.lax.cummax(jnp.where(occurs, levels, first))
    table = jnp.interp(share, wanted_share, stands_for)
    return table[plane.astype(jnp.int32)]


def _cumulative(plane: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Share of pixels at or below each level, [256] float32, and which levels occur, [256] bool."""
    counts = jnp.zeros(LEVELS, jnp.int32).at[plane.astype(jnp.int32)].add(1)
    return jnp.cumsum(counts, dtype=jnp.int32).astype(jnp.float32) / plane.size, counts > 0
