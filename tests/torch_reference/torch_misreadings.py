"""Readings of the paper that two honest people might have, each as a change to `torch_stpl.Stpl`.

None of them is right. The parity test has to tell every one of them from ours, or it shows nothing.
"""

import copy
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F
from torch_reference.torch_accel import warp
from torch_reference.torch_stpl import Stpl


def batch_norms(module):
    return [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]


class JointStatistics(Stpl):
    """One batch of all four frames."""

    def four_frames(self, clean, augmented):
        frames = torch.cat([self.prepare(view[:, t]) for view in (clean, augmented) for t in range(2)])
        return self.one_frame(0, frames).chunk(4)


class RunningStatistics(Stpl):
    """The network in evaluation mode."""

    def one_frame(self, number, frame):
        self.networks.eval()
        return super().one_frame(number, frame)


class StatisticsWithoutGradient(Stpl):
    """Mean and variance as constants of the backward pass; the loss is the same."""

    def __init__(self, *arguments):
        super().__init__(*arguments)

        def constant(module, inputs, output):
            (x,) = inputs
            mean, var = x.detach().mean((0, 2, 3)), x.detach().var((0, 2, 3), unbiased=False)
            return F.batch_norm(x, mean, var, module.weight, module.bias, False, 0.0, module.eps)

        for module in batch_norms(self.networks):
            module.register_forward_hook(constant)


class BiasedVariance(Stpl):
    """Running averages of the biased variance, as Flax has them."""

    def __init__(self, *arguments):
        super().__init__(*arguments)

        def average(module, inputs, output):
            (x,) = inputs
            count = x.numel() // x.shape[1]
            var = x.detach().var((0, 2, 3), unbiased=False)
            # `.data`: autograd counts changes of what it has seen, and wants none.
            module.running_var.data -= module.momentum * var / (count - 1)

        for module in batch_norms(self.networks):
            module.register_forward_hook(average)


class LastFrameWins(Stpl):
    """Each frame moves the old running averages, so that only the last one's move stays."""

    def four_frames(self, clean, augmented):
        self.old = copy.deepcopy(dict(self.networks.named_buffers()))
        return super().four_frames(clean, augmented)

    def one_frame(self, number, frame):
        for name, buffer in self.networks.named_buffers():
            buffer.data.copy_(self.old[name])
        return super().one_frame(number, frame)


class EarlierFrameFirst(Stpl):
    """Frames enter the running averages in the order of time."""

    frame_order = (1, 0, 3, 2)


class AveragedOverClean(Stpl):
    """Augmented frames leave the running averages alone."""

    def __init__(self, networks, optimisation, average_over):
        super().__init__(networks, optimisation, "clean")


class KeysWithoutGradient(Stpl):
    """The augmented view as a constant; the loss is the same."""

    def keys(self, view):
        return view.detach()


class EarlierWithoutGradient(Stpl):
    """z_{t-1} as a constant; the loss is the same."""

    def aligned(self, view, flow):
        current, earlier = view
        return super().aligned((current, earlier.detach()), flow)


class FeaturesSwapped(Stpl):
    """f(z_t, z'_{t-1})."""

    def aligned(self, view, flow):
        return super().aligned(view, flow).flip(1)


class ScoresSwapped(Stpl):
    """Score fusion of [warp(scores_{t-1}); scores_t]."""

    def scores(self, z_t, z_earlier, flow):
        segmenter = self.networks.segmenter
        return segmenter.sf_layer(torch.cat([warp(segmenter.layer6(z_earlier), flow), segmenter.layer6(z_t)], 1))


class BiasOnce(Stpl):
    """Temporal attention as sigmoid(FC(avg + max))."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.networks.fusion.temporal.register_forward_hook(lambda layer, inputs, output: output - layer.bias / 2)


class MaximumFirst(Stpl):
    """Spatial attention of [max, avg]."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.networks.fusion.spatial.register_forward_pre_hook(lambda layer, inputs: inputs[0].flip(1))


class NotWarped(Stpl):
    """Fusion of features where they are."""

    def aligned(self, view, flow):
        return super().aligned(view, 0 * flow)


class PseudoLabelsFromRunningAverages(Stpl):
    """A forward pass of its own for pseudo-labels, in evaluation mode."""

    def four_frames(self, clean, augmented):
        self.networks.eval()
        with torch.no_grad():
            self.calm = [self.networks.segmenter.features(self.prepare(clean[:, t])).main for t in range(2)]
        self.networks.train()
        return super().four_frames(clean, augmented)

    def scores(self, z_t, z_earlier, flow):
        return super().scores(*self.calm, flow)


