"""ESPNet: from the public state_dicts to ours, and back. The names are the public code's, with dots as slashes."""

import dataclasses
import re

import jax
from flax import traverse_util

from configs import base
from input_pipeline.labels import CLASSES
from stpl_jax.convert.accel_names import BATCH_NORM, to_flax, to_torch
from stpl_jax.convert.layout import Layout
from stpl_jax.convert.segmentation import Converted, class_names, make_meta, written
from stpl_jax.models import make_segmenter
from stpl_jax.models.espnet import DILATIONS
from stpl_jax.models.network import initial_variables

# Names that tell it, see `containers.state_dict_of`.
KNOWN = ("encoder.level1.conv.weight", "combine_l2_l3.1.c1.conv.weight")
# Classes of the public files, whose last output means void.
CITYSCAPES = CLASSES["cityscapes_seq"]
CAMVID = CLASSES["camvid"]
# What the weights do not show. Of CamVid's the public code has no mean and deviation: these are those of the 367 frames
# of its training split, by the rule of train/loadData.py.
CAMVID_INPUT = dict(mean=(110.199036, 108.33665, 104.95334), deviation=(72.020706, 72.55117, 69.83312))
CAMVID_SIZE = (360, 480)


def keys_of(p, q):
    """Lists the tensors of a network with `p` and `q` residual blocks, as `accel_names.backbone_keys` does."""

    def conv(name, path, leaf="conv.weight"):
        return [(f"{name}.{leaf}", ("params", *path, "kernel"), "conv")]

    def norm(name, path):
        return [(f"{name}.{t}", (collection, *path, f), "vector") for t, collection, f in BATCH_NORM]

    def slope(name, path):
        return [(f"{name}.act.weight", ("params", *path, "slope"), "vector")]

    def activated(name, *path):
        return norm(f"{name}.bn", (*path, "bn")) + slope(name, path)

    def esp(name, *path, downsamples=False):
        keys = [key for part in ("c1", *(f"d{d}" for d in DILATIONS)) for key in conv(f"{name}.{part}", (*path, part))]
        return keys + activated(name if downsamples else f"{name}.bn", *path)

    keys = conv("encoder.level1", ("encoder", "level1", "conv")) + activated("encoder.level1", "encoder", "level1")
    keys += activated("encoder.b1", "encoder", "b1")
    for level, count in ((2, p), (3, q)):
        keys += esp(f"encoder.level{level}_0", "encoder", f"level{level}_0", downsamples=True)
        for i in range(count):
            keys += esp(f"encoder.level{level}.{i}", "encoder", f"level{level}_block{i}")
        keys += activated(f"encoder.b{level}", "encoder", f"b{level}")
    for name, path in (("encoder.classifier", "encoder_classifier"), ("level3_C", "level3_C")):
        keys += conv(name, ("decoder", path))
    keys += norm("br", ("decoder", "br")) + conv("up_l3.0", ("decoder", "up_l3"), "weight")
    keys += activated("combine_l2_l3.0", "decoder", "combine_l2_l3_0")
    keys += esp("combine_l2_l3.1", "decoder", "combine_l2_l3_1")
    keys += conv("up_l2.0", ("decoder", "up_l2_0"), "weight") + activated("up_l2.1", "decoder", "up_l2_1")
    keys += conv("conv", ("decoder", "conv", "conv")) + activated("conv", "decoder", "conv")
    return keys + conv("classifier", ("classifier",), "weight")


def _group(name):
    """Names the line of the table that a tensor belongs to: its block or its layer."""
    parts = name.removeprefix("encoder.").split(".")
    depth = 2 if parts[1].isdigit() else 1
    return name.removesuffix("." + ".".join(parts[depth:]))


def _layout(model, num_classes):
    segmenter = make_segmenter(model, num_classes)
    template = jax.eval_shape(lambda: initial_variables(segmenter, jax.random.key(0)))
    keys = keys_of(model["espnet"]["p"], model["espnet"]["q"])
    return Layout("ESPNet", tuple(keys), template, to_flax, to_torch, _group)


def measure(shapes):
    """Reads a network's sizes off a state_dict; those of the public files where a tensor is missing.

    Args:
      shapes: name -> shape.

    Returns:
      Settings for `config.model.espnet`, and the number of outputs, void included.
    """

    def size(name, axis, default):
        shape = shapes.get(name, ())
        return int(shape[axis]) if len(shape) > axis else default

    def blocks(level):
        return len({m[1] for name in shapes if (m := re.match(rf"encoder\.level{level}\.(\d+)\.", name))}) or 1

    usual = base.get_config().model.espnet.widths
    names = ("encoder.level1.bn.weight", "encoder.level2_0.bn.weight", "encoder.level3_0.bn.weight")
    widths = tuple(size(name, 0, width) for name, width in zip(names, usual, strict=True))
    outputs = size("classifier.weight", 1, len(CITYSCAPES) + 1)
    skip = size("conv.conv.weight", 1, widths[0] + outputs) - outputs
    settings = {"p": blocks(2), "q": blocks(3), "widths": widths, "reinforced_skip": skip == widths[0] + 3}
    return settings, outputs


def convert(state_dict, classes, make_config, every=False):
    """Converts ESPNet.

    Args:
      state_dict: a `torch_files.StateDict`.
      classes: see `segmentation.class_names`; None: Cityscapes' names for 19 classes, CamVid's for 11.
      make_config: called with the label setting or None, and the configuration to begin with where none is named.
      every: list every tensor in the table.

    Returns:
      A `segmentation.Converted`.

    Raises:
      ConvertError: it does not fit; lists both sides.
    """
    settings, outputs = measure({name: array.shape for name, array in state_dict.arrays.items()})
    setting, names = class_names(classes, outputs - 1)

    def defaults():
        config = base.get_config()
        if names == CAMVID:
            config.data.target.size = CAMVID_SIZE
            config.model.espnet.update(CAMVID_INPUT)
        return config

    config = make_config(setting, defaults)
    with config.unlocked():
        config.model.name = "espnet"
        config.model.espnet.update(settings)
        config.data.classes = setting or "none"
    layout = _layout(config.model, len(names))
    alone = "level1.conv.weight" in state_dict.arrays
    flat = layout.read(state_dict, "It is ESPNet-C, an encoder without a decoder; expected ESPNet itself." * alone)
    lines = [
        *layout.table(every),
        f"network: ESPNet, p={settings['p']}, q={settings['q']}, widths {settings['widths']}, the decoder takes the "
        f"first level {'with' if settings['reinforced_skip'] else 'without'} the image beside it",
        f"classes: {len(names)}, and void, {'label setting ' + setting if setting else 'no label setting'}: "
        f"{', '.join(names)}",
        f"size: {'x'.join(map(str, config.data.target.size))}",
    ]
    meta = make_meta(config, setting, names, "espnet", state_dict)
    return Converted(traverse_util.unflatten_dict(flat), meta, lines)


def to_state_dict(stored):
    """Turns a stored ESPNet into a state_dict of the public code, see `segmentation.to_state_dict`."""
    stored.meta.require(stored.path, "config", "classes")
    layout = _layout(stored.meta.config["model"], len(stored.meta.classes))
    return written(dataclasses.replace(layout, template=stored.variables), stored)
