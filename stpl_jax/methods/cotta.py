"""CoTTA: continual test-time adaptation (Wang et al., CVPR 2022, arXiv 2203.13591), as its authors segment images.

A student is trained on what its moving average, the teacher, says of the clip that was just predicted. The teacher
predicts: it is what is scored, stored as the network and loaded.

    ŷ_i = p_teacher,i(x)                                   where max p_source,i > 0.69: the source model is sure
    ŷ_i = mean of p_teacher,i over scaled, mirrored x      elsewhere
    L = mean_i -Σ_c ŷ_i,c · ln p_student,i,c(x)
    θ_teacher ← 0.999 · θ_teacher + 0.001 · θ_student      after the student's update
    θ_student ← M ⊙ θ_source + (1 - M) ⊙ θ_student         M: each number of it with a probability of 0.01

All parameters that the main scores of one frame depend on are trained, by Adam at a constant rate of 7.5e-6
(`methods.cotta.learning_rate`, in place of `optim.learning_rate`).

The segmentation code of the authors was read as later publications carry it. Differences: pseudo-labels are soft, as in
the paper, there the likeliest class; confidence is looked at pixel by pixel, as there, where the paper asks once for an
image; copies' probabilities are averaged at the scores' size, there at the image's; what is scored is the teacher's
direct prediction, fused with the frame before, there the pseudo-label. SegFormer, which they segment with, has no batch
normalisation in its encoder; here layers take each frame's own statistics, as in the authors' code for images
(`frame_statistics` 1; 0 keeps the running ones, and serves networks that have none).

Several devices predict and train on a clip each and average their gradients, and `evaluate.clips_per_device` clips are
one step: a strict single stream needs one device (`cpu_devices=1` on CPUs) and `evaluate.clips_per_device=1`.
"""

import jax
import jax.numpy as jnp

from input_pipeline.needs import DomainNeeds
from stpl_jax import optim
from stpl_jax.forward import frames_first, on_grid
from stpl_jax.methods.base import Aux, Method
from stpl_jax.ops.mirror import mirror
from stpl_jax.ops.resize import resize_align_corners


class CoTTA(Method):
    """Trains on an averaged teacher's averaged predictions, and forgets at random; `config.methods.cotta`."""

    online = True
    takes_prior = False  # as a part of `frame_statistics`, see `models.frame_statistics`
    frozen = ()
    inference = "extra/teacher"

    def __init__(self, config, segmenter):
        self.config, self.segmenter, self.settings = config, segmenter, config.methods.cotta
        self.needs = {"target": DomainNeeds(offsets=(0,), flow_pairs=())}

    def init(self, key, variables):
        del key
        source = variables["params"]
        # Copies: a donated state must not hold one buffer twice.
        kept = {"teacher": jax.tree.map(jnp.copy, source), "source": jax.tree.map(jnp.copy, source)}
        return {"network": {"segmenter": source}}, kept

    def optimisers(self, settings):
        return {"network": optim.network_adam(self.settings, settings, self.segmenter.groups, self.frozen)}

    def loss(self, params, state, batch, key):
        del key
        frames = frames_first(batch["target"]["frames"]).astype(jnp.result_type(float))

        def scores(segmenter, frames):
            variables = {"params": segmenter, "batch_stats": state.batch_stats}
            features, _ = self.segmenter.features(variables, frames)
            return self.segmenter.classify(segmenter, features).main

        def probabilities(segmenter, frames):
            return jax.nn.softmax(scores(segmenter, frames), -1)

        predicted = scores(params["network"]["segmenter"], frames)
        direct = probabilities(state.extra["teacher"], frames)
        averaged = self.over_copies(lambda copy: probabilities(state.extra["teacher"], copy), frames, direct.shape[2:4])
        sure = probabilities(state.extra["source"], frames).max(-1, keepdims=True) > self.settings.confidence
        labels = jnp.where(sure, direct, averaged)
        loss = -(labels * jax.nn.log_softmax(predicted, -1)).sum(-1).mean()
        return {"network": loss}, Aux(state.batch_stats, {"sure": sure.mean(dtype=loss.dtype)})

    def over_copies(self, predict, frames, size):
        """Averages predictions `[1, B, h, w, K]` over frames `[1, B, H, W, 3]` at each scale, and mirrored, too."""
        total, height, width = 0.0, *frames.shape[2:4]
        for scale in self.settings.scales:
            scaled = on_grid(frames, (round(scale * height), round(scale * width)))
            for turn in (lambda x: x, mirror):
                total += resize_align_corners(turn(predict(turn(scaled))), size)
        return total / (2 * len(self.settings.scales))

    def after_update(self, state, aux):
        del aux
        decay, kept = self.settings.teacher_decay, state.extra
        student = state.params["network"]["segmenter"]
        teacher = jax.tree.map(lambda t, s: decay * t + (1 - decay) * s, kept["teacher"], student)

        # From the step alone: the same on all devices, and again when the run goes on from a checkpoint.
        key = jax.random.fold_in(jax.random.key(self.config.seed), state.step - 1)
        leaves, structure = jax.tree.flatten(student)
        keys = jax.tree.unflatten(structure, list(jax.random.split(key, len(leaves))))

        def restore(key, student, source):
            return jnp.where(jax.random.bernoulli(key, self.settings.restored, student.shape), source, student)

        student = jax.tree.map(restore, keys, student, kept["source"])
        params = {"network": state.params["network"] | {"segmenter": student}}
        return state.replace(params=params, extra=kept | {"teacher": teacher})
