"""PixMatch: pixelwise consistency under perturbation (Melas-Kyriazi and Manrai, CVPR 2021).

    L = CE(f(x^s), y^s) + 0.1 · CE(f(a(x^t)), a(argmax f(x^t)))

The prediction on a perturbed target image shall be the perturbed prediction on the image itself. a is the publication's
base set: random resized crop, brightness, contrast, saturation and hue, grey, blur. No threshold, no averaged teacher.

An image method: on video, f is ACCEL's, of two frames, which share one draw of a; their flow is cropped along. The
auxiliary classifier's labels are the argmax of both classifiers' mean probability, its weight 0.1 once more (public
code, where these labels by mistake get another crop). That code also scores a moving average of the weights; here every
row is scored by the weights that were trained. Its colour operations are OpenCV's, ours are the project's own.
"""

import jax
import jax.numpy as jnp

from input_pipeline.errors import UserError
from input_pipeline.needs import DomainNeeds
from stpl_jax.forward import clip_scores
from stpl_jax.losses.segmentation import cross_entropy
from stpl_jax.methods.base import Aux, Method
from stpl_jax.methods.supervised import supervised_loss
from stpl_jax.models.network import PerClassifier
from stpl_jax.ops.augment import AugmentSettings, photometric
from stpl_jax.ops.dtypes import compute_dtype
from stpl_jax.ops.geometry import crop_resized, crop_resized_flow, crop_resized_nearest, sample_box
from stpl_jax.ops.resize import resize_align_corners


class PixMatch(Method):
    """Labels on source, consistency on target; everything under `config.methods.pixmatch`."""

    def __init__(self, config, segmenter):
        if config.source_free:
            raise UserError(
                "method=pixmatch without source data would be self-training on its own unfiltered predictions, which "
                "the paper has no row for. Set source_free=False, or use method=self_training."
            )
        self.config, self.segmenter, self.settings = config, segmenter, config.methods.pixmatch
        self.needs = {"source": DomainNeeds(labels=True, mirrored=self.settings.mirror), "target": DomainNeeds()}
        self.augment_settings = AugmentSettings(**self.settings.augment)

    def loss(self, params, state, batch, key):
        network, source, target = params["network"]["segmenter"], batch["source"], batch["target"]
        supervised, stats = supervised_loss(self.config, self.segmenter, network, state.batch_stats, source)

        labels, stats = self.pseudo_labels(network, stats, target)
        frames, flow, labels = self.perturbed(target, labels, key)
        scores, stats = clip_scores(self.config, self.segmenter, network, stats, frames, flow, clean=0)
        size = frames.shape[2:4]
        losses = jax.tree.map(lambda s, y: cross_entropy(resize_align_corners(s, size), y)[0].mean(), scores, labels)
        consistency = losses.total(self.config.auxiliary_weight)
        loss = supervised + self.settings.weight * consistency
        return {"network": loss}, Aux(stats, {"supervised": supervised, "consistency": consistency})

    def pseudo_labels(self, network, stats, target):
        """Labels the clean clips at the frames' size: class maps `[B, H, W]` by classifier, and the averages."""
        scores, stats = clip_scores(
            self.config, self.segmenter, jax.lax.stop_gradient(network), stats, target["frames"], target["flow"]
        )
        scores = jax.tree.map(lambda s: resize_align_corners(s, target["frames"].shape[2:4]), scores)
        main = scores.main.argmax(-1).astype(jnp.int32)
        if scores.auxiliary is None:
            return PerClassifier(main), stats
        both = jax.nn.softmax(scores.main, -1) + jax.nn.softmax(scores.auxiliary, -1)
        return PerClassifier(main, both.argmax(-1).astype(jnp.int32)), stats

    def perturbed(self, target, labels, key):
        """Draws a for each clip by its own key.

        Returns:
          Frames `[B, T, h, w, 3]`, flow `[B, P, h, w, 2]` in tenths of a pixel of this grid, labels `[B, h, w]`.
        """
        crop = self.settings.crop
        size = target["frames"].shape[2:4]
        out_size = tuple(round(side * share) for side, share in zip(size, crop.size, strict=True))
        dtype = compute_dtype(self.segmenter.dtype)

        def perturb(key, frames, flow, labels):
            box_key, colour_key = jax.random.split(key)
            box = sample_box(box_key, size, out_size, tuple(crop.scale), tuple(crop.ratio))
            frames = photometric(colour_key, crop_resized(frames.astype(dtype), box, out_size), self.augment_settings)
            flow = crop_resized_flow(flow.astype(dtype), box, out_size)
            return frames, flow, jax.tree.map(lambda y: crop_resized_nearest(y, box, out_size), labels)

        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, target["index"])
        return jax.vmap(perturb)(keys, target["frames"], target["flow"], labels)
