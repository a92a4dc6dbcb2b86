"""What the rest of the code knows of a segmentation network: what it does and which parameters do it, by role.

A network is one file of this folder that fills a `Network`, and a line in `models/__init__.py`. Methods, optimisers,
evaluation and prediction ask for roles; no layer's name stands outside the network's own file.
"""

import dataclasses
import functools
import types
from collections.abc import Callable, Mapping
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from input_pipeline.errors import UserError
from stpl_jax.ops.propagate import propagate
from stpl_jax.ops.warp import warp

# Of images that every network takes.
SMALLEST_SIZE = (32, 32)
# The groups of parameters that a network may name. `classifiers`, both, follows from them.
GROUPS = ("normalisation", "backbone", "main_classifier", "auxiliary_classifier", "score_fusion")
# How an earlier frame's maps come to the current frame.
PROPAGATIONS = ("warp", "splat")


class PerClassifier(struct.PyTreeNode):
    """One value for each classifier: features, scores, labels, ...; `auxiliary` is None where there is none.

    `scored`, of features alone: what the main classifier scores in place of `main`, such as a decoder's last features
    where `main` is the encoder's; None where it scores `main`.
    """

    main: Any
    auxiliary: Any = None
    scored: Any = None

    def total(self, auxiliary_weight):
        """Adds up, main + weight · auxiliary; main alone where there is no auxiliary classifier."""
        return self.main if self.auxiliary is None else self.main + auxiliary_weight * self.auxiliary


