"""FlowNet2 against the same network in PyTorch, piece by piece and whole, on weights whose flow reaches 20 pixels."""

import dataclasses
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import raw_trees
import torch
from flax import traverse_util
from jax import lax
from torch.nn import functional as F
from torch_reference import torch_flownet2

from input_pipeline import flow_files
from stpl_jax import checkpoint
from stpl_jax.convert.flownet2_names import KEYS, from_torch, to_flax, to_state_dict, to_torch
from stpl_jax.models import flownet2
from stpl_jax.models.flownet2 import FlowNet2, Layers, channel_norm, estimate_flow, parameter_shapes
from stpl_jax.ops.warp import warp

ROOT = Path(__file__).parents[2]
FLOAT64 = Layers(jnp.float64, jnp.float64, lax.Precision.HIGHEST)


@pytest.fixture(scope="module")
def state_dict():
    """Random weights under the public names; 650 MB, made once."""
    yield torch_flownet2.draw_state_dict()
    gc.collect()


@pytest.fixture(scope="module")
def reference(state_dict):
    return torch_flownet2.build({name: torch.from_numpy(array) for name, array in state_dict.items()})


@pytest.fixture(scope="module")
def params(state_dict):
    return jax.device_put(from_torch(state_dict))


@pytest.fixture(scope="module")
def apply():
    """The whole network, compiled once for each size."""
    network = FlowNet2()
    return jax.jit(lambda params, a, b: network.apply({"params": params}, a, b))


def frame_pairs(count, height, width):
    """Smooth textures with noise that move by a few pixels; each pair brighter than the one before."""
    random = np.random.default_rng(height)
    pairs = []
    for i in range(count):
        coarse = random.uniform(0, 180 + 60 * i, (height // 8 + 4, width // 8 + 4, 3)).astype(np.float32)
        texture = cv2.resize(coarse, None, fx=8, fy=8, interpolation=cv2.INTER_CUBIC)
        texture = np.clip(texture + random.normal(0, 8, texture.shape), 0, 255).astype(np.uint8)
        pairs.append([texture[y : y + height, x : x + width] for y, x in ((8, 8), (5, 14))])
    return tuple(np.stack(frames) for frames in zip(*pairs, strict=True))


def to_nchw(x):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(x), -1, 1)))


def to_nhwc(x):
    return np.moveaxis(x.numpy(), 1, -1)


def test_parameters_are_the_public_checkpoints(state_dict):
    shapes = traverse_util.flatten_dict(parameter_shapes(FlowNet2()))
    assert len(shapes) == len(KEYS) == len(state_dict) == 220
    assert sum(int(np.prod(x.shape)) for x in shapes.values()) == 162_518_834
    sizes = {}
    for path, x in shapes.items():
        sizes[path[0]] = sizes.get(path[0], 0) + int(np.prod(x.shape))
    assert sizes == {
        "flownetc": 39_175_298,
        "flownets_1": 38_695_322,
        "flownets_2": 38_695_322,
        "flownets_d": 45_371_666,
        "flownetfusion": 581_226,
    }
    assert [name for name, _, _ in KEYS] == list(dict.fromkeys(name for name, _, _ in KEYS))
    assert {name for name, _, _ in KEYS} == state_dict.keys() and {path for _, path, _ in KEYS} == shapes.keys()
    for name, path, kind in KEYS:
        # Strides of zero: only the shape is of interest.
        array = np.broadcast_to(np.float32(0), state_dict[name].shape)
        assert tuple(array.shape[k] for k in flax_axes(kind)) == shapes[path].shape, name


def flax_axes(kind):
    probe = to_flax(np.zeros((2, 3, 4, 5) if kind != "bias" else (2,)), kind)
    return [(2, 3, 4, 5).index(side) for side in probe.shape]


def test_conversion_there_and_back():
    """All names, with small arrays in the place of the weights."""
    random = np.random.default_rng(0)
    small = {name: random.normal(size=(2,) if kind == "bias" else (2, 3, 4, 5)) for name, _, kind in KEYS}
    params = from_torch(small)
    back = to_state_dict(params)
    assert back.keys() == small.keys()
    for name, array in back.items():
        np.testing.assert_array_equal(array, small[name])
    # Single numbers, followed by hand.
    assert params["flownetc"]["conv1"]["kernel"][3, 4, 2, 1] == small["flownetc.conv1.0.weight"][1, 2, 3, 4]
    assert params["flownets_2"]["deconv5"]["kernel"][3, 4, 2, 1] == small["flownets_2.deconv5.0.weight"][1, 2, 3, 4]
    assert params["flownets_d"]["inter_conv3"]["bias"][1] == small["flownets_d.inter_conv3.0.bias"][1]
    with pytest.raises(KeyError, match="flownetc.conv2.0.bias"):
        from_torch({name: array for name, array in small.items() if name != "flownetc.conv2.0.bias"})


