"""What the public code of TPS does to frames and flow by mistake, for `methods.tps.as_published`; see methods/tps.py.

Source: GitHub xing0047/TPS, train_video_UDA.py, with torchvision 0.4.
"""

import dataclasses

import jax.numpy as jnp

from stpl_jax.ops.mirror import mirror

# One name for the mistake: the grid is mirrored, the vectors on it keep the sign of their horizontal part.
mirror_flow_without_sign = mirror


def wrapped_bytes(images):
    """Turns images that are normalised already into bytes as torchvision's ToPILImage does.

    It takes values for shares of 1, multiplies them by 255, drops what is behind the point and keeps the lowest eight
    bits. Of BGR with the mean taken off, a blue of 0, -104.00698793, becomes 103: -26521.78 is -26521, modulo 256.

    Args:
      images: `[..., 3]` float32, what `Network.normalise` gives.

    Returns:
      `[..., 3]` int32, 0-255.
    """
    return (images * 255).astype(jnp.int32) & 255


def without_normalisation(network):
    """Returns the same `Network` for images that enter the backbone as they are."""
    return dataclasses.replace(network, normalise=lambda images, dtype: images.astype(dtype))
