"""What each setting may be: a rule for every key of configs/base.py, and for those that only fit together."""

import dataclasses
import fnmatch
import math
import numbers
import re
from collections.abc import Callable

from input_pipeline.datasets import DATASETS
from input_pipeline.labels import CLASSES
from input_pipeline.world.places import VERSIONS
from stpl_jax.flow_estimators import ESTIMATORS
from stpl_jax.methods import METHODS
from stpl_jax.methods.hcl import LABELLERS
from stpl_jax.methods.stpl import OBJECTIVES, SCOPES
from stpl_jax.models import NETWORKS, frame_statistics
from stpl_jax.models.network import PROPAGATIONS, SMALLEST_SIZE
from stpl_jax.models.resnet import REMAT
from stpl_jax.rows import BESIDE_OPTIM


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a setting may be.

    Attributes:
      expected: in words, for the error.
      holds: value to bool; may raise TypeError, ValueError or re.error for a value of another kind.
    """

    expected: str
    holds: Callable


def _is_whole(value):
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_number(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def _range(low, high):
    return f"from {low} to {high}" if high < math.inf else f"from {low} on"


def whole(low, high=math.inf):
    """A whole number within a range, both ends included."""
    return Rule(f"a whole number {_range(low, high)}", lambda v: _is_whole(v) and low <= v <= high)


def number(low=-math.inf, high=math.inf, above=-math.inf):
    """A finite number within a range, both ends included, or above a value."""
    words = "" if low == -math.inf else f" {_range(low, high)}"
    if above > -math.inf:
        words = f" above {above}" + (f", at most {high}" if high < math.inf else "")
    return Rule(f"a number{words}", lambda v: _is_number(v) and low <= v <= high and v > above)


def one_of(*choices):
    """One of a few names."""
    return Rule(f"one of {', '.join(choices)}", lambda value: value in choices)


def name_in(table):
    """One of the names in a table."""
    return Rule(f"one of {', '.join(table)}", lambda value: value in table)


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
    expected = f"(smallest, largest), each {rule.expected}, the first not above the second"
    return Rule(expected, lambda v: each(rule, 2).holds(v) and v[0] <= v[1])


FLAG = Rule("True or False", lambda value: isinstance(value, bool))
TEXT = Rule("text", lambda value: isinstance(value, str))
NAME = Rule("text that is not empty", lambda value: isinstance(value, str) and bool(value))
# One that is empty counts as one that is not set: `--config.init_from=` takes back what a file says.
PATH = optional(TEXT)
SHARE = number(0, 1)
BELOW_ONE = Rule("a number from 0 to below 1", lambda v: _is_number(v) and 0 <= v < 1)
WEIGHT = number(0)
RATE = number(above=0)
COUNT = whole(1)
SIZE = each(whole(2), 2)
EXPRESSION = Rule("a regular expression", lambda v: isinstance(v, str) and bool(re.compile(v)))
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


def _all(rule, *keys):
    return dict.fromkeys(keys, rule)


# Pattern of the key -> rule; the first that matches counts. methods.<name>.own follows the rules of what it replaces.
RULES = {
    **_all(PATH, "init_from", "pretrain_from", "flow.weights", "data.prepared_dir"),
    **_all(PATH, "data.*.raw_dir", "data.*list", "data.*flow_dir"),
    **_all(
        FLAG,
        "source_free",
        "from_checkpoint",
        "compilation_cache",
        "data.skip_bad",
        "methods.*.mirror",
        "world.generate",
    ),
    **_all(FLAG, "model.backbone.stem_pool", "optim.nesterov", "evaluate.online", "report.analysis"),
    **_all(FLAG, "methods.*.topk.per_class", "methods.*.augment.per_frame", "methods.hcl.restart_average"),
    **_all(FLAG, "methods.tps.as_published"),
    **_all(FLAG, "methods.stpl.warp_keys", "methods.stpl.*_gradient"),
    **_all(COUNT, "clips_per_device", "cpu_devices", "log_every", "evaluate.clips_per_device", "label.count"),
    **_all(COUNT, "analysis.clips", "analysis.pixels", "analysis.tsne_pixels", "world.*_clips", "world.video_frames"),
    **_all(COUNT, "flow.batch", "model.backbone.expansion", "model.backbone.stem_width", "model.backbone.stem_kernel"),
    **_all(COUNT, "optim.steps", "optim.decay_steps", "optim.accumulate", "checkpoint.every", "checkpoint.keep"),
    **_all(COUNT, "methods.*.discriminator.width", "methods.*.projection.hidden", "methods.*.projection.dim"),
    **_all(COUNT, "methods.stpl.contrast.block", "methods.ur.decoders", "methods.rda.bands"),
    **_all(COUNT, "methods.hcl.refresh_every", "methods.hcl.pixels"),
    **_all(whole(0), "data.threads", "data.workers", "data.prefetch", "world.workers"),
    **_all(whole(0), "optim.warmup_steps", "evaluate.every", "report.frames", "analysis.frames"),
    **_all(RATE, "optim.learning_rate", "methods.*.learning_rate", "methods.*temperature"),
    **_all(WEIGHT, "auxiliary_weight", "optim.power", "optim.weight_decay", "optim.clip_norm"),
    **_all(WEIGHT, "methods.*weight", "methods.*.auxiliary_adversarial", "methods.*_multiplier"),
    **_all(WEIGHT, "methods.fda.entropy_power", "methods.*.clip_norm", "methods.ubna.decay_rate"),
    **_all(WEIGHT, "methods.sar.radius", "methods.sar.recovered_below"),
    **_all(WEIGHT, "methods.rda.consistency.*", "methods.rda.adversarial.*"),
    **_all(SHARE, "methods.*.augment.*_probability", "methods.*_decay", "methods.alpha_bn.alpha", "methods.rda.share"),
    **_all(SHARE, "batch_norm.prior", "methods.*.frame_statistics", "methods.ubna.momentum"),
    **_all(SHARE, "methods.cotta.confidence", "methods.cotta.restored", "methods.sar.reliable"),
    "batch_norm.prior_clips": COUNT,
    "batch_norm.choose_prior": FLAG,
    **_all(SHARE, "methods.vat_vst.stage1_share", "methods.vat_vst.threshold", "methods.*flip_probability"),
    **_all(BELOW_ONE, "optim.momentum", "methods.ur.dropout"),
    **_all(number(above=0, high=1), "methods.*.topk.proportion", "methods.ur.proportion"),
    **_all(number(), "methods.*class_power", "methods.hcl.reliability_margin"),
    **_all(each(COUNT, 4), *(f"model.backbone.{name}" for name in ("blocks", "widths", "strides", "dilations"))),
    "seed": whole(0, 2**31 - 1),  # the loader draws from the seeds 2·seed and 2·seed + 1, of 32 bits
    "method": NAME,
    "compare_with": each(NAME),
    "steps": optional(COUNT),
    "num_frames": whole(2),
    "cpu_xla_flags": TEXT,
    "data.classes": name_in((*CLASSES, "none")),
    "data.class_names": each(TEXT),
    "data.crop": each(whole(0), 2),
    "data.*.name": name_in(DATASETS),
    "data.*.drive": optional(one_of(*(drive for dataset in DATASETS.values() for drive in dataset.drives))),
    "data.target.fit": FLAG,
    "data.target.frames_per_second": optional(RATE),
    "data.target.max_clips": COUNT,
    "data.target.held_out": number(above=0, high=0.5),
    "data.*_split": one_of("train", "val"),
    "data.target.size": Rule("(height, width), or (0, 0) with from_checkpoint", lambda v: SIZE.holds(v) or v == (0, 0)),
    "data.*.size": SIZE,
    "data.*.offsets": OFFSETS,
    "data.*.flow_pairs": PAIRS,
    "world.source_layout": one_of("viper", "synthia_seq"),
    "world.size": each(whole(32), 2),
    "world.gap": rising(WEIGHT),
    "world.version": one_of(*VERSIONS),
    "flow.estimator": name_in(ESTIMATORS),
    "flow.files": one_of("none", "read", "write"),
    "flow.size": one_of("training", "raw"),
    "flow.scale": one_of("align_corners", "public"),
    "model.name": name_in(NETWORKS),
    "model.classifier_dilations": each(COUNT, least=1),
    "model.espnet.[pq]": COUNT,
    "model.espnet.widths": each(whole(5), 3),
    "model.espnet.reinforced_skip": FLAG,
    "model.espnet.mean": each(number(0, 255), 3),
    "model.espnet.deviation": each(RATE, 3),
    "model.dtype": one_of("float32", "bfloat16"),
    "model.backbone.remat": one_of(*REMAT),
    "model.fusion.propagation": one_of(*PROPAGATIONS),
    "batch_norm.mode": one_of("batch", "sync", "running"),
    "batch_norm.average_over": one_of("all", "clean"),
    "optim.profile": one_of("paper", "own"),
    "optim.multipliers": MULTIPLIERS,
    "optim.frozen": each(EXPRESSION),
    "methods.*.projection.init": one_of("random", "identity"),
    "methods.*.augment.blur_radii": each(RATE, least=1),
    "methods.*.augment.hue": number(0, 0.5),
    "methods.pixmatch.augment.*": SHARE,  # brightness, contrast, saturation, value
    "methods.*.augment.*": WEIGHT,  # brightness, contrast, saturation
    "methods.*.betas": each(BELOW_ONE, 2),
    "methods.stpl.objective": one_of(*OBJECTIVES),
    "methods.stpl.fusion": one_of("stam", "concat", "conv1x1", "add"),
    "methods.stpl.fusion_init": one_of("random", "average"),
    "methods.stpl.contrast.scope": one_of(*SCOPES),
    "methods.*.label_statistics": one_of("running", "batch"),
    "methods.ur.view.scale": rising(number(0.5)),  # a smaller frame's mirror image would not fill the view
    "methods.ur.view.beyond": one_of("mirror", "zero"),
    "methods.ur.view.crop": each(number(above=0, high=1), 2),
    "methods.hcl.pseudo_labels": one_of(*LABELLERS),
    "methods.ur.pseudo_labels": one_of("source", "current"),
    "methods.fda.beta": number(above=0, high=0.5),
    "methods.pixmatch.crop.size": each(number(above=0, high=1), 2),
    "methods.pixmatch.crop.scale": rising(number(above=0, high=1)),
    "methods.pixmatch.crop.ratio": rising(RATE),
    "methods.rda.content_bands": rising(whole(0)),
    "methods.da_vsn.propagation": one_of(*PROPAGATIONS),
    "methods.vat_vst.window": whole(2),
    "methods.cotta.scales": each(RATE, least=1),
    "methods.tps.scale": rising(number(0.5)),
    "analysis.neighbours": each(COUNT, least=1),
    "analysis.tsne_classes": each(one_of(*dict.fromkeys(name for names in CLASSES.values() for name in names))),
}


def published_key(key):
    """Returns the key that a key of `methods.<name>.own` takes the place of, or None for any other key."""
    found = re.fullmatch(r"methods\.\w+\.own\.(.+)", key)
    if not found:
        return None
    return found[1] if found[1] in BESIDE_OPTIM else f"optim.{found[1]}"


def rule_of(key):
    """Returns the rule of a key, or None: there is no such setting.

    Args:
      key: with dots, such as `optim.steps`.
    """
    key = published_key(key) or key
    return next((rule for pattern, rule in RULES.items() if fnmatch.fnmatchcase(key, pattern)), None)


def problem(key, value):
    """Says what is wrong with one setting, or returns None."""
    rule = rule_of(key)
    if rule is None:
        return None
    try:
        fits = rule.holds(value)
    except (TypeError, ValueError, AttributeError, re.error):
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
    optim = config.optim
    if optim.warmup_steps >= optim.decay_steps:
        found.append(
            f"config.optim.warmup_steps: expected fewer than config.optim.decay_steps={optim.decay_steps}, found "
            f"{optim.warmup_steps}"
        )
    if config.batch_norm.mode == "sync" and frame_statistics(config):
        found.append(
            f"config.batch_norm.mode: expected batch or running where method={config.method} normalises each frame by "
            "its own statistics, which sync would take over the frames of all devices; found sync"
        )
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
    found += _problems_of_cut(config)
    smallest = ESTIMATORS[config.flow.estimator].smallest_side if config.flow.files != "read" else 1
    for domain in ("source", "target"):
        section = config.data[domain]
        if any(section.size) and min(section.size) < smallest:
            found.append(
                f"config.data.{domain}.size: expected {smallest} pixels a side or more, which "
                f"config.flow.estimator={config.flow.estimator} needs, found {tuple(section.size)}"
            )
        outside = {k for pair in section.flow_pairs for k in pair} - set(section.offsets)
        if outside:
            found.append(
                f"config.data.{domain}.flow_pairs: expected pairs of frames among config.data.{domain}.offsets="
                f"{tuple(section.offsets)}, found {sorted(outside)} besides"
            )
    return found


# Methods that cut target frames to shares of (height, width) -> the setting that says which.
_CUTS = {"ur": "view.crop", "pixmatch": "crop.size"}


def _problems_of_cut(config):
    """Says where a method would cut target frames to fewer pixels than networks take; a list of no line or one."""
    name, size = _CUTS.get(config.method), config.data.target.size
    if name is None or not any(size):  # with from_checkpoint, a size that is not known yet
        return []
    section, key = name.split(".")
    shares = config.methods[config.method][section][key]
    cut = tuple(round(side * share) for side, share in zip(size, shares, strict=True))
    if all(side >= least for side, least in zip(cut, SMALLEST_SIZE, strict=True)):
        return []
    return [
        f"config.methods.{config.method}.{name}: expected shares that leave {SMALLEST_SIZE} pixels or more of "
        f"config.data.target.size={tuple(size)}, found {tuple(shares)}, which leave {cut}"
    ]
