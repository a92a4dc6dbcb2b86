"""Every segmentation network by its name in `config.model.name`."""

import dataclasses
import weakref

from input_pipeline.errors import UserError
from stpl_jax.models.accel import make_accel
from stpl_jax.models.espnet import make_espnet

# Share -> network, of each network, as long as that is used: weights that were given from Python go with it.
_WITH_SHARE = weakref.WeakKeyDictionary()

NETWORKS = {"accel": make_accel, "espnet": make_espnet}


def make_segmenter(model, num_classes, sync_axis=None, frame_statistics=None):
    """Builds the segmentation network that `config.model` describes.

    Args:
      model: `config.model`, or the mapping that a checkpoint stores of it.
      num_classes: K.
      sync_axis: name of the pmapped axis, for `batch_norm.mode=sync`.
      frame_statistics: see `Network`; None for the network's own.

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


def with_frame_statistics(network, share):
    """Returns the network with another share of a frame's own statistics in inference; the same one for the same share.

    Args:
      network: a `Network`.
      share: see `Network.frame_statistics`; None for the one that the network has.

    Raises:
      UserError: the network cannot blend statistics, or has none.
    """
    if share is None or share == network.frame_statistics:
        return network
    made = _WITH_SHARE.setdefault(network, {})
    if share not in made:
        made[share] = dataclasses.replace(network, frame_statistics=share)
    return made[share]


def frame_statistics(config):
    """Returns the share that a configuration's method asks for, or None; also of what a checkpoint stores of one.

    Such methods leave the source's running statistics as they are, so that `batch_norm.prior` is a part of this blend.
    """
    share = config.get("methods", {}).get(config.get("method"), {}).get("frame_statistics")
    return share and share * (1 - config.get("batch_norm", {}).get("prior", 0.0))
