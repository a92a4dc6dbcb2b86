"""STPL: spatio-temporal pixel-level contrastive learning (paper, section 3), and its special cases (section 3.3).

    z_{t-1}, z_t  = E(x_{t-1}), E(x_t)
    z'_{t-1}      = W(z_{t-1}; o)
    z_{(t-1,t)}   = f(z'_{t-1}, z_t)
    z^h           = normalise(H(z))

and the same for the augmented clip T(X) with the clean clip's flow. The model's confident predictions on the clean clip
say which pixels are of one class; clean pixels are queries, augmented ones keys.
"""

import operator

import jax
import jax.numpy as jnp

from input_pipeline.errors import UserError
from input_pipeline.needs import DomainNeeds
from stpl_jax import optim
from stpl_jax.forward import augmented_clips, extract, flow_on_grid, frames_first, fused_main_scores, on_grid
from stpl_jax.losses.contrastive import class_balance, pixel_contrast
from stpl_jax.losses.pseudo_labels import confident_pixels
from stpl_jax.losses.reduction import masked_mean
from stpl_jax.methods.base import Aux, Method
from stpl_jax.models.fusion import make_fusion
from stpl_jax.models.projection import Projection
from stpl_jax.ops.augment import AugmentSettings
from stpl_jax.ops.warp import warp
from stpl_jax.parallel import AXIS

OBJECTIVES = ("stpl", "spatial", "temporal", "duplicate", "naive")
SCOPES = ("clip", "device", "global")


