"""STPL's training step in plain PyTorch, as the paper writes it (section 3, appendix A1): autograd, torch's SGD.

Clarity before speed: every frame goes through the network by itself, equation 3 is a loop over queries. The methods of
`Stpl` are one decision each, so that a test can replace one by a misreading of it and see what that does.
"""

import copy
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F

from .torch_accel import Maps, TorchAccel, normalise, resize_flow, warp


class Add(nn.Module):
    """Sum of the two frames."""

    def __init__(self, channels):
        super().__init__()
        self.outputs = channels

    def forward(self, z):
        return z[:, 0] + z[:, 1]


class Concat(nn.Module):
    """Channels of the earlier frame, then of the current one."""

    def __init__(self, channels):
        super().__init__()
        self.outputs = 2 * channels

    def forward(self, z):
        return z.flatten(1, 2)


class Conv1x1(nn.Module):
    """A 1×1 convolution of the concatenation."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(2 * channels, channels, 1)
        self.outputs = channels

    def forward(self, z):
        return self.conv(z.flatten(1, 2))


class Stam(nn.Module):
    """Equations 5 to 7 on `[B, 2, C, h, w]`, the earlier frame first."""

    def __init__(self, channels):
        super().__init__()
        self.temporal = nn.Linear(2, 2)
        self.spatial = nn.Conv2d(2, 1, 7, padding=3)
        self.outputs = 2 * channels

    def forward(self, z):
        average, largest = z.flatten(2).mean(-1), z.flatten(2).max(-1).values  # [B, 2]
        tem = torch.sigmoid(self.temporal(average) + self.temporal(largest))
        attended = torch.einsum("bt,btchw->btchw", tem, z)
        stacked = attended.flatten(1, 2)
        pooled = torch.stack([stacked.mean(1), stacked.max(1).values], 1)
        spa = torch.sigmoid(self.spatial(pooled))
        return spa * stacked + z.flatten(1, 2)


FUSIONS = {"add": Add, "concat": Concat, "conv1x1": Conv1x1, "stam": Stam}


class Projection(nn.Module):
    """H: 1×1 convolution, ReLU, 1×1 convolution."""

    def __init__(self, inputs, hidden, dim):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, hidden, 1)
        self.conv2 = nn.Conv2d(hidden, dim, 1)

    def forward(self, z):
        return self.conv2(F.relu(self.conv1(z)))


class Networks(nn.Module):
    """Everything with parameters: the segmentation network, the fusion, the projection head."""

    def __init__(self, fusion, accel, hidden, dim):
        super().__init__()
        self.segmenter = TorchAccel(**accel)
        self.fusion = FUSIONS[fusion](self.segmenter.layer6.conv2d_list[0].in_channels)
        self.projection = Projection(self.fusion.outputs, hidden, dim)


@dataclass(frozen=True)
class Optimisation:
    """Settings of SGD; `multipliers` are factors on the learning rate by a parameter's first name."""

    learning_rate: float
    decay_steps: int
    power: float
    momentum: float
    weight_decay: float
    multipliers: dict = field(default_factory=dict)


