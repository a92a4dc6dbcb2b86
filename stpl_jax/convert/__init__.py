"""PyTorch weights in and out: `python -m stpl_jax.convert`, see docs/weights.md."""


class ConvertError(ValueError):
    """A file that cannot be converted, or a place that cannot be written to; the message is for the user."""
