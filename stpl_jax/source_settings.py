"""What a run takes from elsewhere: from its source model, with `config.from_checkpoint`, and from one's own videos."""

from ml_collections import ConfigDict

from input_pipeline import run_folder
from input_pipeline.own_video.ingest import IngestSettings, ingest
from stpl_jax import checkpoint, processes
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


def with_own_video(config, workdir, frames, progress=print):
    """Keeps the frames of somebody's own videos that a run uses, and returns the configuration pointing at them.

    Args:
      config: the run's configuration, whose target is `own_video`.
      workdir: the run's folder, which will hold the frames.
      frames: how many of a clip the run's rows read.
      progress: called with lines of text.

    Raises:
      UserError: no folder is named, or nothing in it can be used.
    """
    section = config.data.target
    if not section.raw_dir:
        raise SettingsError(
            "config.data.target.raw_dir is not set: it names the folder with your videos or frames. Set "
            "--config.data.target.raw_dir=FOLDER; docs/own_video.md says what may be in it."
        )
    settings = IngestSettings(
        size=tuple(section.size),
        fit=section.fit,
        frames_per_second=section.frames_per_second,
        max_clips=section.max_clips,
        held_out=section.held_out,
        length=frames,
    )

    def keep():
        found = ingest(section.raw_dir, run_folder.own_video(workdir), settings, progress)
        return [str(found.raw_dir), list(found.size)]

    raw_dir, size = processes.from_first(keep)
    config = config.copy_and_resolve_references()
    config.data.target.raw_dir, config.data.target.size = raw_dir, tuple(size)
    return config


def _tuples(tree):
    """JSON has lists where settings have tuples."""
    if isinstance(tree, dict):
        return {name: _tuples(value) for name, value in tree.items()}
    return tuple(map(_tuples, tree)) if isinstance(tree, list) else tree
