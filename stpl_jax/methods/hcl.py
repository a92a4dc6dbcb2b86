"""HCL: Historical Contrastive Learning, for domain adaptation without source data (Huang et al., NeurIPS 2021).

    L = L_cat + λ_a · L_cat,auxiliary + λ_i · L_ins

Three networks: G is trained; G^m is its moving average; G^h is an earlier G, at first the source model.

    L_cat = mean_i exp(-KL(p^h_i ‖ p^m_i)) · CE(p_i, y_i)    p: G on the augmented clip; p^h, p^m on the clean one
    L_ins = mean_i L_i, losses/historical.py                    queries: G, augmented clip; keys: G^m, clean clip

Weights and details are the public code's, with these differences. Classes are not weighed by frequency. The projection
head has no batch normalisation: the paper's batch is one clip. Clips are augmented in their colours alone (there by
AutoAugment and by scale), so that pixel i is one place in both views. Instances are pixels of x_t, a fixed number drawn
from each clip; there all of a crop of 256×512, which are as many. Pseudo-labels are the source model's as there, but
made in each step, from the clip and its mirror image at one scale. All terms are at feature resolution.

G^m and G^h keep no running averages: where batch statistics normalise, none are needed, and where running averages do,
they never change and are G's (the public code copies G's to both).
"""

import jax
import jax.numpy as jnp

from input_pipeline.errors import UserError
from input_pipeline.needs import DomainNeeds
from stpl_jax.forward import augmented_clips, clip_predictions, label_scores, on_grid
from stpl_jax.losses.historical import historical_consistency, historical_contrast, reliability
from stpl_jax.losses.segmentation import cross_entropy
from stpl_jax.methods.base import Aux, Method
from stpl_jax.models.projection import Projection
from stpl_jax.ops.augment import AugmentSettings

LABELLERS = ("source", "historical", "average")


class HCL(Method):
    """Historical contrast of instances and of categories; settings in `config.methods.hcl`."""

    def __init__(self, config, segmenter):
        self.config, self.segmenter, self.settings = config, segmenter, config.methods.hcl
        if self.settings.pseudo_labels not in LABELLERS:
            raise UserError(f"methods.hcl.pseudo_labels is one of {LABELLERS}, found {self.settings.pseudo_labels!r}.")
        for name in ("refresh_every", "pixels"):
            if self.settings[name] < 1:
                raise UserError(f"methods.hcl.{name} is 1 or more, found {self.settings[name]}.")
        self.needs = {"target": DomainNeeds()}
        head = self.settings.projection
        self.projection = Projection(head.hidden, head.dim, head.init, segmenter.param_dtype)
        self.augment_settings = AugmentSettings(**self.settings.augment)

    def init(self, key, variables):
        channels = instances(self.segmenter.channels(variables))
        features = jnp.zeros((1, 8, 8, channels), self.segmenter.param_dtype)
        segmenter, projection = variables["params"], self.projection.init(key, features)["params"]
        network = {"segmenter": segmenter, "projection": projection}
        extra = {"average": network, "historical": segmenter}
        if self.settings.pseudo_labels == "source":
            extra["source"] = segmenter
        # Copies: a donated state must not hold one buffer twice.
        return {"network": network}, jax.tree.map(jnp.copy, extra)

    def loss(self, params, state, batch, key):
        augment_key, pixel_key = jax.random.split(key)
        data, network, kept = batch["target"], params["network"], state.extra
        clean, augmented, flow = data["frames"], augmented_clips(data, augment_key, self.augment_settings), data["flow"]

        def look(run, params, batch_stats, *clips):
            return run(self.config, self.segmenter, params, batch_stats, *clips)

        def predict(params, batch_stats):
            return look(clip_predictions, jax.lax.stop_gradient(params), batch_stats, clean, flow)

        # G passes the clean clip for its running averages' sake alone, as in the public code.
        _, _, stats = predict(network["segmenter"], state.batch_stats)
        features, scores, stats = look(clip_predictions, network["segmenter"], stats, augmented, flow, 0)
        averaged_features, averaged, _ = predict(kept["average"]["segmenter"], state.batch_stats)
        _, historical, _ = predict(kept["historical"], state.batch_stats)

        labeller = self.settings.pseudo_labels
        labeller = kept["average"]["segmenter"] if labeller == "average" else kept[labeller]
        direct, mirrored = look(label_scores, labeller, state.batch_stats, clean, flow, "batch")
        grid = instances(features).shape[1:3]
        labels = pseudo_labels(direct, mirrored)

        consistency = jax.tree.map(historical_consistency, historical, averaged)  # [B, h, w]
        category = jax.tree.map(lambda w, s: jnp.mean(w * cross_entropy(s, labels)[0]), consistency, scores)
        instance = self.contrast(
            self.projection.apply({"params": network["projection"]}, instances(features)),
            self.projection.apply({"params": kept["average"]["projection"]}, instances(averaged_features)),
            pseudo_labels(*(jax.tree.map(lambda s: on_grid(s, grid), view) for view in (direct, mirrored))),
            reliability(on_grid(instances(averaged), grid), self.settings.reliability_margin),
            jax.vmap(jax.random.fold_in, (None, 0))(pixel_key, data["index"]),
        )
        loss = category.total(self.settings.auxiliary_weight) + self.settings.instance_weight * instance.mean()
        return {"network": loss}, Aux(stats, {"consistency": consistency.main.mean()})

    def after_update(self, state, aux):
        """Moves G^m; every `refresh_every` steps G becomes the next G^h, and G^m starts again from it."""
        del aux
        network, kept, decay = state.params["network"], state.extra, self.settings.average_decay
        refresh = state.step % self.settings.refresh_every == 0

        def renew(old, new):
            return jax.tree.map(lambda o, n: jnp.where(refresh, n, o), old, new)

        average = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, kept["average"], network)
        if self.settings.restart_average:
            average = renew(average, network)
        historical = renew(kept["historical"], network["segmenter"])
        return state.replace(extra=kept | {"average": average, "historical": historical})

    def contrast(self, queries, keys, labels, reliabilities, draws):
        """Contrasts `pixels` pixels of each clip, or all if there are no more.

        Args:
          queries, keys: `[B, h, w, D]`.
          labels, reliabilities: `[B, h, w]`.
          draws: `[B]` random keys.

        Returns:
          `[B]`, each clip's mean.
        """
        settings, size = self.settings, labels[0].size

        def of_clip(draw, *maps):
            pixels = jax.random.permutation(draw, size)[: settings.pixels]
            picked = (x.reshape(size, *x.shape[2:])[pixels] for x in maps)
            return historical_contrast(*picked, self.segmenter.num_classes, settings.temperature).mean()

        return jax.vmap(of_clip)(draws, queries, keys, labels, reliabilities)


def instances(maps):
    """What instances are contrasted by, of a `PerClassifier`: the auxiliary part, or the main one if that is all."""
    return maps.main if maps.auxiliary is None else maps.auxiliary


def pseudo_labels(*views):
    """Labels every pixel: scores of several views, both classifiers together, to `[B, h, w]` class numbers."""
    return jnp.argmax(sum(jax.nn.softmax(view.total(0.5), -1) for view in views), -1)
