"""`patch_network.PatchNetwork` in PyTorch: frame by frame, channels last, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn import functional as F
from torch_reference.torch_accel import warp

from stpl_jax.ops.resize import resize_flow


def trainable(tree):
    """Parameters of ours as PyTorch's leaves."""
    return jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf), requires_grad=True), tree)


def detached(tree):
    """The same values without a path for gradients."""
    return jax.tree.map(lambda leaf: leaf.detach(), tree)


def gradients(loss, tree):
    """Gradient of a scalar with respect to every leaf, as numpy; zeros where none comes."""
    leaves, structure = jax.tree.flatten(tree)
    found = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
    found = [np.zeros(leaf.shape) if g is None else g.numpy() for g, leaf in zip(found, leaves, strict=True)]
    return jax.tree.unflatten(structure, found)


def dense(layer, x):
    """`x @ kernel + bias`."""
    out = x @ layer["kernel"].reshape(-1, layer["kernel"].shape[-1])
    return out + layer["bias"] if "bias" in layer else out


def features(params, frame, averages=None):
    """One frame `[B, H, W, 3]` to auxiliary and main features `[B, h, w, C]`, and its mean and unbiased variance.

    Running averages normalise where they are given, the frame's own statistics otherwise.
    """
    clips, height, width, _ = frame.shape
    frame = (frame if torch.is_tensor(frame) else torch.tensor(np.array(frame))).double()
    patches = frame.reshape(clips, height // 4, 4, width // 4, 4, 3)
    patches = patches.permute(0, 1, 3, 2, 4, 5).reshape(clips, height // 4, width // 4, 48)
    flat = patches.reshape(-1, 48)
    norm = params["norm"]
    average = [torch.tensor(np.asarray(averages["norm"][name])) for name in ("mean", "var")] if averages else [None] * 2
    x = F.batch_norm(flat, *average, norm["scale"], norm["bias"], training=averages is None, eps=1e-5)
    x = x.reshape(patches.shape)
    auxiliary = torch.tanh(dense(params["first"], x))
    statistics = {"mean": flat.mean(0).detach().numpy(), "var": flat.var(0, unbiased=True).detach().numpy()}
    return auxiliary, torch.tanh(dense(params["second"], auxiliary)), statistics


def scores(params, current, earlier, flow, averages=None):
    """Fused auxiliary and main scores of two frames, each by itself, no gradient into the earlier one.

    Args:
      params: the network's.
      current, earlier: frames `[B, H, W, 3]`.
      flow: `[B, H, W, 2]` int16 as stored.
      averages: as in `features`.

    Returns:
      Auxiliary and main scores `[B, h, w, K]`, and the current frame's auxiliary and main features.
    """
    now, before = (features(params, frame, averages)[:2] for frame in (current, earlier))
    # By our own function, which is tested apart.
    on_grid = resize_flow(jnp.asarray(flow, jnp.float64) / 10, now[0].shape[1:3])
    on_grid = torch.tensor(np.asarray(on_grid)).permute(0, 3, 1, 2)
    fused = []
    for name, n, b in zip(("layer5", "layer6"), now, before, strict=True):
        warped = warp(dense(params[name], b).permute(0, 3, 1, 2), on_grid).permute(0, 2, 3, 1).detach()
        fused.append(dense(params["sf_layer"], torch.cat([dense(params[name], n), warped], -1)))
    return *fused, *now


def averages_after(stats, statistics):
    """Running averages after frames have passed one after another, momentum 0.1; ours and theirs have these names."""
    average = {name: np.asarray(value) for name, value in stats["norm"].items()}
    for seen in statistics:
        average = {name: 0.9 * average[name] + 0.1 * seen[name] for name in average}
    return {"norm": average}
