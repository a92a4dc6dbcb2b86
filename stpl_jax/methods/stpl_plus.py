"""Source-free adaptation to what inference does: ours, by the paper's rules (target video alone, no labels).

    y = argmax of the teacher's fused scores, each clip normalised by its own statistics
    L = CE(p, y) + w · CE(p̃, y)        p, p̃: the clean and the augmented clip, normalised by the running averages

Clips differ in how far they are from the source domain. Normalised by its own statistics a clip is labelled best; but
inference knows running averages alone. So a moving average of the network labels clips the first way, the network
learns to say the same the second way, and the averages are those of the clips that the teacher sees. Confident pixels
are drawn class by class and weighed by their class's count; the classifiers stay. Both frames count, fused along the
flow as in inference. On a fixed blend of statistics (`batch_norm.prior`) teacher and network are normalised by that.
"""

import jax
import jax.numpy as jnp

from input_pipeline.errors import UserError
from input_pipeline.needs import DomainNeeds
from stpl_jax.forward import augmented_clips, extract, frames_first, fused_main_scores
from stpl_jax.losses.contrastive import class_balance
from stpl_jax.losses.pseudo_labels import confident_pixels
from stpl_jax.losses.reduction import masked_mean
from stpl_jax.losses.segmentation import cross_entropy
from stpl_jax.methods.base import Aux, Method
from stpl_jax.ops.augment import AugmentSettings


class STPLPlus(Method):
    """An averaged teacher with a clip's own statistics, a student with running averages; `config.methods.stpl_plus`."""

    frozen = ("normalisation", "classifiers", "score_fusion")

    def __init__(self, config, segmenter):
        self.config, self.segmenter, self.settings = config, segmenter, config.methods.stpl_plus
        if config.batch_norm.mode != "batch" and not (config.batch_norm.prior or config.batch_norm.choose_prior):
            raise UserError(
                f"stpl_plus normalises clips by their own statistics: batch_norm.mode is batch for it, found "
                f"{config.batch_norm.mode!r}."
            )
        self.needs = {"target": DomainNeeds()}
        self.augment_settings = AugmentSettings(**self.settings.augment)

    def init(self, key, variables):
        del key
        # A copy: a donated state must not hold one buffer twice.
        return {"network": {"segmenter": variables["params"]}}, {"teacher": jax.tree.map(jnp.copy, variables["params"])}

    def loss(self, params, state, batch, key):
        segmenter, data, settings = params["network"]["segmenter"], batch["target"], self.settings
        (index, labels, mask), stats = self.pseudo_labels(state, data)

        clean = frames_first(data["frames"]).astype(self.segmenter.dtype)  # [T, B, H, W, 3]
        augmented = frames_first(augmented_clips(data, key, self.augment_settings))
        views = jnp.concatenate([clean, augmented.astype(clean.dtype)])
        variables = {"params": segmenter, "batch_stats": stats}
        features = self.segmenter.features(variables, views)[0]  # [2T, B, h, w, C]

        def supervise(scores, labels, mask):
            weights = class_balance(labels, mask, self.segmenter.num_classes, settings.class_power)
            return masked_mean(cross_entropy(scores, labels)[0], mask, weights.astype(scores.dtype))

        def supervised(first):
            frames = jax.tree.map(lambda f: f[first : first + 2], features)
            scores = fused_main_scores(self.segmenter, segmenter, frames, data["flow"][:, 0], self.config.flow.scale)
            scores = scores.reshape(scores.shape[0], -1, scores.shape[-1])
            return jax.vmap(supervise)(jnp.take_along_axis(scores, index[..., None], 1), labels, mask).mean()

        loss = supervised(0) + settings.augmented_weight * supervised(len(clean))
        return {"network": loss}, Aux(stats, {"confident": mask.mean(dtype=jnp.float32)})

    def pseudo_labels(self, state, data):
        """Labels clean clips by the teacher, without a gradient.

        Returns:
          `index`, `labels`, `mask`, `[B, N]` each, on the grid of the scores; and the running averages after the clips.
        """
        teacher = jax.lax.stop_gradient(state.extra["teacher"])
        clips = data["frames"].astype(self.segmenter.dtype)  # [B, T, H, W, 3]: a clip is a group with its statistics
        features, stats = extract(self.segmenter, teacher, state.batch_stats, clips, self.config.batch_norm)
        frames = jax.tree.map(lambda f: jnp.moveaxis(f, 1, 0), features)  # [T, B, h, w, C]
        scores = fused_main_scores(self.segmenter, teacher, frames, data["flow"][:, 0], self.config.flow.scale)
        scores = scores.reshape(scores.shape[0], -1, scores.shape[-1])
        topk = self.settings.topk
        return jax.vmap(lambda s: confident_pixels(s, topk.proportion, topk.per_class))(scores), stats

    def after_update(self, state, aux):
        del aux
        decay, network = self.settings.teacher_decay, state.params["network"]["segmenter"]
        moved = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.extra["teacher"], network)
        return state.replace(extra={"teacher": moved})
