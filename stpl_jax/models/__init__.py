"""Every segmentation network by its name in `config.model.name`."""

import dataclasses
import functools

from input_pipeline.errors import UserError
from stpl_jax.models.accel import make_accel
from stpl_jax.models.espnet import make_espnet

NETWORKS = {"accel": make_accel, "espnet": make_espnet}


def make_segmenter(model, num_classes, sync_axis=None, frame_statistics=0.0):
    """Builds the segmentation network that `config.model` describes.

    Args:
      model: `config.model`, or the mapping that a checkpoint stores of it.
      num_classes: K.
      sync_axis: name of the pmapped axis, for `batch_norm.mode=sync`.
      frame_statistics: see `Network`.

    Returns:
      A `Network`; the same one for the same arguments, so that what is compiled for it is compiled once.

    Raises:
      UserError: there is no network of that name.
    """
    name = model.get("name", "accel")  # checkpoints of earlier versions do not say it
    if name not in NETWORKS:
        raise UserError(
            f"config.model.name={name!r}: there are the networks {', '.join(NETWORKS)}. One that was given from Python "
            "is given again: stpl_jax.load(path, network=...)."
        )
    return with_frame_statistics(NETWORKS[name](model, num_classes, sync_axis), frame_statistics)


@functools.lru_cache
def with_frame_statistics(network, share):
    """Returns the network with another share of a frame's own statistics in inference; the same one for the same share.

    Raises:
      UserError: the network cannot blend statistics, or has none.
    """
    return network if share == network.frame_statistics else dataclasses.replace(network, frame_statistics=share)


def frame_statistics(config):
    """Returns the share that the method of a configuration asks for, or of what a checkpoint stores of one."""
    return config.get("methods", {}).get(config.get("method"), {}).get("frame_statistics", 0.0)
