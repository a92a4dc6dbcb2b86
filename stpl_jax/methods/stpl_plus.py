"""STPL with an averaged teacher: ours, by the paper's rules (target video alone, no labels).

    L = w_c · L_stpl + w_s · mean_i CE(p̃_i, y_i)

The pseudo-labels y of the confident pixels come from a moving average of the network, on the clean clip; p̃ is the
network's fused prediction on the augmented clip. The contrastive loss moves features, which drift from a classifier
that stays where it is; the cross-entropy through that classifier holds them.
"""

import jax
import jax.numpy as jnp

from stpl_jax import optim
from stpl_jax.losses.contrastive import class_balance, masked_mean
from stpl_jax.losses.segmentation import cross_entropy
from stpl_jax.methods.base import BATCH_NORM_PARAMETERS, CLASSIFIER_PARAMETERS, Aux
from stpl_jax.methods.forward import extract, frames_first, fused_main_scores
from stpl_jax.methods.stpl import STPL


class STPLPlus:
    """Settings: `config.methods.stpl_plus`, and `config.methods.stpl` for what both have."""

    def __init__(self, config, segmenter):
        self.config, self.segmenter, self.settings = config, segmenter, config.methods.stpl_plus
        self.stpl = STPL(config, segmenter, "stpl")
        self.needs = self.stpl.needs

    def init(self, key, variables):
        params, _ = self.stpl.init(key, variables)
        # A copy: a donated state must not hold one buffer twice.
        return params, {"teacher": jax.tree.map(jnp.copy, variables["params"])}

    def optimisers(self, settings):
        classifier = () if self.settings.train_classifier else (CLASSIFIER_PARAMETERS,)
        frozen = (BATCH_NORM_PARAMETERS, *classifier)
        return {"network": optim.sgd(settings, frozen=frozen)}

    def loss(self, params, state, batch, key):
        network, data, settings = params["network"], batch["target"], self.settings
        clean, augmented, flows, stats = self.stpl.views(network, state.batch_stats, data, key)
        teacher = state.extra["teacher"]
        frames = frames_first(data["frames"]).astype(self.segmenter.dtype)
        seen, _ = extract(self.segmenter, teacher, state.batch_stats, frames, self.config.batch_norm)
        index, labels, mask = self.stpl.pseudo_labels(teacher, seen.main, flows[:, 0])

        scores = fused_main_scores(self.segmenter, network["segmenter"], augmented[0], augmented[1], flows[:, 0])
        scores = scores.reshape(scores.shape[0], -1, scores.shape[-1])
        picked = jnp.take_along_axis(scores, index[..., None], 1)  # [B, N, K]
        power = self.config.methods.stpl.contrast.class_power

        def supervise(scores, labels, mask):
            weights = class_balance(labels, mask, self.segmenter.num_classes, power)
            return masked_mean(cross_entropy(scores, labels)[0], mask, weights.astype(scores.dtype))

        loss = settings.supervision_weight * jax.vmap(supervise)(picked, labels, mask).mean()
        fused = (self.stpl.fuse(network, view, flows) for view in (clean, augmented))
        loss += settings.contrast_weight * self.stpl.contrast(network, *fused, index, labels, mask)
        return {"network": loss}, Aux(stats, {"confident": mask.mean(dtype=jnp.float32)})

    def after_update(self, state, aux):
        del aux
        decay, network = self.settings.teacher_decay, state.params["network"]["segmenter"]
        moved = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.extra["teacher"], network)
        return state.replace(extra={"teacher": moved})
