"""TPS: domain adaptive video segmentation via temporal pseudo supervision (Xing et al., ECCV 2022).

    ŷ_{t-1} = argmax W(p(x_{t-1}, x_{t-2}); o_t)             what the clip before says, warped to t
    L       = L_source + λ · CE(p(T(x_t), T(x_{t-1})), ŷ_{t-1})

for the main and, with labels of its own, the auxiliary classifier (· 0.1). No threshold: every pixel counts. T blurs,
jitters colours, sometimes takes them away, and scales; its scores are scaled back onto the clip's own grid, where the
labels are. The clip that labels come from is mirrored half of the time. Source frames take the histogram of the target
frame x_t.

Differences from the public code (GitHub xing0047/TPS, of its versions the one that blurs with radii 5, 7 and 9):

- Two faults are left out, unless `methods.tps.as_published` asks for them (`ops/published_tps.py`):
  (a) Where the clip before is mirrored, its own flow is mirrored without changing the sign of u, and the flow from t to
  t-1 not at all: the mirrored prediction is warped by it, and mirrored back after that. (Another version mirrors this
  flow, too, again without the sign.)
  (b) T acts on frames that are normalised already (BGR, mean taken off), as bytes that 255 times those values wrap to,
  blue in the place of red. Its result enters the network as values of 0 to 1 and is not normalised again: less than a
  hundredth of a clean frame's spread. These frames enter the running averages, here whatever `batch_norm.average_over`
  says. Without source they are two of four, and a first layer's running variance settles at
  0.1 · (0.9² + 0.9³) / (1 - 0.9⁴) = 0.45 of a clean frame's; with source, two of six, at 0.59. With another network
  than ACCEL, (b) starts from what that one's `normalise` gives, and where this is 0 to 1, there is no fault.
- Frames become larger or smaller there, by 0.80 to 1.19 in steps of 0.01, each side a multiple of 8. Here their size is
  fixed, so that one compiled program does for all draws; factors come from all of 0.8 to 1.2; an enlarged frame is cut,
  a shrunk one mirrored at its borders (`ops.zoom`), each around a random point. What was cut off does not count.
- The four parts of the colour jitter come in a fixed order, there in a random one. Contrast takes the mean of each
  frame, there of the two together. Values are not rounded to bytes on the way. The blur is a Gaussian, there a sum of
  boxes.
- ADVENT's scheduler sets two of the three groups of parameters: the classifiers stay at 10 times the first rate, and
  the score fusion has 10 times the decayed one. Here, with `optim.profile=own`, the classifiers have 10 times the
  decayed rate, and the fusion the rate itself.
- Each residual layer's parameters are updated 3 or 4 times in one step there, here once: see `stpl_jax/optim.py`.
- Flow is estimated as `config.flow` says; there both components of flow files are scaled by the ratio of heights, for
  which `flow.scale=public` stands.
- Training starts from ImageNet weights there; here from the source model.
- There 40,001 steps are taken, and the best of the snapshots on the target's validation labels is what is reported
  (`MODE: video_best`); here the weights at the end are scored.

`source_free` leaves the target term.
"""

import jax
import jax.numpy as jnp

from input_pipeline.errors import UserError
from input_pipeline.needs import DomainNeeds
from stpl_jax.forward import clip_scores, flow_on_grid
from stpl_jax.losses.reduction import masked_mean
from stpl_jax.losses.segmentation import IGNORED, cross_entropy
from stpl_jax.methods.base import Aux, Method
from stpl_jax.methods.supervised import supervised_loss
from stpl_jax.ops import published_tps
from stpl_jax.ops.augment import AugmentSettings, photometric
from stpl_jax.ops.histogram import match_histograms
from stpl_jax.ops.mirror import mirror, mirror_flow
from stpl_jax.ops.warp import warp
from stpl_jax.ops.zoom import covered, zoom


