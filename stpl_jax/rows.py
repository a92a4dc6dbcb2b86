"""Rows of the results table: which a run has, and each one's configuration."""

# File in a row's folder with its scores.
EVALUATION = "evaluation.json"


def row_config(config, row):
    """Returns one row's configuration: the run's, changed as `config.rows.<row>` says.

    Args:
      config: the run's configuration.
      row: a name in `config.rows`, or a method.

    Returns:
      A copy whose `method` and `optim.steps` are the row's.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        changes = config.rows[row].to_dict() if row in config.rows else {}
        config.method = changes.pop("method", row)
        config.update(changes)
        if config.steps is not None:
            config.optim.steps = config.steps
    return config


def row_names(config):
    """Returns the rows that `--mode=auto` runs, source_only first: it is what the others start from."""
    return tuple(dict.fromkeys(("source_only", *config.compare_with, config.method)))
