"""RDA: robust domain adaptation via Fourier adversarial attacking (Huang et al., ICCV 2021).

    L = L_sup(x^s, y^s) + λ · BCE(D(I(x^t)), source) + λ · BCE(D(I(x^a)), source) + mean |p(x^a) - p(x^t)|

I = -p · log p / log K is ADVENT's weighted self-information, the base that RDA is put on here as in its public code; D
tells I(x^s) from I(x^t). x^a is the attacked target image: of its 32 frequency bands in three channels, the 10% that a
learned gate picks take the amplitude of a reference image. p(x^t) in the last term gives no gradient. The attacker
maximises what the network minimises on x^a, and keeps shapes (bands 2 to 15) by 0.0002 · mean |A(x^a) - A(x^t)|.

All three are trained in one step: network, discriminators (one for each classifier) and attacker are groups of
parameters, each with its optimiser; the attacked frames reach the network through a reversal of the gradient.

The public code differs:
- Its reference is the very image under attack (the variable is overwritten too early), so that attacks change nothing.
  Ours is x_t of the source clip that lies beside the target clip in the batch, resized.
- Its gate gets no gradient (see `straight_through_gate`), so its optimiser, SGD at 1e-6, says nothing: Adam here.
- It attacks what the network takes, BGR with the mean taken off. The mean of such a channel, which is in the lowest
  band, may be positive in the reference and negative in the target image, or the other way round. The sign is part of
  the phase: the attacked image then has the reference's mean with the target's sign, which is the mean of neither.
  Here RGB of 0 to 255 is attacked, whose mean is never negative.
- It scales attacked images by 0.8 to 1.2 besides, which the publication does not describe: left out.
- Training starts from ImageNet weights; here from the source model.
- Each residual layer's parameters are updated 3 or 4 times in one step there, here once: see `stpl_jax/optim.py`.
- PyTorch's clipping divides by the norm plus 1e-6.
- 120,001 steps are taken, and the best of the snapshots on the target's validation labels is what is reported; here
  the weights at the end are scored.

As there, target images alone are attacked (the lines for source are switched off), the network's gradient is clipped
at a norm of 1 (`methods.rda.clip_norm`) and source clips are not mirrored.

An image method: on video, p is ACCEL's, of two frames; both frames of a clip are attacked alike, by a gate that sees
x_t. Distances between predictions are at feature resolution.
"""

import jax
import jax.numpy as jnp

from input_pipeline.errors import UserError
from input_pipeline.needs import DomainNeeds
from stpl_jax import optim
from stpl_jax.forward import clip_scores
from stpl_jax.losses.adversarial import SOURCE, TARGET, domain_cross_entropy
from stpl_jax.losses.entropy import self_information
from stpl_jax.methods.base import Aux, Method
from stpl_jax.methods.supervised import label_loss
from stpl_jax.models.discriminator import Discriminator
from stpl_jax.models.frequency_gate import FrequencyGate, reverse_gradient, straight_through_gate
from stpl_jax.ops.dtypes import compute_dtype
from stpl_jax.ops.fourier import band_means, blend_bands, compose, frequency_bands, spectrum
from stpl_jax.ops.resize import resize_align_corners
from stpl_jax.ops.shares import share_of

CLASSIFIERS = ("auxiliary", "main")


