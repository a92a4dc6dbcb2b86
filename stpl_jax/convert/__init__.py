"""PyTorch weights in and out: `python -m stpl_jax.convert`, see docs/weights.md."""

from input_pipeline.errors import UserError


class ConvertError(UserError):
    """A file that cannot be converted, or a place that cannot be written to; the message is for the user."""
