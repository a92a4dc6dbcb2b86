"""Every segmentation network by its name in `config.model.name`."""

from input_pipeline.errors import UserError
from stpl_jax.models.accel import make_accel

NETWORKS = {"accel": make_accel}


def make_segmenter(model, num_classes, sync_axis=None):
    """Builds the segmentation network that `config.model` describes.

    Args:
      model: `config.model`, or the mapping that a checkpoint stores of it.
      num_classes: K.
      sync_axis: name of the pmapped axis, for `batch_norm.mode=sync`.

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
    return NETWORKS[name](model, num_classes, sync_axis)
