"""STPL's train step in PyTorch, in the forms that ours is timed against.

Plain is how the field's code runs: eager, float32, each frame through the backbone by itself, one view after the other.
Best is what PyTorch offers beyond that: channels_last, bfloat16 autocast, torch.compile, a fused optimiser, all frames
in one batch. Both compute what `stpl_jax.methods.stpl` computes; the clean forward pass serves pseudo-labels and
queries in both, and similarities are a matrix of N×N.
"""

import random
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import torch_augment
from benchmarks.torch_network import FrameBatchNorm, Network

# What a pair that is no negative gets for a similarity; finite, so that a query without negatives has a gradient of 0.
_EXCLUDED = -1e30


@dataclass(frozen=True)
class Form:
    """How the step runs.

    Attributes:
      channels_last: memory format of images, features and kernels.
      autocast: bfloat16 for convolutions and products; the loss stays float32.
      compiled: by torch.compile.
      fused: PyTorch's fused SGD.
      batched: all frames of both views in one pass, their statistics kept apart; else one pass for each.
      tf32: let products of float32 run in TF32 on GPUs. Convolutions may in all forms: that is PyTorch's default.
    """

    channels_last: bool = False
    autocast: bool = False
    compiled: bool = False
    fused: bool = False
    batched: bool = False
    tf32: bool = False


BEST = dict(channels_last=True, autocast=True, compiled=True, fused=True, batched=True, tf32=True)
FORMS = {
    "plain": Form(),
    "best": Form(**BEST),
    "best, frame by frame": Form(**BEST | {"batched": False}),
    "best, float32": Form(**BEST | {"autocast": False}),
}


