"""Forward passes that the methods share: frames to features, flow to the feature grid, two frames' scores to one."""

import operator

import einops
import jax
import jax.numpy as jnp

from input_pipeline.flow_files import to_pixels
from stpl_jax.ops.augment import photometric
from stpl_jax.ops.mirror import mirror, mirror_flow
from stpl_jax.ops.resize import resize_align_corners, resize_flow


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
    """Runs the backbone on groups of images in one batch, normalised as `config.batch_norm` says.

    Args:
      segmenter: a `Network`.
      params, batch_stats: its variables.
      groups: `[G, B, H, W, 3]` RGB, 0-255, in the order in which they enter the running averages.
      norm: `config.batch_norm`: `mode` batch, sync (statistics of each group) or running; `average_over` all or clean.
      clean: how many of the groups, from the first on, are not augmented; None for all.

    Returns:
      `PerClassifier` of features `[G, B, h, w, C]`, and the running averages afterwards.
    """
    variables = {"params": params, "batch_stats": batch_stats}
    averaged = clean if norm.average_over == "clean" and clean is not None else groups.shape[0]
    return segmenter.features(variables, groups, norm.mode != "running", averaged)


def flow_on_grid(flow, size, scale):
    """Brings stored flow to another grid.

    Args:
      flow: `[..., H, W, 2]` int16, tenths of a pixel.
      size: (h, w) of the grid.
      scale: `config.flow.scale`.

    Returns:
      `[..., h, w, 2]` float32 (float64 under `jax_enable_x64`), pixels of the new grid.
    """
    return resize_flow(to_pixels(flow, jnp.result_type(float)), size, scale)


def fuse_scores(segmenter, params, current, earlier, flow):
    """As `Network.fuse`, without a gradient into the earlier frame."""
    return segmenter.fuse(params, current, jax.lax.stop_gradient(earlier), flow)


def frame_features(config, segmenter, params, batch_stats, frames, clean=None):
    """Runs the backbone on each frame of the clips; a gradient goes into x_t alone, as in the public code of DA-VSN.

    Args:
      config: the run's configuration.
      segmenter: a `Network`.
      params, batch_stats: its variables.
      frames: `[B, T, H, W, 3]` RGB, 0-255, newest first.
      clean: 0 if the frames are augmented, see `extract`; None if not.

    Returns:
      T `PerClassifier` of features `[B, h, w, C]`, newest first; and the running averages after them, in this order.
    """
    frames, norm = frames_first(frames), config.batch_norm
    # Two passes instead of one batch: the backward pass of the earlier frames is never run.
    current, stats = extract(segmenter, params, batch_stats, frames[:1], norm, clean)
    earlier, stats = extract(segmenter, jax.lax.stop_gradient(params), stats, frames[1:], norm, clean)
    each = [jax.tree.map(operator.itemgetter(t), earlier) for t in range(len(frames) - 1)]
    return [jax.tree.map(operator.itemgetter(0), current), *each], stats


def frame_scores(config, segmenter, params, batch_stats, frames, clean=None):
    """As `frame_features`, scored: T `PerClassifier` of scores `[B, h, w, K]`, newest first, not fused."""
    (current, *earlier), stats = frame_features(config, segmenter, params, batch_stats, frames, clean)
    fixed = jax.lax.stop_gradient(params)
    return [segmenter.classify(params, current), *(segmenter.classify(fixed, features) for features in earlier)], stats


def clip_predictions(config, segmenter, params, batch_stats, frames, flow, clean=None):
    """Looks at clips as the video network does: x_t's scores fused with x_{t-1}'s, which no gradient goes into.

    Args:
      config: the run's configuration.
      segmenter: a `Network`.
      params, batch_stats: its variables.
      frames: `[B, T, H, W, 3]` RGB, 0-255, newest first; the first two count.
      flow: `[B, P, H, W, 2]` as stored, in tenths of a pixel, x_t to x_{t-1} first.
      clean: 0 if the frames are augmented, see `extract`; None if not.

    Returns:
      x_t's features `[B, h, w, C]` and the fused scores `[B, h', w', K]`, a `PerClassifier` each, and the running
      averages after x_t, x_{t-1}.
    """
    pair, stats = frame_features(config, segmenter, params, batch_stats, frames[:, :2], clean)
    current, earlier = (segmenter.classify(params, features) for features in pair)
    flow = flow_on_grid(flow[:, 0], current.main.shape[1:3], config.flow.scale)
    return pair[0], fuse_scores(segmenter, params, current, earlier, flow), stats


def clip_scores(config, segmenter, params, batch_stats, frames, flow, clean=None):
    """As `clip_predictions`, without the features."""
    return clip_predictions(config, segmenter, params, batch_stats, frames, flow, clean)[1:]


def label_scores(config, segmenter, params, batch_stats, frames, flow, statistics):
    """Scores clips and their mirror images for pseudo-labels: no gradient, and the running averages stay.

    Args:
      config: the run's configuration.
      segmenter: a `Network`.
      params, batch_stats: its variables.
      frames: `[B, T, H, W, 3]` RGB, 0-255, newest first; the first two count.
      flow: `[B, P, H, W, 2]` as stored, in tenths of a pixel, x_t to x_{t-1} first.
      statistics: what normalises: running (`batch_stats`, as public code labels in evaluation mode), or batch (as
        `config.batch_norm` says).

    Returns:
      The fused scores of the clips and those of their mirror images, mirrored back, a `PerClassifier` of
      `[B, h', w', K]` each.
    """
    if statistics == "running":
        config = config.copy_and_resolve_references()
        config.batch_norm.mode = "running"
    params = jax.lax.stop_gradient(params)
    direct, _ = clip_scores(config, segmenter, params, batch_stats, frames, flow)
    mirrored, _ = clip_scores(config, segmenter, params, batch_stats, mirror(frames), mirror_flow(flow))
    return direct, jax.tree.map(mirror, mirrored)


def fused_main_scores(segmenter, params, features, flow, scale):
    """Scores two frames by the main classifier alone and fuses them; a gradient enters both.

    Args:
      segmenter: a `Network`.
      params: its parameters.
      features: `PerClassifier` of frames' features `[T, B, h, w, C]`, newest first; the first two count.
      flow: `[B, H, W, 2]` between them as stored, in tenths of a pixel.
      scale: `config.flow.scale`.

    Returns:
      Fused scores `[B, h', w', K]`.
    """
    features = features.replace(auxiliary=None)
    pair = (jax.tree.map(operator.itemgetter(t), features) for t in range(2))
    current, earlier = (segmenter.classify(params, frame).main for frame in pair)
    return segmenter.fuse(params, current, earlier, flow_on_grid(flow, current.shape[1:3], scale))


def on_grid(maps, size):
    """Brings maps `[..., h, w, C]` to another grid, (height, width), where it is another: scores to features, say."""
    return maps if maps.shape[-3:-1] == tuple(size) else resize_align_corners(maps, size)
