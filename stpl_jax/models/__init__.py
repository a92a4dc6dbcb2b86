"""Every segmentation network by its name in `config.model.name`."""

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
    """
    # Checkpoints of earlier versions do not say it.
    return NETWORKS[model.get("name", "accel")](model, num_classes, sync_axis)
