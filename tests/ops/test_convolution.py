"""Convolution against lax's own: values, gradients, and that a 1×1 kernel is a matrix product."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from jax import lax

from stpl_jax.ops.convolution import convolve

LAYOUT = ("NHWC", "HWIO", "NHWC")


def draw(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape)


@pytest.mark.parametrize(
    "size, stride, dilation, padding",
    [(1, 1, 1, 0), (1, 2, 1, 0), (1, 2, 1, "SAME"), (1, 1, 1, 1), (3, 1, 2, 2), (3, 2, 1, 1)],
)
def test_values_and_gradients_are_those_of_lax(x64, size, stride, dilation, padding):
    x, kernel = draw(2, 7, 10, 5), draw(size, size, 5, 3)
    settings = {"dimension_numbers": LAYOUT, "rhs_dilation": (dilation, dilation)}

    def run(convolution):
        def f(x, kernel):
            pad = padding if isinstance(padding, str) else ((padding, padding),) * 2
            return convolution(x, kernel, (stride, stride), pad, **settings)

        y, pull = jax.vjp(f, x, kernel)
        return y, *pull(draw(*y.shape))

    for ours, expected in zip(run(convolve), run(lax.conv_general_dilated), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("padding", [0, "SAME", "VALID"])
def test_a_1x1_kernel_is_a_matrix_product_in_both_passes(padding):
    layer = nn.Conv(4, (1, 1), strides=2, padding=padding, conv_general_dilated=convolve)
    x = draw(2, 6, 8, 3).astype(np.float32)
    params = layer.init(jax.random.key(0), x)
    program = str(jax.make_jaxpr(jax.grad(lambda p: (layer.apply(p, x) ** 2).sum()))(params))
    assert "dot_general" in program
    assert "conv_general_dilated" not in program


@pytest.mark.parametrize("layout, groups", [(("NCHW", "OIHW", "NCHW"), 1), (LAYOUT, 5)])
def test_other_layouts_and_groups_stay_with_lax(layout, groups):
    x = draw(2, 5, 5, 5).astype(np.float32)
    kernel = draw(*((1, 1, 5 // groups, 5) if layout == LAYOUT else (5, 5, 1, 1))).astype(np.float32)
    settings = {"dimension_numbers": layout, "feature_group_count": groups}
    ours = convolve(x, kernel, (1, 1), ((0, 0), (0, 0)), **settings)
    np.testing.assert_array_equal(ours, lax.conv_general_dilated(x, kernel, (1, 1), ((0, 0), (0, 0)), **settings))