class RDA(Method):
    """Adversarial alignment on clean and attacked clips; everything under `config.methods.rda`."""

    roles = ("auxiliary_classifier",)

    def __init__(self, config, segmenter):
        if config.source_free:
            raise UserError(
                "method=rda aligns target with source by a discriminator that must see both, and attacks with source "
                "amplitudes: nothing of it is left without source data. Set source_free=False."
            )
        self.config, self.segmenter, self.settings = config, segmenter, config.methods.rda
        if not 0 < self.settings.share <= 1:
            raise UserError(
                f"methods.rda.share is a share of the bands, above 0 and up to 1; found {self.settings.share}."
            )
        self.needs = {"source": DomainNeeds(labels=True, mirrored=self.settings.mirror), "target": DomainNeeds()}
        self.discriminator = Discriminator(segmenter.param_dtype, self.settings.discriminator.width)
        self.gate = FrequencyGate(segmenter.param_dtype)

    def init(self, key, variables):
        *keys, gate_key = jax.random.split(key, 3)
        dtype = self.segmenter.param_dtype
        maps = jnp.zeros((32, 32, self.segmenter.num_classes), dtype)
        return {
            "network": {"segmenter": variables["params"]},
            "discriminator": {
                name: self.discriminator.init(key, maps)["params"] for name, key in zip(CLASSIFIERS, keys, strict=True)
            },
            "attacker": self.gate.init(gate_key, jnp.zeros((self.settings.bands, 3), dtype))["params"],
        }, None

    def optimisers(self, settings):
        network = settings.copy_and_resolve_references()
        network.clip_norm = self.settings.clip_norm
        return {
            **super().optimisers(network),
            "discriminator": optim.adam(self.settings.discriminator, settings),
            "attacker": optim.adam(self.settings.attacker, settings),
        }

    def loss(self, params, state, batch, key):
        source, target = batch["source"], batch["target"]
        attacked_frames, content = self.attack(params["attacker"], source, target, key)

        def predict(data, frames, stats, clean=None):
            segmenter = params["network"]["segmenter"]
            return clip_scores(self.config, self.segmenter, segmenter, stats, frames, data["flow"], clean)

        on_source, stats = predict(source, source["frames"], state.batch_stats)
        on_target, stats = predict(target, target["frames"], stats)
        on_attacked, stats = predict(target, reverse_gradient(attacked_frames), stats, clean=0)

        # The network: labels on source; target and attacked clips that look like source; attacks that change nothing.
        supervised = label_loss(self.config, on_source, source["label"])
        judges, stop = params["discriminator"], jax.lax.stop_gradient
        size = target["frames"].shape[2:4]
        aligned = self.adversarial(stop(judges), on_target, size, SOURCE, self.settings.adversarial)
        attacked = self.adversarial(stop(judges), on_attacked, size, SOURCE, self.settings.adversarial)
        attacked += self.disturbance(on_attacked, stop(on_target))

        # The discriminators: what is what.
        half = dict.fromkeys(CLASSIFIERS, 0.5)
        told = self.adversarial(judges, stop(on_source), source["frames"].shape[2:4], SOURCE, half)
        told += self.adversarial(judges, stop(on_target), size, TARGET, half)

        losses = {
            "network": supervised + aligned + attacked,
            "discriminator": told,
            # The value to minimise; the gradient of its first part comes through the reversal.
            "attacker": -stop(attacked) + self.settings.content_weight * content,
        }
        return losses, Aux(stats, {"supervised": supervised, "attacked": attacked})

    def adversarial(self, judges, scores, size, label, weights):
        """Cross-entropy of the discriminators' answers with one domain, weighed over both classifiers: a scalar."""

        def one(name):
            maps = self_information(resize_align_corners(getattr(scores, name), size))  # [B, H, W, K]
            answers = self.discriminator.apply({"params": judges[name]}, maps)
            return weights[name] * domain_cross_entropy(answers, label).mean()

        return sum(map(one, CLASSIFIERS[1:]), one(CLASSIFIERS[0]))

    def disturbance(self, attacked, clean):
        """How far an attack moves the predictions: mean |p(x^a) - p(x^t)|, weighed over both classifiers."""
        distances = {
            name: jnp.abs(jax.nn.softmax(getattr(attacked, name), -1) - jax.nn.softmax(getattr(clean, name), -1)).mean()
            for name in CLASSIFIERS
        }
        return sum(self.settings.consistency[name] * distance for name, distance in distances.items())

    def attack(self, attacker, source, target, key):
        """Attacks the target clips.

        Args:
          attacker: the gate's parameters.
          source, target: the batch, by domain.
          key: this step's random key; each clip's draw depends on its own number alone.

        Returns:
          Frames `[B, T, H, W, 3]`, and the amplitude that the attack moved in the bands of shapes, a scalar.
        """
        settings, dtype = self.settings, compute_dtype(self.segmenter.dtype)
        frames = target["frames"].astype(dtype)
        size, bands = frames.shape[2:4], frequency_bands(frames.shape[2:4], settings.bands)
        reference = resize_align_corners(source["frames"][:, :1].astype(dtype), size)  # [B, 1, H, W, 3]
        amplitude, phase = spectrum(frames)  # [B, T, H, W, 3]
        style, _ = spectrum(reference)

        levels = band_means(amplitude[:, 0], bands, settings.bands)  # [B, 32, 3]
        logits = self.gate.apply({"params": attacker}, levels.astype(self.segmenter.param_dtype))
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, target["index"])
        count = share_of(levels[0].size, settings.share)
        gate = jax.vmap(straight_through_gate, (0, 0, None))(keys, logits, count).reshape(levels.shape)

        attacked = compose(blend_bands(amplitude, style, gate[:, None], bands), phase)
        difference = band_means(jnp.abs(style - amplitude[:, :1]), bands, settings.bands)[:, 0]
        first, last = settings.content_bands
        return attacked, (gate * difference)[:, first : last + 1].mean()
