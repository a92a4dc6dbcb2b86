"""HCL: Historical Contrastive Learning, for domain adaptation without source data (Huang et al., NeurIPS 2021).

    L = L_cat + λ_a · L_cat,auxiliary + λ_i · L_ins

Three networks: G is trained; G^m is its moving average; G^h is an earlier G, at first the source model.

    L_cat = mean_i exp(-KL(p^h_i ‖ p^m_i)) · CE(p_i, y_i)    p: G on the augmented clip; p^h, p^m on the clean one
    L_ins = mean_i L_i, losses/historical.py                    queries: G, augmented clip; keys: G^m, clean clip

Pseudo-labels are the source model's, normalised by its own running averages (`label_statistics`). Weights and details
are the public code's (GitHub jxhuang0508/HCL, hcl_target), with these differences:

- There networks see single images; here they are video networks, whose scores are fused along the flow.
- Pseudo-labels are made once there, from an image and its mirror image at two scales (1 and 1.25); here in each step,
  from the clip and its mirror image at one scale. `pseudo_labels=historical` and `average` are ours; the running
  averages that normalise these two are G's.
- Clips are augmented in their colours alone, so that pixel i is one place in both views. There images are scaled by 0.8
  to 1.2, go through AutoAugment (`--autoaug False` reads as true) and are mirrored; of ten crops of 256×512 the first
  with more than ten classes is taken, and the clean view's crop lies about there. Crops are of images of 640×1280
  (`--input-size`); here clips are whole frames of 512×1024, smaller in scale but of the whole scene.
- All terms are at feature resolution; there the terms of categories are at that of the crop.
- Instances are pixels of x_t, a fixed number drawn from each clip; there all of a crop, which are as many.
- Classes are not weighed by frequency; there rare ones and those that are missing weigh up to 7 times as much each.
- The projection head has no batch normalisation: the paper's batch is one clip.
- When G becomes the next G^h and G^m starts again from it, the next step sees both; there the one after it.
- G passes the clean clip for its running averages' sake alone, then the augmented one; there first the augmented image,
  then another clean one.
- G^m and G^h keep no running averages: where batch statistics normalise, none are needed, and where running averages
  do, they never change and are G's, which the public code copies to both.
- `own` counts its nine clips on one device, whose statistics are of all of them; there G sees three images on each of
  three devices.
- Each residual layer's parameters are updated 3 or 4 times in one step there, here once: see `stpl_jax/optim.py`.
- There the snapshot of every 300 steps is scored on the target's validation labels (`test.sh`), by the mean over images
  at two scales (1 and 1.2) and their mirror images, of both classifiers; here the weights at the end are scored, by
  the main classifier on clips as they are.
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
            extra["source"] = {"params": segmenter, "batch_stats": variables["batch_stats"]}
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

        direct, mirrored = look(label_scores, *self.labeller(state), clean, flow, self.settings.label_statistics)
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

    def labeller(self, state):
        """Returns the parameters and running averages of the network that makes the pseudo-labels."""
        name, kept = self.settings.pseudo_labels, state.extra
        if name == "source":
            return kept["source"]["params"], kept["source"]["batch_stats"]
        return kept["average"]["segmenter"] if name == "average" else kept["historical"], state.batch_stats

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
