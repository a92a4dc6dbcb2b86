"""Every op against PyTorch in float64: values, and gradients with respect to all that is differentiable."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch_reference import torch_accel

from stpl_jax.models.accel import DilatedClassifier
from stpl_jax.models.batch_norm import GroupedBatchNorm
from stpl_jax.models.resnet import max_pool_ceil
from stpl_jax.ops.convolution import convolve
from stpl_jax.ops.resize import resize_align_corners, resize_flow
from stpl_jax.ops.warp import warp

TOLERANCE = 1e-12
pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture(scope="module", autouse=True)
def fast_compilation():
    """Programs here run once: most of their time would be the compiler's."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def first(x):
    """Channels first: `[B, h, w, C]` to `[B, C, h, w]`."""
    return x.permute(0, 3, 1, 2)


def last(x):
    """Channels last."""
    return x.permute(0, 2, 3, 1)


def kernel(x):
    """`[h, w, I, O]` to `[O, I, h, w]`."""
    return x.permute(3, 2, 0, 1)


def value_and_gradients(function, weights, *inputs):
    """Value, and gradients of its sum with these weights: one program."""

    def both(weights, *inputs):
        out, backward = jax.vjp(function, *inputs)
        return out, backward(weights)

    return jax.jit(both)(*map(jnp.asarray, (weights, *inputs)))


def compare(name, ours, theirs, *inputs, tolerance=TOLERANCE):
    """Compares values, and gradients of a random weighted sum, with respect to every input."""
    leaves = [torch.tensor(x, requires_grad=True) for x in inputs]
    expected = theirs(*leaves)
    weights = np.random.default_rng(99).normal(size=expected.shape)
    expected.backward(torch.tensor(weights))
    found, gradients = value_and_gradients(ours, weights, *inputs)
    assert found.dtype == jnp.float64
    errors = [largest(found, expected.detach().numpy())]
    for gradient, leaf in zip(gradients, leaves, strict=True):
        assert leaf.grad.abs().max() > 0
        errors.append(largest(gradient, leaf.grad.numpy()))
    print(f"\n{name}: value {errors[0]:.1e}, gradients {', '.join(f'{e:.1e}' for e in errors[1:])}", end="")
    assert all(error <= tolerance for error in errors), errors


def largest(found, expected):
    return np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


SIZES = [
    ((5, 9), (33, 65)),
    ((33, 65), (5, 9)),
    ((7, 12), (20, 31)),
    ((4, 6), (4, 11)),
    ((1, 6), (5, 3)),
    ((5, 4), (1, 7)),
]


@pytest.mark.parametrize("size_in, size_out", SIZES)
def test_align_corners_resize(size_in, size_out):
    def theirs(x):
        return last(F.interpolate(first(x), size=size_out, mode="bilinear", align_corners=True))

    compare(
        f"align-corners {size_in} to {size_out}",
        functools.partial(resize_align_corners, size=size_out),
        theirs,
        normal(2, *size_in, 3),
    )


@pytest.mark.parametrize(
    "size_in, size_out", [((5, 9), (20, 36)), ((33, 65), (9, 40)), ((48, 50), (64, 64)), ((1, 6), (5, 3))]
)
def test_half_pixel_resize(size_in, size_out):
    # PyTorch never smooths before it shrinks; jax.image.resize does, unless told.
    def ours(x):
        return jax.image.resize(x, (2, *size_out, 3), "bilinear", antialias=False)

    def theirs(x):
        return last(F.interpolate(first(x), size=size_out, mode="bilinear", align_corners=False))

    compare(f"half-pixel {size_in} to {size_out}", ours, theirs, normal(2, *size_in, 3))


@pytest.mark.parametrize("size_in, size_out", [((32, 64), (5, 9)), ((9, 17), (64, 128))])
def test_flow_resize(size_in, size_out):
    def aligned(x):
        return last(torch_accel.resize_flow(first(x), size_out))

    def public(x):
        resized = F.interpolate(first(x), size=size_out, mode="bilinear", align_corners=True)
        return last(resized) * size_out[0] / size_in[0]

    for scale, theirs in (("align_corners", aligned), ("public", public)):
        ours = functools.partial(resize_flow, size=size_out, scale=scale)
        compare(f"flow {scale} {size_in} to {size_out}", ours, theirs, normal(2, *size_in, 2))


