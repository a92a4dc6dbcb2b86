"""Tent: fully test-time adaptation by entropy minimisation (Wang et al., ICLR 2021, arXiv 2006.10726).

    L = mean_i H(p_i),    H(p) = -Σ_c p_c · ln p_c    over the pixels of the frames that were just predicted

Scale and bias of normalisation alone are trained, and layers normalise by the statistics of what they see, not by
running ones: here of each frame by itself (`config.methods.tent.frame_statistics` 1; less blends in the running ones).
A clip is predicted first, and trained on after: it is scored once and never learns from its own future.

Differences from the public code, which classifies images in batches: a batch is one frame; x_t counts alone, as the
main classifier scores it before two frames are fused, at the scores' size; the optimiser is `config.optim`'s SGD. With
`optim.profile=own` it is that of the paper's ImageNet experiments, SGD with a momentum of 0.9 and a rate of 2.5e-4 for
64 images, lowered as the paper says for smaller batches, to 3.9e-6 for one; its other experiments use Adam.

Several devices predict and train on a clip each and average their gradients, and `evaluate.clips_per_device` clips are
one step: a strict single stream needs one device (`cpu_devices=1` on CPUs) and `evaluate.clips_per_device=1`.
"""

import math

from input_pipeline.errors import UserError
from input_pipeline.needs import DomainNeeds
from stpl_jax import optim
from stpl_jax.forward import frames_first
from stpl_jax.losses.entropy import entropy
from stpl_jax.methods.base import Aux, Method

TRAINED = ("normalisation",)


class Tent(Method):
    """Minimises the entropy of what was just predicted; `config.methods.tent`."""

    online = True
    takes_prior = False  # as a part of `frame_statistics`, see `models.frame_statistics`

    def __init__(self, config, segmenter):
        self.config, self.segmenter = config, segmenter
        self.needs = {"target": DomainNeeds(offsets=(0,), flow_pairs=())}
        if "normalisation" not in segmenter.groups:
            raise UserError(
                f"method={config.method} trains scale and bias of normalisation alone, and config.model.name="
                f"{config.model.name} names no such parameters (Network.groups). Choose another method, or another "
                "network."
            )

    def optimisers(self, settings):
        return {"network": optim.sgd(settings, self.segmenter.groups, trained=TRAINED)}

    def loss(self, params, state, batch, key):
        del key
        return {"network": self.pixel_entropy(params["network"]["segmenter"], state, batch).mean()}, Aux(
            state.batch_stats
        )

    def pixel_entropy(self, segmenter, state, batch):
        """Entropy of each pixel's prediction, in nats, as inference makes it: `[1, B, h, w]`."""
        variables = {"params": segmenter, "batch_stats": state.batch_stats}
        features, _ = self.segmenter.features(variables, frames_first(batch["target"]["frames"]))
        scores = self.segmenter.classify(segmenter, features).main
        return entropy(scores) * math.log(self.segmenter.num_classes)