class STPL(Method):
    """The paper's method, every reading of it under `config.methods.stpl`.

    objective:
      stpl: fused features of the clean clip against those of the augmented clip.
      spatial: z_t against the augmented z_t, no fusion.
      temporal: z_t against z_{t-1}, unwarped unless `warp_keys`, no augmentation; the keys carry x_t's labels.
      duplicate: z_t against itself.
      naive: spatial + temporal.
    """

    frozen = ("normalisation", "classifiers", "score_fusion")

    def __init__(self, config, segmenter, objective=None):
        self.config, self.segmenter, self.settings = config, segmenter, config.methods.stpl
        self.objective = objective or self.settings.objective
        if self.objective not in OBJECTIVES:
            raise UserError(f"methods.stpl.objective is one of {OBJECTIVES}, found {self.objective!r}.")
        if self.settings.contrast.scope not in SCOPES:
            raise UserError(f"methods.stpl.contrast.scope is one of {SCOPES}, found {self.settings.contrast.scope!r}.")
        self.num_frames = config.num_frames if self.objective == "stpl" else 2
        if self.num_frames < 2:
            raise UserError(f"num_frames is 2 or more, found {self.num_frames}.")
        earlier = range(1, self.num_frames)
        self.needs = {"target": DomainNeeds((0, *earlier), tuple((0, k) for k in earlier))}
        self.fusion = make_fusion(
            self.settings.fusion, self.settings.fusion_init, segmenter.param_dtype, segmenter.rematerialise
        )
        head = self.settings.projection
        self.projection = Projection(head.hidden, head.dim, head.init, segmenter.param_dtype)
        self.augment_settings = AugmentSettings(**self.settings.augment)

    def init(self, key, variables):
        fusion_key, projection_key = jax.random.split(key)
        dtype = self.segmenter.param_dtype
        channels = self.segmenter.channels(variables).main
        features = jnp.zeros((self.num_frames, 1, 8, 8, channels), dtype)
        network = {"segmenter": variables["params"]}
        if self.objective == "stpl":
            fusion = self.fusion.init(fusion_key, features)
            network["fusion"] = fusion.get("params", {})
            features = self.fusion.apply(fusion, features)
        else:
            features = features[0]
        network["projection"] = self.projection.init(projection_key, features)["params"]
        return {"network": network}, None

    def optimisers(self, settings):
        head = (r"^(projection|fusion)/", self.settings.head_multiplier)
        return {"network": optim.sgd(settings, self.segmenter.groups, self.frozen, (head,))}

    def loss(self, params, state, batch, key):
        network, data = params["network"], batch["target"]
        clean, augmented, flows, stats = self.views(network, state.batch_stats, data, key)
        index, labels, mask = self.pseudo_labels(network["segmenter"], clean, data["flow"][:, 0])
        clean_features, augmented_features = clean.main, augmented.main

        def contrast(queries, keys):
            return self.contrast(network, queries, keys, index, labels, mask)

        if self.objective == "stpl":
            fused = (self.fuse(network, view, flows) for view in (clean_features, augmented_features))
            loss = contrast(*fused)
        else:
            z_t, z_earlier = clean_features[:2]
            if not self.settings.previous_gradient:
                z_earlier = jax.lax.stop_gradient(z_earlier)
            if self.settings.warp_keys:
                z_earlier = warp(z_earlier, flows[:, 0].astype(z_earlier.dtype))
            terms = {
                "spatial": lambda: contrast(z_t, augmented_features[0]),
                "temporal": lambda: contrast(z_t, z_earlier),
                "duplicate": lambda: contrast(z_t, z_t),
                "naive": lambda: contrast(z_t, augmented_features[0]) + contrast(z_t, z_earlier),
            }
            loss = terms[self.objective]()
        return {"network": loss}, Aux(stats, {"confident": mask.mean(dtype=jnp.float32)})

    def views(self, network, batch_stats, data, key):
        """Runs the backbone on the clean and, where the objective has one, on the augmented clip, as one batch.

        Returns:
          `PerClassifier` of features, frames newest first, `[T, B, h, w, C]`; likewise augmented, or of fewer frames;
          flow on the grid of the main ones, `[B, T-1, h, w, 2]`; the running averages afterwards.
        """
        clean = frames_first(data["frames"])  # [T, B, H, W, 3]
        groups = clean.astype(self.segmenter.dtype)
        if self.objective in ("stpl", "spatial", "naive"):
            augmented = self.augment(data, key)
            augmented = augmented if self.objective == "stpl" else augmented[:1]
            groups = jnp.concatenate([groups, augmented.astype(groups.dtype)])
        features, stats = extract(
            self.segmenter, network["segmenter"], batch_stats, groups, self.config.batch_norm, len(clean)
        )
        flows = flow_on_grid(data["flow"], features.main.shape[2:4], self.config.flow.scale)
        clean_features, augmented_features = (
            jax.tree.map(operator.itemgetter(part), features) for part in (slice(len(clean)), slice(len(clean), None))
        )
        return clean_features, augmented_features, flows, stats

    def augment(self, data, key):
        """Draws T(X), `[T, B, H, W, 3]`, frames newest first."""
        return frames_first(augmented_clips(data, key, self.augment_settings))

    def pseudo_labels(self, segmenter, features, flow):
        """Picks confident pixels of the clean clip: `index`, `labels`, `mask`, `[B, N]` each, no gradient."""
        segmenter, features = jax.lax.stop_gradient((segmenter, features))
        scores = fused_main_scores(self.segmenter, segmenter, features, flow, self.config.flow.scale)
        scores = on_grid(scores, features.main.shape[2:4])
        topk = self.settings.topk
        return jax.vmap(lambda s: confident_pixels(s, topk.proportion, topk.per_class))(
            scores.reshape(scores.shape[0], -1, scores.shape[-1])
        )

    def fuse(self, network, features, flows):
        """Fuses a view's frames, `[T, B, h, w, C]` newest first, into `[B, h, w, C']` on x_t's grid."""
        earlier = [warp(features[k], flows[:, k - 1].astype(features.dtype)) for k in range(1, self.num_frames)]
        if not self.settings.previous_gradient:
            earlier = jax.lax.stop_gradient(earlier)
        return self.fusion.apply({"params": network["fusion"]}, jnp.stack([features[0], *earlier]))

    def contrast(self, network, queries, keys, index, labels, mask):
        """Picks the confident pixels, projects and contrasts: equation 4 on each clip, averaged over clips."""

        def project(features):
            # H works on each pixel by itself, so that those that do not take part need not pass it.
            pixels = features.reshape(features.shape[0], -1, features.shape[-1])
            picked = jnp.take_along_axis(pixels, index[..., None], 1)[:, None]  # [B, 1, N, C]
            return self.projection.apply({"params": network["projection"]}, picked)[:, 0]

        settings = self.settings.contrast
        queries = project(queries)  # [B, N, D]
        keys = project(keys)
        if not self.settings.key_gradient:
            keys = jax.lax.stop_gradient(keys)

        def mean_loss(queries, labels, mask, keys, key_labels, key_mask, axis_name=None):
            loss, valid = pixel_contrast(
                queries,
                keys,
                labels,
                key_labels,
                mask,
                key_mask,
                self.segmenter.num_classes,
                settings.temperature,
                settings.block,
            )
            weights = class_balance(labels, mask, self.segmenter.num_classes, settings.class_power, axis_name)
            return masked_mean(loss, valid, weights.astype(loss.dtype), axis_name)

        if settings.scope == "clip":
            return jax.vmap(mean_loss)(queries, labels, mask, keys, labels, mask).mean()
        flat = [x.reshape(-1, *x.shape[2:]) for x in (queries, labels, mask, keys, labels, mask)]
        if settings.scope == "global":
            # The gradient of a gathered key returns to the device that made it, summed over the devices that used it.
            flat[3:] = [jax.lax.all_gather(x, AXIS, tiled=True) for x in flat[3:]]
            return mean_loss(*flat, AXIS)
        return mean_loss(*flat)
