"""Forward passes that the methods share: frames to features, flow to the feature grid, two frames' scores to one."""

import einops
import jax
import jax.numpy as jnp

from stpl_jax.ops.resize import resize_flow
from stpl_jax.ops.warp import warp


def frames_first(frames):
    """`[B, T, H, W, 3]` to `[T, B, H, W, 3]`: each frame of the clips is a group of its own for batch normalisation."""
    return einops.rearrange(frames, "b t h w c -> t b h w c")


def extract(segmenter, params, batch_stats, groups, norm, clean=None):
    """Runs the backbone on groups of images in one batch.

    Args:
      segmenter: an `Accel`.
      params, batch_stats: its variables.
      groups: `[G, B, H, W, 3]` RGB, 0-255, in the order in which they enter the running averages.
      norm: `config.batch_norm`: `mode` batch, sync (statistics of each group) or running; `average_over` all or clean.
      clean: how many of the groups, from the first on, are not augmented; None for all.

    Returns:
      `Features` `[G, B, h, w, C]`, and the running averages afterwards.
    """
    variables = {"params": params, "batch_stats": batch_stats}
    if norm.mode == "running":
        return segmenter.apply(variables, groups, method="features"), batch_stats
    averaged = clean if norm.average_over == "clean" and clean is not None else groups.shape[0]
    features, updated = segmenter.apply(variables, groups, True, averaged, method="features", mutable=["batch_stats"])
    return features, updated["batch_stats"]


def flow_on_grid(flow, size, scale):
    """Brings stored flow to another grid.

    Args:
      flow: `[..., H, W, 2]` int16, tenths of a pixel.
      size: (h, w) of the grid.
      scale: `config.flow.scale`.

    Returns:
      `[..., h, w, 2]` float32, pixels of the new grid.
    """
    return resize_flow(flow.astype(jnp.float32) / 10, size, scale)


def fused_scores(segmenter, params, features, flow):
    """Scores the current frame and fuses it with the earlier one, without a gradient into the earlier frame.

    Args:
      segmenter: an `Accel`.
      params: its parameters.
      features: current and earlier frame's `Features`, each `[B, h, w, C]`.
      flow: `[B, h, w, 2]` from the current frame into the earlier one, pixels of the feature grid.

    Returns:
      Fused `Scores`, `[B, h, w, K]`: one set of fusion weights serves the main and the auxiliary classifier.
    """
    variables = {"params": params}
    current, earlier = (segmenter.apply(variables, f, method="classify") for f in features)
    warped = jax.lax.stop_gradient(jax.tree.map(lambda scores: warp(scores, flow.astype(scores.dtype)), earlier))
    return jax.tree.map(lambda now, before: segmenter.apply(variables, now, before, method="fuse"), current, warped)


def fused_main_scores(segmenter, params, current, earlier, flow):
    """As `fused_scores`, main classifier alone: last-stage features `[B, h, w, C]` to `[B, h, w, K]`."""
    variables = {"params": params}
    now, before = (segmenter.apply(variables, f, method="classify_main") for f in (current, earlier))
    return segmenter.apply(variables, now, warp(before, flow.astype(before.dtype)), method="fuse")
