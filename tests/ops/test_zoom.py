"""Zooming against a loop over pixels, and against PyTorch's resize."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from stpl_jax.ops.warp import warp
from stpl_jax.ops.zoom import covered, zoom

torch.set_num_threads(1)


def position(i, size, scale, anchor):
    fixed = anchor * (size - 1)
    return fixed + (i - fixed) / scale


def pixel_by_pixel(x, scale, anchor):
    h, w, _ = x.shape
    out, inside = np.zeros_like(x), np.zeros((h, w), bool)
    for i, j in np.ndindex(h, w):
        y, column = position(i, h, scale, anchor[0]), position(j, w, scale, anchor[1])
        inside[i, j] = -1e-9 <= y <= h - 1 + 1e-9 and -1e-9 <= column <= w - 1 + 1e-9
        y, column = (2 * (n - 1) - p if p > n - 1 else max(p, -p) for p, n in ((y, h), (column, w)))
        top, left = int(np.floor(y)), int(np.floor(column))
        for row, weight in ((top, 1 - y + top), (top + 1, y - top)):
            for col, also in ((left, 1 - column + left), (left + 1, column - left)):
                out[i, j] += weight * also * x[min(row, h - 1), min(col, w - 1)]
    return out, inside


@pytest.mark.parametrize("scale, anchor", [(0.8, (0.3, 0.9)), (1.2, (0.0, 1.0)), (0.55, (0.5, 0.5)), (1.0, (0.7, 0.2))])
def test_against_the_loop(x64, scale, anchor):
    x = np.random.default_rng(0).normal(size=(7, 9, 2))
    expected, inside = pixel_by_pixel(x, scale, anchor)
    found = jax.jit(zoom)(x, scale, jnp.asarray(anchor))
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_array_equal(covered((7, 9), scale, jnp.asarray(anchor)), inside)
    assert inside.all() == (scale >= 1)


def test_shrinking_to_a_corner_is_an_align_corners_resize(x64):
    x = np.random.default_rng(1).normal(size=(11, 21, 3))
    # 11 and 21 pixels to 9 and 17: both axes by 0.8, corners on corners.
    smaller = torch.nn.functional.interpolate(
        torch.from_numpy(x).permute(2, 0, 1)[None], (9, 17), mode="bilinear", align_corners=True
    )[0].permute(1, 2, 0)
    found = np.asarray(zoom(jnp.asarray(x), 0.8, jnp.zeros(2)))
    inside = np.asarray(covered((11, 21), 0.8, jnp.zeros(2)))
    assert inside[:9, :17].all() and inside.sum() == 9 * 17
    np.testing.assert_allclose(found[:9, :17], smaller.numpy(), atol=1e-12)
    np.testing.assert_allclose(found[9:], found[7:5:-1], atol=1e-12)  # mirrored at the last row


def test_the_anchor_stays_and_there_and_back_again(x64):
    rows, columns = np.indices((9, 17)).astype(float)
    plane = jnp.asarray((rows * 0.3 - columns)[..., None])
    anchor = jnp.asarray([0.25, 0.75])

    @jax.jit
    def there_and_back(scale):
        there = zoom(plane, scale, anchor)
        return there, zoom(there, 1 / scale, anchor), covered((9, 17), 1 / scale, anchor)

    for scale in (0.8, 1.2):
        there, back, seen = map(np.asarray, there_and_back(scale))
        np.testing.assert_allclose(there[2, 12], plane[2, 12], atol=1e-12)
        assert seen.all() == (scale < 1) and seen.sum() > 50
        inner = seen.copy()
        inner[[0, -1]] = inner[:, [0, -1]] = (
            False  # shrunk, a border pixel lies between the last one and its mirror image
        )
        np.testing.assert_allclose(back[inner], plane[inner], atol=1e-9)


@pytest.mark.parametrize("scale", [0.8, 1.2])
def test_flow_times_the_scale_warps_the_zoomed_clip(x64, scale):
    rows, columns = np.indices((16, 24)).astype(float)
    earlier = jnp.asarray(np.stack([rows, columns, rows + 2 * columns], -1))  # bilinear sampling is exact on planes
    flow = jnp.asarray(np.broadcast_to([1.5, -0.75], (16, 24, 2)))
    anchor = jnp.asarray([0.4, 0.6])
    expected = jax.jit(lambda e, f: zoom(warp(e, f), scale, anchor))(earlier, flow)
    found = jax.jit(lambda e, f: warp(zoom(e, scale, anchor), zoom(f, scale, anchor) * scale))(earlier, flow)
    inner = np.s_[5:11, 6:18]  # away from what is mirrored or clamped
    assert np.asarray(covered((16, 24), scale, anchor))[inner].all()
    np.testing.assert_allclose(found[inner], expected[inner], atol=1e-9)


def test_gradient(x64):
    random = np.random.default_rng(3)
    x, weights = random.normal(size=(2, 5, 6, 1))
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(zoom(x, 0.85, jnp.asarray([0.2, 0.6])) * weights)))(x)
    # The map is linear: its gradient is what each unit image contributes.
    expected = [(pixel_by_pixel(e.reshape(5, 6, 1), 0.85, (0.2, 0.6))[0] * weights).sum() for e in np.eye(30)]
    np.testing.assert_allclose(gradient.ravel(), expected, atol=1e-12)


def test_wrong_input():
    with pytest.raises(ValueError, match=r"zoom: expected x \[h, w, C\]"):
        zoom(jnp.zeros((1, 4, 5, 3)), 1.1, jnp.zeros(2))
    with pytest.raises(TypeError, match="zoom: x must be floating point, got uint8"):
        zoom(jnp.zeros((4, 5, 3), jnp.uint8), 1.1, jnp.zeros(2))