def grid_sample(x, flow, padding="border"):
    """PyTorch's own sampling at the place that flow names; its grid runs from -1 to 1."""
    height, width = x.shape[1:3]
    rows = torch.arange(height).view(1, -1, 1) + flow[..., 1]
    columns = torch.arange(width).view(1, 1, -1) + flow[..., 0]
    grid = torch.stack([2 * columns / (width - 1) - 1, 2 * rows / (height - 1) - 1], -1)
    return last(F.grid_sample(first(x), grid, mode="bilinear", padding_mode=padding, align_corners=True))


def flow_over_all_borders():
    """Flow `[2, 6, 7, 2]` to everywhere within 9 pixels, positions never whole numbers."""
    random = np.random.default_rng(1)
    flow = random.integers(-9, 9, (2, 6, 7, 2)) + random.uniform(0.05, 0.95, (2, 6, 7, 2))
    rows, columns = np.arange(6)[:, None] + flow[..., 1], np.arange(7) + flow[..., 0]
    for place in (rows < -1, (rows > -1) & (rows < 0), (rows > 5) & (rows < 6), rows > 6, (rows > 0) & (rows < 5)):
        assert place.any()
    for place in (columns < -1, (columns > -1) & (columns < 0), (columns > 6) & (columns < 7), columns > 7):
        assert place.any()
    return flow


@pytest.mark.parametrize("reference", [grid_sample, lambda x, flow: last(torch_accel.warp(first(x), first(flow)))])
def test_warp_within_and_beyond_all_borders(reference):
    # Clamping the four corners and clamping the position are the same away from whole numbers: beyond the border both
    # corners are one pixel, whatever the weights, and the gradient to the flow is zero.
    compare("warp", warp, reference, normal(2, 6, 7, 3), flow_over_all_borders())


def test_warp_at_the_border_itself():
    """At exactly row or column 0 the gradient to the flow has two sides: ours is the inner one, grid_sample's is 0."""
    x, random = normal(1, 6, 7, 3), np.random.default_rng(2)
    targets = np.stack(np.broadcast_arrays(random.integers(-2, 9, (6, 7)), random.integers(-2, 8, (6, 7))), -1)
    flow = (targets - np.stack(np.meshgrid(np.arange(7), np.arange(6)), -1))[None].astype(np.float64)
    for border in (0, 6):
        assert (targets[..., 0] == border).any()

    weights = normal(*x.shape, seed=3)
    found, (by_x, by_flow) = value_and_gradients(warp, weights, x, flow)
    leaves = [torch.tensor(a, requires_grad=True) for a in (x, flow)]
    # At whole positions, the way to grid_sample's units and back must not fall on the other side of a pixel.
    expected = last(torch_accel.warp(first(leaves[0]), first(leaves[1])))
    sampled = grid_sample(*(torch.tensor(a) for a in (x, flow)))
    for theirs in (expected.detach(), sampled):
        np.testing.assert_allclose(found, theirs, rtol=0, atol=1e-12)
    expected.backward(torch.tensor(weights))
    np.testing.assert_allclose(by_x, leaves[0].grad, rtol=0, atol=1e-12)
    np.testing.assert_allclose(by_flow, leaves[1].grad, rtol=0, atol=1e-12)

    # One pixel of a row 0 1 4 9 at column 0: ours (1 - 0), grid_sample's 0. At column 3, the last: both 0.
    row = np.array([0.0, 1.0, 4.0, 9.0]).reshape(1, 1, 4, 1).repeat(2, 1)
    still = np.zeros((1, 2, 4, 2))
    _, (_, ours) = value_and_gradients(warp, np.ones(row.shape), row, still)
    leaf = torch.tensor(still, requires_grad=True)
    grid_sample(torch.tensor(row), leaf).sum().backward()
    np.testing.assert_allclose(ours[0, 0, :, 0], [1, 3, 5, 0], atol=1e-12)
    assert leaf.grad[0, 0, 0, 0] == 0 and leaf.grad[0, 0, 3, 0] == 0


