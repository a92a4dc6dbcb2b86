"""UR: Uncertainty Reduction for Model Adaptation in Semantic Segmentation (Sivaprasad and Fleuret, CVPR 2021).

    L = CE(p, y) + λ_e · mean H(p) / log K + λ_u · Σ_d MSE(p_d, p)

y are class-balanced pseudo-labels, of the clip and its mirror image. p is the prediction on another view of the clip:
mirrored half of the time, scaled and cut, `config.methods.ur.view`. p_d is what an auxiliary decoder d predicts from
features without half their channels: a network that is certain still agrees with itself. No source data.

Weights and details are the public code's, with these differences.

- Pseudo-labels are the source model's as there, but made in each step, with thresholds over the device's clips, from
  all their confidences; there they are made once, over the whole set, from every tenth confidence of each class.
  `pseudo_labels=current`, by the network of the moment, is ours.
- Predictions are those of the video network, from two frames, which share one view; decoders see x_t alone. All terms
  are at feature resolution, labels too; there at the frames'.
- Where a scaled frame is smaller than the view, the rest is black there, a fifth of all pixels, labelled as class 0,
  road, and counts in every term: a fault. Here it counts in no term. (Where scores have a finer grid than features,
  as ESPNet's, what decoders are compared with is interpolated, and has a share of it next to the frame's border.)
- That rest shows the frame mirrored at its border here. Black pixels would not count either, but they would enter the
  running averages, and these alone do harm: on the embedded benchmark (seed 0) `view.beyond=zero`, the public code's,
  took the source model from 26.2 to 15.6 mIoU in 60 steps in which the weights stayed as they were
  (`--config.rows.ur.optim.learning_rate=1e-9 --config.steps=60`).
- A view is sampled from the frame at the training size, by bilinear interpolation without smoothing; there from the
  original frame, which has more detail, by Pillow, which smooths what it shrinks.
- Scale and bias of batch normalisation stay as they are; there they are trained outside the stem.
- Classifier and decoders add up all their branches. There a `return` within the loop leaves two of four.
- Each residual layer's parameters are updated 3 or 4 times in one step there, here once: see `stpl_jax/optim.py`.
- With `optim.profile=paper`, `decoder_multiplier` brings the decoders' learning rate, summed over a run, to the public
  code's. `own` has that code's optimiser and its batch of two, `clips_per_device=2`; images there, clips here.

As there, the auxiliary classifier takes no part, and the training view enters the running averages, whatever
`batch_norm.average_over` says: its colours are those of the clip.
"""

import jax
import jax.numpy as jnp

from input_pipeline.needs import DomainNeeds
from stpl_jax import optim
from stpl_jax.forward import clip_predictions, label_scores, on_grid
from stpl_jax.losses.class_balanced import class_balanced_labels, class_thresholds
from stpl_jax.losses.entropy import entropy
from stpl_jax.losses.reduction import masked_mean
from stpl_jax.losses.segmentation import IGNORED, cross_entropy
from stpl_jax.losses.uncertainty import probability_error
from stpl_jax.methods.base import Aux, Method
from stpl_jax.models.decoders import AuxiliaryDecoders, draw_channel_masks
from stpl_jax.ops.dtypes import compute_dtype
from stpl_jax.ops.view import sample_view, view_classes, view_flow, view_images, within_frame


