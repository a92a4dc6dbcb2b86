"""Correlation against plain loops, its gradient against PyTorch's, and what it takes in memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from stpl_jax.ops.correlation import correlation


def by_loops(a, b, reach, stride):
    """The definition, pixel by pixel, in float64."""
    count = 2 * reach + 1
    batch, h, w, _ = a.shape
    out = np.zeros((batch, h, w, count * count))
    for n, y, x in np.ndindex(batch, h, w):
        for j, i in np.ndindex(count, count):
            row, column = y + stride * (j - reach), x + stride * (i - reach)
            if 0 <= row < h and 0 <= column < w:
                out[n, y, x, j * count + i] = np.mean(a[n, y, x].astype(float) * b[n, row, column])
    return out


def in_torch(a, b, reach, stride):
    """Shifted products, `[B, C, h, w]` tensors: differentiable by PyTorch."""
    _, _, h, w = a.shape
    pad = reach * stride
    padded = torch.nn.functional.pad(b, (pad, pad, pad, pad))
    shifts = range(0, 2 * pad + 1, stride)
    return torch.stack([(a * padded[:, :, y : y + h, x : x + w]).mean(1) for y in shifts for x in shifts], 1)


def maps(shape, seed=0, dtype=np.float32):
    random = np.random.default_rng(seed)
    return random.normal(size=shape).astype(dtype), random.normal(size=shape).astype(dtype)


@pytest.mark.parametrize(
    "shape, max_displacement, stride",
    [
        ((2, 9, 14, 5), 20, 2),  # smaller than the reach
        ((1, 7, 11, 3), 4, 2),  # odd width
        ((1, 6, 10, 4), 3, 1),
        ((1, 5, 13, 2), 6, 3),
        ((1, 4, 6, 2), 0, 2),
    ],
)
def test_correlation_parity_with_the_definition(shape, max_displacement, stride):
    a, b = maps(shape)
    out = correlation(jnp.asarray(a), jnp.asarray(b), max_displacement, stride)
    expected = by_loops(a, b, max_displacement // stride, stride)
    assert out.shape == expected.shape and out.dtype == jnp.float32
    print(f"correlation {shape}: largest error {np.abs(np.asarray(out) - expected).max():.1e}")
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_hand_computed_places():
    """One pixel that is not zero in each map: where the product shows is arithmetic."""
    a, b = np.zeros((2, 1, 32, 40, 4), np.float32)
    a[0, 12, 20] = 2
    b[0, 12 + 6, 20 - 8] = 3  # down by 6, left by 8: j = 3, i = -4
    out = np.asarray(correlation(jnp.asarray(a), jnp.asarray(b)))
    assert out.shape == (1, 32, 40, 441)
    np.testing.assert_array_equal(np.argwhere(out), [[0, 12, 20, (3 + 10) * 21 + (-4 + 10)]])
    assert out.max() == 6  # mean over channels, not sum


def test_gradients_against_torch(x64):
    a, b = maps((2, 6, 9, 5), dtype=np.float64)
    weight = np.random.default_rng(1).normal(size=(2, 6, 9, 49))
    loss = lambda a, b: (correlation(a, b, 6, 2) * weight).sum()  # noqa: E731
    found = jax.grad(loss, (0, 1))(jnp.asarray(a), jnp.asarray(b))
    tensors = [torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True) for x in (a, b)]
    out = in_torch(*tensors, 3, 2)
    (out * torch.tensor(weight.transpose(0, 3, 1, 2))).sum().backward()
    np.testing.assert_allclose(
        correlation(jnp.asarray(a), jnp.asarray(b), 6, 2), out.detach().permute(0, 2, 3, 1), atol=1e-14
    )
    for name, ours, theirs in zip("ab", found, tensors, strict=True):
        expected = theirs.grad.permute(0, 2, 3, 1).numpy()
        print(f"gradient of {name}: largest error {np.abs(ours - expected).max():.1e}")
        np.testing.assert_allclose(ours, expected, atol=1e-13)


def test_half_precision_is_summed_in_float32():
    a, b = maps((1, 8, 8, 256))
    a, b = (jnp.asarray(x, jnp.bfloat16) for x in (a, b))
    out = correlation(a, b, 4, 2)
    assert out.dtype == jnp.bfloat16
    expected = by_loops(np.asarray(a, np.float32), np.asarray(b, np.float32), 2, 2)
    np.testing.assert_allclose(np.asarray(out, np.float32), expected, atol=2e-3)


@pytest.mark.parametrize("gradient", [False, True])
def test_memory_at_full_size(gradient):
    """What the docstring says of 512×1024; a copy of one map for each of 441 displacements is 3.5 GiB."""
    shape = jax.ShapeDtypeStruct((1, 64, 128, 256), jnp.float32)
    function = jax.grad(lambda a, b: jnp.square(correlation(a, b)).sum(), (0, 1)) if gradient else correlation
    memory = jax.jit(function).lower(shape, shape).compile().memory_analysis()
    temporaries, result = memory.temp_size_in_bytes / 2**20, memory.output_size_in_bytes / 2**20
    print(f"correlation at 512x1024, gradient {gradient}: result {result:.1f} MiB, temporaries {temporaries:.1f} MiB")
    assert temporaries < (150 if gradient else 60)
    assert gradient or 13 < result < 14


@pytest.mark.parametrize(
    "shapes, arguments, message",
    [
        (((1, 4, 4, 2), (1, 4, 5, 2)), (2, 2), "one shape"),
        (((4, 4, 2), (4, 4, 2)), (2, 2), "one shape"),
        (((1, 4, 4, 2), (1, 4, 4, 2)), (5, 2), "multiple of stride"),
    ],
)
def test_bad_arguments(shapes, arguments, message):
    with pytest.raises(ValueError, match=message):
        correlation(*(jnp.zeros(shape) for shape in shapes), *arguments)
