"""The backbone's pieces against plain loops."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stpl_jax.models.resnet import ResNet, max_pool_ceil


def pool_by_loops(x):
    """PyTorch's MaxPool2d(3, stride=2, padding=1, ceil_mode=True) on `[H, W]`."""

    def windows(side):
        count = math.ceil((side + 2 - 3) / 2) + 1
        # PyTorch: the last window has to start within the image or its left padding.
        return count - 1 if (count - 1) * 2 >= side + 1 else count

    out = np.full((windows(x.shape[0]), windows(x.shape[1])), -np.inf)
    for i, j in np.ndindex(out.shape):
        for a, b in np.ndindex(3, 3):
            row, column = 2 * i - 1 + a, 2 * j - 1 + b
            if 0 <= row < x.shape[0] and 0 <= column < x.shape[1]:
                out[i, j] = max(out[i, j], x[row, column])
    return out


@pytest.mark.parametrize("height, width", [(8, 7), (5, 6), (2, 3), (1, 16), (12, 12)])
def test_max_pool_against_loops(height, width):
    x = np.random.default_rng(height).normal(-5, 1, (2, height, width, 2)).astype(np.float32)
    out = np.asarray(max_pool_ceil(jnp.asarray(x)))
    for b, c in np.ndindex(2, 2):
        np.testing.assert_array_equal(out[b, ..., c], pool_by_loops(x[b, ..., c]))


def test_max_pool_of_the_full_size():
    shape = jax.eval_shape(max_pool_ceil, jnp.zeros((1, 256, 512, 1))).shape
    assert shape == (1, 129, 257, 1)


def test_stride_is_in_the_first_convolution_and_dilation_in_the_second():
    """Two stages of one block: which inputs an output depends on tells stride and dilation."""
    net = ResNet(
        blocks=(1, 1),
        widths=(1, 1),
        strides=(2, 1),
        dilations=(1, 3),
        expansion=1,
        stem_width=1,
        stem_kernel=1,
        stem_pool=False,
    )
    x = jnp.ones((1, 49, 49, 3))
    # All weights one, means small, inputs positive: no ReLU is in the way.
    values = jax.tree.map(
        lambda s: jnp.ones(s.shape, s.dtype), jax.eval_shape(lambda: net.init(jax.random.key(0), x, 0, 0))
    )
    values["batch_stats"] = jax.tree.map(lambda a: a * 0.1, values["batch_stats"])

    def middles(x):
        features = net.apply(values, x, 0, 0)
        assert [f.shape for f in features] == [(1, 13, 13, 1), (1, 13, 13, 1)]
        return jnp.stack([f[0, 6, 6, 0] for f in features])

    seen = np.asarray(jax.jit(jax.jacrev(middles))(x))[:, 0, ..., 0] != 0
    # The stem and the first block's first convolution sample before anything spreads: output (6, 6) is input (24, 24).
    # The block's 3×3 convolution runs at a stride of 4, so its taps are 4 input pixels apart. The next stage's are
    # dilated by 3: 12 input pixels apart, each spread by the first stage's.
    first = {24 + 4 * a for a in (-1, 0, 1)}
    second = {24 + 12 * a + 4 * b for a in (-1, 0, 1) for b in (-1, 0, 1)}
    for stage, positions in enumerate((first, second)):
        for axis in (0, 1):
            assert set(np.flatnonzero(seen[stage].any(axis)).tolist()) == positions
