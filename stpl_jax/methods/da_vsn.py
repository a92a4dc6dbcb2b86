"""DA-VSN: domain adaptive video segmentation via temporal consistency regularization (Guan et al., ICCV 2021).

    L = L_source + λ_u · (L_intra + L_cross)

L_intra, on target alone, pulls a prediction to the one propagated from x_{t-1} where that is more certain. L_cross
makes target predictions look like source ones to two discriminators: one sees x_t and x_{t-1}, the other x_t twice, and
their weights are pushed apart, so that the former looks at what changes over time. All of it twice, for the main and
for the auxiliary classifier.

As in the public code, frames are scored by themselves, no gradient goes into x_{t-1}, and only the supervised loss sees
fused scores. `source_free` leaves L_intra; that form is of STPL's tables, and has no public code.

Differences from the public code (`train_video_UDA.py`, `accel_deeplabv2.py`):

- Training starts from the source model; there from ImageNet weights.
- The optimiser is the paper's (STPL's), unless `optim.profile=own`: base rate, steps and multipliers are the public
  code's then. What stays different is the scheduler, which is ADVENT's. It sets the first group of parameters to the
  polynomial rate and the second to ten times that, from the first step on. ADVENT's second group is the classifiers;
  DA-VSN's is the score fusion, and the classifiers are a third one that is never set. So in the public code the
  classifiers stay at 10 · 2.5e-4 = 2.5e-3 throughout, and the fusion follows ten times the backbone's rate: at step
  120,000 of 250,000 the backbone is at 1.39e-4, the fusion at 1.39e-3, the classifiers are at 2.5e-3. Here these are
  1.39e-4, 1.39e-4 and 1.39e-3.
- The network warps x_{t-1}'s scores before it fuses them, in training and evaluation, unless
  `model.fusion.propagation=splat`, which is the public network: nearest pixel (halves to even) along the flow's
  negative, zeros where none lands.
- L_intra throws along the flow's negative, too; a version of the public training code throws along the flow itself
  (x + u, y + v), and so the other way than its network.
- Flow is estimated as `config.flow` says; there by FlowNet2 ahead of training, and both components are scaled by the
  ratio of heights, for which `flow.scale=public` stands. It is rounded from float32; there from float64.
- The weights of L_intra are 0 and 1; there the 1 is a sum of propagated probabilities, which is that up to rounding.
- Each residual layer's parameters are updated 3 or 4 times in one step there, here once: see `stpl_jax/optim.py`.
- PyTorch's clipping divides by the norm plus 1e-6.
- There 120,001 steps are taken, and the best of the snapshots on validation is what is reported.
"""

import jax
import jax.numpy as jnp
import optax

from input_pipeline.errors import UserError
from input_pipeline.needs import DomainNeeds
from stpl_jax import optim
from stpl_jax.forward import flow_on_grid, frame_scores, fuse_scores
from stpl_jax.losses.adversarial import SOURCE, TARGET, domain_cross_entropy
from stpl_jax.losses.entropy import entropy
from stpl_jax.losses.temporal import unconfident_difference
from stpl_jax.methods.base import Aux, Method
from stpl_jax.methods.supervised import label_loss
from stpl_jax.models.discriminator import Discriminator, initial_discriminators
from stpl_jax.models.network import PROPAGATIONS
from stpl_jax.ops.propagate import propagate
from stpl_jax.ops.resize import resize_align_corners
from stpl_jax.ops.warp import warp

# Groups of parameters: which classifier's scores a discriminator sees.
SPATIO_TEMPORAL = {"spatio_temporal": "main", "spatio_temporal_auxiliary": "auxiliary"}
SPATIAL = {"spatial": "main", "spatial_auxiliary": "auxiliary"}
# Which pairs are pushed apart.
APART = {a: b for pair in zip(SPATIO_TEMPORAL, SPATIAL, strict=True) for a, b in (pair, pair[::-1])}