class TorchStep:
    """STPL on one device: call it with a batch, and it moves the network by one step.

    Args:
      config: a run's configuration; its reading of STPL is followed where it is one of those that are timed.
      num_classes: K.
      form: a `Form`.
      device: PyTorch's name of it.
      dtype: of the parameters.
      compile_mode: of torch.compile.

    Raises:
      ValueError: the configuration asks for what this step does not have.
    """

    def __init__(self, config, num_classes, form, device, dtype=torch.float32, compile_mode="default"):
        check_settings(config)
        self.config, self.form, self.device, self.num_classes = config, form, torch.device(device), num_classes
        self.autocast_type = "cuda" if self.device.type == "cuda" else "cpu"
        settings = config.methods.stpl
        # Plain values, so that torch.compile need not see into a configuration; the share as `share_of` has it.
        self.temperature, self.class_power = settings.contrast.temperature, settings.contrast.class_power
        self.per_class, self.flow_scale = settings.topk.per_class, config.flow.scale
        self.share = Fraction(str(settings.topk.proportion)).limit_denominator(10_000).as_integer_ratio()
        self.network = Network(config, num_classes).to(self.device, dtype).train()
        if form.channels_last:
            self.network.to(memory_format=torch.channels_last)
        norms = [module for module in self.network.modules() if isinstance(module, FrameBatchNorm)]
        clean_only = config.batch_norm.average_over == "clean"
        self.norms, self.clean_only = norms, clean_only
        if form.batched:
            for norm in norms:
                norm.groups = 2 * config.num_frames
                norm.averaged = config.num_frames if clean_only else norm.groups
        self.optimiser = self._make_optimiser()
        self.random, self.steps = random.Random(config.seed), 0
        self.features, self.head, self.jitter = self.network.features, self._head, torch_augment.jitter
        if form.compiled:
            self.features, self.head, self.jitter = (
                torch.compile(f, mode=compile_mode, dynamic=False) for f in (self.features, self.head, self.jitter)
            )

    def __call__(self, batch):
        """Makes one step; returns the loss, a tensor that may still be under way.

        Args:
          batch: `frames` `[B, T, H, W, 3]` uint8 RGB, newest first, and `flow` `[B, 1, H, W, 2]` int16 in tenths of a
            pixel, tensors on the device.
        """
        torch.backends.cuda.matmul.allow_tf32 = self.form.tf32
        clean = self.prepare(batch["frames"])
        loss = self.loss(clean, self.augment(clean), batch["flow"])
        loss.backward()
        self._update()
        return loss.detach()

    def prepare(self, frames):
        """`[B, T, H, W, 3]` uint8 to `[B, T, 3, H, W]` floating point."""
        return frames.movedim(-1, 2).to(self.network.mean.dtype).contiguous()

    @torch.no_grad()
    def augment(self, clean):
        """Draws T(X) for each clip, `[B, T, 3, H, W]`."""
        draws = [torch_augment.sample(self.random, clean.shape[-2], self.config.methods.stpl.augment) for _ in clean]
        clips = zip(clean, draws, strict=True)
        return torch.stack([torch_augment.augment(clip, draw, self.jitter) for clip, draw in clips])

    def loss(self, clean, augmented, flow):
        """The loss of both views, `[B, T, 3, H, W]` each, and flow as stored."""
        with torch.autocast(self.autocast_type, torch.bfloat16, enabled=self.form.autocast):
            frames = [view[:, t] for view in (clean, augmented) for t in range(view.shape[1])]
            if self.form.batched:
                features = self.features(self._laid_out(torch.cat(frames))).chunk(len(frames))
            else:
                features = [self._one_frame(number, frame) for number, frame in enumerate(frames)]
            return self.head(*features, flow)

    def count_flop(self, batch):
        """Counts the operations of products and convolutions, forward and backward, as PyTorch's counter does.

        The augmentation is left out: it depends on the draw, and is no part of the network's work.
        """
        clean = self.prepare(batch["frames"])
        with FlopCounterMode(display=False) as counter:
            self.loss(clean, clean, batch["flow"]).backward()
        self.optimiser.zero_grad()
        return counter.get_total_flops()

    def _one_frame(self, number, frame):
        # A momentum of 0 leaves the running averages alone.
        momentum = 0.0 if self.clean_only and number >= self.config.num_frames else 0.1
        for norm in self.norms:
            norm.momentum = momentum
        return self.features(self._laid_out(frame))

    def _laid_out(self, images):
        # Here and not in `prepare`: strides that depended on what was drawn would have programs compiled anew.
        return images.contiguous(memory_format=torch.channels_last) if self.form.channels_last else images

    def _head(self, z_t, z_earlier, a_t, a_earlier, flow):
        flow = resize_flow(flow[:, 0].to(self.network.mean.dtype), z_t.shape[2:], self.flow_scale)

        def align(x):
            return warp(x, flow)

        with torch.no_grad():
            scores = self.network.fused_scores(z_t, z_earlier, align).flatten(2).mT.to(flow.dtype)
            index, labels, mask = self._confident(scores)

        def project(current, earlier):
            stacked = torch.stack([align(earlier), current.to(flow.dtype)], 1)  # [B, T, C, h, w]
            pixels = self.network.fusion(stacked).flatten(2)  # [B, T·C, h·w]
            picked = pixels.gather(2, index[:, None].expand(-1, pixels.shape[1], -1))
            return self.network.project(picked[..., None])[..., 0].mT  # [B, N, D]

        queries, keys = project(z_t, z_earlier), project(a_t, a_earlier)
        with torch.autocast(self.autocast_type, enabled=False):
            loss, valid = contrast(queries, keys, labels, mask, self.num_classes, self.temperature)
            members = one_hot(labels, self.num_classes, mask, loss.dtype)
            counts = members.sum(1).clamp(min=1)  # [B, K]
            weights = valid * counts.gather(1, labels) ** self.class_power
            return ((weights * loss).sum(1) / weights.sum(1).clamp(min=torch.finfo(loss.dtype).tiny)).mean()

    def _confident(self, scores):
        """Pseudo-labels of `[B, P, K]`: index, labels and mask, `[B, N]` each."""
        pixels, (numerator, denominator) = scores.shape[1], self.share
        confidence, labels = scores.softmax(-1).amax(-1), scores.argmax(-1)
        slots = pixels * numerator // denominator
        if not self.per_class:
            index = confidence.topk(slots, 1).indices
            chosen_labels = labels.gather(1, index)
            return index, chosen_labels, torch.ones_like(chosen_labels, dtype=torch.bool)
        order = confidence.argsort(dim=1, descending=True, stable=True)
        order = order.gather(1, labels.gather(1, order).argsort(dim=1, stable=True))
        by_class = labels.gather(1, order)
        sizes = one_hot(labels, self.num_classes, torch.ones_like(labels, dtype=torch.bool), torch.int64).sum(1)
        starts = sizes.cumsum(1) - sizes
        rank = torch.arange(pixels, device=scores.device) - starts.gather(1, by_class)
        chosen = rank < (sizes * numerator // denominator).gather(1, by_class)
        index = order.gather(1, (~chosen).to(torch.uint8).argsort(dim=1, stable=True)[:, :slots])
        mask = torch.arange(slots, device=scores.device) < chosen.sum(1, keepdim=True)
        return index, labels.gather(1, index), mask

    def _make_optimiser(self):
        optim = self.config.optim
        factors = self._factors()
        groups = [
            {"params": [p for p in module.parameters() if p.requires_grad], "factor": factors[name]}
            for name, module in self.network.named_children()
        ]
        return torch.optim.SGD(
            groups,
            lr=optim.learning_rate,
            momentum=optim.momentum,
            weight_decay=optim.weight_decay,
            fused=True if self.form.fused else None,
        )

    def _factors(self):
        """Learning rate factors by child module."""
        head = self.config.methods.stpl.head_multiplier
        return {"segmenter": 1.0, "fusion": head, "projection": head}

    def _update(self):
        optim = self.config.optim
        if optim.clip_norm:
            trained = [p for group in self.optimiser.param_groups for p in group["params"] if p.grad is not None]
            torch.nn.utils.clip_grad_norm_(trained, optim.clip_norm)
        rate = optim.learning_rate * max(0.0, 1 - self.steps / optim.decay_steps) ** optim.power
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["factor"]
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.steps += 1


def check_settings(config):
    """Raises a ValueError that lists settings which `TorchStep` does not follow."""
    stpl, optim = config.methods.stpl, config.optim
    followed = {
        "method": (config.method, "stpl"),
        "num_frames": (config.num_frames, 2),
        "batch_norm.mode": (config.batch_norm.mode, "batch"),
        "optim.accumulate": (optim.accumulate, 1),
        "optim.nesterov": (optim.nesterov, False),
        "optim.frozen": (tuple(optim.frozen), ()),
        "optim.multipliers": (tuple(optim.multipliers), ()),
        "methods.stpl.objective": (stpl.objective, "stpl"),
        "methods.stpl.fusion": (stpl.fusion, "stam"),
        "methods.stpl.contrast.scope": (stpl.contrast.scope, "clip"),
        "methods.stpl.previous_gradient": (stpl.previous_gradient, True),
        "methods.stpl.key_gradient": (stpl.key_gradient, True),
        "methods.stpl.augment.per_frame": (stpl.augment.per_frame, False),
    }
    other = [f"{name}={found!r}, not {value!r}" for name, (found, value) in followed.items() if found != value]
    if other:
        raise ValueError(f"The step in PyTorch follows other settings than these: {'; '.join(other)}.")


def resize_flow(flow, size, scale):
    """Brings stored flow, `[B, H, W, 2]` in tenths of a pixel, to a grid: `[B, h, w, 2]` in its pixels."""
    height, width = flow.shape[1:3]
    resized = F.interpolate(flow.movedim(-1, 1) / 10, size=size, mode="bilinear", align_corners=True).movedim(1, -1)
    factors = ((size[1] - 1) / (width - 1), (size[0] - 1) / (height - 1))
    if scale == "public":
        factors = (size[0] / height,) * 2
    return torch.stack([resized[..., 0] * factors[0], resized[..., 1] * factors[1]], -1)


def warp(x, flow):
    """Samples `[B, C, h, w]` where each pixel was; beyond the border its pixels are repeated. In the flow's type."""
    height, width = x.shape[2:]
    columns = torch.arange(width, device=x.device, dtype=flow.dtype) + flow[..., 0]
    rows = torch.arange(height, device=x.device, dtype=flow.dtype)[:, None] + flow[..., 1]
    grid = torch.stack([columns * (2 / (width - 1)) - 1, rows * (2 / (height - 1)) - 1], -1)
    return F.grid_sample(x.to(flow.dtype), grid, mode="bilinear", padding_mode="border", align_corners=True)


def one_hot(labels, num_classes, mask, dtype):
    """`[B, N, K]`: 1 at each pixel's class where the mask is set."""
    classes = torch.arange(num_classes, device=labels.device)
    return ((labels[..., None] == classes) & mask[..., None]).to(dtype)


def contrast(queries, keys, labels, mask, num_classes, temperature):
    """Equation 3 for queries and keys at the same pixels, `[B, N, D]`: `loss` and `valid`, `[B, N]` each.

    The positive term needs each class's mean key alone, see `stpl_jax.losses.contrastive`.
    """
    members = one_hot(labels, num_classes, mask, keys.dtype)
    sizes = members.sum(1)  # [B, K]
    means = members.mT @ keys / sizes.clamp(min=1)[..., None]  # [B, K, D]
    positives = sizes.gather(1, labels)
    valid = mask & (positives > 0) & (sizes.sum(1, keepdim=True) > positives)
    similarity = queries @ keys.mT / temperature  # [B, N, N]
    excluded = (labels[:, :, None] == labels[:, None]) | ~mask[:, None]
    log_negatives = similarity.masked_fill(excluded, _EXCLUDED).logsumexp(-1)
    attraction = (queries * means.gather(1, labels[..., None].expand_as(queries))).sum(-1) / temperature
    return torch.where(valid, log_negatives - attraction, 0), valid
