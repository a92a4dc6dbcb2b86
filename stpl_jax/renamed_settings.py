"""Settings that had another name: an old one is an error that says the new spelling."""

from input_pipeline import optical_flow


def new_spelling(key, value):
    """Returns the end of a sentence that says what an old setting, such as `flow.source`, is now, or an empty text."""
    prefix = f"--config.{key.removesuffix('source')}"
    if f".{key}".endswith(".flow.source"):
        if value == "precomputed":
            return f"; it is {prefix}files=read now"
        files = "none" if value in optical_flow.ESTIMATORS else "write"
        return f"; it is {prefix}estimator={value} {prefix}files={files} now"
    return ""