class TPS(Method):
    """The clip before supervises the augmented clip; `config.methods.tps`."""

    def __init__(self, config, segmenter):
        self.config, self.segmenter, self.settings = config, segmenter, config.methods.tps
        low, high = self.settings.scale
        if not 0.5 <= low <= high:
            raise UserError(f"methods.tps.scale is (smallest, largest), from 0.5 on; found {(low, high)}.")
        self.needs = {"target": DomainNeeds((0, 1, 2), ((0, 1), (1, 2)))}
        if not config.source_free:
            self.needs["source"] = DomainNeeds(labels=True, mirrored=self.settings.mirror)
        self.augment_settings = AugmentSettings(**self.settings.augment)

    def loss(self, params, state, batch, key):
        segmenter, data, stats, metrics = params["network"]["segmenter"], batch["target"], state.batch_stats, {}
        draws = jax.vmap(self.draw)(jax.vmap(jax.random.fold_in, (None, 0))(key, data["index"]))
        loss = 0.0
        if "source" in self.needs:
            frames = jax.vmap(match_histograms)(batch["source"]["frames"], data["frames"][:, 0])
            loss, stats = supervised_loss(self.config, self.segmenter, segmenter, stats, batch["source"], frames)
            metrics["supervised"] = loss
        labels, stats = self.pseudo_labels(segmenter, stats, data, draws)
        scores, seen, stats = self.augmented_scores(segmenter, stats, data, draws)

        def supervise(scores, labels):
            return masked_mean(*cross_entropy(scores, jnp.where(seen, labels, IGNORED)))

        target = jax.tree.map(supervise, scores, labels).total(self.config.auxiliary_weight)
        metrics["target"] = target
        return {"network": loss + self.settings.target_weight * target}, Aux(stats, metrics)

    def draw(self, key):
        """Draws what one clip's views need, so that they depend on neither batch nor device."""
        photometric_key, flip_key, scale_key, anchor_key = jax.random.split(key, 4)
        low, high = self.settings.scale
        return {
            "photometric": photometric_key,
            "flip": jax.random.uniform(flip_key, (), jnp.float32) < self.settings.flip_probability,
            "scale": jax.random.uniform(scale_key, (), jnp.float32, low, high),
            "anchor": jax.random.uniform(anchor_key, (2,), jnp.float32),  # the point that scaling leaves in place
        }

    def pseudo_labels(self, params, stats, data, draws):
        """Labels x_t, `[B, h, w]` int32 by classifier, by what (x_{t-1}, x_{t-2}) give; the averages move on."""

        def turn(x, mirrored):
            return jnp.where(draws["flip"].reshape(-1, *(1,) * (x.ndim - 1)), mirrored(x), x)

        published = self.settings.as_published
        mirrored_flow = published_tps.mirror_flow_without_sign if published else mirror_flow
        frames, flow = turn(data["frames"][:, 1:3], mirror), turn(data["flow"][:, 1:2], mirrored_flow)
        scores, stats = clip_scores(self.config, self.segmenter, jax.lax.stop_gradient(params), stats, frames, flow)
        flow = flow_on_grid(data["flow"][:, 0], scores.main.shape[1:3], self.config.flow.scale)

        def label(scores):
            probabilities = jax.nn.softmax(scores if published else turn(scores, mirror), -1)
            warped = warp(probabilities, flow.astype(probabilities.dtype))
            return jnp.argmax(turn(warped, mirror) if published else warped, -1).astype(jnp.int32)

        return jax.tree.map(label, jax.lax.stop_gradient(scores)), stats

    def augmented_scores(self, params, stats, data, draws):
        """Scores T(x_t), T(x_{t-1}): fused scores on the clip's own grid, where they exist, the running averages."""
        scale, anchor, dtype = draws["scale"], draws["anchor"], jnp.result_type(float)
        network, clean, frames = self.segmenter, 0, data["frames"][:, :2]
        if self.settings.as_published:
            frames = published_tps.wrapped_bytes(network.normalise(frames, jnp.float32))
        frames = jax.vmap(photometric, (0, 0, None))(draws["photometric"], frames.astype(dtype), self.augment_settings)
        if self.settings.as_published:
            network, clean, frames = published_tps.without_normalisation(network), None, frames / 255
        over_frames = jax.vmap(jax.vmap(zoom, (0, None, None)))
        frames = over_frames(frames, scale, anchor)
        longer = scale.reshape(-1, 1, 1, 1, 1).astype(dtype)
        flow = over_frames(data["flow"][:, :1].astype(dtype), scale, anchor) * longer
        scores, stats = clip_scores(self.config, network, params, stats, frames, flow, clean)
        back = jax.vmap(zoom)
        seen = jax.vmap(lambda s, a: covered(scores.main.shape[1:3], s, a))(1 / scale, anchor)
        return jax.tree.map(lambda s: back(s, 1 / scale, anchor), scores), seen, stats
