"""FlowNet2 in plain PyTorch, NCHW, with the public checkpoint's key names: what ours is compared with."""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


def correlate(first, second, reach=10, stride=2):
    """Mean product with every shift of the second map, dy outer: `[B, C, h, w]` twice to `[B, n², h, w]`."""
    _, _, h, w = first.shape
    margin = reach * stride
    padded = F.pad(second, (margin, margin, margin, margin))
    planes = []
    for dy in range(0, 2 * margin + 1, stride):
        for dx in range(0, 2 * margin + 1, stride):
            planes.append((first * padded[:, :, dy : dy + h, dx : dx + w]).mean(dim=1))
    return torch.stack(planes, dim=1)


def warp(image, flow):
    """Bilinear samples of `[B, C, H, W]` at each pixel plus flow `[B, 2, H, W]`; indices are clamped, weights not."""
    batch, channels, height, width = image.shape
    x = torch.arange(width, dtype=flow.dtype, device=flow.device).view(1, 1, width) + flow[:, 0]
    y = torch.arange(height, dtype=flow.dtype, device=flow.device).view(1, height, 1) + flow[:, 1]
    x0, y0 = x.floor(), y.floor()
    wx, wy = (x - x0).unsqueeze(1), (y - y0).unsqueeze(1)

    def pick(row, column):
        index = row.clamp(0, height - 1).long() * width + column.clamp(0, width - 1).long()
        index = index.view(batch, 1, -1).expand(-1, channels, -1)
        return image.flatten(2).gather(2, index).view(image.shape)

    top = pick(y0, x0) * (1 - wx) + pick(y0, x0 + 1) * wx
    bottom = pick(y0 + 1, x0) * (1 - wx) + pick(y0 + 1, x0 + 1) * wx
    return top * (1 - wy) + bottom * wy


def norm(x):
    """Length over channels: `[B, C, H, W]` to `[B, 1, H, W]`."""
    return x.pow(2).sum(dim=1, keepdim=True).sqrt()


def down(inputs, outputs, kernel=3, stride=1):
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2), nn.LeakyReLU(0.1))


def up(inputs, outputs):
    return nn.Sequential(nn.ConvTranspose2d(inputs, outputs, 4, 2, 1), nn.LeakyReLU(0.1))


def inter(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 1, 1))


def to_flow(inputs):
    return nn.Conv2d(inputs, 2, 3, 1, 1)


def flow_up(bias=True):
    return nn.ConvTranspose2d(2, 2, 4, 2, 1, bias=bias)


class Pyramid(nn.Module):
    """Levels 4 to 6 and the way back up to level 2, common to C, S and SD."""

    def __init__(self, flow_bias=True, with_inter=False):
        super().__init__()
        self.conv4, self.conv4_1 = down(256, 512, 3, 2), down(512, 512)
        self.conv5, self.conv5_1 = down(512, 512, 3, 2), down(512, 512)
        self.conv6, self.conv6_1 = down(512, 1024, 3, 2), down(1024, 1024)
        self.deconv5, self.deconv4 = up(1024, 512), up(1026, 256)
        self.deconv3, self.deconv2 = up(770, 128), up(386, 64)
        self.with_inter = with_inter
        if with_inter:
            self.inter_conv5, self.inter_conv4 = inter(1026, 512), inter(770, 256)
            self.inter_conv3, self.inter_conv2 = inter(386, 128), inter(194, 64)
        widths = (512, 256, 128, 64) if with_inter else (1026, 770, 386, 194)
        self.predict_flow6 = to_flow(1024)
        self.predict_flow5, self.predict_flow4, self.predict_flow3, self.predict_flow2 = map(to_flow, widths)
        self.upsampled_flow6_to_5, self.upsampled_flow5_to_4 = flow_up(flow_bias), flow_up(flow_bias)
        self.upsampled_flow4_to_3, self.upsampled_flow3_to_2 = flow_up(flow_bias), flow_up(flow_bias)

    def through(self, level2, level3):
        level4 = self.conv4_1(self.conv4(level3))
        level5 = self.conv5_1(self.conv5(level4))
        level6 = self.conv6_1(self.conv6(level5))
        keep = (lambda layer, x: layer(x)) if self.with_inter else (lambda layer, x: x)
        layer = lambda name: getattr(self, name, None)  # noqa: E731

        flow6 = self.predict_flow6(level6)
        join5 = torch.cat((level5, self.deconv5(level6), self.upsampled_flow6_to_5(flow6)), 1)
        flow5 = self.predict_flow5(keep(layer("inter_conv5"), join5))
        join4 = torch.cat((level4, self.deconv4(join5), self.upsampled_flow5_to_4(flow5)), 1)
        flow4 = self.predict_flow4(keep(layer("inter_conv4"), join4))
        join3 = torch.cat((level3, self.deconv3(join4), self.upsampled_flow4_to_3(flow4)), 1)
        flow3 = self.predict_flow3(keep(layer("inter_conv3"), join3))
        join2 = torch.cat((level2, self.deconv2(join3), self.upsampled_flow3_to_2(flow3)), 1)
        return self.predict_flow2(keep(layer("inter_conv2"), join2))


class FlowNetC(Pyramid):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = down(3, 64, 7, 2), down(64, 128, 5, 2), down(128, 256, 5, 2)
        self.conv_redir, self.conv3_1 = down(256, 32, 1), down(473, 256)

    def forward(self, pair):
        quarter0, quarter1 = (self.conv2(self.conv1(frame)) for frame in pair.split(3, dim=1))
        eighth0, eighth1 = self.conv3(quarter0), self.conv3(quarter1)
        compared = F.leaky_relu(correlate(eighth0, eighth1), 0.1)
        return self.through(quarter0, self.conv3_1(torch.cat((self.conv_redir(eighth0), compared), 1)))


