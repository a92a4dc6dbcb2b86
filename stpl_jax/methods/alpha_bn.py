"""α-BN: running statistics half the source model's, half the target video's; nothing is trained (arXiv 2110.04065).

    μ = (1 - α) · μ_source + α · μ_target        and likewise the variances

μ_target is the mean over all steps of the statistics of their frames, each normalised by its own. Every step leaves a
blend that can be scored; α = 0 is the source model, α = 1 the video's statistics alone.

Source: "Test-time Batch Statistics Calibration for Covariate Shift", which blends with those of each test batch; here
the video's are averaged first, so that inference is one pass with fixed statistics.
"""

import jax
import jax.numpy as jnp

from input_pipeline.errors import UserError
from input_pipeline.needs import DomainNeeds
from stpl_jax.forward import frames_first
from stpl_jax.methods.base import Aux, Untrained

# Far from 0 beside what statistics are: rounding must not show in m.
_FAR = 1e4


class AlphaBN(Untrained):
    """Blends the running statistics with target video's and leaves every parameter alone; `config.methods.alpha_bn`."""

    roles = ("running_statistics",)
    takes_prior = False

    def __init__(self, config, segmenter):
        self.config, self.segmenter, self.alpha = config, segmenter, config.methods.alpha_bn.alpha
        if not 0 <= self.alpha <= 1:
            raise UserError(f"methods.alpha_bn.alpha is a share, in 0..1; found {self.alpha}.")
        self.needs = {"target": DomainNeeds(offsets=(0,), flow_pairs=())}

    def init(self, key, variables):
        del key
        source = jax.tree.map(jnp.copy, variables["batch_stats"])
        kept = {"source": source, "target": jax.tree.map(jnp.zeros_like, source)}
        return {"network": {"segmenter": variables["params"]}}, kept

    def loss(self, params, state, batch, key):
        del key
        segmenter, frames = params["network"]["segmenter"], frames_first(batch["target"]["frames"])
        return {}, Aux(
            state.batch_stats, extra=batch_statistics(self.segmenter, segmenter, state.extra["source"], frames)
        )

    def after_update(self, state, aux):
        kept, alpha = state.extra, self.alpha
        share = (1 / state.step).astype(jnp.result_type(float))
        target = jax.tree.map(
            lambda mean, new: mean + share.astype(mean.dtype) * (new - mean), kept["target"], aux.extra
        )
        return state.replace(batch_stats=blend(kept["source"], target, alpha), extra=kept | {"target": target})


def blend(source, target, share):
    """Returns (1 - share) · source + share · target of each statistic."""
    return jax.tree.map(lambda s, t: (1 - share) * s + share * t, source, target)


def batch_statistics(segmenter, params, batch_stats, frames):
    """Reads off the statistics that normalise a group of frames.

    A running statistic moves by after = (1 - m) · before + m · batch, whatever the network's momentum m. It is let move
    from 0 and from afar, which tells m, and so the batch's. Those of frozen layers do not move, and the forward pass
    depends on them: they are found first, and start from what they are. It does not depend on the others: compiled, all
    passes are one where no layer is frozen.

    Args:
      segmenter: a `Network` with running statistics.
      params: its parameters.
      batch_stats: running statistics, of which those that do not move are kept.
      frames: `[1, B, H, W, 3]` RGB, 0-255: one group.

    Returns:
      As `batch_stats`: the means and variances of this group.
    """

    @jax.jit  # traced once for all passes
    def after(before):
        return segmenter.features({"params": params, "batch_stats": before}, frames, True, 1)[1]

    def moved_from(value, still):
        return after(jax.tree.map(lambda x, kept: jnp.where(kept, x, jnp.full_like(x, value)), batch_stats, still))

    def from_both(still):
        return moved_from(0.0, still), moved_from(_FAR, still)

    none = jax.tree.map(lambda x: jnp.zeros((), bool), batch_stats)
    still = jax.tree.map(lambda zero, far: jnp.all(far - zero == jnp.full_like(far, _FAR)), *from_both(none))

    def statistic(kept, source, zero, far):
        moved = jnp.where(kept, jnp.zeros_like(far), far - zero)
        return jnp.where(kept, source, zero / (1 - moved / _FAR))

    return jax.tree.map(statistic, still, batch_stats, *from_both(still))