def test_warp_is_not_padded_with_zeros():
    x, flow = normal(2, 6, 7, 3), flow_over_all_borders()
    zeros = grid_sample(torch.tensor(x), torch.tensor(flow), "zeros")
    assert largest(jax.jit(warp)(jnp.asarray(x), jnp.asarray(flow)), zeros.numpy()) > 0.1


# Kernel, stride, dilation and whether there is a bias, as the networks have them.
CONVOLUTIONS = {
    "stem": (7, 2, 1, False),
    "1×1": (1, 1, 1, True),
    "1×1, stride 2": (1, 2, 1, False),
    "3×3": (3, 1, 1, False),
    "3×3, stride 2": (3, 2, 1, True),
    "3×3, dilation 2": (3, 1, 2, False),
    "3×3, dilation 4": (3, 1, 4, False),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("size", [(9, 13), (10, 12)])
def test_convolutions(name, size):
    window, stride, dilation, biased = CONVOLUTIONS[name]
    padding = dilation * (window // 2)
    layer = nn.Conv(
        4,
        (window, window),
        strides=stride,
        kernel_dilation=dilation,
        padding=padding,
        use_bias=biased,
        conv_general_dilated=convolve,
        param_dtype=jnp.float64,
    )
    plain = layer.clone(conv_general_dilated=None)
    inputs = [normal(2, *size, 3), normal(window, window, 3, 4, seed=1)] + [normal(4, seed=2)] * biased

    def apply(layer, x, *weights):
        return layer.apply({"params": dict(zip(("kernel", "bias"), weights, strict=False))}, x)

    def theirs(x, weight, bias=None):
        return last(F.conv2d(first(x), kernel(weight), bias, stride=stride, padding=padding, dilation=dilation))

    compare(f"{name} on {size}", functools.partial(apply, layer), theirs, *inputs)
    if stride == 2 and window > 1 and size[0] % 2 == 0:  # XLA would pad more after than before
        same = jax.jit(functools.partial(apply, plain.clone(padding="SAME")))(*map(jnp.asarray, inputs))
        assert largest(same, theirs(*map(torch.tensor, inputs)).numpy()) > 0.1


def test_the_classifiers_dilations():
    layer = DilatedClassifier(3, (6, 12, 18, 24), jnp.float64)
    inputs = [normal(1, 26, 50, 2)]
    for i in range(4):
        inputs += [normal(3, 3, 2, 3, seed=i), normal(3, seed=i)]

    def ours(x, *weights):
        pairs = {f"conv2d_list_{i}": {"kernel": weights[2 * i], "bias": weights[2 * i + 1]} for i in range(4)}
        return layer.apply({"params": pairs}, x)

    def theirs(x, *weights):
        out = 0
        for i, dilation in enumerate((6, 12, 18, 24)):
            weight, bias = weights[2 * i : 2 * i + 2]
            out = out + F.conv2d(first(x), kernel(weight), bias, padding=dilation, dilation=dilation)
        return last(out)

    compare("classifier", ours, theirs, *inputs)


@pytest.mark.parametrize("bias", [True, False])
def test_transposed_convolution(bias):
    layer = nn.ConvTranspose(
        5, (4, 4), strides=(2, 2), padding="SAME", transpose_kernel=True, use_bias=bias, param_dtype=jnp.float64
    )
    inputs = [normal(2, 5, 6, 3), normal(4, 4, 5, 3, seed=1)] + [normal(5, seed=2)] * bias  # [h, w, O, I]

    def ours(x, *weights):
        return layer.apply({"params": dict(zip(("kernel", "bias"), weights, strict=False))}, x)

    def theirs(x, weight, bias=None):
        return last(F.conv_transpose2d(first(x), kernel(weight), bias, stride=2, padding=1))

    compare("transposed", ours, theirs, *inputs)


@pytest.mark.parametrize("size", [(8, 7), (5, 6), (2, 3), (16, 33)])
def test_ceil_mode_pooling(size):
    pool = torch.nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)

    # Negative everywhere, so that a padding with zeros would show; after a ReLU, whole windows are tied at zero.
    def ours(below, x):
        return jnp.stack([max_pool_ceil(below), max_pool_ceil(nn.relu(x))])

    def theirs(below, x):
        return torch.stack([last(pool(first(below))), last(pool(first(F.relu(x))))])

    compare(f"pooling {size}", ours, theirs, normal(2, *size, 3) - 10, normal(2, *size, 3, seed=1))


def batch_norm_inputs():
    """Four groups of three clips, scale, bias, and running averages."""
    random = np.random.default_rng(0)
    x = random.normal(2, 3, (4, 3, 5, 6, 7))
    return [x, random.uniform(0.5, 2, 7), random.normal(size=7)], random.normal(size=7), random.uniform(0.5, 2, 7)


def torch_batch_norm(scale, bias, mean, var):
    layer = torch.nn.BatchNorm2d(7).double()
    layer.running_mean.copy_(torch.tensor(mean))
    layer.running_var.copy_(torch.tensor(var))
    # So that gradients reach the leaves that are compared.
    return layer, lambda x: F.batch_norm(
        x, layer.running_mean, layer.running_var, scale, bias, layer.training, layer.momentum, layer.eps
    )


@pytest.mark.parametrize("groups, averaged", [(4, 4), (4, 2), (0, 0)])
def test_batch_norm(groups, averaged):
    inputs, mean, var = batch_norm_inputs()
    moved = {}

    def ours(x, scale, bias):
        values = {"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": mean, "var": var}}
        layer = GroupedBatchNorm(param_dtype=jnp.float64)
        return layer.apply(values, x.reshape(12, *x.shape[2:]), groups, averaged, mutable=["batch_stats"])

    def theirs(x, scale, bias):
        layer, forward = torch_batch_norm(scale, bias, mean, var)
        layer.train(groups > 0)
        outputs = []
        for number, group in enumerate(x):
            if number == averaged:
                moved.update(mean=layer.running_mean.clone(), var=layer.running_var.clone())
            outputs.append(last(forward(first(group))))
        if not moved:
            moved.update(mean=layer.running_mean, var=layer.running_var)
        return torch.cat(outputs)

    compare(f"batch norm, {groups} groups", lambda *a: ours(*a)[0], theirs, *inputs)
    found = jax.jit(lambda *a: ours(*a)[1]["batch_stats"])(*map(jnp.asarray, inputs))
    errors = {name: largest(found[name], moved[name].numpy()) for name in ("mean", "var")}
    print(f"; running averages {errors['mean']:.1e}, {errors['var']:.1e}", end="")
    assert all(error <= TOLERANCE for error in errors.values())
    if averaged:  # the biased variance would be 1/90 of it off
        assert largest(var, moved["var"].numpy()) > 0.1


