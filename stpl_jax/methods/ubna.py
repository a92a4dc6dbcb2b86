"""UBNA: running statistics that move to the target's, each step less than the one before (WACV 2022).

    μ_k = (1 - η_k) · μ_{k-1} + η_k · μ_target,k        and likewise the variances
    η_k = η_0 · exp(-α · k)                             k = 0, 1, ...

μ_target,k are the statistics of the k-th step's frames, each layer normalised by them. The first steps count most, and
much of the source's statistics stays: nothing is trained.

Source: Klingner et al., "Unsupervised BatchNorm Adaptation (UBNA)", arXiv 2011.08502, and its public code (η_0 = 0.1;
from GTA to Cityscapes α = 0.08, 50 steps of 6 images). Differences: clips are the loader's, each in one of its frames;
of several devices the statistics are averaged, each over its own clips; UBNA+, which lets deeper layers move less, is
left out, since a `Network` does not say which of its layers are deep; the statistics of all layers move, there those of
the encoder.
"""

import jax
import jax.numpy as jnp

from input_pipeline.needs import DomainNeeds
from stpl_jax.forward import frames_first
from stpl_jax.methods.alpha_bn import batch_statistics
from stpl_jax.methods.base import Aux, Untrained


class UBNA(Untrained):
    """Moves the running statistics by a momentum that decays, and leaves every parameter alone; `methods.ubna`."""

    roles = ("running_statistics",)
    takes_prior = False

    def __init__(self, config, segmenter):
        self.config, self.segmenter, self.settings = config, segmenter, config.methods.ubna
        self.needs = {"target": DomainNeeds(offsets=(0,), flow_pairs=())}

    def loss(self, params, state, batch, key):
        del key
        segmenter, frames = params["network"]["segmenter"], frames_first(batch["target"]["frames"])
        found = batch_statistics(self.segmenter, segmenter, state.batch_stats, frames)
        return {}, Aux(state.batch_stats, extra=found)

    def after_update(self, state, aux):
        steps_before = (state.step - 1).astype(jnp.result_type(float))
        momentum = self.settings.momentum * jnp.exp(-self.settings.decay_rate * steps_before)

        def move(running, target):
            return running + momentum.astype(running.dtype) * (target - running)

        return state.replace(batch_stats=jax.tree.map(move, state.batch_stats, aux.extra))
