"""Between our trees and the reference modules' tensors: one rule for names, one for axes."""

import re

import jax
import numpy as np
import torch

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def torch_name(path):
    """`segmenter/backbone/layer1_0/downsample_1/scale` to `segmenter.layer1.0.downsample.1.weight`."""
    *layers, leaf = (part.key for part in path)
    layers = [re.sub(r"^(layer\d|downsample|conv2d_list)_(\d+)$", r"\1.\2", name) for name in layers]
    return ".".join([name for name in layers if name != "backbone"] + [LEAVES[leaf]])


def as_torch(array):
    """Kernels: `[h, w, I, O]` to `[O, I, h, w]`, `[I, O]` to `[O, I]`; the rest as it is."""
    array = np.asarray(array)
    axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim, range(array.ndim))
    return torch.from_numpy(np.array(array.transpose(*axes)))


def as_flax(tensor):
    """The way back."""
    array = tensor.detach().numpy()
    axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(array.ndim, range(array.ndim))
    return np.array(array.transpose(*axes))


def load(module, *trees):
    """Fills a module's parameters and buffers from our trees; strict, but for the counters that PyTorch alone has."""
    state = {
        torch_name(path): as_torch(leaf) for tree in trees for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    counters = {name: value for name, value in module.state_dict().items() if name.endswith("num_batches_tracked")}
    module.load_state_dict(state | counters)
    return module


def read(module, tree):
    """A module's values as a tree like ours."""
    state = module.state_dict()
    return jax.tree_util.tree_map_with_path(lambda path, _: as_flax(state[torch_name(path)]), tree)
