"""ESPNet in plain PyTorch, with the key names of the public weights: what the Flax network is held to.

Written from the description of the network, not from the Flax code: NCHW, PyTorch's own layers, one frame a call.
"""

import torch
from torch import nn

MEAN_BGR = (72.3923111, 82.90893555, 73.15840149)
DEVIATION_BGR = (45.3192215, 46.15289307, 44.91483307)
DILATIONS = (1, 2, 4, 8, 16)


def normalise(rgb, dtype=torch.float32, mean=MEAN_BGR, deviation=DEVIATION_BGR):
    """`[B, H, W, 3]` RGB of 0-255 to what the network takes, `[B, 3, H, W]`."""
    bgr = torch.as_tensor(rgb).to(dtype).flip(-1)
    scaled = (bgr - torch.tensor(mean, dtype=dtype)) / torch.tensor(deviation, dtype=dtype) / 255
    return scaled.permute(0, 3, 1, 2).contiguous()


def batch_norm(channels):
    return nn.BatchNorm2d(channels, eps=1e-3)


class Bare(nn.Module):
    """A convolution that keeps the grid (or halves it) and has neither bias nor anything after it."""

    def __init__(self, inputs, outputs, kernel, stride=1, dilation=1):
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False)

    def forward(self, x):
        return self.conv(x)


class Activated(nn.Module):
    """Batch normalisation and PReLU, after a 3×3 convolution where `inputs` is given."""

    def __init__(self, channels, inputs=None, stride=1):
        super().__init__()
        if inputs is not None:
            self.conv = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
        self.bn, self.act = batch_norm(channels), nn.PReLU(channels)

    def forward(self, x):
        return self.act(self.bn(self.conv(x) if hasattr(self, "conv") else x))


class Pyramid(nn.Module):
    """The ESP module: reduce, convolve with each dilation, add up from small to large, concatenate."""

    def __init__(self, inputs, outputs, downsamples=False, residual=False):
        super().__init__()
        narrow = outputs // 5
        self.residual = residual
        self.c1 = Bare(inputs, narrow, 3, 2) if downsamples else Bare(inputs, narrow, 1)
        for dilation in DILATIONS:
            width = outputs - 4 * narrow if dilation == 1 else narrow
            self.add_module(f"d{dilation}", Bare(narrow, width, 3, dilation=dilation))
        if downsamples:
            self.bn, self.act = batch_norm(outputs), nn.PReLU(outputs)
        else:
            self.bn = Activated(outputs)

    def forward(self, x):
        reduced = self.c1(x)
        parts, total = [self.d1(reduced)], 0
        for dilation in DILATIONS[1:]:
            total = total + getattr(self, f"d{dilation}")(reduced)
            parts.append(total)
        y = torch.cat(parts, 1) + (x if self.residual else 0)
        y = self.bn(y)
        return self.act(y) if hasattr(self, "act") else y


class Encoder(nn.Module):
    def __init__(self, outputs, p, q, widths):
        super().__init__()
        first, second, third = widths
        self.level1 = Activated(first, 3, 2)
        self.b1 = Activated(first + 3)
        self.level2_0 = Pyramid(first + 3, second, downsamples=True)
        self.level2 = nn.Sequential(*(Pyramid(second, second, residual=True) for _ in range(p)))
        self.b2 = Activated(2 * second + 3)
        self.level3_0 = Pyramid(2 * second + 3, third, downsamples=True)
        self.level3 = nn.Sequential(*(Pyramid(third, third, residual=True) for _ in range(q)))
        self.b3 = Activated(2 * third)
        self.classifier = Bare(2 * third, outputs, 1)


class TorchESPNet(nn.Module):
    """The network; keys like `encoder.level2.0.d16.conv.weight`, `up_l3.0.weight`, `classifier.weight`.

    Args:
      outputs: K + 1, the last one means void.
      p, q: ESP blocks of the second and of the third level.
      widths: channels of the three levels.
      reinforced: whether the decoder takes the first level with the small image beside it, or by itself.
    """

    def __init__(self, outputs=20, p=2, q=8, widths=(16, 64, 128), reinforced=False):
        super().__init__()
        self.reinforced = reinforced
        self.encoder = Encoder(outputs, p, q, widths)
        self.level3_C = Bare(2 * widths[1] + 3, outputs, 1)
        self.br = batch_norm(outputs)
        self.conv = Activated(outputs, widths[0] + 3 * reinforced + outputs)
        self.up_l3 = nn.Sequential(nn.ConvTranspose2d(outputs, outputs, 2, 2, bias=False))
        self.combine_l2_l3 = nn.Sequential(Activated(2 * outputs), Pyramid(2 * outputs, outputs))
        self.up_l2 = nn.Sequential(nn.ConvTranspose2d(outputs, outputs, 2, 2, bias=False), Activated(outputs))
        self.classifier = nn.ConvTranspose2d(outputs, outputs, 2, 2, bias=False)

    def encode(self, x):
        """An image, normalised, to what the decoder takes of each level, finest first."""
        e, pool = self.encoder, nn.AvgPool2d(3, 2, 1)
        half, quarter = pool(x), pool(pool(x))
        first = e.level1(x)
        reinforced = e.b1(torch.cat([first, half], 1))
        second = e.level2_0(reinforced)
        second = e.b2(torch.cat([e.level2(second), second, quarter], 1))
        third = e.level3_0(second)
        third = e.b3(torch.cat([third, e.level3(third)], 1))
        return reinforced if self.reinforced else first, second, third

    def forward(self, x):
        """`[B, 3, H, W]` to all scores `[B, K + 1, H, W]`; height and width are multiples of 8."""
        first, second, third = self.encode(x)
        coarse = self.up_l3(self.br(self.encoder.classifier(third)))
        coarse = self.up_l2(self.combine_l2_l3(torch.cat([self.level3_C(second), coarse], 1)))
        return self.classifier(self.conv(torch.cat([coarse, first], 1)))


def draw_weights(module, seed=0):
    """Draws all tensors so that none has a special value, and scores keep their size."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(shape, low, high):
        return low + (high - low) * torch.rand(shape, generator=generator)

    with torch.no_grad():
        for name, x in module.state_dict().items():
            if x.ndim == 4:
                fan_in = x.shape[0] if "up_" in name or name == "classifier.weight" else x[0].numel()
                x.copy_(torch.randn(x.shape, generator=generator) * (1.5 / fan_in) ** 0.5)
            elif name.endswith(("running_var", "bn.weight", "br.weight")):
                x.copy_(uniform(x.shape, 0.7, 1.4))
            elif name.endswith("act.weight"):
                x.copy_(uniform(x.shape, 0.05, 0.5))
            elif x.is_floating_point():
                x.copy_(torch.randn(x.shape, generator=generator) * 0.1)
    # The first level sees values of a hundredth.
    module.encoder.level1.bn.running_var.mul_(1e-5)
    return module
