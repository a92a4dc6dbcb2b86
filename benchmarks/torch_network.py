"""ACCEL on DeepLabv2, STAM and the projection head in PyTorch: what the train step is timed against.

Layers carry the names of the public checkpoints. Weights come from our own networks, so that both compute the same.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from stpl_jax.convert import accel_names
from stpl_jax.models.accel import MEAN_BGR


class FrameBatchNorm(nn.BatchNorm2d):
    """PyTorch's batch normalisation; with `groups` above 1, of frames that form one batch and keep statistics apart.

    `BatchNorm2d` takes one set of statistics over all that it is given, so frames that must not see each other would
    have to pass one after another. Here `[G·B, C, h, w]`, group-major, is normalised group by group. The running
    averages take the first `averaged` groups in their order. Scale and bias are not trained.
    """

    groups = 1
    averaged = 1

    def __init__(self, channels):
        super().__init__(channels)
        self.requires_grad_(False)

    def forward(self, x):
        if self.groups == 1:
            return super().forward(x)
        dtype = torch.promote_types(x.dtype, torch.float32)
        grouped = x.to(dtype).unflatten(0, (self.groups, -1))  # [G, B, C, h, w]
        var, mean = torch.var_mean(grouped, (1, 3, 4), correction=0, keepdim=True)
        factor = (var + self.eps).rsqrt() * self.weight[:, None, None]
        out = (grouped - mean) * factor + self.bias[:, None, None]
        with torch.no_grad():
            count = grouped[0, :, 0].numel()
            statistics = ((self.running_mean, mean), (self.running_var, var * (count / (count - 1))))
            for running, values in statistics:
                average = running
                for value in values.reshape(self.groups, -1)[: self.averaged]:
                    average = torch.lerp(average, value, 0.1)
                running.copy_(average)
        return out.flatten(0, 1).to(x.dtype)


class Block(nn.Module):
    """Residual block in the Caffe layout: the stride is in the first 1×1 convolution."""

    def __init__(self, inputs, width, outputs, stride, dilation):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, stride=stride, bias=False)
        self.bn1 = FrameBatchNorm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = FrameBatchNorm(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = FrameBatchNorm(outputs)
        self.downsample = None

    def add_downsample(self):
        """Gives the shortcut a convolution: the first block of each stage."""
        outputs, inputs, stride = self.conv3.out_channels, self.conv1.in_channels, self.conv1.stride
        convolution = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
        self.downsample = nn.Sequential(convolution, FrameBatchNorm(outputs))
        return self

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(self.bn3(self.conv3(y)) + shortcut, inplace=True)


class Classifier(nn.Module):
    """The sum of dilated 3×3 convolutions with bias."""

    def __init__(self, inputs, num_classes, dilations):
        super().__init__()
        self.conv2d_list = nn.ModuleList(nn.Conv2d(inputs, num_classes, 3, padding=d, dilation=d) for d in dilations)

    def forward(self, x):
        return sum(conv(x) for conv in self.conv2d_list)


class Accel(nn.Module):
    """The segmentation network.

    Args:
      model: `config.model`.
      num_classes: K.
    """

    def __init__(self, model, num_classes):
        super().__init__()
        settings = model.backbone
        self.conv1 = nn.Conv2d(
            3, settings.stem_width, settings.stem_kernel, stride=2, padding=settings.stem_kernel // 2, bias=False
        )
        self.bn1 = FrameBatchNorm(settings.stem_width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True) if settings.stem_pool else nn.Identity()
        inputs, self.channels = settings.stem_width, []
        stages = zip(settings.blocks, settings.widths, settings.strides, settings.dilations, strict=True)
        for number, (count, width, stride, dilation) in enumerate(stages, 1):
            outputs = width * settings.expansion
            blocks = [Block(inputs, width, outputs, stride, dilation).add_downsample()]
            blocks += [Block(outputs, width, outputs, 1, dilation) for _ in range(1, count)]
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
            inputs = outputs
            self.channels.append(outputs)
        self.layer5 = Classifier(self.channels[-2], num_classes, model.classifier_dilations)
        self.layer6 = Classifier(self.channels[-1], num_classes, model.classifier_dilations)
        self.sf_layer = nn.Conv2d(2 * num_classes, num_classes, 1, bias=False)
        # Exact until the module is moved to the type that it computes in.
        self.register_buffer("mean", torch.tensor(MEAN_BGR, dtype=torch.float64).view(3, 1, 1), persistent=False)

    def features(self, rgb):
        """Turns RGB images of 0-255, `[B, 3, H, W]`, into the last stage's features, `[B, C, h, w]`."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(rgb.flip(1) - self.mean)), inplace=True))
        for number in range(1, len(self.channels) + 1):
            x = getattr(self, f"layer{number}")(x)
        return x

    def fused_scores(self, current, earlier, warp):
        """Scores two frames' features with the main classifier and fuses them: `[B, K, h, w]`."""
        return self.sf_layer(torch.cat([self.layer6(current), warp(self.layer6(earlier))], 1))


