"""PixMatch: pixelwise consistency under perturbation (Melas-Kyriazi and Manrai, CVPR 2021).

    L = CE(f(x^s), y^s) + 0.1 · CE(f(a(x^t)), a(argmax f(x^t)))

The prediction on a perturbed target image shall be the perturbed prediction on the image itself. a is the publication's
base set, of the public code's strengths: random resized crop, additive colour jitter, grey, blur. No threshold, no
averaged teacher. The auxiliary classifier's labels are the argmax of both classifiers' mean probability, its weight 0.1
once more.

An image method: on video, f is ACCEL's, of two frames, which share one draw of a; their flow is cropped along.

The public code differs in these points:

- Target frames are 640×1280, and a takes 512×512. Frames here are 512×1024 and the crop is the same share of them,
  410×410, so that a magnifies as much. One frame of each domain a step.
- The auxiliary classifier's labels, by mistake, come from a second draw of a: they do not lie on the frames it sees.
- Frames are cut to bytes after every operation of a, and hue has steps of 2°; here values are real numbers.
- The crop takes the label of the pixel above and left of a sample's position, here that of the nearest pixel.
- Blur has OpenCV's binomial kernels and mirrors the frame at its border; here Gaussians of their standard deviations
  (0.71 and 1 pixel, in proportion to the crop's height), with the edge repeated.
- Half of the target frames are mirrored, and half of the frames of both domains blurred with a radius of 0 to 1 pixel,
  before all else. Here target frames come as they are.
- BatchNorm's scale and bias are trained outside the stem; here no method of the tables trains them.
- A moving average of the weights (0.999) is scored after every pass through the data, and the pass that is best on the
  target's validation labels is kept. Here every row is scored by the weights that were trained.
- Classifiers add up two of their four branches there, by a `return` within the loop; here all.
- Each residual layer's parameters are updated 3 or 4 times in one step there, here once: see `stpl_jax/optim.py`.
- GTA5 starts from a model of the source, SYNTHIA from ImageNet; here always from the source model.
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
from stpl_jax.ops.additive_jitter import AdditiveSettings, additive_photometric
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
        self.augment_settings = AdditiveSettings(**self.settings.augment)

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
        out_size = crop_size(size, crop)
        dtype = compute_dtype(self.segmenter.dtype)

        def perturb(key, frames, flow, labels):
            box_key, colour_key = jax.random.split(key)
            box = sample_box(box_key, size, out_size, tuple(crop.scale), tuple(crop.ratio))
            frames = crop_resized(frames.astype(dtype), box, out_size)
            frames = additive_photometric(colour_key, frames, self.augment_settings)
            flow = crop_resized_flow(flow.astype(dtype), box, out_size)
            return frames, flow, jax.tree.map(lambda y: crop_resized_nearest(y, box, out_size), labels)

        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, target["index"])
        return jax.vmap(perturb)(keys, target["frames"], target["flow"], labels)


def crop_size(size, crop):
    """(height, width) of the resized crop of frames of `size`, as `config.methods.pixmatch.crop` says."""
    return tuple(round(side * share) for side, share in zip(size, crop.size, strict=True))
