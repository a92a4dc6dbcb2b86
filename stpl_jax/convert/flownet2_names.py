"""FlowNet2's 220 tensors: what the public PyTorch checkpoint calls each, and where it lies among the parameters here.

The public names differ in one point: a layer with an activation is a `Sequential` there, so that its convolution is
`conv1.0`; here it is `conv1`. Weights differ in the order of their axes, see `to_flax`.
"""

import numpy as np
from flax import traverse_util

# Of a layer: what stands between its name and `weight` in the public names, and the kind of its weight.
_CONV, _DECONV = (".0", "conv"), (".0", "deconv")  # with an activation, or `i_conv`
_PREDICT, _UPSAMPLE = ("", "conv"), ("", "deconv")  # bare

# Numpy's axes of a weight in Flax, among those of PyTorch: (O, I, h, w) -> (h, w, I, O) for a convolution, and
# (I, O, h, w) -> (h, w, O, I) for a transposed one, whose module has `transpose_kernel=True`.
_AXES = {"conv": (2, 3, 1, 0), "deconv": (2, 3, 1, 0), "bias": (0,)}


def _encoder(*first):
    return dict.fromkeys((*first, "conv3_1", "conv4", "conv4_1", "conv5", "conv5_1", "conv6", "conv6_1"), _CONV)


def _decoder(inter=False):
    layers = {f"deconv{level}": _DECONV for level in (5, 4, 3, 2)}
    if inter:
        layers |= {f"inter_conv{level}": _CONV for level in (5, 4, 3, 2)}
    layers |= {f"predict_flow{level}": _PREDICT for level in (6, 5, 4, 3, 2)}
    return layers | {f"upsampled_flow{level + 1}_to_{level}": _UPSAMPLE for level in (5, 4, 3, 2)}


_FUSION = {
    **dict.fromkeys(("conv0", "conv1", "conv1_1", "conv2", "conv2_1"), _CONV),
    **dict.fromkeys(("deconv1", "deconv0"), _DECONV),
    **dict.fromkeys(("inter_conv1", "inter_conv0"), _CONV),
    **dict.fromkeys(("predict_flow2", "predict_flow1", "predict_flow0"), _PREDICT),
    **dict.fromkeys(("upsampled_flow2_to_1", "upsampled_flow1_to_0"), _UPSAMPLE),
}

_NETWORKS = {
    "flownetc": _encoder("conv1", "conv2", "conv3", "conv_redir") | _decoder(),
    "flownets_1": _encoder("conv1", "conv2", "conv3") | _decoder(),
    "flownets_d": _encoder("conv0", "conv1", "conv1_1", "conv2", "conv2_1", "conv3") | _decoder(inter=True),
    "flownets_2": _encoder("conv1", "conv2", "conv3") | _decoder(),
    "flownetfusion": _FUSION,
}


def _keys():
    for network, layers in _NETWORKS.items():
        for layer, (suffix, kind) in layers.items():
            prefix = f"{network}.{layer}{suffix}"
            yield f"{prefix}.weight", (network, layer, "kernel"), kind
            # The two FlowNetS alone upsample flow without a bias.
            if not (network in ("flownets_1", "flownets_2") and layer.startswith("upsampled_flow")):
                yield f"{prefix}.bias", (network, layer, "bias"), "bias"


KEYS = tuple(_keys())
"""(name in the public state_dict, path among the parameters here, kind: `conv`, `deconv` or `bias`) of each tensor."""


def to_flax(array, kind):
    """Turns a tensor of the public checkpoint into the parameter here.

    Args:
      array: numpy, `(O, I, h, w)` (`conv`), `(I, O, h, w)` (`deconv`) or `(O,)` (`bias`).
      kind: of `KEYS`.

    Returns:
      `[h, w, I, O]` (`conv`), `[h, w, O, I]` (`deconv`) or `[O]`, contiguous.
    """
    return np.ascontiguousarray(np.transpose(array, _AXES[kind]))


def to_torch(array, kind):
    """Inverts `to_flax`."""
    return np.ascontiguousarray(np.transpose(array, np.argsort(_AXES[kind])))


def from_torch(state_dict):
    """Turns the public checkpoint's tensors into parameters.

    Args:
      state_dict: name -> numpy array, all of `KEYS`; further names are not looked at.

    Returns:
      Nested dict of numpy arrays: `params` of `stpl_jax.models.flownet2.FlowNet2`.

    Raises:
      KeyError: a tensor is missing.
    """
    return traverse_util.unflatten_dict({path: to_flax(state_dict[name], kind) for name, path, kind in KEYS})


def to_state_dict(params):
    """Inverts `from_torch`: parameters to name -> numpy array."""
    flat = traverse_util.flatten_dict(params)
    return {name: to_torch(np.asarray(flat[path]), kind) for name, path, kind in KEYS}
