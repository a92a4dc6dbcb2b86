"""Settings that had another name: an old one is an error that says the new spelling, or is read as the new one."""

from input_pipeline import optical_flow
from stpl_jax.methods import section_of

# What was computed before there were these settings.
_BEFORE = {
    "model.fusion.propagation": "warp",
    "methods.hcl.label_statistics": "batch",
    "methods.ur.label_statistics": "batch",
    "methods.ur.pseudo_labels": "current",
    "methods.ur.view.scale": [1.0, 1.0],
    "methods.ur.view.flip_probability": 0.0,
    "methods.ur.decoder_multiplier": 1.0,
}


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
    stored = _BEFORE | {"methods.rda.clip_norm": stored.get("optim.clip_norm", 0.0)} | stored
    flip = stored.pop("data.flip", None)
    # Without source data nothing was mirrored.
    if flip is not None and not stored.get("source_free"):
        stored[f"methods.{section_of(stored['method'])}.mirror"] = flip
    return stored
