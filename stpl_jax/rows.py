"""Rows of the results table: which a run has, and each one's configuration."""

from input_pipeline.errors import UserError

# Settings outside of `optim` that a publication may say, too, in its `own`.
BESIDE_OPTIM = ("clips_per_device",)


def row_config(config, row):
    """Returns one row's configuration: the run's, changed as `config.rows.<row>` says.

    Args:
      config: the run's configuration.
      row: a name in `config.rows`, or a method.

    Returns:
      A copy whose `method` and `optim` are the row's. With `optim.profile=own`, what the method's publication says in
      `config.methods.<method>.own` replaces the run's optimiser and `clips_per_device`; what the row itself says comes
      last.

    Raises:
      UserError: the profile is neither `paper` nor `own`.
    """
    config = config.copy_and_resolve_references()
    if config.optim.profile not in ("paper", "own"):
        raise UserError(f"optim.profile is paper or own; found {config.optim.profile!r}.")
    with config.unlocked():
        changes = config.rows[row].to_dict() if row in config.rows else {}
        config.method = changes.pop("method", row)
        if config.optim.profile == "own":
            own = dict(config.methods.get(config.method, {}).get("own", {}))
            config.update({key: own.pop(key) for key in BESIDE_OPTIM if key in own})
            config.optim.update(own)
        config.update(changes)
        if config.steps is not None:
            config.optim.steps = config.steps
    return config


def row_names(config):
    """Returns the rows that `--mode=auto` runs, source_only first: it is what the others start from."""
    return tuple(dict.fromkeys(("source_only", *config.compare_with, config.method)))
