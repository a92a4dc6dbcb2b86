"""What a run with `config.from_checkpoint` takes from its source model: network, classes, size, flow's scale."""

from pathlib import Path

from ml_collections import ConfigDict

from configs import base
from input_pipeline import run_folder
from input_pipeline.files import read_json
from stpl_jax import checkpoint
from stpl_jax.checkpoint_places import source_model
from stpl_jax.models.network import propagation_of
from stpl_jax.settings import SettingsError


def complete(config):
    """Fills in what the checkpoint of `config.init_from` says.

    Args:
      config: the run's configuration, with `from_checkpoint`. A size of (0, 0) is the checkpoint's.

    Returns:
      A copy.

    Raises:
      SettingsError: `init_from` is not set, or a setting that was given is another than the checkpoint's.
      CheckpointError: there is no such checkpoint, or it does not say these things.
    """
    if not config.init_from:
        raise SettingsError(
            "config.init_from is not set, and network, classes and size are to come from it: set "
            "--config.init_from=CHECKPOINT, the model that is to be adapted (docs/weights.md says how to get one)."
        )
    given, usual = config.model, base.get_config().model
    stored = checkpoint.peek(source_model(config.init_from), tell=lambda line: None)
    stored.meta.require(stored.path, "config", "classes")
    model = {"name": "accel"} | stored.meta.config["model"]  # checkpoints of earlier versions do not say the name
    usual_classes, setting = base.get_config().data.classes, stored.meta.label_setting or "none"
    for key, asked, default, trained in (
        ("model.fusion.propagation", given.fusion.propagation, usual.fusion.propagation, propagation_of(model)),
        ("data.classes", config.data.classes, usual_classes, setting),
    ):
        if asked not in (default, trained):
            raise SettingsError(
                f"config.{key}={asked}, and {stored.path} was trained with {trained}, which config.from_checkpoint "
                "takes. Leave it out, or convert the checkpoint again with it (docs/weights.md)."
            )
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.model = ConfigDict(_tuples(model))
        # What changes memory and speed and not the weights is the run's own.
        if given.dtype != usual.dtype and "dtype" in config.model:
            config.model.dtype = given.dtype
        if given.backbone.remat != usual.backbone.remat and "backbone" in config.model:
            config.model.backbone.remat = given.backbone.remat
        config.data.classes = setting
        config.data.class_names = tuple(stored.meta.classes)
        config.flow.scale = stored.meta.config["flow"]["scale"]
        if any(config.data.target.size):
            config.data.target.fit = False
        else:
            config.data.target.size = tuple(stored.meta.config["data"]["target"]["size"])
    return config


def as_before(config, workdir):
    """Returns the configuration with the source model and the video that an earlier call in this folder was given."""
    before = read_json(Path(workdir) / run_folder.CONFIG, "Delete it.") or {}
    config = config.copy_and_resolve_references()
    if not config.init_from:
        config.init_from = before.get("init_from")
    if not config.data.target.raw_dir:
        config.data.target.raw_dir = before.get("data", {}).get("target", {}).get("raw_dir")
    return config


def _tuples(tree):
    """JSON has lists where settings have tuples."""
    if isinstance(tree, dict):
        return {name: _tuples(value) for name, value in tree.items()}
    return tuple(map(_tuples, tree)) if isinstance(tree, list) else tree
