import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from stpl_jax.ops import resize


def loop_resize(x, size):
    """Align-corners bilinear resize of [h, w, C], one pixel at a time."""
    h, w, channels = x.shape
    out = np.zeros((*size, channels))
    for i in range(size[0]):
        for j in range(size[1]):
            y = i * (h - 1) / (size[0] - 1) if size[0] > 1 else 0.0
            z = j * (w - 1) / (size[1] - 1) if size[1] > 1 else 0.0
            y0, z0 = int(y), int(z)
            y1, z1 = min(y0 + 1, h - 1), min(z0 + 1, w - 1)
            top = (1 - (z - z0)) * x[y0, z0] + (z - z0) * x[y0, z1]
            bottom = (1 - (z - z0)) * x[y1, z0] + (z - z0) * x[y1, z1]
            out[i, j] = (1 - (y - y0)) * top + (y - y0) * bottom
    return out


@pytest.mark.parametrize(
    ("size_in", "size_out"), [(1, 1), (1, 4), (4, 1), (2, 5), (5, 2), (65, 512), (129, 64), (7, 7)]
)
def test_interpolation_matrix_agrees_with_numpy_interp(size_in, size_out):
    values = np.random.default_rng(0).normal(size=size_in)
    positions = np.linspace(0, size_in - 1, size_out)
    expected = np.interp(positions, np.arange(size_in), values)
    matrix = resize.interpolation_matrix(size_in, size_out)
    assert matrix.dtype == np.float64
    np.testing.assert_allclose(matrix @ values, expected, atol=1e-12)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-15)


@pytest.mark.parametrize(
    ("shape", "size"),
    [((3, 5, 2), (7, 4)), ((1, 6, 1), (4, 11)), ((6, 1, 3), (1, 5)), ((4, 5, 2), (1, 1)), ((5, 9, 2), (9, 17))],
)
def test_resize_agrees_with_a_loop_in_float64(shape, size):
    x = np.random.default_rng(1).normal(size=shape)
    with jax.enable_x64(True):
        result = jax.jit(resize.resize_align_corners, static_argnums=1)(jnp.asarray(x), size)
        assert result.dtype == jnp.float64
    np.testing.assert_allclose(np.asarray(result), loop_resize(x, size), rtol=0, atol=1e-13)


def test_resize_agrees_with_pytorch():
    # The figures of torch.nn.Upsample's documentation for mode="bilinear", align_corners=True, scale_factor=2.
    x = jnp.asarray([[1, 2, 0], [3, 4, 0], [0, 0, 0]], jnp.float32)[..., None]
    expected = [
        [1.0, 1.4, 1.8, 1.6, 0.8, 0.0],
        [1.8, 2.2, 2.6, 2.24, 1.12, 0.0],
        [2.6, 3.0, 3.4, 2.88, 1.44, 0.0],
        [2.4, 2.72, 3.04, 2.56, 1.28, 0.0],
        [1.2, 1.36, 1.52, 1.28, 0.64, 0.0],
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    ]
    np.testing.assert_allclose(np.asarray(resize.resize_align_corners(x, (6, 6)))[..., 0], expected, atol=1e-6)


def test_resize_keeps_corners_dtype_and_leading_axes():
    x = jax.random.normal(jax.random.key(0), (2, 3, 5, 7, 4), jnp.float32)
    out = np.asarray(resize.resize_align_corners(x, (9, 20)))
    assert out.shape == (2, 3, 9, 20, 4)
    np.testing.assert_allclose(out[:, :, ::8, ::19], np.asarray(x)[:, :, ::4, ::6], atol=1e-6)
    np.testing.assert_allclose(out[1, 2], loop_resize(np.asarray(x)[1, 2], (9, 20)), atol=1e-5)
    np.testing.assert_array_equal(np.asarray(resize.resize_align_corners(x, (5, 7))), np.asarray(x))
    low = resize.resize_align_corners(x.astype(jnp.bfloat16), (9, 20))
    assert low.dtype == jnp.bfloat16
    # Computed in float32, so only the input's and the output's rounding (2^-9 each, values below 4) remain.
    np.testing.assert_allclose(np.asarray(low, np.float32), out, atol=2e-2)


def test_resize_gradient():
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(1), (2, 3, 4, 2), jnp.float64)
        check_grads(lambda x: resize.resize_align_corners(x, (5, 3)), (x,), order=1, modes=("fwd", "rev"))


def test_resize_refuses_bad_input():
    with pytest.raises(TypeError, match="int32"):
        resize.resize_align_corners(jnp.zeros((2, 2, 1), jnp.int32), (3, 3))
    with pytest.raises(ValueError, match=r"height, width, channels"):
        resize.resize_align_corners(jnp.zeros((2, 2)), (3, 3))
    with pytest.raises(ValueError, match="2 -> 0"):
        resize.resize_align_corners(jnp.zeros((2, 2, 1)), (0, 3))


