"""CBNA: each single frame is normalised by the source's statistics blended with its own; nothing is trained (2022).

    μ = (1 - η) · μ_source + η · μ_frame        and likewise the variances, in every layer, for each frame anew

All of it is `config.methods.cbna.frame_statistics`, η, by which `Network.features` blends in inference. The method
changes nothing from clip to clip: it is online in that a frame is all that its prediction needs.

Source: Klingner et al., "Continual BatchNorm Adaptation (CBNA) for Semantic Segmentation", arXiv 2203.01074, and its
public code (η = 0.2). Differences: a frame's variance is the biased one, there the unbiased one; all layers of the
network blend, there those of its encoder.
"""

from input_pipeline.needs import DomainNeeds
from stpl_jax.methods.base import Untrained


class CBNA(Untrained):
    """Predicts by blended statistics; `config.methods.cbna`."""

    roles = ("running_statistics",)
    online = True
    takes_prior = False  # as a part of `frame_statistics`, see `models.frame_statistics`

    def __init__(self, config, segmenter):
        self.config, self.segmenter = config, segmenter
        self.needs = {"target": DomainNeeds(offsets=(0,), flow_pairs=())}
