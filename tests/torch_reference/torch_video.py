"""The small networks of the video methods' tests once more, in PyTorch and float64: scores, fusion, verdicts."""

import numpy as np
import torch
import torch.nn.functional as F
from torch_reference import torch_patch
from torch_reference.torch_accel import resize_flow

torch.set_num_threads(1)


class Network:
    """`PatchNetwork`, frame by frame; keeps the running averages that result, in the order of the calls."""

    def __init__(self, params, batch_stats):
        self.params, self.averages = params, batch_stats

    def scores(self, frame, gradient=True, averaged=True):
        """`[B, H, W, 3]` to (auxiliary, main) `[B, h, w, K]`, unfused."""
        with torch.set_grad_enabled(gradient):
            auxiliary, main, statistics = torch_patch.features(self.params, frame)
            if averaged:
                self.averages = torch_patch.averages_after(self.averages, [statistics])
            return tuple(
                torch_patch.dense(self.params[name], x) for name, x in (("layer5", auxiliary), ("layer6", main))
            )

    def fused(self, current, earlier, flow):
        """Fuses two frames' (auxiliary, main) along `[B, h, w, 2]`; no gradient into the earlier one."""
        kernel = self.params["sf_layer"]["kernel"]
        return tuple(
            torch.cat([now, warp(before.detach(), flow)], -1) @ kernel
            for now, before in zip(current, earlier, strict=True)
        )

    def clip_scores(self, frames, flow, averaged=True):
        """Fused (auxiliary, main) of clips `[B, T, H, W, 3]`, newest frame first, along `[B, P, H, W, 2]` as stored."""
        current = self.scores(frames[:, 0], averaged=averaged)
        earlier = self.scores(frames[:, 1], gradient=False, averaged=averaged)
        flow = torch.as_tensor(np.asarray(flow[:, 0], np.float64)).permute(0, 3, 1, 2) / 10
        return self.fused(current, earlier, resize_flow(flow, current[0].shape[1:3]).permute(0, 2, 3, 1))


def warp(x, flow):
    """`[B, h, w, C]` along `[B, h, w, 2]` by PyTorch's own sampler, borders repeated."""
    return sample(x, np.indices(x.shape[1:3])[::-1].transpose(1, 2, 0) + np.asarray(flow, np.float64), "border")


def sample(x, positions, padding):
    """Samples `[B, h, w, C]` at (column, row) positions `[B, h, w, 2]` in pixels."""
    h, w = x.shape[1:3]
    grid = torch.as_tensor(2 * positions / np.array([w - 1, h - 1]) - 1)
    sampled = F.grid_sample(x.permute(0, 3, 1, 2), grid, mode="bilinear", padding_mode=padding, align_corners=True)
    return sampled.permute(0, 2, 3, 1)


def resize(x, size):
    """`[B, h, w, C]` to `[B, H, W, C]`, corners on corners."""
    return F.interpolate(x.permute(0, 3, 1, 2), size, mode="bilinear", align_corners=True).permute(0, 2, 3, 1)


def cross_entropy(scores, labels):
    """Mean over pixels whose label is not 255."""
    return F.cross_entropy(scores.permute(0, 3, 1, 2), torch.as_tensor(labels).long(), ignore_index=255)


def label_loss(fused, labels):
    """Main + 0.1 · auxiliary at the labels' size, of fused (auxiliary, main)."""
    auxiliary, main = (cross_entropy(resize(s, labels.shape[1:]), labels) for s in fused)
    return main + 0.1 * auxiliary


def judge(params, maps, label):
    """Binary cross-entropy of `video_checks.PatchJudge` on `[B, H, W, C]`."""
    patches = F.avg_pool2d(maps.permute(0, 3, 1, 2), 8).permute(0, 2, 3, 1)
    hidden = torch.tanh(patches @ params["first"]["kernel"] + params["first"]["bias"])
    x = hidden @ params["second"]["kernel"] + params["second"]["bias"]
    return F.binary_cross_entropy_with_logits(x, torch.full_like(x, float(label)))