def test_resized_flow_points_to_the_same_place():
    # Under flow (a·x + b, c·y + d), pixel (x, y) came from ((1 + a)x + b, (1 + c)y + d). On the small grid every
    # position is multiplied by (w-1)/(W-1) or (h-1)/(H-1), so the offset b shrinks by that factor and the slope stays.
    height, width, h, w = 33, 65, 9, 17
    y, x = np.mgrid[:height, :width].astype(np.float64)
    flow = np.stack([0.25 * x - 3, -0.5 * y + 2], axis=-1)
    ys, xs = np.mgrid[:h, :w].astype(np.float64)
    expected = np.stack([0.25 * xs - 3 * (w - 1) / (width - 1), -0.5 * ys + 2 * (h - 1) / (height - 1)], axis=-1)
    with jax.enable_x64(True):
        result = resize.resize_flow(jnp.asarray(flow), (h, w))
    np.testing.assert_allclose(np.asarray(result), expected, atol=1e-12)


def test_resize_flow_scales():
    flow = np.random.default_rng(2).normal(size=(2, 8, 16, 2)).astype(np.float32)
    plain = np.stack([loop_resize(f, (3, 5)) for f in flow])
    aligned = np.asarray(resize.resize_flow(jnp.asarray(flow), (3, 5), "align_corners"))
    np.testing.assert_allclose(aligned, plain * [4 / 15, 2 / 7], atol=1e-5)
    public = np.asarray(resize.resize_flow(jnp.asarray(flow), (3, 5), "public"))
    np.testing.assert_allclose(public, plain * (3 / 8), atol=1e-5)
    low = resize.resize_flow(jnp.asarray(flow, jnp.bfloat16), (3, 5))
    assert low.dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="'half_pixel'.*align_corners, public"):
        resize.resize_flow(jnp.asarray(flow), (3, 5), "half_pixel")
    with pytest.raises(ValueError, match=r"\[\.\.\., H, W, 2\]"):
        resize.resize_flow(jnp.zeros((4, 4, 3)), (2, 2))


def test_resize_flow_of_one_pixel():
    flow = jnp.ones((1, 4, 2), jnp.float32)
    np.testing.assert_array_equal(np.asarray(resize.resize_flow(flow, (1, 4))), np.ones((1, 4, 2)))
    with pytest.raises(ValueError, match="cannot grow to 3"):
        resize.resize_flow(flow, (3, 4))
    np.testing.assert_allclose(np.asarray(resize.resize_flow(flow, (3, 4), "public")), 3)


@pytest.mark.parametrize(("size", "rows"), [((32, 40), 16), ((37, 21), 5), ((3, 30), 16), ((1, 1), 4), ((6, 7), 1)])
def test_argmax_resized_agrees_with_a_loop(size, rows):
    scores = np.random.default_rng(3).normal(size=(6, 7, 5)).astype(np.float32)
    classes = jax.jit(resize.argmax_resized, static_argnums=(1, 2))(jnp.asarray(scores), size, rows)
    assert classes.dtype == jnp.uint8 and classes.shape == size
    resized = loop_resize(scores, size)
    ordered = np.sort(resized, axis=-1)
    clear = ordered[..., -1] - ordered[..., -2] > 1e-5  # elsewhere rounding decides
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(np.asarray(classes)[clear], resized.argmax(axis=-1)[clear])


def test_argmax_resized_breaks_ties_to_the_lower_class():
    scores = jnp.asarray([0.0, 2.0, 2.0, 1.0], jnp.float32)[None, None, :]
    scores = jnp.broadcast_to(scores, (3, 4, 4))
    np.testing.assert_array_equal(np.asarray(resize.argmax_resized(scores, (9, 13))), 1)


def test_argmax_resized_of_groups_adds_their_probabilities():
    scores = np.random.default_rng(3).normal(0, 2, (3, 4, 5)).astype(np.float32)
    groups = (1, 0, 1, -1, 3)  # nothing counts as 2, and the fourth class as nothing
    found = np.asarray(jax.jit(lambda s: resize.argmax_resized(s, (7, 9), 2, groups))(scores))
    full = np.asarray(resize.resize_align_corners(jnp.asarray(scores), (7, 9)), float)
    for y, x in np.ndindex(7, 9):
        p = np.exp(full[y, x]) / np.exp(full[y, x]).sum()
        assert found[y, x] == np.argmax([p[1], p[0] + p[2], 0, p[4]])
    assert set(np.unique(found)) == {0, 1, 3}


def test_argmax_resized_never_holds_the_resized_scores():
    size, k = (256, 512), 15
    compiled = jax.jit(lambda s: resize.argmax_resized(s, size, 8)).lower(jnp.zeros((9, 17, k), jnp.float32)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < size[0] * size[1] * k * 4 / 4


def test_argmax_resized_refuses_bad_input():
    with pytest.raises(ValueError, match="K from 1 to 255"):
        resize.argmax_resized(jnp.zeros((2, 2, 256)), (4, 4))
    with pytest.raises(ValueError, match="K from 1 to 255"):
        resize.argmax_resized(jnp.zeros((1, 2, 2, 3)), (4, 4))
    with pytest.raises(ValueError, match="rows"):
        resize.argmax_resized(jnp.zeros((2, 2, 3)), (4, 4), rows=0)
