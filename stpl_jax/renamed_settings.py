"""Settings that had another name: an old one is an error that says the new spelling, or is read as the new one."""

from input_pipeline import optical_flow
from stpl_jax.methods import section_of


def new_spelling(key, value):
    """Returns the end of a sentence that says what an old setting, such as `flow.source`, is now, or an empty text."""
    prefix = f"--config.{key.removesuffix('source')}"
    if f".{key}".endswith(".flow.source"):
        if value == "precomputed":
            return f"; it is {prefix}files=read now"
        files = "none" if value in optical_flow.ESTIMATORS else "write"
        return f"; it is {prefix}estimator={value} {prefix}files={files} now"
    if f".{key}".endswith(".data.flip"):
        mirror = f"--config.{key.removesuffix('data.flip')}methods"
        return f"; it is {mirror}.supervised.mirror (source_only and oracle) and {mirror}.METHOD.mirror now"
    return ""


def as_now(stored):
    """Returns a row's settings as names with dots: by their names of today, newer ones as they were before they came.

    Args:
      stored: the settings that a row was begun with, likewise, `method` among them.
    """
    stored = {"model.fusion.propagation": "warp"} | stored
    if "data.flip" in stored:
        stored[f"methods.{section_of(stored['method'])}.mirror"] = stored.pop("data.flip")
    return stored
