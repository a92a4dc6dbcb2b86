"""The segmentation network's tensors: what the public PyTorch checkpoints call each, and where it lies here."""

import re
from collections import Counter

import numpy as np

STAGES = (1, 2, 3, 4)
STANDARD_WIDTHS = (64, 128, 256, 512)
CLASSIFIERS = ("layer5", "layer6")
_TENSORS_OF_A_BLOCK = 15  # the first of a stage has 20
# Tensors of batch normalisation: (name in the state_dict, collection, name among the variables).
BATCH_NORM = (
    ("weight", "params", "scale"),
    ("bias", "params", "bias"),
    ("running_mean", "batch_stats", "mean"),
    ("running_var", "batch_stats", "var"),
)


def backbone_keys(blocks):
    """Lists the backbone's tensors.

    Args:
      blocks: number of residual blocks of each stage.

    Returns:
      Tuples (name in the state_dict, path among the variables, kind: `conv` or `vector`).
    """

    def conv(name, path):
        return [(f"{name}.weight", ("params", "backbone", *path, "kernel"), "conv")]

    def norm(name, path):
        return [(f"{name}.{t}", (collection, "backbone", *path, f), "vector") for t, collection, f in BATCH_NORM]

    keys = conv("conv1", ("conv1",)) + norm("bn1", ("bn1",))
    for stage, count in zip(STAGES, blocks, strict=True):
        for b in range(count):
            name, here = f"layer{stage}.{b}", f"layer{stage}_{b}"
            for i in (1, 2, 3):
                keys += conv(f"{name}.conv{i}", (here, f"conv{i}")) + norm(f"{name}.bn{i}", (here, f"bn{i}"))
            if b == 0:
                keys += conv(f"{name}.downsample.0", (here, "downsample_0"))
                keys += norm(f"{name}.downsample.1", (here, "downsample_1"))
    return keys


def classifier_keys(name, branches, here=None):
    """Lists a classifier's tensors, as `backbone_keys`; `here` is its name among the variables, if it is another."""
    return [
        (f"{name}.conv2d_list.{i}.{t}", ("params", here or name, f"conv2d_list_{i}", f), kind)
        for i in range(branches)
        for t, f, kind in (("weight", "kernel", "conv"), ("bias", "bias", "vector"))
    ]


FUSION_KEYS = [("sf_layer.weight", ("params", "sf_layer", "kernel"), "conv")]


def to_flax(array, kind):
    """Turns a tensor of the state_dict into the variable here: `(O, I, h, w)` to `[h, w, I, O]`, or `(C,)` as it is."""
    return np.ascontiguousarray(np.transpose(array, (2, 3, 1, 0)) if kind == "conv" else array)


def to_torch(array, kind):
    """Inverts `to_flax`."""
    return np.ascontiguousarray(np.transpose(array, (3, 2, 0, 1)) if kind == "conv" else array)


def group(name):
    """Names the line of the table that a tensor belongs to: its block, classifier or layer."""
    parts = name.split(".")
    return ".".join(parts[: 2 if parts[1].isdigit() else 1])


def measure(shapes):
    """Reads depth, widths and number of classes off a state_dict.

    A size that several tensors show is what most of them say, so that one wrong tensor is found to be wrong.

    Args:
      shapes: name -> shape.

    Returns:
      Settings for `config.model.backbone` (`blocks`, `widths`, `expansion`, `stem_width`), and the number of classes
      (0 if there is neither classifier nor fusion).
    """

    def most(sizes, default):
        counted = Counter(size for size in sizes if size > 0)
        return counted.most_common(1)[0][0] if counted else default

    def seen(pattern, axis=0):
        return [s[axis] for name, s in shapes.items() if re.fullmatch(pattern, name) and len(s) > axis]

    blocks, widths, factors = [], [], []
    for stage, standard in zip(STAGES, STANDARD_WIDTHS, strict=True):
        tensors = Counter(int(m[1]) for m in (re.match(rf"layer{stage}\.(\d+)\.", name) for name in shapes) if m)
        # A tensor alone, or a few, make no block: they have a wrong name. A gap in the numbers is a missing block.
        there = [number for number, count in tensors.items() if count > _TENSORS_OF_A_BLOCK // 2]
        blocks.append(max(1, min(max(there, default=0) + 1, 2 * len(there))))
        inner = rf"layer{stage}\.\d+\.(conv[12]\.weight|bn[12]\.(weight|bias|running_mean|running_var))"
        widths.append(most(seen(inner) + seen(rf"layer{stage}\.\d+\.conv3\.weight", 1), standard))
        outer = rf"layer{stage}\.\d+\.(conv3\.weight|bn3\..*)"
        factors += [out // widths[-1] for out in seen(outer) if out % widths[-1] == 0]
    backbone = {
        "blocks": tuple(blocks),
        "widths": tuple(widths),
        "expansion": most(factors, 4),
        "stem_width": most(seen(r"(conv1\.weight|bn1\..*)"), 64),
    }
    return backbone, most(seen(r"(layer[56]\.conv2d_list\.\d+\.(weight|bias)|sf_layer\.weight)"), 0)
