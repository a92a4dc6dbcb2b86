"""ACCEL on DeepLabv2 in plain PyTorch, with the key names of the field's checkpoints: what the Flax network is held to.

Written from the description of the network, not from the Flax code: NCHW, PyTorch's own layers, one frame a call.
benchmarks/torch_step.py times the same network.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

MEAN_BGR = (104.00698793, 116.66876762, 122.67891434)


class Maps(NamedTuple):
    """Features or scores, `[B, C, h, w]`, of the last stage but one (auxiliary) and of the last (main)."""

    auxiliary: torch.Tensor
    main: torch.Tensor


def normalise(rgb, dtype=torch.float32):
    """`[B, H, W, 3]` RGB of 0-255 to `[B, 3, H, W]` BGR without the mean."""
    bgr = torch.as_tensor(rgb).to(dtype).flip(-1) - torch.tensor(MEAN_BGR, dtype=dtype)
    return bgr.permute(0, 3, 1, 2).contiguous()


def resize_flow(flow, size):
    """`[B, 2, H, W]` (u, v) to `[B, 2, h, w]`, in pixels of the new grid."""
    height, width = flow.shape[2:]
    resized = F.interpolate(flow, size=size, mode="bilinear", align_corners=True)
    u = resized[:, 0] * ((size[1] - 1) / (width - 1))
    v = resized[:, 1] * ((size[0] - 1) / (height - 1))
    return torch.stack([u, v], 1)


def warp(x, flow):
    """Samples `[B, C, h, w]` at (column + u, row + v): corners clamped to the border, weights of the true position."""
    flow = flow.to(x.dtype)
    height, width = x.shape[2:]
    rows = torch.arange(height, dtype=flow.dtype).view(1, height, 1) + flow[:, 1]
    columns = torch.arange(width, dtype=flow.dtype).view(1, 1, width) + flow[:, 0]
    top, left = rows.floor(), columns.floor()
    alpha, beta = columns - left, rows - top
    batch = torch.arange(x.shape[0]).view(-1, 1, 1)
    above, below = (r.clamp(0, height - 1).long() for r in (top, top + 1))
    before, after = (c.clamp(0, width - 1).long() for c in (left, left + 1))
    channels_last = x.permute(0, 2, 3, 1)
    upper = torch.lerp(channels_last[batch, above, before], channels_last[batch, above, after], alpha[..., None])
    lower = torch.lerp(channels_last[batch, below, before], channels_last[batch, below, after], alpha[..., None])
    return torch.lerp(upper, lower, beta[..., None]).permute(0, 3, 1, 2)


class Block(nn.Module):
    """Residual block in the Caffe layout: the stride is in the first 1×1 convolution."""

    def __init__(self, inputs, width, expansion, stride, dilation, downsample, norm):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, stride=stride, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = norm(width)
        self.conv3 = nn.Conv2d(width, width * expansion, 1, bias=False)
        self.bn3 = norm(width * expansion)
        self.downsample = None
        if downsample:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, width * expansion, 1, stride=stride, bias=False), norm(width * expansion)
            )

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)


class Classifier(nn.Module):
    """Sum of dilated 3×3 convolutions with bias."""

    def __init__(self, inputs, num_classes, dilations):
        super().__init__()
        self.conv2d_list = nn.ModuleList(
            nn.Conv2d(inputs, num_classes, 3, padding=dilation, dilation=dilation) for dilation in dilations
        )

    def forward(self, x):
        return sum(conv(x) for conv in self.conv2d_list)


class TorchAccel(nn.Module):
    """The network; keys like `bn1`, `layer1.0.conv1`, `layer5.conv2d_list.0`, `layer6.conv2d_list.0`, `sf_layer`.

    Args:
      blocks, widths, strides, stage_dilations: of each stage; a stage has `expansion` times `widths` channels.
      num_classes: K.
      dilations: of both classifiers.
      stem_width, stem_kernel, stem_pool: the first convolution, and whether max-pooling follows it.
      with_fusion: False for DeepLabv2 without the score fusion.
      norm: makes batch normalisation of so many channels.
    """

    def __init__(
        self,
        blocks=(3, 4, 23, 3),
        widths=(64, 128, 256, 512),
        num_classes=15,
        dilations=(6, 12, 18, 24),
        strides=(1, 2, 1, 1),
        stage_dilations=(1, 1, 2, 4),
        expansion=4,
        stem_width=64,
        stem_kernel=7,
        stem_pool=True,
        with_fusion=True,
        norm=nn.BatchNorm2d,
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(3, stem_width, stem_kernel, stride=2, padding=stem_kernel // 2, bias=False)
        self.bn1 = norm(stem_width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True) if stem_pool else nn.Identity()
        channels, self.stages = [stem_width], len(blocks)
        for s, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            dilation = stage_dilations[s]
            stage = [Block(channels[-1], width, expansion, strides[s], dilation, True, norm)]
            channels.append(width * expansion)
            stage += [Block(channels[-1], width, expansion, 1, dilation, False, norm) for _ in range(1, count)]
            self.add_module(f"layer{s + 1}", nn.Sequential(*stage))
        self.layer5 = Classifier(channels[-2], num_classes, dilations)
        self.layer6 = Classifier(channels[-1], num_classes, dilations)
        if with_fusion:
            self.sf_layer = nn.Conv2d(2 * num_classes, num_classes, 1, bias=False)
            with torch.no_grad():
                eye = torch.eye(num_classes)
                self.sf_layer.weight.copy_(torch.cat([eye, 0 * eye], 1)[:, :, None, None])
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(False)

    def features(self, x):
        """One frame, normalised, `[B, 3, H, W]`, to the last two stages' `Maps`."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        outputs = []
        for s in range(self.stages):
            x = getattr(self, f"layer{s + 1}")(x)
            outputs.append(x)
        return Maps(outputs[-2], outputs[-1])

    def classify(self, features):
        """`Maps` of features to `Maps` of scores, one frame by itself."""
        return Maps(self.layer5(features.auxiliary), self.layer6(features.main))

    def fuse(self, current, earlier, flow):
        """`Maps` of scores of two frames and flow on their grid, `[B, 2, h, w]`, to fused `Maps`."""
        return Maps(*(self.sf_layer(torch.cat([c, warp(e, flow)], 1)) for c, e in zip(current, earlier, strict=True)))

    def forward(self, current, earlier, flow):
        """Two frames, normalised, `[B, 3, H, W]`, and flow on the current one's grid, `[B, 2, H, W]`, to fused `Maps`.

        The earlier frame is forwarded after the current one: with batch statistics, it moves the running averages last.
        """
        now = self.classify(self.features(current))
        before = self.classify(self.features(earlier))
        return self.fuse(now, before, resize_flow(flow, now.main.shape[2:]))