@pytest.mark.parametrize("height, width, pairs, tolerance", [(64, 128, 2, 5e-4), (192, 256, 1, 5e-3)])
def test_flownet2_parity_of_the_whole_network(reference, params, apply, height, width, pairs, tolerance):
    a, b = frame_pairs(pairs, height, width)
    with torch.inference_mode():
        expected = to_nhwc(reference(to_nchw(a).float(), to_nchw(b).float()))
    found = np.asarray(apply(params, a, b))
    assert found.shape == (pairs, height, width, 2) and found.dtype == np.float32
    error = np.abs(found - expected).max()
    reach = [np.abs(flow).max() for flow in expected]
    print(f"FlowNet2 at {height}x{width}: largest flow {max(reach):.1f} px, largest error {error:.1e} px")
    assert min(reach) >= 20
    assert error <= tolerance


def test_warp_parity_with_grid_sample(x64):
    """Positions within, at and far beyond the border."""
    random = np.random.default_rng(0)
    image = random.normal(size=(2, 9, 12, 3))
    flow = random.uniform(-30, 30, (2, 9, 12, 2))
    flow[0, :4] = random.uniform(-1, 1, (4, 12, 2))
    flow[0, 4:6] = np.round(flow[0, 4:6])  # whole pixels, the border's included
    ours = np.asarray(warp(jnp.asarray(image), jnp.asarray(flow)))
    y, x = np.mgrid[:9, :12]
    # grid_sample counts from -1 to 1 between the corner pixels' centres.
    grid = np.stack([2 * (x + flow[..., 0]) / 11 - 1, 2 * (y + flow[..., 1]) / 8 - 1], -1)
    sampled = F.grid_sample(to_nchw(image), torch.from_numpy(grid), padding_mode="border", align_corners=True)
    gathered = torch_flownet2.warp(to_nchw(image), to_nchw(flow))
    print(f"warp: {np.abs(ours - to_nhwc(sampled)).max():.1e} from grid_sample, ", end="")
    print(f"{np.abs(ours - to_nhwc(gathered)).max():.1e} from clamped indices")
    np.testing.assert_allclose(ours, to_nhwc(sampled), atol=1e-12)
    np.testing.assert_allclose(ours, to_nhwc(gathered), atol=1e-13)


