"""Forward passes that the methods share: frames to features, flow to the feature grid, two frames' scores to one."""

import operator

import einops
import jax
import jax.numpy as jnp

from stpl_jax.ops.augment import photometric
from stpl_jax.ops.mirror import mirror, mirror_flow
from stpl_jax.ops.resize import resize_flow
from stpl_jax.ops.warp import warp


def frames_first(frames):
    """`[B, T, H, W, 3]` to `[T, B, H, W, 3]`: each frame of the clips is a group of its own for batch normalisation."""
    return einops.rearrange(frames, "b t h w c -> t b h w c")


def augmented_clips(data, key, settings):
    """Draws T(X), each clip by its own key, so that a clip's draw depends on neither batch nor device.

    Args:
      data: `frames` `[B, T, H, W, 3]` RGB, 0-255, and `index` `[B]`, the clips' global numbers.
      key: this step's random key.
      settings: `AugmentSettings`.

    Returns:
      `[B, T, H, W, 3]` float32, 0-255.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, data["index"])
    return jax.vmap(photometric, (0, 0, None))(keys, data["frames"].astype(jnp.float32), settings)


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
      `[..., h, w, 2]` float32 (float64 under `jax_enable_x64`), pixels of the new grid.
    """
    return resize_flow(flow.astype(jnp.result_type(float)) / 10, size, scale)


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
    current, earlier = (segmenter.apply({"params": params}, f, method="classify") for f in features)
    return fuse_scores(segmenter, params, current, earlier, flow)


def fuse_scores(segmenter, params, current, earlier, flow):
    """As `fused_scores`, from the frames' own `Scores`, each `[B, h, w, K]`."""
    variables = {"params": params}
    warped = jax.lax.stop_gradient(jax.tree.map(lambda scores: warp(scores, flow.astype(scores.dtype)), earlier))
    return jax.tree.map(lambda now, before: segmenter.apply(variables, now, before, method="fuse"), current, warped)


def frame_features(config, segmenter, params, batch_stats, frames, clean=None):
    """Runs the backbone on each frame of the clips; a gradient goes into x_t alone, as in the public code of DA-VSN.

    Args:
      config: the run's configuration.
      segmenter: an `Accel`.
      params, batch_stats: its variables.
      frames: `[B, T, H, W, 3]` RGB, 0-255, newest first.
      clean: 0 if the frames are augmented, see `extract`; None if not.

    Returns:
      T `Features` `[B, h, w, C]`, newest first; and the running averages after the frames, in this order.
    """
    frames, norm = frames_first(frames), config.batch_norm
    # Two passes instead of one batch: the backward pass of the earlier frames is never run.
    current, stats = extract(segmenter, params, batch_stats, frames[:1], norm, clean)
    earlier, stats = extract(segmenter, jax.lax.stop_gradient(params), stats, frames[1:], norm, clean)
    each = [jax.tree.map(operator.itemgetter(t), earlier) for t in range(len(frames) - 1)]
    return [jax.tree.map(operator.itemgetter(0), current), *each], stats


def frame_scores(config, segmenter, params, batch_stats, frames, clean=None):
    """As `frame_features`, scored: T `Scores` `[B, h, w, K]`, newest first, not fused; and the running averages."""
    (current, *earlier), stats = frame_features(config, segmenter, params, batch_stats, frames, clean)
    fixed = {"params": jax.lax.stop_gradient(params)}
    scores = [segmenter.apply({"params": params}, current, method="classify")]
    return [*scores, *(segmenter.apply(fixed, features, method="classify") for features in earlier)], stats


def clip_predictions(config, segmenter, params, batch_stats, frames, flow, clean=None):
    """Looks at clips as the video network does: x_t's scores fused with x_{t-1}'s, which no gradient goes into.

    Args:
      config: the run's configuration.
      segmenter: an `Accel`.
      params, batch_stats: its variables.
      frames: `[B, T, H, W, 3]` RGB, 0-255, newest first; the first two count.
      flow: `[B, P, H, W, 2]` as stored, in tenths of a pixel, x_t to x_{t-1} first.
      clean: 0 if the frames are augmented, see `extract`; None if not.

    Returns:
      x_t's `Features` `[B, h, w, C]`, the fused `Scores` `[B, h, w, K]`, and the running averages after x_t, x_{t-1}.
    """
    pair, stats = frame_features(config, segmenter, params, batch_stats, frames[:, :2], clean)
    flow = flow_on_grid(flow[:, 0], pair[0].main.shape[1:3], config.flow.scale)
    return pair[0], fused_scores(segmenter, params, pair, flow), stats


def clip_scores(config, segmenter, params, batch_stats, frames, flow, clean=None):
    """As `clip_predictions`, without the features."""
    return clip_predictions(config, segmenter, params, batch_stats, frames, flow, clean)[1:]


def mirrored_scores(config, segmenter, params, batch_stats, frames, flow):
    """Scores clips' mirror images without any gradient: the fused `Scores`, mirrored back."""
    params, frames, flow = jax.lax.stop_gradient(params), mirror(frames), mirror_flow(flow)
    scores, _ = clip_scores(config, segmenter, params, batch_stats, frames, flow)
    return jax.tree.map(mirror, scores)


def fused_main_scores(segmenter, params, current, earlier, flow):
    """As `fused_scores`, main classifier alone: last-stage features `[B, h, w, C]` to `[B, h, w, K]`."""
    variables = {"params": params}
    now, before = (segmenter.apply(variables, f, method="classify_main") for f in (current, earlier))
    return segmenter.apply(variables, now, warp(before, flow.astype(before.dtype)), method="fuse")
