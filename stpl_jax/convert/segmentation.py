"""DeepLabv2 and ACCEL checkpoints: from PyTorch's state_dict to ours, and back."""

import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from configs import synthia, viper
from input_pipeline.labels import CLASSES
from stpl_jax import checkpoint
from stpl_jax.convert import ConvertError, accel_names
from stpl_jax.convert.layout import Layout
from stpl_jax.convert.torch_files import StateDict, sha256, versions
from stpl_jax.models import make_segmenter
from stpl_jax.models.accel import DilatedClassifier, keep_current
from stpl_jax.models.network import initial_variables

CONFIGS = {"viper": viper.get_config, "synthia_seq": synthia.get_config}

# Of the classifiers' weights where the public code begins.
_DRAWN_DEVIATION = 0.01

NOT_CAFFE = (
    "{path} has the names of torchvision's ResNet (conv1.weight, no prefix Scale.), and the Caffe layout is expected "
    "(Scale.conv1.weight). The shapes are the same, so that it would load, and compute something else: torchvision's "
    "ResNet (V1.5) has a block's stride in its 3×3 convolution, the network here in its first 1×1 convolution; and it "
    "was trained on RGB divided by a standard deviation, the network here on BGR of 0-255 with the mean taken off. "
    "Expected file: the one that DA-VSN, TPS and ADVENT start from (docs/weights.md)."
)


class Converted(NamedTuple):
    """A network to be saved: nested `variables`, its `meta`, and lines of text for the user."""

    variables: dict
    meta: checkpoint.CheckpointMeta
    lines: list


def class_names(classes, count):
    """Finds the label setting and the names of the classes.

    Args:
      classes: a label setting, names with commas between them, or None to go by their number.
      count: how many classes the file has, 0 if that is not in it.

    Returns:
      The label setting or None, and a tuple of names.

    Raises:
      ConvertError: another number of names than of classes, or a name twice; or the number does not tell.
    """
    if classes is None:
        count = count or len(CLASSES["viper"])
        settings = [setting for setting, names in CLASSES.items() if len(names) == count]
        if len(settings) > 1:
            raise ConvertError(f"{count} classes may be those of {' or '.join(settings)}: --classes=NAME says which.")
        setting = settings[0] if settings else None
        return setting, CLASSES[setting] if setting else tuple(f"class_{i:02}" for i in range(count))
    setting = classes if classes in CLASSES else None
    names = CLASSES[setting] if setting else tuple(name.strip() for name in classes.split(","))
    if count and len(names) != count:
        raise ConvertError(
            f"--classes={classes} has {len(names)} names, and the file has {count} classes. Expected one of "
            f"{', '.join(CLASSES)}, or {count} names with commas between them."
        )
    if len(set(names)) != len(names) or not all(names):
        raise ConvertError(f"--classes={classes}: expected a label setting ({', '.join(CLASSES)}), or different names.")
    return setting, names


def _layout(what, config, num_classes, keys):
    segmenter = make_segmenter(config.model, num_classes)
    template = jax.eval_shape(lambda: initial_variables(segmenter, jax.random.key(0)))
    return Layout(what, tuple(keys), template, accel_names.to_flax, accel_names.to_torch, accel_names.group)


def _prepare(state_dict, classes, make_config):
    """Names the classes and makes the configuration: the weights' own sizes, and all else as `make_config` says."""
    backbone, count = accel_names.measure({name: array.shape for name, array in state_dict.arrays.items()})
    setting, names = class_names(classes, count)
    config = make_config(setting)
    with config.unlocked():
        config.model.backbone.update(backbone)
        config.data.classes = setting or "none"
    return config, setting, names


def make_meta(config, setting, names, kind, state_dict):
    """Says what a converted network is, for its checkpoint.

    Args:
      config: the configuration that it was converted with.
      setting, names: see `class_names`.
      kind: the sub-command.
      state_dict: the file.
    """
    return checkpoint.CheckpointMeta(
        config=json.loads(config.to_json_best_effort()),
        classes=tuple(names),
        label_setting=setting,
        row="source_only",
        method="source_only",
        batch_norm=config.batch_norm.mode,
        source=f"{kind} {state_dict.path.name}",
        versions=checkpoint.versions() | versions(),
        sha256=sha256(state_dict.path),
    )


def _converted(kind, state_dict, layout, flat, config, setting, names, notes, every):
    backbone = config.model.backbone
    depths = {(3, 4, 6, 3): "ResNet-50", (3, 4, 23, 3): "ResNet-101", (3, 8, 36, 3): "ResNet-152"}
    depth = depths.get(tuple(backbone.blocks), "no standard depth")
    lines = [
        *layout.table(every),
        f"network: {depth}, blocks {tuple(backbone.blocks)}, widths {tuple(backbone.widths)}",
        f"classes: {len(names)}, {'label setting ' + setting if setting else 'no label setting'}: {', '.join(names)}",
        *notes,
    ]
    meta = make_meta(config, setting, names, kind, state_dict)
    return Converted(traverse_util.unflatten_dict(flat), meta, lines)