class RawScoresAsConfidence(Stpl):
    """The largest score, before softmax."""

    def confidence(self, scores):
        return scores.max(0).values


class TiesToTheHigherIndex(Stpl):
    """Of equally confident pixels, the last."""

    def most_confident(self, confidence):
        order = torch.sort(confidence.flip(0), descending=True, stable=True).indices
        return (len(confidence) - 1 - order)[: 7 * len(confidence) // 10]


class FlowSwapped(Stpl):
    """(v, u)."""

    def flow_at(self, stored, size):
        return super().flow_at(stored[..., ::-1].copy(), size)


class FlowScaledAsPublic(Stpl):
    """Both components times h/H."""

    def flow_at(self, stored, size):
        height, width = stored.shape[1:3]
        flow = super().flow_at(stored, size)
        right = torch.tensor([(size[1] - 1) / (width - 1), (size[0] - 1) / (height - 1)], dtype=flow.dtype)
        return flow / right.view(1, 2, 1, 1) * size[0] / height


class RedFirst(Stpl):
    """RGB into a network that wants BGR."""

    def prepare(self, rgb):
        return super().prepare(rgb[..., ::-1].copy())


class NotNormalised(Stpl):
    """Projections of any length."""

    def project(self, fused):
        return self.networks.projection(fused)


class PositivesInTheDenominator(Stpl):
    """Supervised contrastive learning as SupCon prints it."""

    def loss_of_query(self, query, same, other):
        return super().loss_of_query(query, same, torch.cat([same, other]))


class MeanKeyNormalised(Stpl):
    """The positives' mean, brought to unit length."""

    def loss_of_query(self, query, same, other):
        return super().loss_of_query(query, F.normalize(same.mean(0, keepdim=True), dim=1), other)


class FrozenDecayed(Stpl):
    """Weight decay of parameters without gradient, as Optax has it."""

    def update(self):
        for parameter in self.networks.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        super().update()


class DecayOneStepAhead(Stpl):
    """The schedule counts from one."""

    def decay(self, step):
        return super().decay(step + 1)


class NesterovMomentum(Stpl):
    """Nesterov's momentum."""

    def make_optimiser(self):
        return super().make_optimiser(nesterov=True)


class DampenedMomentum(Stpl):
    """m = momentum · m + (1 - momentum) · g."""

    def make_optimiser(self):
        return super().make_optimiser(dampening=0.9)


class OneRate(Stpl):
    """No multipliers."""

    def __init__(self, networks, optimisation, average_over):
        super().__init__(networks, replace(optimisation, multipliers={}), average_over)


class GradientsSummed(Stpl):
    """Over devices."""

    def share(self, devices):
        return 1.0


class LastDevicesAverages(Stpl):
    """Running averages of one device."""

    def average_buffers(self, after):
        super().average_buffers(after[-1:])


# Where it shows: a case and a start of the parity test, and the step after which it has to be told.
STAM = ("stam", "free", 1)
MISREADINGS = {
    JointStatistics: STAM,
    RunningStatistics: STAM,
    StatisticsWithoutGradient: STAM,
    BiasedVariance: STAM,
    LastFrameWins: STAM,
    EarlierFrameFirst: STAM,
    AveragedOverClean: STAM,
    KeysWithoutGradient: STAM,
    EarlierWithoutGradient: STAM,
    FeaturesSwapped: STAM,
    ScoresSwapped: STAM,
    BiasOnce: STAM,
    MaximumFirst: STAM,
    NotWarped: STAM,
    PseudoLabelsFromRunningAverages: STAM,
    RawScoresAsConfidence: STAM,
    TiesToTheHigherIndex: ("stam", "tie", 1),
    FlowSwapped: STAM,
    FlowScaledAsPublic: STAM,
    RedFirst: STAM,
    NotNormalised: STAM,
    PositivesInTheDenominator: STAM,
    MeanKeyNormalised: STAM,
    FrozenDecayed: STAM,
    DecayOneStepAhead: STAM,
    NesterovMomentum: STAM,
    DampenedMomentum: ("stam", "free", 2),
    OneRate: STAM,
    GradientsSummed: ("two devices", "free", 1),
    LastDevicesAverages: ("two devices", "free", 1),
}
