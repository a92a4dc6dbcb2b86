"""The discriminator of the field's adversarial methods: which domain does a map of predictions come from?"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from stpl_jax.models.initialisers import torch_default

# Five convolutions of stride 2: the smallest side that leaves one value.
SMALLEST_SIDE = 32


class Discriminator(nn.Module):
    """A fully convolutional classifier of patches: five 4×4 convolutions of stride 2, with leaky ReLUs between them.

    Widths are 1, 2, 4 and 8 times `width`, then 1. Initialised as PyTorch does by default.

    Attributes:
      param_dtype: type of the parameters and of the arithmetic.
      width: of the first convolution.

    Source: public code of AdaptSegNet, which ADVENT, DA-VSN and RDA take over (`get_fc_discriminator`, 64 wide).
    """

    param_dtype: Any = jnp.float32
    width: int = 64

    @nn.compact
    def __call__(self, maps):
        """Judges each patch.

        Args:
          maps: `[..., H, W, K]`, such as softmax probabilities or weighted self-information at the frames' size.

        Returns:
          Logits `[..., ⌊H/32⌋, ⌊W/32⌋, 1]`; large where a patch looks like the domain of label 1.

        Raises:
          ValueError: a side is shorter than 32 pixels.
        """
        if min(maps.shape[-3:-1]) < SMALLEST_SIDE:
            raise ValueError(
                f"The discriminator halves its input five times: it takes maps of {SMALLEST_SIDE}×{SMALLEST_SIDE} "
                f"pixels or more, found {maps.shape[-3]}×{maps.shape[-2]}. Use larger frames."
            )
        x = maps.reshape(-1, *maps.shape[-3:]).astype(self.param_dtype)
        widths = [self.width * factor for factor in (1, 2, 4, 8)] + [1]
        for number, width in enumerate(widths, 1):
            x = nn.Conv(
                width,
                (4, 4),
                strides=2,
                padding=1,
                kernel_init=torch_default(16 * x.shape[-1]),
                bias_init=torch_default(16 * x.shape[-1]),
                param_dtype=self.param_dtype,
                name=f"conv{number}",
            )(x)
            if number < len(widths):
                x = nn.leaky_relu(x, 0.2)
        return x.reshape(*maps.shape[:-3], *x.shape[1:])


def initial_discriminators(discriminator, key, names, channels):
    """Returns first parameters of discriminators of one kind, by name.

    Args:
      discriminator: a `Discriminator`.
      key: random key; each draws by a key of its own.
      names: of the discriminators.
      channels: of the maps that they judge.
    """
    maps = jnp.zeros((1, SMALLEST_SIDE, SMALLEST_SIDE, channels), discriminator.param_dtype)
    keys = jax.random.split(key, len(names))
    return {name: discriminator.init(own, maps)["params"] for name, own in zip(names, keys, strict=True)}