class DAVSN(Method):
    """Temporal consistency within the target domain, and across domains by adversaries; `config.methods.da_vsn`.

    propagation, of L_intra; the network's own fusion has `config.model.fusion.propagation`:
      splat: each pixel of x_{t-1} is thrown to the nearest pixel of x_t (public code): holes, and overlaps.
      warp: each pixel of x_t looks up where it was.
    """

    def __init__(self, config, segmenter):
        self.config, self.segmenter, self.settings = config, segmenter, config.methods.da_vsn
        if self.settings.propagation not in PROPAGATIONS:
            raise UserError(
                f"methods.da_vsn.propagation is one of {PROPAGATIONS}, found {self.settings.propagation!r}."
            )
        self.needs = {"target": DomainNeeds()}
        if not config.source_free:
            self.needs["source"] = DomainNeeds(labels=True, mirrored=self.settings.mirror)
            self.roles = ("auxiliary_classifier",)
        self.discriminator = Discriminator(segmenter.param_dtype, self.settings.discriminator.width)

    def init(self, key, variables):
        params = {"network": {"segmenter": variables["params"]}}
        if "source" in self.needs:
            params |= initial_discriminators(self.discriminator, key, APART, 2 * self.segmenter.num_classes)
        return params, None

    def optimisers(self, settings):
        clip = self.settings.clip_norm
        network = settings.copy_and_resolve_references()
        network.clip_norm = clip
        if self.config.source_free:
            # Score fusion gets no gradient then: PyTorch would leave it as it is.
            return {"network": optim.sgd(network, self.segmenter.groups, (*self.frozen, "score_fusion"))}
        adversary = optim.adam(self.settings.discriminator, settings)
        if clip:
            adversary = optax.chain(optax.clip_by_global_norm(clip), adversary)
        trained = {"network": optim.sgd(network, self.segmenter.groups, self.frozen)}
        return trained | dict.fromkeys(APART, adversary)

    def loss(self, params, state, batch, key):
        del key
        segmenter, stats, losses, metrics = params["network"]["segmenter"], state.batch_stats, {}, {}
        supervised = cross_domain = 0.0
        if "source" in self.needs:
            source, stats = self.score(segmenter, stats, batch["source"])
            flow = self.flow(batch["source"], source[0].main)
            fused = fuse_scores(self.segmenter, segmenter, *source, flow)
            supervised = metrics["supervised"] = label_loss(self.config, fused, batch["source"]["label"])
        target, stats = self.score(segmenter, stats, batch["target"])
        intra_domain = metrics["intra_domain"] = self.intra_domain(*target, self.flow(batch["target"], target[0].main))
        if "source" in self.needs:
            source_size, target_size = (batch[domain]["frames"].shape[2:4] for domain in ("source", "target"))
            source, target = self.pairs(*source, source_size), self.pairs(*target, target_size)
            cross_domain = metrics["cross_domain"] = self.fool(params, target)
            losses = self.tell_apart(params, *jax.lax.stop_gradient((source, target)))
        losses["network"] = supervised + self.settings.weight * (intra_domain + cross_domain)
        return losses, Aux(stats, metrics)

    def score(self, params, stats, data):
        """Scores x_t and x_{t-1} by themselves."""
        return frame_scores(self.config, self.segmenter, params, stats, data["frames"])

    def flow(self, data, scores):
        """Brings a domain's flow to the grid of its scores."""
        return flow_on_grid(data["flow"][:, 0], scores.shape[1:3], self.config.flow.scale)

    def intra_domain(self, current, earlier, flow):
        """L_intra, main + auxiliary: two frames' scores `[B, h, w, K]`, by classifier, and the flow between them."""

        def consistency(now, before):
            certainty = entropy(before)[..., None]
            maps = jax.lax.stop_gradient(jnp.concatenate([jax.nn.softmax(before, -1), certainty], -1))
            if self.settings.propagation == "splat":
                maps, reached = propagate(maps, flow)
            else:
                maps = warp(maps, flow.astype(maps.dtype))
                reached = jnp.ones(maps.shape[:-1], bool)
            return unconfident_difference(now, maps[..., :-1], maps[..., -1], reached).mean()

        return jax.tree.map(consistency, current, earlier).total(1.0)

    def pairs(self, current, earlier, size):
        """What each discriminator sees, `[B, H, W, 2K]`: softmax over two frames' scores together, at the frames' size.

        Frames are concatenated newest first. The softmax runs over all 2K scores, as in the public code.
        """

        def both(classifier, other):
            scores = jnp.concatenate([getattr(current, classifier), getattr(other, classifier)], -1)
            return jax.nn.softmax(resize_align_corners(scores, size), -1)

        return {group: both(classifier, earlier) for group, classifier in SPATIO_TEMPORAL.items()} | {
            group: both(classifier, current) for group, classifier in SPATIAL.items()
        }

    def judge(self, params, group, maps, label):
        """Cross-entropy of one discriminator's answers against one domain."""
        answers = self.discriminator.apply({"params": params[group]}, maps[group])
        return domain_cross_entropy(answers, label).mean()

    def fool(self, params, target):
        """L_cross: the network's part, with discriminators as they are."""
        params = jax.lax.stop_gradient(params)
        weights = {"main": 1.0, "auxiliary": self.settings.auxiliary_adversarial}
        return sum(
            weights[classifier] * self.judge(params, group, target, SOURCE)
            for group, classifier in (SPATIO_TEMPORAL | SPATIAL).items()
        )

    def tell_apart(self, params, source, target):
        """The discriminators' part: each its own loss, against the other of its pair as that one is."""

        def loss(group):
            domains = self.judge(params, group, source, SOURCE) + self.judge(params, group, target, TARGET)
            other = jax.lax.stop_gradient(params[APART[group]])
            return domains / 2 + self.settings.weight * weight_similarity(params[group], other)

        return {group: loss(group) for group in APART}


def weight_similarity(params, other):
    """How alike two networks' weights are: mean over parameters of cos(w, w') + 1, in 0..2; 1 where one is all zero.

    Args:
      params, other: trees of parameters of one structure.

    Returns:
      A scalar.

    Source: public code of DA-VSN; biases take part, too.
    """

    def cosine(a, b):
        product = jnp.sum(a * a) * jnp.sum(b * b)
        # Without a direction there is no cosine, nor a gradient.
        return jnp.where(product > 0, jnp.sum(a * b) / jnp.sqrt(jnp.where(product > 0, product, 1.0)), 0.0)

    cosines = jax.tree.leaves(jax.tree.map(cosine, params, other))
    return sum(cosines) / len(cosines) + 1