class FlowNetS(Pyramid):
    def __init__(self):
        super().__init__(flow_bias=False)
        self.conv1, self.conv2, self.conv3 = down(12, 64, 7, 2), down(64, 128, 5, 2), down(128, 256, 5, 2)
        self.conv3_1 = down(256, 256)

    def forward(self, x):
        quarter = self.conv2(self.conv1(x))
        return self.through(quarter, self.conv3_1(self.conv3(quarter)))


class FlowNetSD(Pyramid):
    def __init__(self):
        super().__init__(with_inter=True)
        self.conv0, self.conv1, self.conv1_1 = down(6, 64), down(64, 64, 3, 2), down(64, 128)
        self.conv2, self.conv2_1 = down(128, 128, 3, 2), down(128, 128)
        self.conv3, self.conv3_1 = down(128, 256, 3, 2), down(256, 256)

    def forward(self, pair):
        quarter = self.conv2_1(self.conv2(self.conv1_1(self.conv1(self.conv0(pair)))))
        return self.through(quarter, self.conv3_1(self.conv3(quarter)))


class FlowNetFusion(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv0, self.conv1, self.conv1_1 = down(11, 64), down(64, 64, 3, 2), down(64, 128)
        self.conv2, self.conv2_1 = down(128, 128, 3, 2), down(128, 128)
        self.deconv1, self.deconv0 = up(128, 32), up(162, 16)
        self.inter_conv1, self.inter_conv0 = inter(162, 32), inter(82, 16)
        self.predict_flow2, self.predict_flow1, self.predict_flow0 = to_flow(128), to_flow(32), to_flow(16)
        self.upsampled_flow2_to_1, self.upsampled_flow1_to_0 = flow_up(), flow_up()

    def forward(self, x):
        full = self.conv0(x)
        half = self.conv1_1(self.conv1(full))
        quarter = self.conv2_1(self.conv2(half))
        flow = self.predict_flow2(quarter)
        join1 = torch.cat((half, self.deconv1(quarter), self.upsampled_flow2_to_1(flow)), 1)
        flow = self.predict_flow1(self.inter_conv1(join1))
        join0 = torch.cat((full, self.deconv0(join1), self.upsampled_flow1_to_0(flow)), 1)
        return self.predict_flow0(self.inter_conv0(join0))


class TorchFlowNet2(nn.Module):
    """The whole network: two `[B, 3, H, W]` RGB, 0-255, to `[B, 2, H, W]` pixels."""

    def __init__(self):
        super().__init__()
        self.flownetc, self.flownetfusion = FlowNetC(), FlowNetFusion()
        self.flownets_1, self.flownets_2, self.flownets_d = FlowNetS(), FlowNetS(), FlowNetSD()

    def forward(self, frame0, frame1):
        mean = torch.stack((frame0, frame1), 2).flatten(2).mean(2)[:, :, None, None]
        a, b = (frame0 - mean) / 255, (frame1 - mean) / 255
        pair = torch.cat((a, b), 1)

        def show(flow):
            moved = warp(b, flow)
            return torch.cat((pair, moved, flow / 20, norm(a - moved)), 1)

        def smooth(flow):
            return F.interpolate(flow, scale_factor=4, mode="bilinear", align_corners=False)

        def blocky(flow):
            return F.interpolate(flow, scale_factor=4, mode="nearest")

        flow = smooth(20 * self.flownetc(pair))
        flow = smooth(20 * self.flownets_1(show(flow)))
        large = blocky(20 * self.flownets_2(show(flow)))
        small = blocky(self.flownets_d(pair) / 20)
        errors = norm(a - warp(b, small)), norm(a - warp(b, large))
        return self.flownetfusion(torch.cat((a, small, large, norm(small), norm(large), *errors), 1))


def build(state_dict=None):
    """Makes the network for inference; `state_dict` of tensors is loaded strictly, sharing their memory."""
    with torch.device("meta"):
        network = TorchFlowNet2()
    if state_dict is None:
        network.to_empty(device="cpu")
    else:
        network.load_state_dict(state_dict, strict=True, assign=True)
    return network.eval().requires_grad_(False)


# What the last layer of each network is multiplied by, so that each flow reaches about 20 pixels on random weights.
_GAINS = {"flownetc": 1.5, "flownets_1": 1.3, "flownets_2": 1.2, "flownets_d": 600.0}


def draw_state_dict(seed=0):
    """Random weights that keep activations about as large as the input: name -> float32 numpy array."""
    random = np.random.default_rng(seed)
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in TorchFlowNet2().state_dict().items()}
    weights = {}
    for name, shape in shapes.items():
        if name.endswith("bias"):
            values, scale = random.standard_normal(shape, dtype=np.float32), 0.05
        else:
            activated = ".0." in name and "inter" not in name
            # A transposed convolution of stride 2 adds up a quarter of its kernel at each pixel.
            fan_in = shape[0] * 4 if "deconv" in name or "upsampled" in name else math.prod(shape[1:])
            values, scale = random.standard_normal(shape, dtype=np.float32), ((2 if activated else 1) / fan_in) ** 0.5
        network, layer = name.split(".")[:2]
        if layer == "predict_flow2":
            scale *= _GAINS.get(network, 1.0)
        if layer == "predict_flow0":
            scale *= 1.2
        if name == "flownetc.conv3.0.weight":
            # Channels that mostly rise and fall together: else no product of two pixels would be negative, and the
            # activation behind the correlation would do nothing.
            common = random.standard_normal((1, *shape[1:]), dtype=np.float32)
            values *= np.float32(0.5)
            values += common - common.mean((2, 3), keepdims=True)
            scale *= 4
        weights[name] = values
        values *= np.float32(scale)
    return weights