class Stpl:
    """STPL on one device or several.

    Args:
      networks: `Networks`, moved in place, step by step.
      optimisation: `Optimisation`.
      average_over: `all`, PyTorch's way, or `clean`: augmented frames leave the running averages alone.
    """

    temperature = 0.07
    frame_order = (0, 1, 2, 3)

    def __init__(self, networks, optimisation, average_over="all"):
        self.networks, self.optimisation, self.average_over = networks.train(), optimisation, average_over
        self.optimiser, self.schedule = self.make_optimiser()
        self.seen = {}

    def make_optimiser(self, **options):
        """All parameters are handed over: those that get no gradient are PyTorch's to skip."""
        o = self.optimisation
        groups = [
            {"params": list(module.parameters()), "lr": o.learning_rate * o.multipliers.get(name, 1.0)}
            for name, module in self.networks.named_children()
        ]
        optimiser = torch.optim.SGD(
            [group for group in groups if group["params"]],
            **({"momentum": o.momentum, "weight_decay": o.weight_decay} | options),
        )
        return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, self.decay)

    def decay(self, step):
        return (1 - step / self.optimisation.decay_steps) ** self.optimisation.power

    def four_frames(self, clean, augmented):
        """Main features of x_t, x_{t-1}, x̃_t, x̃_{t-1}, each forwarded alone, in this order."""
        frames = [self.prepare(view[:, t]) for view in (clean, augmented) for t in range(2)]
        outputs = {number: self.one_frame(number, frames[number]) for number in self.frame_order}
        return [outputs[number] for number in range(4)]

    def one_frame(self, number, frame):
        momentum = 0.0 if number >= 2 and self.average_over == "clean" else 0.1
        for module in self.networks.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = momentum
        return self.networks.segmenter.features(frame).main

    def prepare(self, rgb):
        return normalise(rgb, torch.float64)

    def flow_at(self, stored, size):
        """`[B, H, W, 2]` int16 tenths to `[B, 2, h, w]`."""
        flow = torch.as_tensor(stored).to(torch.float64).permute(0, 3, 1, 2) / 10
        return resize_flow(flow, size)

    def aligned(self, view, flow):
        """z' of a view: `[B, 2, C, h, w]`, the earlier frame, warped, first."""
        current, earlier = view
        return torch.stack([warp(earlier, flow), current], 1)

    def project(self, fused):
        return F.normalize(self.networks.projection(fused), dim=1)

    def scores(self, z_t, z_earlier, flow):
        segmenter = self.networks.segmenter
        now, before = segmenter.layer6(z_t), segmenter.layer6(z_earlier)
        return segmenter.fuse(Maps(now, now), Maps(before, before), flow).main

    def confidence(self, scores):
        """`[K, P]` to `[P]`."""
        return torch.softmax(scores, 0).max(0).values

    def most_confident(self, confidence):
        count = 7 * len(confidence) // 10
        return torch.sort(confidence, descending=True, stable=True).indices[:count]

    def loss_of_query(self, query, same, other):
        """Equation 3: one query `[D]`, its positives `[P, D]` and its negatives `[N, D]`."""
        log_denominator = torch.logsumexp(other @ query / self.temperature, 0)
        return -(same @ query / self.temperature - log_denominator).sum() / len(same)

    def keys(self, view):
        return view

    def loss_of_clip(self, queries, keys, labels):
        """Equation 4 on `[D, N]` queries and keys; a query without negatives is left out."""
        losses = []
        for q, label in enumerate(labels):
            same, other = keys[:, labels == label].T, keys[:, labels != label].T
            if len(other):
                losses.append(self.loss_of_query(queries[:, q], same, other))
        return torch.stack(losses).mean() if losses else (0 * queries).sum()

    def loss(self, clip):
        """`frames` and `augmented` `[B, 2, H, W, 3]`, `flow` `[B, 1, H, W, 2]`: the loss on one device's clips."""
        z_t, z_earlier, a_t, a_earlier = self.four_frames(clip["frames"], clip["augmented"])
        flow = self.flow_at(clip["flow"][:, 0], z_t.shape[2:])
        with torch.no_grad():
            scores = self.scores(z_t, z_earlier, flow).flatten(2)
        queries, keys = (
            self.project(self.networks.fusion(self.aligned(view, flow))).flatten(2)
            for view in ((z_t, z_earlier), (a_t, a_earlier))
        )
        keys = self.keys(keys)
        losses, self.seen = [], {"confidence": [], "chosen": [], "labels": []}
        for b in range(len(queries)):
            confidence = self.confidence(scores[b])
            chosen = self.most_confident(confidence)
            labels = scores[b].argmax(0)[chosen]
            losses.append(self.loss_of_clip(queries[b][:, chosen], keys[b][:, chosen], labels))
            for name, value in (("confidence", confidence), ("chosen", chosen), ("labels", labels)):
                self.seen[name].append(value.numpy())
        return sum(losses) / len(losses)

    def step(self, devices):
        """One step: a list of each device's clips. Gradients and running averages are means over the devices."""
        self.optimiser.zero_grad()
        before = copy.deepcopy(dict(self.networks.named_buffers()))
        after, losses = [], []
        for clips in devices:
            for name, buffer in self.networks.named_buffers():
                buffer.copy_(before[name])
            loss = self.loss(clips)
            (loss * self.share(len(devices))).backward()
            losses.append(loss.item())
            after.append(copy.deepcopy(dict(self.networks.named_buffers())))
        self.average_buffers(after)
        self.update()
        return sum(losses) / len(losses)

    def share(self, devices):
        return 1 / devices

    def average_buffers(self, after):
        for name, buffer in self.networks.named_buffers():
            if buffer.is_floating_point():
                buffer.copy_(torch.stack([buffers[name] for buffers in after]).mean(0))

    def update(self):
        self.optimiser.step()
        self.schedule.step()