def _draw_classifier(name, stage, config, num_classes, seed):
    """Draws a classifier: path among the variables -> array."""
    backbone = config.model.backbone
    channels = backbone.widths[stage - 1] * backbone.expansion
    module = DilatedClassifier(num_classes, tuple(config.model.classifier_dilations), jnp.float32)
    key = jax.random.fold_in(jax.random.key(seed), stage)
    params = module.init(key, jnp.zeros((1, 1, 1, channels)))["params"]
    flat = traverse_util.flatten_dict(params)
    return {("params", name, *path): np.asarray(value) for path, value in flat.items()}


def _fresh_fusion(num_classes):
    kernel = keep_current(None, (1, 1, 2 * num_classes, num_classes), jnp.float32)
    return {("params", "sf_layer", "kernel"): np.asarray(kernel)}


def convert_accel(state_dict, classes, make_config, every=False):
    """Converts the network of DA-VSN and TPS.

    Args:
      state_dict: a `torch_files.StateDict`.
      classes: see `class_names`.
      make_config: called with the label setting or None; what the weights do not show is taken from its result.
      every: list every tensor in the table.

    Returns:
      A `Converted`.

    Raises:
      ConvertError: it does not fit; lists both sides.
    """
    config, setting, names = _prepare(state_dict, classes, make_config)
    branches = len(config.model.classifier_dilations)
    keys = accel_names.backbone_keys(config.model.backbone.blocks) + accel_names.FUSION_KEYS
    for name in accel_names.CLASSIFIERS:
        keys += accel_names.classifier_keys(name, branches)
    layout = _layout("ACCEL on DeepLabv2", config, len(names), keys)
    without = "sf_layer.weight" not in state_dict.arrays and "layer6.conv2d_list.0.weight" in state_dict.arrays
    flat = layout.read(state_dict, "Without the score fusion sf_layer it is for the sub-command deeplab." * without)
    return _converted("accel", state_dict, layout, flat, config, setting, names, [], every)


def convert_deeplab(state_dict, classes, make_config, every=False, branches=None, single_level=False, seed=0):
    """Converts DeepLabv2 of ADVENT or AdaptSegNet: no score fusion, which starts as [I | 0].

    Args:
      state_dict, classes, make_config, every: see `convert_accel`.
      branches: how many of each classifier's convolutions the original code sums; None for all. AdaptSegNet's sums the
        first two and never trains the others: these become zero.
      single_level: the file has one classifier, on stage 4: draw the auxiliary one.
      seed: of that draw.

    Returns:
      A `Converted`.

    Raises:
      ConvertError: it does not fit; lists both sides.
    """
    there = [c for c in accel_names.CLASSIFIERS if any(n.startswith(f"{c}.") for n in state_dict.arrays)]
    if len(there) == 1 and not single_level:
        raise ConvertError(
            f"{state_dict.path} has one classifier, {there[0]}: a single-level DeepLabv2. Expected two, layer5 "
            "(auxiliary, on stage 3) and layer6 (main, on stage 4). --single_level takes the file's as the main one, "
            "and draws the auxiliary one at random (supervised and self-training losses alone use it)."
        )
    if single_level and len(there) != 1:
        raise ConvertError(f"--single_level: {state_dict.path} has the classifiers {there}, and one is expected.")
    config, setting, names = _prepare(state_dict, classes, make_config)
    total = len(config.model.classifier_dilations)
    main = there[0] if single_level else "layer6"
    keys = accel_names.backbone_keys(config.model.backbone.blocks)
    keys += [] if single_level else accel_names.classifier_keys("layer5", total)
    keys += accel_names.classifier_keys(main, total, here="layer6")
    layout = _layout("DeepLabv2", config, len(names), keys)
    fused = "sf_layer.weight" in state_dict.arrays
    flat = layout.read(state_dict, "With the score fusion sf_layer it is for the sub-command accel." * fused)
    notes = ["sf_layer: not in the file, starts as [I | 0]"]
    if single_level:
        notes.append(f"layer5: drawn at random, seed {seed}; layer6: the file's {main}")
        flat |= _draw_classifier("layer5", 3, config, len(names), seed)
    if branches is None and _looks_like_two_branches(state_dict, main, total):
        raise ConvertError(
            f"{state_dict.path}: {main}.conv2d_list.2 and following look as they were drawn at the start (normal, "
            f"deviation {_DRAWN_DEVIATION}), the first two do not. AdaptSegNet's code sums and trains the first two "
            "alone; adding the others would add noise. Expected --branches=2 for its files (the others become zero), "
            f"or --branches={total} to add all."
        )
    if branches is not None and not 1 <= branches <= total:
        raise ConvertError(f"--branches={branches}: expected 1 to {total}.")
    unused = [f"conv2d_list_{i}" for i in range(total if branches is None else branches, total)]
    if unused:
        notes.append(f"{', '.join(unused)}: set to zero, since --branches={branches}")
        flat = {path: np.zeros_like(x) if path[-2] in unused else x for path, x in flat.items()}
    flat |= _fresh_fusion(len(names))
    return _converted("deeplab", state_dict, layout, flat, config, setting, names, notes, every)


