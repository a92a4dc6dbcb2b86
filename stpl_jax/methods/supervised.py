"""Training with labels: source_only (on source), and the tables' upper bound, oracle (on target).

source_only is that of TPS's public code (GitHub xing0047/TPS), with these differences:

- Training starts from ImageNet weights there; here from `config.pretrain_from`, or at random.
- The scheduler, ADVENT's, sets two of the three groups of parameters there: the classifiers stay at 10 times the first
  rate, and the score fusion has 10 times the decayed one. Here (`config.rows.source_only`) the classifiers have 10
  times the decayed rate, and the fusion the rate itself.
- Each residual layer's parameters are updated 3 or 4 times in one step there, here once: see `stpl_jax/optim.py`.
- There both components of flow are scaled by the ratio of heights, for which `flow.scale=public` stands.
- There 40,001 steps are taken, and the best of the snapshots on the target's validation labels is what is reported;
  here the weights at the end are scored.
"""

import jax

from input_pipeline.needs import DomainNeeds
from stpl_jax.forward import clip_scores
from stpl_jax.losses.reduction import masked_mean
from stpl_jax.losses.segmentation import cross_entropy
from stpl_jax.methods.base import Aux, Method
from stpl_jax.ops.resize import resize_align_corners


def label_loss(config, scores, labels):
    """Cross-entropy of fused scores at the labels' size, averaged over labelled pixels: main + 0.1 · auxiliary.

    Args:
      config: the run's configuration, for `auxiliary_weight`.
      scores: `PerClassifier` of `[B, h, w, K]`.
      labels: `[B, H, W]` integers, 255 where ignored.

    Returns:
      A scalar.

    Source: public code of DA-VSN and TPS.
    """

    def at_label_size(scores):
        return masked_mean(*cross_entropy(resize_align_corners(scores, labels.shape[1:]), labels))

    return jax.tree.map(at_label_size, scores).total(config.auxiliary_weight)


def supervised_loss(config, segmenter, params, batch_stats, data, frames=None):
    """The supervised loss on one domain's clips, which every method with source data adds its own terms to.

    Args:
      config: the run's configuration.
      segmenter: a `Network`.
      params, batch_stats: its variables.
      data: the domain's part of the batch, with labels.
      frames: `[B, T, H, W, 3]` RGB, 0-255, in place of the batch's own; None for those.

    Returns:
      A scalar, and the running averages afterwards.
    """
    frames = data["frames"] if frames is None else frames
    scores, stats = clip_scores(config, segmenter, params, batch_stats, frames, data["flow"])
    return label_loss(config, scores, data["label"]), stats


class Supervised(Method):
    """Cross-entropy of fused scores, main + 0.1 · auxiliary, at the label's size, as DA-VSN's and TPS's public code."""

    takes_prior = False

    def __init__(self, config, segmenter, domain):
        self.config, self.segmenter, self.domain = config, segmenter, domain
        self.needs = {domain: DomainNeeds(labels=True, mirrored=config.methods.supervised.mirror)}

    def loss(self, params, state, batch, key):
        del key
        loss, stats = supervised_loss(
            self.config, self.segmenter, params["network"]["segmenter"], state.batch_stats, batch[self.domain]
        )
        return {"network": loss}, Aux(stats)
