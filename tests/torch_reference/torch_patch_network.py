"""`patch_network.PatchNetwork` and its losses in plain PyTorch, float64: what methods' losses are held to.

Parameters are nested dictionaries of tensors in Flax's shapes; maps are `[B, C, h, w]`.
"""

import jax
import numpy as np
import torch
from torch.nn import functional as F
from torch_reference.torch_accel import Maps, resize_flow, warp


def to_torch(tree, trained=False):
    """Arrays to float64 tensors, leaves that gradients may be taken of if `trained`."""
    return jax.tree.map(lambda x: torch.tensor(np.asarray(x, np.float64), requires_grad=trained), tree)


def detached(tree):
    return jax.tree.map(lambda x: x.detach(), tree)


def gradients(loss, tree):
    """Gradient of a scalar with respect to every leaf, as numpy; zeros where there is none."""
    leaves, structure = jax.tree.flatten(tree)
    found = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
    found = [np.zeros(leaf.shape) if g is None else g.numpy() for g, leaf in zip(found, leaves, strict=True)]
    return jax.tree.unflatten(structure, found)


def dense(layer, x):
    """A dense layer on the channels of `[B, C, h, w]`."""
    out = torch.einsum("bchw,ck->bkhw", x, layer["kernel"])
    return out + layer["bias"][:, None, None] if "bias" in layer else out


def features(params, stats, frame):
    """One frame, `[B, H, W, 3]`, to its `Maps` of features, and the running averages afterwards."""
    count, height, width, _ = frame.shape
    patches = frame.reshape(count, height // 4, 4, width // 4, 4, 3).permute(0, 2, 4, 5, 1, 3)
    patches = patches.reshape(count, 48, height // 4, width // 4)
    mean, var = (stats["norm"][name].clone() for name in ("mean", "var"))
    x = F.batch_norm(patches, mean, var, params["norm"]["scale"], params["norm"]["bias"], training=True)
    auxiliary = torch.tanh(dense(params["first"], x))
    return Maps(auxiliary, torch.tanh(dense(params["second"], auxiliary))), {"norm": {"mean": mean, "var": var}}


def clip_scores(params, stats, frames, flow):
    """Clips `[B, T, H, W, 3]`, newest frame first, to fused `Maps` of scores; x_{t-1} gets no gradient."""
    now, stats = features(params, stats, frames[:, 0])
    with torch.no_grad():
        before, stats = features(params, stats, frames[:, 1])
    flow = torch.as_tensor(np.asarray(flow[:, 0], np.float64)).permute(0, 3, 1, 2) / 10
    flow = resize_flow(flow, now.main.shape[2:])

    def fuse(layer, now, before):
        warped = warp(dense(params[layer], before), flow).detach()
        return dense(params["sf_layer"], torch.cat([dense(params[layer], now), warped], 1))

    return Maps(fuse("layer5", now.auxiliary, before.auxiliary), fuse("layer6", now.main, before.main)), stats


def enlarged(scores, size):
    return F.interpolate(scores, size=tuple(size), mode="bilinear", align_corners=True)


def label_loss(scores, labels, auxiliary_weight=0.1):
    labels = torch.as_tensor(np.asarray(labels)).long()
    main, auxiliary = (
        F.cross_entropy(enlarged(s, labels.shape[1:]), labels, ignore_index=255)
        for s in (scores.main, scores.auxiliary)
    )
    return main + auxiliary_weight * auxiliary


def frames_of(data):
    return torch.as_tensor(data["frames"]).double()
