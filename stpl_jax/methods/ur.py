"""UR: Uncertainty Reduction for Model Adaptation in Semantic Segmentation (Sivaprasad and Fleuret, CVPR 2021).

    L = CE(p, y) + λ_e · mean H(p) / log K + λ_u · Σ_d MSE(p_d, p)

p is the prediction, y are class-balanced pseudo-labels, and p_d is what an auxiliary decoder d predicts from features
without half their channels: a network that is certain still agrees with itself. No source data.

Weights and details are the public code's, with these differences. Pseudo-labels are made in each step, by the network
of the moment, with thresholds over the device's clips; there they are made once, over the whole set. Predictions are
those of the video network, from two frames; decoders see x_t alone. All terms are at feature resolution. As there, the
auxiliary classifier takes no part.
"""

import jax
import jax.numpy as jnp

from input_pipeline.needs import DomainNeeds
from stpl_jax.forward import clip_predictions, label_scores, on_grid
from stpl_jax.losses.class_balanced import class_balanced_labels, class_thresholds
from stpl_jax.losses.entropy import entropy
from stpl_jax.losses.reduction import masked_mean
from stpl_jax.losses.segmentation import IGNORED, cross_entropy
from stpl_jax.losses.uncertainty import probability_error
from stpl_jax.methods.base import Aux, Method
from stpl_jax.models.decoders import AuxiliaryDecoders, draw_channel_masks


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
        return {"network": {"segmenter": variables["params"], "decoders": decoders}}, None

    def loss(self, params, state, batch, key):
        data, network = batch["target"], params["network"]
        clips = (state.batch_stats, data["frames"], data["flow"])
        features, scores, stats = clip_predictions(self.config, self.segmenter, network["segmenter"], *clips)
        views = label_scores(self.config, self.segmenter, network["segmenter"], *clips, "batch")
        labels = self.pseudo_labels(sum(jax.nn.softmax(view.main, -1) for view in views) / 2)
        probabilities = jax.nn.softmax(scores.main, -1)  # [B, h, w, K]
        decoded = self.decode(network["decoders"], features.main, data["index"], key)  # [decoders, B, h, w, K]

        self_training = masked_mean(*cross_entropy(scores.main, labels))
        on_features = on_grid(probabilities, decoded.shape[2:4])
        uncertainty = probability_error(decoded, on_features[None]).mean((1, 2, 3)).sum()
        loss = (
            self_training
            + self.settings.entropy_weight * entropy(scores.main).mean()
            + self.settings.uncertainty_weight * uncertainty
        )
        return {"network": loss}, Aux(stats, {"labelled": jnp.mean(labels != IGNORED, dtype=jnp.float32)})

    def pseudo_labels(self, probabilities):
        """Labels the pixels `[B, h, w]` that are confident for their class, by thresholds over all clips together."""
        pixels = probabilities.reshape(-1, probabilities.shape[-1])
        return class_balanced_labels(probabilities, class_thresholds(pixels, self.settings.proportion))

    def decode(self, decoders, features, index, key):
        """Scores x_t by each decoder; what a clip's draws drop depends on neither batch nor device."""
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
        masks = draw_channel_masks(keys, self.settings.decoders, features.shape[-1], self.settings.dropout)
        return self.decoders.apply({"params": decoders}, features, masks)
