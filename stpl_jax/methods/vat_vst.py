"""VAT-VST: unsupervised domain adaptation for video semantic segmentation (Shin et al., 2021), in two stages.

Stage one, video adversarial training: supervised on source, while a discriminator that sees the predictions for two
consecutive frames is to take target for source.

    L_1 = L_source + λ · L_adversarial

Stage two, video self-training, on target alone: the predictions for x_t and for the frames before it, warped to t, are
averaged; their class is the label of a pixel, unless two frames disagree or the average is not certain enough.

    L_2 = CE(fused scores of x_t, label)

There is no public code. Ours are: the share of the schedule that stage one takes, the window of frames, the threshold,
labels from the network as it is at each step, and, of the adversary, what the public code of DA-VSN has: one for each
classifier, its width, optimiser and weights, and no gradient into the earlier frame. It sees two softmaxes side by
side. `source_free` leaves stage two, for all steps.
"""

import jax
import jax.numpy as jnp

from input_pipeline.errors import UserError
from input_pipeline.needs import DomainNeeds
from stpl_jax import optim
from stpl_jax.forward import flow_on_grid, frame_scores, fuse_scores
from stpl_jax.losses.adversarial import SOURCE, TARGET, domain_cross_entropy
from stpl_jax.losses.reduction import masked_mean
from stpl_jax.losses.segmentation import IGNORED, cross_entropy
from stpl_jax.losses.temporal import agreed_labels
from stpl_jax.methods.base import Aux, Method
from stpl_jax.methods.supervised import label_loss
from stpl_jax.models.discriminator import Discriminator, initial_discriminators
from stpl_jax.ops.resize import resize_align_corners
from stpl_jax.ops.warp import warp

# Groups of parameters: which classifier's scores a discriminator sees.
SEQUENCE = {"sequence": "main", "sequence_auxiliary": "auxiliary"}


class VATVST(Method):
    """Adversarial training on sequences, then self-training on what several frames agree on; `methods.vat_vst`."""

    def __init__(self, config, segmenter):
        self.config, self.segmenter, self.settings = config, segmenter, config.methods.vat_vst
        if self.settings.window < 2:
            raise UserError(f"methods.vat_vst.window is 2 frames or more, found {self.settings.window}.")
        if not 0 <= self.settings.stage1_share <= 1:
            raise UserError(f"methods.vat_vst.stage1_share is a share, in 0..1; found {self.settings.stage1_share}.")
        earlier = range(1, self.settings.window)
        self.needs = {"target": DomainNeeds((0, *earlier), tuple((0, k) for k in earlier))}
        if not config.source_free:
            self.needs["source"] = DomainNeeds(labels=True, mirrored=self.settings.mirror)
            self.roles = ("auxiliary_classifier",)
        self.discriminator = Discriminator(segmenter.param_dtype, self.settings.discriminator.width)

    def init(self, key, variables):
        params = {"network": {"segmenter": variables["params"]}}
        if "source" in self.needs:
            params |= initial_discriminators(self.discriminator, key, SEQUENCE, 2 * self.segmenter.num_classes)
        return params, None

    def optimisers(self, settings):
        network = super().optimisers(settings)
        if self.config.source_free:
            return network
        return network | dict.fromkeys(SEQUENCE, optim.adam(self.settings.discriminator, settings))

    def loss(self, params, state, batch, key):
        del key
        segmenter, data = params["network"]["segmenter"], batch["target"]
        if "source" not in self.needs:
            target, stats = self.score(segmenter, state.batch_stats, data)
            stage_two, metrics = self.self_training(segmenter, target, data)
            return {"network": stage_two}, Aux(stats, metrics)

        # Counted on the schedule and not on `optim.steps`: stopping early does not move the stages.
        first = state.step < round(self.settings.stage1_share * self.config.optim.decay_steps)
        source, stats = self.score(segmenter, state.batch_stats, batch["source"])
        # Stage two does not see the source: nor do its running averages.
        stats = jax.tree.map(lambda seen, before: jnp.where(first, seen, before), stats, state.batch_stats)
        target, stats = self.score(segmenter, stats, data)

        fused = fuse_scores(self.segmenter, segmenter, *source, self.flow(batch["source"], 0, source[0]))
        supervised = label_loss(self.config, fused, batch["source"]["label"])
        sizes = (batch[domain]["frames"].shape[2:4] for domain in ("source", "target"))
        source, sequence = (
            self.sequences(*scores[:2], size) for scores, size in zip((source, target), sizes, strict=True)
        )
        adversarial = self.fool(params, sequence)
        stage_one = supervised + self.settings.weight * adversarial
        stage_two, metrics = self.self_training(segmenter, target, data)
        losses = {"network": jnp.where(first, stage_one, stage_two)}
        for group, loss in self.tell_apart(params, *jax.lax.stop_gradient((source, sequence))).items():
            losses[group] = jnp.where(first, loss, 0.0)
        metrics |= {"supervised": supervised, "adversarial": adversarial, "stage": jnp.where(first, 1.0, 2.0)}
        return losses, Aux(stats, metrics)

    def score(self, params, stats, data):
        """Scores each frame by itself, newest first; a gradient goes into x_t alone."""
        return frame_scores(self.config, self.segmenter, params, stats, data["frames"])

    def flow(self, data, pair, scores):
        """Brings one of a domain's flows to the grid of its scores."""
        return flow_on_grid(data["flow"][:, pair], scores.main.shape[1:3], self.config.flow.scale)

    def sequences(self, current, earlier, size):
        """What each discriminator sees, `[B, H, W, 2K]`: probabilities for x_t and x_{t-1}, at the frames' size."""

        def probabilities(scores):
            return jax.nn.softmax(resize_align_corners(scores, size), -1)

        return {
            group: jnp.concatenate([probabilities(getattr(scores, name)) for scores in (current, earlier)], -1)
            for group, name in SEQUENCE.items()
        }

    def judge(self, params, group, maps, label):
        """Cross-entropy of one discriminator's answers against one domain."""
        answers = self.discriminator.apply({"params": params[group]}, maps[group])
        return domain_cross_entropy(answers, label).mean()

    def fool(self, params, target):
        """The network's part of stage one, with discriminators as they are."""
        params, weights = jax.lax.stop_gradient(params), {"main": 1.0, "auxiliary": self.settings.auxiliary_adversarial}
        return sum(weights[name] * self.judge(params, group, target, SOURCE) for group, name in SEQUENCE.items())

    def tell_apart(self, params, source, target):
        """The discriminators' part of stage one."""
        return {
            group: (self.judge(params, group, source, SOURCE) + self.judge(params, group, target, TARGET)) / 2
            for group in SEQUENCE
        }

    def self_training(self, params, scores, data):
        """Stage two: scores of the window's frames, newest first, to a scalar, and the share of labelled pixels."""
        current, *earlier = scores
        flows = [self.flow(data, k, current) for k in range(len(earlier))]
        warped = [
            warp(jax.nn.softmax(s.main, -1), flow.astype(s.main.dtype)) for s, flow in zip(earlier, flows, strict=True)
        ]
        labels = agreed_labels(jnp.stack([jax.nn.softmax(current.main, -1), *warped]), self.settings.threshold)
        fused = fuse_scores(self.segmenter, params, current, earlier[0], flows[0])
        losses = jax.tree.map(lambda scores: masked_mean(*cross_entropy(scores, labels)), fused)
        return losses.total(self.config.auxiliary_weight), {"labelled": jnp.mean(labels != IGNORED, dtype=jnp.float32)}
