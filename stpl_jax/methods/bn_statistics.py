"""The control that the paper lacks: forward passes on target, which move the running averages; nothing is trained."""

from input_pipeline.errors import UserError
from input_pipeline.needs import DomainNeeds
from stpl_jax.forward import extract, frames_first
from stpl_jax.methods.base import Aux, Untrained


class BNStatistics(Untrained):
    """Adapts batch normalisation's running averages to target video and leaves every parameter alone."""

    roles = ("running_statistics",)
    takes_prior = False  # `alpha_bn` is that

    def __init__(self, config, segmenter):
        if config.batch_norm.mode == "running":
            raise UserError(
                "method=bn_statistics moves the running averages, and batch_norm.mode=running keeps them as they are: "
                "nothing would change. Use batch_norm.mode=batch or sync."
            )
        self.config, self.segmenter = config, segmenter
        self.needs = {"target": DomainNeeds(flow_pairs=())}

    def loss(self, params, state, batch, key):
        del key
        groups = frames_first(batch["target"]["frames"])
        _, stats = extract(
            self.segmenter, params["network"]["segmenter"], state.batch_stats, groups, self.config.batch_norm
        )
        return {}, Aux(stats)