class Stam(nn.Module):
    """Equations 5 to 7 of the paper's appendix: `[B, T, C, h, w]`, earliest frame first, to `[B, T·C, h, w]`."""

    def __init__(self, frames):
        super().__init__()
        self.temporal = nn.Linear(frames, frames)
        self.spatial = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, z):
        pooled = self.temporal(z.mean((2, 3, 4))) + self.temporal(z.amax((2, 3, 4)))  # [B, T]
        attended = torch.sigmoid(pooled)[:, :, None, None, None] * z
        spatial = self.spatial(torch.stack([attended.mean((1, 2)), attended.amax((1, 2))], 1))  # [B, 1, h, w]
        return (torch.sigmoid(spatial)[:, None] * attended + z).flatten(1, 2)


class Projection(nn.Module):
    """H: 1×1 convolution, ReLU, 1×1 convolution, unit length."""

    def __init__(self, inputs, hidden, dim):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, hidden, 1)
        self.conv2 = nn.Conv2d(hidden, dim, 1)

    def forward(self, z):
        projected = self.conv2(F.relu(self.conv1(z), inplace=True))
        return F.normalize(projected.to(torch.promote_types(projected.dtype, torch.float32)), dim=1)


class Network(nn.Module):
    """Everything with parameters: `segmenter`, `fusion`, `projection`.

    Args:
      config: a run's configuration.
      num_classes: K.
    """

    def __init__(self, config, num_classes):
        super().__init__()
        self.segmenter = Accel(config.model, num_classes)
        inputs = config.num_frames * self.segmenter.channels[-1]
        head = config.methods.stpl.projection
        hidden, dim = (2 * inputs, inputs) if head.init == "identity" else (head.hidden, head.dim)
        self.fusion = Stam(config.num_frames)
        self.projection = Projection(inputs, hidden, dim)


def load_weights(network, params, batch_stats):
    """Fills a `Network` from ours.

    Args:
      network: a `Network`.
      params: `state.params["network"]` of STPL, numpy arrays.
      batch_stats: `state.batch_stats`, likewise.

    Returns:
      The network.

    Raises:
      RuntimeError: a tensor is missing, too many, or of another shape.
    """
    segmenter, model = {"params": params["segmenter"], "batch_stats": batch_stats}, network.segmenter
    blocks = [len(getattr(model, f"layer{number}")) for number in range(1, len(model.channels) + 1)]
    keys = accel_names.backbone_keys(blocks) + accel_names.FUSION_KEYS
    for name in accel_names.CLASSIFIERS:
        keys += accel_names.classifier_keys(name, len(model.layer6.conv2d_list))
    state = {f"segmenter.{name}": accel_names.to_torch(_at(segmenter, path), kind) for name, path, kind in keys}
    fusion, projection = params["fusion"], params["projection"]
    for name, layer in (
        ("fusion.spatial", fusion["spatial"]),
        ("projection.conv1", projection["conv1"]),
        ("projection.conv2", projection["conv2"]),
    ):
        state[f"{name}.weight"] = accel_names.to_torch(layer["kernel"], "conv")
        state[f"{name}.bias"] = layer["bias"]
    state["fusion.temporal.weight"] = np.transpose(fusion["temporal"]["kernel"])
    state["fusion.temporal.bias"] = fusion["temporal"]["bias"]
    counters = {name: value for name, value in network.state_dict().items() if name.endswith("num_batches_tracked")}
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in state.items()}
    network.load_state_dict(tensors | counters)
    return network


def _at(tree, path):
    for name in path:
        tree = tree[name]
    return np.asarray(tree)
