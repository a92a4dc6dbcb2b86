"""Types of intermediate results."""

import jax.numpy as jnp


def compute_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """The type in which sums over values of `dtype` run: float32, or float64 for float64."""
    # Not jnp.promote_types: it refuses (bfloat16, float32) under strict promotion.
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)
