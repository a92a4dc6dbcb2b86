"""Initialisers of parameters that networks share."""

import jax


def torch_default(inputs):
    """PyTorch's default for kernels and biases of dense layers and convolutions: uniform within ±1/√inputs.

    Args:
      inputs: how many values enter one output: channels, times the kernel's area.

    Returns:
      A Flax initialiser.
    """

    def init(key, shape, dtype):
        return jax.random.uniform(key, shape, dtype, -(inputs**-0.5), inputs**-0.5)

    return init
