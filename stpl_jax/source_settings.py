"""What a run with `config.from_checkpoint` takes from its source model: network, classes, size, flow's scale."""

from ml_collections import ConfigDict

from stpl_jax import checkpoint
from stpl_jax.checkpoint_places import source_model
from stpl_jax.settings import SettingsError


def complete(config):
    """Fills in what the checkpoint of `config.init_from` says.

    Args:
      config: the run's configuration, with `from_checkpoint`. A size of (0, 0) is the checkpoint's.

    Returns:
      A copy.

    Raises:
      SettingsError: `init_from` is not set.
      CheckpointError: there is no such checkpoint, or it does not say these things.
    """
    if not config.init_from:
        raise SettingsError(
            "config.init_from is not set, and network, classes and size are to come from it: set "
            "--config.init_from=CHECKPOINT, the model that is to be adapted (docs/weights.md says how to get one)."
        )
    stored = checkpoint.peek(source_model(config.init_from), tell=lambda line: None)
    stored.meta.require(stored.path, "config", "classes")
    model = {"name": "accel"} | stored.meta.config["model"]  # checkpoints of earlier versions do not say the name
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.model = ConfigDict(_tuples(model))
        config.data.classes = stored.meta.label_setting or "none"
        config.data.class_names = tuple(stored.meta.classes)
        config.flow.scale = stored.meta.config["flow"]["scale"]
        if any(config.data.target.size):
            config.data.target.fit = False
        else:
            config.data.target.size = tuple(stored.meta.config["data"]["target"]["size"])
    return config


def _tuples(tree):
    """JSON has lists where settings have tuples."""
    if isinstance(tree, dict):
        return {name: _tuples(value) for name, value in tree.items()}
    return tuple(map(_tuples, tree)) if isinstance(tree, list) else tree