def _looks_like_two_branches(state_dict, name, total):
    weights = [state_dict.arrays[f"{name}.conv2d_list.{i}.weight"] for i in range(total)]

    def drawn(x):
        # The spread of 100,000 numbers is known to a fifth of a percent.
        return x.size >= 100_000 and abs(x.std() / _DRAWN_DEVIATION - 1) < 0.01

    return total > 2 and all(map(drawn, weights[2:])) and not any(map(drawn, weights[:2]))


def convert_imagenet(state_dict, classes, make_config, every=False, seed=0):
    """Converts the Caffe-layout ResNet that the public code starts from; classifiers are drawn, fusion is [I | 0].

    Args:
      state_dict, make_config, every: see `convert_accel`.
      classes: a label setting, or names with commas between them.
      seed: of the classifiers.

    Returns:
      A `Converted`.

    Raises:
      ConvertError: torchvision's ResNet, or it does not fit; lists both sides.
    """
    arrays = state_dict.arrays
    if not any(name.startswith("Scale.") for name in arrays):
        if any(name.startswith(f"{c}.") for name in arrays for c in accel_names.CLASSIFIERS):
            raise ConvertError(
                f"{state_dict.path} is a segmentation network, with classifiers, and a backbone alone is expected "
                "(Scale.conv1.weight ...). It is for the sub-command deeplab, or accel if it has sf_layer."
            )
        if "conv1.weight" in arrays:
            raise ConvertError(NOT_CAFFE.format(path=state_dict.path))
        raise ConvertError(
            f"{state_dict.path} is no Caffe-layout ResNet: expected names like Scale.conv1.weight, found "
            f"{', '.join(list(arrays)[:5])}."
        )
    backbone = {name.removeprefix("Scale."): x for name, x in arrays.items()}
    tops = {name: x for name, x in backbone.items() if name.split(".")[0] in ("layer5", "layer6", "fc")}
    notes = []
    for top in sorted({name.split(".")[0] for name in tops}):
        count = sum(name.split(".")[0] == top for name in tops)
        notes.append(f"Scale.{top}: {count} tensors dropped, a classifier of other classes")
    kept = StateDict(state_dict.path, {n: x for n, x in backbone.items() if n not in tops}, {}, [])
    config, setting, names = _prepare(kept, classes, make_config)
    layout = _layout(
        "a Caffe-layout ResNet", config, len(names), accel_names.backbone_keys(config.model.backbone.blocks)
    )
    flat = layout.read(kept, "Names are given without their prefix Scale.")
    for name, stage in (("layer5", 3), ("layer6", 4)):
        flat |= _draw_classifier(name, stage, config, len(names), seed)
    flat |= _fresh_fusion(len(names))
    notes += [f"layer5, layer6: drawn at random, seed {seed}", "sf_layer: starts as [I | 0]"]
    return _converted("imagenet", state_dict, layout, flat, config, setting, names, notes, every)


def to_state_dict(stored):
    """Turns a stored segmentation network into a state_dict that DA-VSN's and TPS's code loads strictly.

    Args:
      stored: a `checkpoint.ModelCheckpoint`.

    Returns:
      Name -> numpy array, None for what stands beside them in a file, and lines of text for the user.

    Raises:
      ConvertError: it holds other variables than its own configuration says.
    """
    stored.meta.require(stored.path, "config", "classes")
    model = stored.meta.config["model"]
    keys = accel_names.backbone_keys(model["backbone"]["blocks"])
    for name in accel_names.CLASSIFIERS:
        keys += accel_names.classifier_keys(name, len(model["classifier_dilations"]))
    keys += accel_names.FUSION_KEYS
    layout = Layout(
        "the segmentation network of its configuration",
        tuple(keys),
        stored.variables,
        accel_names.to_flax,
        accel_names.to_torch,
        accel_names.group,
    )
    return written(layout, stored)


def written(layout, stored):
    """Ends `to_state_dict`: writes by a `Layout`, with the counters that PyTorch wants; returns what that returns."""
    state_dict = layout.write(stored.variables, stored.path)
    # PyTorch counts the batches of each normalisation. Nothing is computed from it where the momentum is fixed.
    counters = [name for name in state_dict if name.endswith("running_var")]
    for name in counters:
        state_dict[name.replace("running_var", "num_batches_tracked")] = np.zeros((), np.int64)
    lines = [
        *layout.table(),
        f"{len(counters)} counters num_batches_tracked, all 0, are added",
        f"classes: {', '.join(stored.meta.classes)}",
    ]
    return state_dict, None, lines