def draw_weights(network, seed=0):
    """Fills a `TorchAccel` so that nothing has a special value and activations neither die nor explode; returns it."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor, deviation, mean=0.0):
        tensor.copy_(mean + deviation * torch.randn(tensor.shape, generator=generator, dtype=torch.float64))

    def uniform(tensor, low, high):
        tensor.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator, dtype=torch.float64))

    with torch.no_grad():
        for name, module in network.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                # A branch adds a tenth to the variance of the sum: 33 of them do not explode.
                uniform(module.weight, *((0.2, 0.4) if name.endswith("bn3") else (0.7, 1.4)))
                normal(module.bias, 0.1)
                normal(module.running_mean, 0.1)
                uniform(module.running_var, 0.7, 1.4)
            elif isinstance(module, nn.Conv2d):
                fan_in = module.weight[0].numel()
                # Frames have a deviation of about 70.
                gain = 2.0**0.5 / 70 if name == "conv1" else 2.0**0.5
                if name.startswith(("layer5.", "layer6.")):
                    gain = 1.0
                normal(module.weight, gain * fan_in**-0.5)
                if module.bias is not None:
                    normal(module.bias, 0.1)
        if hasattr(network, "sf_layer"):
            classes = network.sf_layer.weight.shape[0]
            eye = torch.eye(classes, dtype=torch.float64)
            noise = 0.1 * torch.randn((classes, 2 * classes), generator=generator, dtype=torch.float64)
            network.sf_layer.weight.copy_((torch.cat([eye, 0.5 * eye], 1) + noise)[:, :, None, None])
    return network
