"""What each setting may be: a rule for every key of configs/base.py, and for those that only fit together."""

import dataclasses
import fnmatch
import math
import numbers
import re
from collections.abc import Callable

from input_pipeline.datasets import DATASETS
from input_pipeline.labels import CLASSES
from input_pipeline.optical_flow import SMALLEST_SIDE
from stpl_jax.methods import METHODS
from stpl_jax.methods.hcl import LABELLERS
from stpl_jax.methods.stpl import OBJECTIVES, SCOPES
from stpl_jax.models import NETWORKS
from stpl_jax.models.resnet import REMAT


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a setting may be.

    Attributes:
      expected: in words, for the error.
      holds: value to bool; may raise TypeError or ValueError for a value of another kind.
    """

    expected: str
    holds: Callable


def _is_whole(value):
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_number(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_regular_expression(value):
    try:
        re.compile(value)
    except re.error:
        return False
    return True


def _range(low, high):
    return f"from {low} to {high}" if high is not None else f"from {low} on"


def whole(low, high=None):
    """A whole number within a range, both ends included."""
    return Rule(
        f"a whole number {_range(low, high)}", lambda v: _is_whole(v) and v >= low and (high is None or v <= high)
    )


def number(low=None, high=None, above=None):
    """A finite number within a range, both ends included, or above a value."""
    words = "a number" + (f" above {above}" if above is not None else "" if low is None else f" {_range(low, high)}")
    if above is not None and high is not None:
        words += f", at most {high}"

    def holds(value):
        return (
            _is_number(value)
            and (low is None or value >= low)
            and (above is None or value > above)
            and (high is None or value <= high)
        )

    return Rule(words, holds)


def one_of(*choices):
    """One of a few names."""
    return Rule(f"one of {', '.join(choices)}", lambda value: value in choices)


def each(rule, length=None, least=0):
    """A tuple of values that all follow a rule."""
    count = f"{length} " if length else f"{least} or more " if least else ""

    def holds(values):
        return (
            isinstance(values, tuple | list)
            and (length is None or len(values) == length)
            and len(values) >= least
            and all(rule.holds(value) for value in values)
        )

    return Rule(f"a tuple of {count}values, each {rule.expected}", holds)


def optional(rule):
    """A value that follows a rule, or None."""
    return Rule(f"{rule.expected}, or None", lambda value: value is None or rule.holds(value))


def rising(rule):
    """(smallest, largest), both of which follow a rule."""
    return Rule(f"(smallest, largest), each {rule.expected}", lambda v: each(rule, 2).holds(v) and v[0] <= v[1])


FLAG = Rule("True or False", lambda value: isinstance(value, bool))
TEXT = Rule("text", lambda value: isinstance(value, str))
NAME = Rule("text that is not empty", lambda value: isinstance(value, str) and bool(value))
# One that is empty counts as one that is not set: `--config.init_from=` takes back what a file says.
PATH = optional(TEXT)
SHARE = number(0, 1)
WEIGHT = number(0)
RATE = number(above=0)
COUNT = whole(1)
SIZE = each(whole(2), 2)
EXPRESSION = Rule("a regular expression", lambda v: isinstance(v, str) and _is_regular_expression(v))
MULTIPLIERS = Rule(
    "a tuple of pairs (regular expression on the parameter's path, factor from 0 on)",
    lambda values: (
        isinstance(values, tuple | list)
        and all(len(pair) == 2 and EXPRESSION.holds(pair[0]) and WEIGHT.holds(pair[1]) for pair in values)
    ),
)
OFFSETS = Rule(
    "frame offsets that start with 0 and rise, such as (0, 1)",
    lambda v: each(whole(0), least=1).holds(v) and v[0] == 0 and list(v) == sorted(set(v)),
)
PAIRS = Rule(
    "a tuple of pairs (a, b) with a < b, such as ((0, 1),)",
    lambda values: (
        isinstance(values, tuple | list) and all(each(whole(0), 2).holds(pair) and pair[0] < pair[1] for pair in values)
    ),
)

# Pattern of the key -> rule; the first that matches counts. methods.<name>.own follows the rules of optim.
RULES = {
    "seed": whole(0, 2**31 - 1),  # the loader draws from the seeds 2·seed and 2·seed + 1, of 32 bits
    "method": NAME,
    "source_free": FLAG,
    "compare_with": each(NAME),
    "steps": optional(COUNT),
    "init_from": PATH,
    "pretrain_from": PATH,
    "num_frames": whole(2),
    "clips_per_device": COUNT,
    "cpu_devices": COUNT,
    "cpu_xla_flags": TEXT,
    "log_every": COUNT,
    "compilation_cache": FLAG,
    "data.classes": one_of(*CLASSES),
    "data.prepared_dir": PATH,
    "data.skip_bad": FLAG,
    "data.flip": FLAG,
    "data.crop": each(whole(0), 2),
    "data.threads": whole(0),
    "data.workers": whole(0),
    "data.prefetch": whole(0),
    "data.*.name": one_of(*DATASETS),
    "data.*.raw_dir": PATH,
    "data.target.frames_per_second": optional(RATE),
    "data.target.max_clips": COUNT,
    "data.target.held_out": number(above=0, high=0.5),
    "data.*_split": one_of("train", "val"),
    "data.*.size": SIZE,
    "data.*list": PATH,
    "data.*flow_dir": PATH,
    "data.*.offsets": OFFSETS,
    "data.*.flow_pairs": PAIRS,
    "world.generate": FLAG,
    "world.source_layout": one_of("viper", "synthia_seq"),
    "world.size": each(whole(32), 2),
    "world.*_clips": COUNT,
    "world.video_frames": COUNT,
    "world.workers": whole(0),
    "world.gap": rising(WEIGHT),
    "flow.source": one_of("dis", "precomputed", "flownet2"),
    "flow.weights": PATH,
    "flow.size": one_of("training", "raw"),
    "flow.batch": COUNT,
    "flow.scale": one_of("align_corners", "public"),
    "model.name": one_of(*NETWORKS),
    "model.classifier_dilations": each(COUNT, least=1),
    "model.dtype": one_of("float32", "bfloat16"),
    "model.backbone.blocks": each(COUNT, 4),
    "model.backbone.widths": each(COUNT, 4),
    "model.backbone.strides": each(COUNT, 4),
    "model.backbone.dilations": each(COUNT, 4),
    "model.backbone.expansion": COUNT,
    "model.backbone.stem_width": COUNT,
    "model.backbone.stem_kernel": COUNT,
    "model.backbone.stem_pool": FLAG,
    "model.backbone.remat": one_of(*REMAT),
    "batch_norm.mode": one_of("batch", "sync", "running"),
    "batch_norm.average_over": one_of("all", "clean"),
    "optim.profile": one_of("paper", "own"),
    "optim.learning_rate": RATE,
    "optim.steps": COUNT,
    "optim.decay_steps": COUNT,
    "optim.accumulate": COUNT,
    "optim.power": WEIGHT,
    "optim.momentum": Rule("a number from 0 to below 1", lambda v: _is_number(v) and 0 <= v < 1),
    "optim.nesterov": FLAG,
    "optim.weight_decay": WEIGHT,
    "optim.clip_norm": WEIGHT,
    "optim.multipliers": MULTIPLIERS,
    "optim.frozen": each(EXPRESSION),
    "methods.*.topk.proportion": number(above=0, high=1),
    "methods.*.topk.per_class": FLAG,
    "methods.*.projection.hidden": COUNT,
    "methods.*.projection.dim": COUNT,
    "methods.*.projection.init": one_of("random", "identity"),
    "methods.*.augment.blur_radii": each(RATE, least=1),
    "methods.*.augment.*_probability": SHARE,
    "methods.*.augment.per_frame": FLAG,
    "methods.*.augment.hue": number(0, 0.5),
    "methods.*.augment.*": WEIGHT,  # brightness, contrast, saturation
    "methods.*.discriminator.width": COUNT,
    "methods.*.learning_rate": RATE,
    "methods.*.betas": each(Rule("a number from 0 to below 1", lambda v: _is_number(v) and 0 <= v < 1), 2),
    "methods.*temperature": RATE,
    "methods.*class_power": number(),
    "methods.*_decay": SHARE,  # of moving averages
    "methods.*weight": WEIGHT,
    "methods.*.auxiliary_adversarial": WEIGHT,
    "methods.alpha_bn.alpha": SHARE,
    "methods.stpl.head_multiplier": WEIGHT,
    "methods.stpl.objective": one_of(*OBJECTIVES),
    "methods.stpl.fusion": one_of("stam", "concat", "conv1x1", "add"),
    "methods.stpl.fusion_init": one_of("random", "average"),
    "methods.stpl.contrast.scope": one_of(*SCOPES),
    "methods.stpl.contrast.block": COUNT,
    "methods.stpl.warp_keys": FLAG,
    "methods.stpl.*_gradient": FLAG,
    "methods.ur.proportion": number(above=0, high=1),
    "methods.ur.decoders": COUNT,
    "methods.ur.dropout": Rule("a number from 0 to below 1", lambda v: _is_number(v) and 0 <= v < 1),
    "methods.hcl.refresh_every": COUNT,
    "methods.hcl.restart_average": FLAG,
    "methods.hcl.pseudo_labels": one_of(*LABELLERS),
    "methods.hcl.pixels": COUNT,
    "methods.hcl.reliability_margin": number(),
    "methods.fda.beta": number(above=0, high=0.5),
    "methods.fda.entropy_power": WEIGHT,
    "methods.pixmatch.crop.size": each(number(above=0, high=1), 2),
    "methods.pixmatch.crop.scale": rising(number(above=0, high=1)),
    "methods.pixmatch.crop.ratio": rising(RATE),
    "methods.rda.bands": COUNT,
    "methods.rda.share": SHARE,
    "methods.rda.consistency.*": WEIGHT,
    "methods.rda.adversarial.*": WEIGHT,
    "methods.rda.content_bands": rising(whole(0)),
    "methods.da_vsn.propagation": one_of("splat", "warp"),
    "methods.da_vsn.clip_norm": WEIGHT,
    "methods.vat_vst.stage1_share": SHARE,
    "methods.vat_vst.window": whole(2),
    "methods.vat_vst.threshold": SHARE,
    "methods.tps.flip_probability": SHARE,
    "methods.tps.scale": rising(number(0.5)),
    "auxiliary_weight": WEIGHT,
    "evaluate.every": whole(0),
    "evaluate.clips_per_device": COUNT,
    "evaluate.online": FLAG,
    "checkpoint.every": COUNT,
    "checkpoint.keep": COUNT,
    "report.frames": whole(0),
    "report.analysis": FLAG,
    "analysis.clips": COUNT,
    "analysis.pixels": COUNT,
    "analysis.neighbours": each(COUNT, least=1),
    "analysis.tsne_pixels": COUNT,
    "analysis.tsne_classes": each(one_of(*dict.fromkeys(name for names in CLASSES.values() for name in names))),
    "analysis.frames": whole(0),
}


def optimiser_key(key):
    """Returns the key of `optim` that a key of `methods.<name>.own` takes the place of, or None for any other key."""
    found = re.fullmatch(r"methods\.\w+\.own\.(.+)", key)
    return found and f"optim.{found[1]}"


def rule_of(key):
    """Returns the rule of a key, or None: there is no such setting.

    Args:
      key: with dots, such as `optim.steps`.
    """
    key = optimiser_key(key) or key
    return next((rule for pattern, rule in RULES.items() if fnmatch.fnmatchcase(key, pattern)), None)


def problem(key, value):
    """Says what is wrong with one setting, or returns None."""
    rule = rule_of(key)
    if rule is None:
        return None
    try:
        fits = rule.holds(value)
    except (TypeError, ValueError, AttributeError):
        fits = False
    return None if fits else f"config.{key}: expected {rule.expected}, found {value!r}"


def problems_together(config):
    """Says what does not fit together among settings that fit each by itself.

    Args:
      config: a row's configuration.

    Returns:
      List of lines.
    """
    found = []
    if config.method not in METHODS:  # of a row
        found.append(f"config.method: expected one of {', '.join(METHODS)}, found {config.method!r}")
    height, width = config.data.crop
    if bool(height) != bool(width):
        found.append(f"config.data.crop: expected (0, 0) for whole frames, or (height, width), found {(height, width)}")
    labelled = "target" if config.method == "oracle" else "source"
    size = config.data[labelled].size
    if height > size[0] or width > size[1]:
        found.append(
            f"config.data.crop: expected a window within config.data.{labelled}.size={tuple(size)}, found "
            f"{(height, width)}"
        )
    for domain in ("source", "target"):
        section = config.data[domain]
        if config.flow.source == "dis" and min(section.size) < SMALLEST_SIDE:
            found.append(
                f"config.data.{domain}.size: expected {SMALLEST_SIDE} pixels a side or more, which "
                f"config.flow.source=dis needs, found {tuple(section.size)}"
            )
        outside = {k for pair in section.flow_pairs for k in pair} - set(section.offsets)
        if outside:
            found.append(
                f"config.data.{domain}.flow_pairs: expected pairs of frames among config.data.{domain}.offsets="
                f"{tuple(section.offsets)}, found {sorted(outside)} besides"
            )
    return found
