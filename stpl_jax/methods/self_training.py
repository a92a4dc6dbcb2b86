"""Vanilla self-training (paper, section 4.3, Table 3): cross-entropy against the model's own confident predictions."""

import jax
import jax.numpy as jnp

from input_pipeline.needs import DomainNeeds
from stpl_jax.forward import clip_scores
from stpl_jax.losses.pseudo_labels import confident_pixels
from stpl_jax.losses.reduction import masked_mean
from stpl_jax.losses.segmentation import cross_entropy
from stpl_jax.methods.base import Aux, Method


class SelfTraining(Method):
    """Cross-entropy of the fused scores, main + 0.1 · auxiliary, at feature resolution, on the confident pixels."""

    def __init__(self, config, segmenter):
        self.config, self.segmenter = config, segmenter
        self.settings = config.methods.self_training
        self.needs = {"target": DomainNeeds()}

    def loss(self, params, state, batch, key):
        del key
        data, segmenter = batch["target"], params["network"]["segmenter"]
        scores, stats = clip_scores(
            self.config, self.segmenter, segmenter, state.batch_stats, data["frames"], data["flow"]
        )
        scores = jax.tree.map(lambda s: s.reshape(s.shape[0], -1, s.shape[-1]), scores)  # [B, P, K]

        topk = self.settings.topk
        index, labels, mask = jax.vmap(lambda s: confident_pixels(s, topk.proportion, topk.per_class))(scores.main)

        def on_confident(scores):
            picked = jnp.take_along_axis(scores, index[..., None], 1)
            return masked_mean(cross_entropy(picked, labels)[0].ravel(), mask.ravel())

        loss = jax.tree.map(on_confident, scores).total(self.config.auxiliary_weight)
        return {"network": loss}, Aux(stats)