@pytest.mark.parametrize("kernel, stride", [(7, 2), (5, 2), (3, 2), (3, 1), (1, 1)])
@pytest.mark.parametrize("side", [8, 9])
def test_convolution_parity(x64, kernel, stride, side):
    random = np.random.default_rng(kernel)
    x, weight, bias = (random.normal(size=s) for s in ((2, side, 12, 3), (5, 3, kernel, kernel), (5,)))
    layer = Probe(lambda x: FLOAT64.conv(x, "layer", 5, kernel, stride))
    ours = layer.run(x, to_flax(weight, "conv"), bias)
    theirs = F.conv2d(to_nchw(x), torch.from_numpy(weight), torch.from_numpy(bias), stride, (kernel - 1) // 2)
    error = np.abs(ours - to_nhwc(F.leaky_relu(theirs, 0.1))).max()
    print(f"convolution {kernel}/{stride} of {side}x12: largest error {error:.1e}")
    assert error < 1e-12


@pytest.mark.parametrize("bias", [True, False])
def test_transposed_convolution_parity(x64, bias):
    random = np.random.default_rng(1)
    x, weight, shift = (random.normal(size=s) for s in ((2, 5, 7, 3), (3, 4, 4, 4), (4,)))
    layer = Probe(lambda x: FLOAT64.deconv(x, "layer", 4, activate=False, bias=bias))
    ours = layer.run(x, to_flax(weight, "deconv"), shift if bias else None)
    theirs = F.conv_transpose2d(to_nchw(x), torch.from_numpy(weight), torch.from_numpy(shift) if bias else None, 2, 1)
    error = np.abs(ours - to_nhwc(theirs)).max()
    print(f"transposed convolution: largest error {error:.1e}")
    assert ours.shape == (2, 10, 14, 4) and error < 1e-12
    np.testing.assert_array_equal(to_torch(to_flax(weight, "deconv"), "deconv"), weight)


class Probe(flownet2.nn.Module):
    """A module of the one layer that `make` makes."""

    make: object

    @flownet2.nn.compact
    def __call__(self, x):
        return self.make(x)

    def run(self, x, kernel, bias):
        layer = {"kernel": kernel} | ({} if bias is None else {"bias": bias})
        return np.asarray(self.apply({"params": {"layer": layer}}, jnp.asarray(x)))


def test_upsampling_parity(x64):
    x = np.random.default_rng(2).normal(size=(2, 5, 3, 2))
    for ours, mode in ((flownet2.upsample_bilinear, {"mode": "bilinear", "align_corners": False}),) + (
        (flownet2.upsample_nearest, {"mode": "nearest"}),
    ):
        expected = to_nhwc(F.interpolate(to_nchw(x), scale_factor=4, **mode))
        error = np.abs(np.asarray(ours(jnp.asarray(x))) - expected).max()
        print(f"upsampling, {mode['mode']}: largest error {error:.1e}")
        assert error < 1e-14


def test_channel_norm_and_its_gradient_at_zero():
    x = jnp.asarray([[[[3.0, -4.0], [0.0, 0.0], [1e-3, 0.0]]]])
    np.testing.assert_allclose(channel_norm(x), [[[[5.0], [0.0], [1e-3]]]], rtol=1e-6)
    gradient = jax.grad(lambda x: channel_norm(x).sum())(x)
    np.testing.assert_allclose(gradient, [[[[0.6, -0.8], [0.0, 0.0], [1.0, 0.0]]]], rtol=1e-6)


@dataclasses.dataclass(frozen=True)
class FirstChannels:
    """Stands for the network: red and green of the first frame plus those of the second, as flow."""

    dtype: object = jnp.float32

    def apply(self, variables, a, b):
        assert a.shape[1] % 64 == a.shape[2] % 64 == 0
        return a[..., :2].astype(self.dtype) + b[..., :2].astype(self.dtype)


@pytest.mark.parametrize("size, inner", [((70, 100), (128, 128)), ((64, 60), (64, 64)), ((128, 65), (128, 128))])
def test_flownet2_takes_frames_of_any_size(size, inner):
    a, b = frame_pairs(2, *size)
    ours = np.asarray(estimate_flow(FirstChannels(), None, jnp.asarray(a), jnp.asarray(b)))
    resize = lambda x, size: F.interpolate(x, size=size, mode="bilinear", align_corners=False)  # noqa: E731
    flow = sum(resize(to_nchw(x).float(), inner)[:, :2] for x in (a, b))
    expected = resize(flow, size) * torch.tensor([size[1] / inner[1], size[0] / inner[0]]).view(1, 2, 1, 1)
    error = np.abs(ours - to_nhwc(expected)).max()
    print(f"{size} through {inner}: largest error {error:.1e}")
    assert ours.shape == (2, *size, 2) and error < 2e-4  # of values up to 500


def test_multiples_of_64_are_not_resized():
    a, b = frame_pairs(1, 64, 128)
    ours = estimate_flow(FirstChannels(), None, jnp.asarray(a), jnp.asarray(b))
    np.testing.assert_array_equal(ours, a[..., :2].astype(np.float32) + b[..., :2])


def test_bad_frames():
    a = jnp.zeros((1, 64, 100, 3))
    with pytest.raises(ValueError, match="multiples of 64.*estimate_flow"):
        jax.eval_shape(FlowNet2().init, jax.random.key(0), a, a)
    with pytest.raises(ValueError, match=r"one shape, found \(1, 64, 100, 3\), \(1, 64, 64, 3\)"):
        estimate_flow(FlowNet2(), None, a, a[:, :, :64])
    with pytest.raises(ValueError, match="one shape"):
        estimate_flow(FlowNet2(), None, a[..., 0], a[..., 0])


def test_half_precision_keeps_flow_in_float32():
    frames = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.uint8)
    shapes = parameter_shapes(FlowNet2())
    network = FlowNet2(dtype=jnp.bfloat16, precision=None)
    flow = jax.eval_shape(lambda p, a, b: network.apply({"params": p}, a, b), shapes, frames, frames)
    assert flow.shape == (1, 64, 64, 2) and flow.dtype == jnp.float32


def test_flownet2_in_the_flow_mode_end_to_end(reference, params, tmp_path):
    """main.py --mode=flow with the whole network, in a process of its own, against PyTorch."""
    meta = checkpoint.CheckpointMeta(network="flownet2", source="random weights", versions=checkpoint.versions())
    checkpoint.save_model(tmp_path / "weights", {"params": params}, meta)
    # Frames of 50×60 pass the network as 64×64.
    raw_trees.write_viper(tmp_path / "viper", size=(50, 60))
    command = [sys.executable, "main.py", "--config=configs/viper.py", f"--workdir={tmp_path}/run", "--mode=flow"]
    command += [
        "--config.flow.estimator=flownet2",
        f"--config.flow.weights={tmp_path}/weights",
        "--config.flow.batch=1",
    ]
    command += [f"--config.data.source.raw_dir={tmp_path}/viper", "--config.data.source.size=(50,60)"]
    command += ["--config.compilation_cache=False"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 files to write, by flownet2 at 50x60" in done.stdout
    folder = tmp_path / "run" / "flow" / "source"
    assert json.loads((folder / "estimated_with.json").read_text())["weights"] == "random weights"
    images = [cv2.imread(str(tmp_path / f"viper/train/img/001/001_{n:05}.jpg"))[None, ..., ::-1] for n in (20, 19)]
    resize = lambda x, size: F.interpolate(x, size=size, mode="bilinear", align_corners=False)  # noqa: E731
    with torch.inference_mode():
        flow = reference(*(resize(to_nchw(image).float(), (64, 64)) for image in images))
        expected = to_nhwc(resize(flow, (50, 60)))[0] * [60 / 64, 50 / 64]
    stored = flow_files.read_flow(folder / "001_0002000019_int16_x10.npy")
    error = np.abs(stored - expected).max()
    print(f"flow files: largest difference {error:.4f} px of at most {np.abs(expected).max():.1f}, rounding 0.05")
    assert error <= 0.05 + 1e-3
