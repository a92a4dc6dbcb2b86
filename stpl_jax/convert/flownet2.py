"""FlowNet2: from the released checkpoint to ours, and back."""

import numpy as np
from flax import traverse_util

from stpl_jax import checkpoint
from stpl_jax.convert.flownet2_names import KEYS, to_flax, to_torch
from stpl_jax.convert.layout import Layout
from stpl_jax.convert.segmentation import Converted
from stpl_jax.convert.torch_files import sha256, versions
from stpl_jax.models.flownet2 import FlowNet2, parameter_shapes

TITLE = "FlowNet2 as released"
# Names that tell it, see `containers.state_dict_of`.
KNOWN = ("flownetc.conv1.0.weight", "flownets_1.conv1.0.weight", "flownetfusion.conv0.0.weight")


def _layout():
    keys = tuple((name, ("params", *path), kind) for name, path, kind in KEYS)
    template = {"params": parameter_shapes(FlowNet2())}
    return Layout("FlowNet2", keys, template, to_flax, to_torch, lambda name: name.split(".")[0])


def convert(state_dict, every=False):
    """Converts the released FlowNet2.

    Args:
      state_dict: a `torch_files.StateDict`.
      every: list every tensor in the table.

    Returns:
      A `segmentation.Converted`.

    Raises:
      ConvertError: it does not fit; lists both sides.
    """
    layout = _layout()
    variables = traverse_util.unflatten_dict(layout.read(state_dict))
    meta = checkpoint.CheckpointMeta(
        network="flownet2",
        source=f"flownet2 {state_dict.path.name}",
        versions=checkpoint.versions() | versions(),
        sha256=sha256(state_dict.path),
        released={k: v for k, v in state_dict.others.items() if np.isfinite(v)},
    )
    return Converted(variables, meta, layout.table(every))


def to_state_dict(stored):
    """Turns a stored FlowNet2 into the public code's container.

    Args:
      stored: a `checkpoint.ModelCheckpoint`.

    Returns:
      Name -> numpy array, the numbers that stand beside the `state_dict`, and lines of text for the user.

    Raises:
      ConvertError: it holds other variables.
    """
    layout = _layout()
    released = stored.meta.released or {}
    others = {"epoch": int(released.get("epoch", 0)), "best_EPE": released.get("best_EPE", float("inf"))}
    return layout.write(stored.variables, stored.path), others, layout.table()
