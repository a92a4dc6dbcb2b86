"""SAR: sharpness-aware and reliable entropy minimisation (Niu et al., ICLR 2023, arXiv 2302.12400).

As Tent, with three guards against collapse. Of scale and bias Θ of normalisation,

    L(Θ) = mean over reliable pixels of H(p_i; Θ)       reliable: H(p_i; Θ) < E_0 = 0.4 · ln K, equation 2
    ε = ρ · ∇L(Θ) / ‖∇L(Θ)‖                             ρ = 0.05, equation 4
    Θ ← Θ - rate · ∇L(Θ + ε)                            over the pixels that are reliable at Θ + ε, too

and where the moving average of L(Θ + ε), 0.9 of it kept in each step, falls below 0.2 nats, the source model's
parameters come back, and momenta and average start anew. A step without a reliable pixel has no gradient and leaves the
average alone.

Differences from the public code, which classifies images: a sample is a pixel; ρ's step and its pixels are each
device's own; Θ is that of all layers, there not of the last stage's. The threshold of 0.2 is what the publication found
for 1000 classes: where a segmentation network is surer of most pixels than that from the start, every step brings it
back to the source model, and `methods.sar.recovered_below` is to be lowered. Else as Tent, whose remarks on optimisers
and devices hold, with the public code's rate for a batch of one, twice Tent's.

After a recovery copies of the public code keep the moving average, and recover again in each step until it has climbed
above the threshold; here it starts anew.
"""

import math

import jax
import jax.numpy as jnp
import optax

from stpl_jax import optim
from stpl_jax.losses.reduction import masked_mean
from stpl_jax.methods.base import Aux
from stpl_jax.methods.tent import TRAINED, Tent

# Of the moving average, before there is one: entropies are not negative.
_NONE = -1.0


class SAR(Tent):
    """Minimises the entropy of reliable pixels at the sharpest point nearby; `config.methods.sar`."""

    def __init__(self, config, segmenter):
        super().__init__(config, segmenter)
        self.settings = config.methods.sar
        self.is_trained = optim.trained_parameters(config.optim, segmenter.groups, trained=TRAINED)

    def init(self, key, variables):
        del key
        network = {"segmenter": variables["params"]}
        kept = {"source": jax.tree.map(jnp.copy, network), "average": jnp.full((), _NONE)}
        return {"network": network}, kept

    def loss(self, params, state, batch, key):
        del key
        network = params["network"]
        certain = self.settings.reliable * math.log(self.segmenter.num_classes)

        def reliable_entropy(network, among=True):
            found = self.pixel_entropy(network["segmenter"], state, batch)
            counted = (found < certain) & among
            return masked_mean(found.ravel(), counted.ravel()), counted

        # The step to the sharper point is a constant: no gradient goes through it.
        gradient, reliable = jax.grad(reliable_entropy, has_aux=True)(jax.lax.stop_gradient(network))
        gradient = jax.tree_util.tree_map_with_path(
            lambda path, g: g if self.is_trained(optim.parameter_path(path)) else jnp.zeros_like(g), gradient
        )
        scale = self.settings.radius / (optax.tree.norm(gradient) + 1e-12)
        sharper = jax.tree.map(lambda p, g: p + scale.astype(g.dtype) * g, network, gradient)
        loss, counted = reliable_entropy(sharper, reliable)
        pixels = counted.sum().astype(loss.dtype)
        seen = {"entropy": loss * pixels, "pixels": pixels}
        return {"network": loss}, Aux(state.batch_stats, {"reliable": counted.mean(dtype=loss.dtype)}, seen)

    def after_update(self, state, aux):
        kept, seen, decay = state.extra, aux.extra, self.settings.average_decay
        average = kept["average"]
        mean = (seen["entropy"] / jnp.maximum(seen["pixels"], 1e-12)).astype(average.dtype)
        moved = jnp.where(average == _NONE, mean, decay * average + (1 - decay) * mean)
        average = jnp.where(seen["pixels"] > 0, moved, average)
        recovers = (average != _NONE) & (average < self.settings.recovered_below)

        fresh = self.optimisers(self.config.optim)["network"].init(kept["source"])
        trained = (state.params["network"], state.opt_state["network"])
        network, opt_state = jax.tree.map(lambda a, b: jnp.where(recovers, a, b), (kept["source"], fresh), trained)
        return state.replace(
            params=state.params | {"network": network},
            opt_state=state.opt_state | {"network": opt_state},
            extra=kept | {"average": jnp.where(recovers, _NONE, average)},
        )
