"""Training with labels: source_only (on source), and the tables' upper bound, oracle (on target)."""

import jax

from stpl_jax import optim
from stpl_jax.losses.contrastive import masked_mean
from stpl_jax.losses.segmentation import cross_entropy
from stpl_jax.methods.base import BATCH_NORM_PARAMETERS, Aux, DomainNeeds
from stpl_jax.methods.forward import extract, flow_on_grid, frames_first, fused_scores
from stpl_jax.ops.resize import resize_align_corners


class Supervised:
    """Cross-entropy of fused scores, main + 0.1 · auxiliary, at the label's size, as DA-VSN's and TPS's public code."""

    def __init__(self, config, segmenter, domain):
        self.config, self.segmenter, self.domain = config, segmenter, domain
        self.needs = {domain: DomainNeeds(labels=True)}

    def init(self, key, variables):
        del key
        return {"network": {"segmenter": variables["params"]}}, None

    def optimisers(self, settings):
        return {"network": optim.sgd(settings, frozen=(BATCH_NORM_PARAMETERS,))}

    def loss(self, params, state, batch, key):
        del key
        data, segmenter = batch[self.domain], params["network"]["segmenter"]
        frames = frames_first(data["frames"])
        # Two passes instead of one batch: no gradient goes into the earlier frame, so its backward pass is never run.
        current, stats = extract(self.segmenter, segmenter, state.batch_stats, frames[:1], self.config.batch_norm)
        earlier, stats = extract(
            self.segmenter, jax.lax.stop_gradient(segmenter), stats, frames[1:2], self.config.batch_norm
        )
        pair = [jax.tree.map(lambda f: f[0], features) for features in (current, earlier)]
        flow = flow_on_grid(data["flow"][:, 0], pair[0].main.shape[1:3], self.config.flow.scale)
        scores = fused_scores(self.segmenter, segmenter, pair, flow)

        def at_label_size(scores):
            labels = data["label"]
            return masked_mean(*cross_entropy(resize_align_corners(scores, labels.shape[1:]), labels))

        loss = at_label_size(scores.main) + self.config.auxiliary_weight * at_label_size(scores.auxiliary)
        return {"network": loss}, Aux(stats)

    def after_update(self, state, aux):
        del aux
        return state
