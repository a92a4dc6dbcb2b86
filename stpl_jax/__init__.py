"""Spatio-temporal pixel-level contrastive learning for source-free adaptation of video segmentation, in JAX.

import stpl_jax

model = stpl_jax.load("runs/synthetic")  # a run's folder, or one checkpoint
classes = model.segment(frames)  # [T, H, W, 3] uint8 RGB -> [T, H, W] uint8 train ids
names = [model.classes[i] for i in set(classes.ravel())]
pictures = model.palette[classes]  # [T, H, W, 3] uint8 RGB

model = stpl_jax.adapt("runs/synthetic", "my_videos/", workdir="runs/mine")  # to unlabelled video
"""

import importlib

__version__ = "0.1.0"


# Looked up when they are asked for: `import stpl_jax` alone starts neither JAX nor the libraries that read checkpoints.
_PLACES = {
    "load": "stpl_jax.predict",
    "adapt": "stpl_jax.adaptation",
    "Network": "stpl_jax.models.network",
    "PerClassifier": "stpl_jax.models.network",
    "group_by_group": "stpl_jax.models.network",
}
__all__ = [*_PLACES]


def __getattr__(name):
    if name not in _PLACES:
        raise AttributeError(f"module 'stpl_jax' has no attribute {name!r}; there are {', '.join(_PLACES)}")
    return getattr(importlib.import_module(_PLACES[name]), name)
