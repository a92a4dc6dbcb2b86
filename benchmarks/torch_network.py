"""The network that the train step is timed against: the tests' reading of it, with frames side by side in one batch."""

import torch
from torch import nn
from torch.nn import functional as F

from tests.torch_reference.torch_accel import MEAN_BGR, TorchAccel
from tests.torch_reference.torch_names import load
from tests.torch_reference.torch_stpl import Projection, Stam


class FrameBatchNorm(nn.BatchNorm2d):
    """PyTorch's batch normalisation; with `groups` above 1, of frames that form one batch and keep statistics apart.

    `BatchNorm2d` takes one set of statistics over all that it is given, so frames that must not see each other would
    have to pass one after another. Here `[G·B, C, h, w]`, group-major, is normalised group by group. The running
    averages take the first `averaged` groups in their order.
    """

    groups = 1
    averaged = 1

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


class Network(nn.Module):
    """Everything with parameters: `segmenter`, `fusion`, `projection`.

    Args:
      config: a run's configuration.
      num_classes: K.
    """

    def __init__(self, config, num_classes):
        super().__init__()
        settings, head = config.model.backbone, config.methods.stpl.projection
        self.segmenter = TorchAccel(
            settings.blocks,
            settings.widths,
            num_classes,
            config.model.classifier_dilations,
            settings.strides,
            settings.dilations,
            settings.expansion,
            settings.stem_width,
            settings.stem_kernel,
            settings.stem_pool,
            norm=FrameBatchNorm,
        )
        self.fusion = Stam(settings.widths[-1] * settings.expansion)
        inputs = self.fusion.outputs
        hidden, dim = (2 * inputs, inputs) if head.init == "identity" else (head.hidden, head.dim)
        self.projection = Projection(inputs, hidden, dim)
        # Exact until the module is moved to the type that it computes in.
        self.register_buffer("mean", torch.tensor(MEAN_BGR, dtype=torch.float64).view(3, 1, 1), persistent=False)

    def features(self, rgb):
        """Turns RGB images of 0-255, `[B, 3, H, W]`, into the last stage's features, `[B, C, h, w]`."""
        return self.segmenter.features(rgb.flip(1) - self.mean).main

    def fused_scores(self, current, earlier, warp):
        """Scores two frames' features with the main classifier and fuses them: `[B, K, h, w]`."""
        scores, before = self.segmenter.layer6(current), self.segmenter.layer6(earlier)
        return self.segmenter.sf_layer(torch.cat([scores, warp(before)], 1))

    def project(self, fused):
        """Projects `[B, T·C, h, w]` to features of unit length, `[B, D, h, w]`, float32 at least."""
        projected = self.projection(fused)
        return F.normalize(projected.to(torch.promote_types(projected.dtype, torch.float32)), dim=1)


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
    return load(network, params, {"segmenter": batch_stats})