class UR(Method):
    """Class-balanced self-training, low entropy, and decoders that agree; settings in `config.methods.ur`."""

    # The auxiliary classifier gets no gradient here: PyTorch would not decay it either.
    frozen = ("normalisation", "auxiliary_classifier")

    def __init__(self, config, segmenter):
        self.config, self.segmenter, self.settings = config, segmenter, config.methods.ur
        self.needs = {"target": DomainNeeds()}
        self.decoders = AuxiliaryDecoders(self.settings.decoders, segmenter.new_classifier)

    def init(self, key, variables):
        channels, dtype = self.segmenter.channels(variables).main, self.segmenter.param_dtype
        features, masks = jnp.zeros((1, 8, 8, channels), dtype), jnp.ones((self.settings.decoders, 1, channels), dtype)
        decoders = self.decoders.init(key, features, masks)["params"]
        # Copies: a donated state must not hold one buffer twice.
        source = {name: jax.tree.map(jnp.copy, variables[name]) for name in ("params", "batch_stats")}
        kept = {"source": source} if self.settings.pseudo_labels == "source" else None
        return {"network": {"segmenter": variables["params"], "decoders": decoders}}, kept

    def optimisers(self, settings):
        decoders = (r"^decoders/", self.settings.decoder_multiplier)
        return {"network": optim.sgd(settings, self.segmenter.groups, self.frozen, (decoders,))}

    def loss(self, params, state, batch, key):
        data, network = batch["target"], params["network"]
        view_key, dropout_key = jax.random.split(key)

        def look(run, params, batch_stats, frames, flow, *options):
            return run(self.config, self.segmenter, params, batch_stats, frames, flow, *options)

        current = (network["segmenter"], state.batch_stats)
        labeller = self.labeller(network["segmenter"], state)
        labelled = look(label_scores, *labeller, data["frames"], data["flow"], self.settings.label_statistics)
        labels = self.pseudo_labels(sum(jax.nn.softmax(scores.main, -1) for scores in labelled) / 2)
        views, frames, flow = self.views(data, view_key)
        features, scores, stats = look(clip_predictions, *current, frames, flow)
        decoded = self.decode(network["decoders"], features.main, data["index"], dropout_key)  # [decoders, B, h, w, K]

        sizes, scored = (data["frames"].shape[2:4], frames.shape[2:4]), scores.main.shape[1:3]
        in_view = jax.vmap(lambda classes, view: view_classes(classes, view, *sizes, scored))(labels, views)
        seen, seen_on_features = (
            jax.vmap(lambda view, grid=grid: within_frame(view, *sizes, grid))(views)
            for grid in (scored, decoded.shape[2:4])
        )
        loss = self.terms(scores.main, jnp.where(seen, in_view, IGNORED), seen, decoded, seen_on_features)
        return {"network": loss}, Aux(stats, {"labelled": jnp.mean(labels != IGNORED, dtype=jnp.float32)})

    def labeller(self, segmenter, state):
        """Returns the parameters and running averages of the network that makes the pseudo-labels."""
        if self.settings.pseudo_labels == "source":
            return state.extra["source"]["params"], state.extra["source"]["batch_stats"]
        return segmenter, state.batch_stats

    def views(self, data, key):
        """Draws a view of each clip, by the clip's own key, so that it depends on neither batch nor device.

        Returns:
          The views, a `View` of arrays `[B]`; frames `[B, T, h, w, 3]` and flow `[B, P, h, w, 2]` as they show them,
          floating point, flow in tenths of a pixel of this grid.
        """
        settings, dtype = self.settings.view, compute_dtype(self.segmenter.dtype)
        size = data["frames"].shape[2:4]
        out_size = tuple(round(side * share) for side, share in zip(size, settings.crop, strict=True))

        def show(key, frames, flow):
            view = sample_view(key, size, out_size, tuple(settings.scale), settings.flip_probability)
            images = view_images(frames.astype(dtype), view, out_size, settings.beyond)
            return view, images, view_flow(flow.astype(dtype), view, out_size)

        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, data["index"])
        return jax.vmap(show)(keys, data["frames"], data["flow"])

    def terms(self, scores, labels, seen, decoded, seen_on_features):
        """Adds up the three terms over what shows the frame.

        Args:
          scores: `[B, h', w', K]` of the view.
          labels: `[B, h', w']`, `IGNORED` where there is none or where the view shows no frame.
          seen: `[B, h', w']` bool, where the view shows the frame.
          decoded: `[decoders, B, h, w, K]`, the decoders' scores on the features' grid.
            The scores are brought to it by interpolation where theirs is another grid: next to the frame's border,
            what the decoders are compared with then has a share of pixels that are not seen.
          seen_on_features: `[B, h, w]` bool, as `seen` on that grid.

        Returns:
          A scalar.
        """
        self_training = masked_mean(*cross_entropy(scores, labels))
        on_features = on_grid(jax.nn.softmax(scores, -1), decoded.shape[2:4])
        uncertainty = masked_mean(probability_error(decoded, on_features[None]).sum(0), seen_on_features)
        return (
            self_training
            + self.settings.entropy_weight * masked_mean(entropy(scores), seen)
            + self.settings.uncertainty_weight * uncertainty
        )

    def pseudo_labels(self, probabilities):
        """Labels the pixels `[B, h, w]` that are confident for their class, by thresholds over all clips together."""
        pixels = probabilities.reshape(-1, probabilities.shape[-1])
        return class_balanced_labels(probabilities, class_thresholds(pixels, self.settings.proportion))

    def decode(self, decoders, features, index, key):
        """Scores x_t by each decoder; what a clip's draws drop depends on neither batch nor device."""
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
        masks = draw_channel_masks(keys, self.settings.decoders, features.shape[-1], self.settings.dropout)
        return self.decoders.apply({"params": decoders}, features, masks)
