"""Spatio-temporal pixel-level contrastive learning for source-free adaptation of video segmentation, in JAX.

import stpl_jax

model = stpl_jax.load("runs/synthetic")  # a run's folder, or one checkpoint
classes = model.segment(frames)  # [T, H, W, 3] uint8 RGB -> [T, H, W] uint8 train ids
names = [model.classes[i] for i in set(classes.ravel())]
pictures = model.palette[classes]  # [T, H, W, 3] uint8 RGB
"""

__version__ = "0.1.0"


def load(path, row=None):
    """Loads a trained segmentation network.

    Args:
      path: working directory of a run, folder of one of its rows, folder of checkpoints, or one checkpoint.
      row: with a working directory, which row of its results table; default the method that it adapted with.

    Returns:
      A `stpl_jax.predict.Model`.

    Raises:
      CheckpointError: there is no checkpoint of that row; the message says what there is.
    """
    # Not at the top: `import stpl_jax` alone starts neither JAX nor the libraries that read checkpoints.
    from stpl_jax.predict import load as load_model

    return load_model(path, row)