def test_batch_norm_of_one_clip_far_from_zero():
    """Values 1000 ± 1 in float32: two passes keep the variance, as PyTorch's do."""
    x = (1000 + normal(2, 1, 9, 17, 4)).astype(np.float32)
    values = {
        "params": {"scale": jnp.ones(4, jnp.float32), "bias": jnp.zeros(4, jnp.float32)},
        "batch_stats": {"mean": jnp.zeros(4, jnp.float32), "var": jnp.ones(4, jnp.float32)},
    }
    run = jax.jit(lambda x: GroupedBatchNorm().apply(values, x, 2, 2, mutable=["batch_stats"]))
    found, updated = run(jnp.asarray(x[:, 0]))
    layer = torch.nn.BatchNorm2d(4)
    expected = torch.cat([last(layer(first(torch.tensor(group)))) for group in x]).detach().numpy()
    exact = torch.nn.BatchNorm2d(4).double()
    truth = torch.cat([last(exact(first(torch.tensor(group).double()))) for group in x]).detach().numpy()
    errors = largest(found, truth), largest(expected, truth)
    variance = largest(updated["batch_stats"]["var"], exact.running_var.numpy())
    print(f"\nbatch norm of 1000 ± 1: ours {errors[0]:.1e}, PyTorch's {errors[1]:.1e}, variance {variance:.1e}", end="")
    assert errors[0] <= 1e-3 and variance <= 1e-4
