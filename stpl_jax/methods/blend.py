"""Source's and target's statistics blended as `batch_norm.prior` or `choose_prior` says; nothing is trained.

The row of this name chooses the share without labels, see `prior_choice`; with a prior of 0.5 it is `alpha_bn`.
"""

from input_pipeline.errors import UserError
from input_pipeline.needs import DomainNeeds
from stpl_jax.methods.base import Untrained


class Blend(Untrained):
    """Keeps the network that it starts from, on its blend of statistics."""

    roles = ("running_statistics",)

    def __init__(self, config, segmenter):
        if not (config.batch_norm.prior or config.batch_norm.choose_prior):
            raise UserError(
                "method=blend leaves the network as it is unless batch_norm.prior or batch_norm.choose_prior is set."
            )
        self.config, self.segmenter = config, segmenter
        self.needs = {"target": DomainNeeds(offsets=(0,), flow_pairs=())}