def _point_classifier(num_classes, param_dtype, name):
    """A 1×1 convolution with bias: what scores features where a network names no classifier of its own kind."""
    return nn.Conv(num_classes, (1, 1), param_dtype=param_dtype, name=name)


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A segmentation network. All functions are pure and can be traced.

    `variables` is a dict of `params` and `batch_stats`, both nested dicts of arrays; `batch_stats`, the running
    statistics, is empty where a network has none.

    Attributes:
      num_classes: K. An output that means "no class" (void) is none of them: `main_classifier` leaves it out.
      normalise: (RGB images `[..., 3]` of 0-255, dtype) -> what `backbone` takes, `[..., 3]`.
      backbone: (variables, images `[G, B, H, W, 3]`, share, averaged) -> (`PerClassifier` of features
        `[G, B, h, w, C]`, `batch_stats` afterwards). With a share of 1 each of the G groups is normalised by its own
        statistics, and the first `averaged` of them enter the running ones, in order; with 0 the running ones
        normalise, and stay. Whatever has batch statistics is run here, a decoder too: see `PerClassifier.scored`. See
        `group_by_group` for a network that knows no groups.
      main_classifier: (params, main features `[B, h, w, C]`, or `scored` where there are such) -> scores
        `[B, h', w', K]`, before softmax.
      groups: names of `GROUPS` -> regular expression on paths such as `backbone/bn1/scale` within `params`. What a
        network lacks it leaves out.
      initial: random key -> `variables`; None where the weights are given.
      auxiliary_classifier: as `main_classifier`, from auxiliary features, on the grid of the main scores; None: there
        is none.
      fusion: (params, scores of the current frame, scores of the earlier frame brought to it), both
        `[B, h', w', K]`, -> fused scores; None: the current frame's scores count.
      propagation: how the earlier frame's scores are brought to the current one. warp: each pixel looks up where it
        was (`ops.warp`; public code of TPS). splat: each earlier pixel is thrown to where it moves, and the scores are
        0 where none lands (`ops.propagate`; public code of DA-VSN).
      running_statistics: whether the network has any; False: `batch_stats` is empty, and statistics cannot be adapted.
      blends_statistics: whether `backbone` takes a share between 0 and 1, too: the statistics of each layer are then
        (1 - share) · running + share · group's.
      frame_statistics: that share in inference, where each frame is a group of its own.
      rematerialise: whether the backward pass computes activations again, which saves memory.
      new_classifier: name -> a Flax module like the main classifier, `[B, h, w, C]` to `[B, h, w, K]`.
      dtype, param_dtype: of the backbone's arithmetic; of parameters and running statistics.

    Raises:
      UserError: `groups` has other names, `propagation` is another word, or `frame_statistics` asks for what
        `backbone` cannot do.
    """

    num_classes: int
    normalise: Callable
    backbone: Callable
    main_classifier: Callable
    groups: Mapping[str, str]
    initial: Callable | None = None
    auxiliary_classifier: Callable | None = None
    fusion: Callable | None = None
    propagation: str = "warp"
    running_statistics: bool = True
    blends_statistics: bool = False
    frame_statistics: float = 0.0
    rematerialise: bool = False
    new_classifier: Callable | None = None
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def __post_init__(self):
        unknown = set(self.groups) - {*GROUPS, "classifiers"}
        if unknown:
            raise UserError(f"Network.groups: expected names among {', '.join(GROUPS)}, found {sorted(unknown)}.")
        if self.propagation not in PROPAGATIONS:
            raise UserError(
                "Network.propagation (config.model.fusion.propagation): expected one of "
                f"{', '.join(PROPAGATIONS)}, found {self.propagation!r}."
            )
        share = self.frame_statistics
        if share and not (self.running_statistics and (share == 1 or self.blends_statistics)):
            raise UserError(
                f"Inference by each frame's own statistics, with a share of {share:g}, needs a network with running "
                "statistics whose backbone can blend them (Network.blends_statistics), and this one's cannot. Set "
                "the method's share to 0, such as --config.methods.cotta.frame_statistics=0, or choose another method "
                "or network."
            )
        classifiers = [self.groups[n] for n in ("auxiliary_classifier", "main_classifier") if n in self.groups]
        groups = dict(self.groups) | ({"classifiers": "|".join(classifiers)} if classifiers else {})
        object.__setattr__(self, "groups", types.MappingProxyType(groups))
        if self.new_classifier is None:
            point = functools.partial(_point_classifier, self.num_classes, self.param_dtype)
            object.__setattr__(self, "new_classifier", point)

    def features(self, variables, rgb, batch_statistics=False, averaged=0):
        """Runs the backbone on groups of images, all in one batch.

        Args:
          variables: `params` and `batch_stats`.
          rgb: `[G, B, H, W, 3]`, 0-255.
          batch_statistics: normalise each group by its own statistics; otherwise as in inference, by the running ones
            or, with `frame_statistics`, each frame by a blend of them with its own.
          averaged: how many groups, from the first on, enter the running statistics.

        Returns:
          `PerClassifier` of features `[G, B, h, w, C]`, and `batch_stats` afterwards.
        """
        images = self.normalise(rgb, self.dtype)
        if not batch_statistics and self.frame_statistics:
            frames = images.reshape(-1, 1, *images.shape[2:])
            features, _ = self.backbone(variables, frames, self.frame_statistics, 0)
            features = jax.tree.map(lambda x: x.reshape(*images.shape[:2], *x.shape[2:]), features)
            return features, variables["batch_stats"]
        return self.backbone(variables, images, float(batch_statistics and self.running_statistics), averaged)

    def classify(self, params, features):
        """Scores each frame by itself: features `[..., h, w, C]` to scores `[..., h', w', K]`, a `PerClassifier` each.

        Without auxiliary features, or without an auxiliary classifier, there are main scores alone.
        """

        def run(classifier, x):
            if classifier is None or x is None:
                return None
            scores = classifier(params, x.reshape(-1, *x.shape[-3:]))
            return scores.reshape(*x.shape[:-3], *scores.shape[-3:])

        # In this order: as the public code of DA-VSN and TPS has it.
        auxiliary = run(self.auxiliary_classifier, features.auxiliary)
        scored = features.main if features.scored is None else features.scored
        return PerClassifier(run(self.main_classifier, scored), auxiliary)

    def fuse(self, params, current, earlier, flow):
        """Fuses the scores of two frames: the one place that does, in training, evaluation and prediction.

        Args:
          params: the network's parameters.
          current, earlier: `PerClassifier` of scores `[B, h', w', K]`, or the scores of one classifier. A gradient
            enters the earlier frame, unless the caller stops it.
          flow: `[B, h', w', 2]` from the current frame into the earlier one, pixels of the scores' grid.

        Returns:
          As `current`: one set of weights serves all classifiers.
        """
        if self.fusion is None:
            return current

        def fuse(now, before):
            if self.propagation == "splat":
                brought, _ = propagate(before, flow)
            else:
                brought = warp(before, flow.astype(before.dtype))
            return self.fusion(params, now, brought)

        return jax.tree.map(fuse, current, earlier)

    def feature_shapes(self, variables, size):
        """Returns the features of one image of (height, width) `size` as shapes and types, `[1, 1, h, w, C]`."""
        image = jax.ShapeDtypeStruct((1, 1, *size, 3), jnp.uint8)
        return jax.eval_shape(self.features, variables, image)[0]

    def channels(self, variables):
        """Returns how many channels the features have, a `PerClassifier` of numbers."""
        return jax.tree.map(lambda x: x.shape[-1], self.feature_shapes(variables, SMALLEST_SIZE))


def apply_to_groups(module, variables, images, share, averaged):
    """Runs a Flax module whose normalisation knows groups, `GroupedBatchNorm`, on all of them as one batch.

    Args:
      module: with a method `features` of images `[G·B, H, W, 3]`, and, where groups are normalised by themselves,
        `GroupedBatchNorm`'s arguments; returns a tuple of features `[G·B, h, w, C]`.
      variables, images, share, averaged: as `Network.backbone` takes them.

    Returns:
      A list of features `[G, B, h, w, C]`, and `batch_stats` afterwards.
    """
    count, updated = images.shape[0], variables
    flat = einops.rearrange(images, "g b h w c -> (g b) h w c")
    if share:
        arguments = (flat, count, averaged, share)
        found, updated = module.apply(variables, *arguments, method="features", mutable=["batch_stats"])
    else:
        found = module.apply(variables, flat, method="features")
    return [einops.rearrange(f, "(g b) h w c -> g b h w c", g=count) for f in found], updated["batch_stats"]


def group_by_group(backbone):
    """Makes a `Network.backbone` of one that knows no groups.

    Args:
      backbone: (variables, images `[B, H, W, 3]`, batch_statistics) -> (`PerClassifier` of features `[B, h, w, C]`,
        `batch_stats` afterwards).
    """

    def run(variables, images, share, averaged):
        stats, found = variables["batch_stats"], []
        if not share:
            flat, _ = backbone(variables, images.reshape(-1, *images.shape[2:]), False)
            return jax.tree.map(lambda x: x.reshape(*images.shape[:2], *x.shape[1:]), flat), stats
        for i, group in enumerate(images):
            features, after = backbone(variables | {"batch_stats": stats}, group, True)
            stats = after if i < averaged else stats
            found.append(features)
        return jax.tree.map(lambda *x: jnp.stack(x), *found), stats

    return run


def propagation_of(model):
    """Returns what `config.model` says of `Network.propagation`; checkpoints of earlier versions say nothing: warp."""
    return model.get("fusion", {}).get("propagation", "warp")


@functools.partial(jax.jit, static_argnums=0)
def initial_variables(network, key):
    """Draws a network's variables: a dict of `params` and `batch_stats`."""
    return dict(network.initial(key))
