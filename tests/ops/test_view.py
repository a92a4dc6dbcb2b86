"""Views of a clip against loops over pixels, and what is drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from view_loops import classes_shown, flow_shown, image_shown

from stpl_jax.ops.geometry import Box
from stpl_jax.ops.view import View, sample_view, view_classes, view_flow, view_images, within_frame
from stpl_jax.ops.warp import warp

SIZE, OUT = (17, 30), (12, 21)
# (top, left, height, width) in the frame: enlarged, shrunk but within, beyond one border or the other, beyond both.
BOXES = [(3, 8, 9, 13), (1, 2, 15, 27), (0, 7, 22, 20), (2, 0, 13, 42), (0, 0, 24, 42)]


def view_of(mirrored, box):
    return View(jnp.asarray(mirrored), Box(*(jnp.asarray(n, jnp.int32) for n in box)))


@pytest.mark.parametrize("mirrored", [False, True])
def test_views_agree_with_loops(x64, mirrored):
    random = np.random.default_rng(0)
    image, flow = random.uniform(1, 255, (*SIZE, 3)), random.normal(size=(*SIZE, 2))
    classes, grid = random.integers(0, 9, (5, 9)), (4, 7)

    @jax.jit
    def show(view):
        labels = view_classes(jnp.asarray(classes), view, SIZE, OUT, grid)
        seen = within_frame(view, SIZE, OUT, grid)
        return view_images(jnp.asarray(image), view, OUT), view_flow(jnp.asarray(flow), view, OUT), labels, seen

    for box in BOXES:
        view = view_of(mirrored, box)
        images, flows, labels, seen = show(view)
        np.testing.assert_allclose(images, image_shown(image, view, OUT), atol=1e-10, err_msg=str(box))
        np.testing.assert_allclose(flows, flow_shown(flow, view, OUT), atol=1e-10, err_msg=str(box))
        expected = classes_shown(classes, view, SIZE, OUT, grid)
        np.testing.assert_array_equal(np.where(seen, labels, 255), expected, err_msg=str(box))
        assert (expected == 255).any() == (box[0] + box[2] > SIZE[0] or box[1] + box[3] > SIZE[1])


def test_what_lies_beyond_the_frame_may_be_its_mirror_image(x64):
    image = np.random.default_rng(1).uniform(1, 255, (*SIZE, 3))
    larger = np.pad(image, ((0, SIZE[0]), (0, SIZE[1]), (0, 0)), "symmetric")
    show = jax.jit(lambda view: view_images(jnp.asarray(image), view, OUT, "mirror"))
    for box in BOXES:
        view = view_of(False, box)
        np.testing.assert_allclose(show(view), image_shown(larger, view, OUT), atol=1e-10, err_msg=str(box))


def test_half_a_frame_by_hand():
    # Two rows of four pixels at half their size in a view as large as they are: averages of 2×2, and black.
    image = jnp.asarray([[0, 2, 4, 6], [2, 4, 6, 8]], jnp.float32)[..., None]
    for mirrored, row in ((False, [2, 6, 0, 0]), (True, [6, 2, 0, 0])):
        view = view_of(mirrored, (0, 0, 4, 8))
        np.testing.assert_array_equal(view_images(image, view, (2, 4))[..., 0], [row, [0] * 4])
        np.testing.assert_array_equal(
            within_frame(view, (2, 4), (2, 4), (2, 4)), [[True, True, False, False], [False] * 4]
        )
        flow = view_flow(jnp.broadcast_to(jnp.asarray([6.0, -4.0], jnp.float32), (2, 4, 2)), view, (2, 4))
        np.testing.assert_array_equal(flow[0, 0], [-3 if mirrored else 3, -2])
        labels = view_classes(jnp.asarray([[0, 1, 2, 3], [4, 5, 6, 7]]), view, (2, 4), (2, 4), (2, 4))
        # Pixel 0 of the view lies at (0.5, 0.5) of the frame, which counts as pixel (1, 1), and pixel 1 at (0.5, 2.5).
        np.testing.assert_array_equal(labels[0, :2], [6, 4] if mirrored else [5, 7])


def test_flow_of_a_mirrored_view_points_to_the_same_place(x64):
    # On a ramp bilinear sampling is exact, so warping and showing commute away from the border.
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]].astype(np.float64)
    earlier = jnp.asarray(np.stack([rows, columns, rows + 2 * columns], -1))
    flow, view, size = jnp.broadcast_to(jnp.asarray([1.25, -0.75]), (*SIZE, 2)), view_of(True, (2, 4, 12, 20)), (24, 30)

    @jax.jit
    def both_orders(earlier, flow):
        first = view_images(warp(earlier, flow), view, size)
        return first, warp(view_images(earlier, view, size), view_flow(flow, view, size))

    first, last = both_orders(earlier, flow)
    np.testing.assert_allclose(last[6:-6, 6:-8], first[6:-6, 6:-8], atol=1e-9)


def test_drawn_views_are_in_range_and_cover_it():
    size, out_size = (64, 128), (48, 128)
    draw = jax.jit(jax.vmap(lambda key: sample_view(key, size, out_size, (0.5, 1.5), 0.3)))
    mirrored, (top, left, height, width) = jax.tree.map(np.asarray, draw(jax.random.split(jax.random.key(0), 4000)))
    assert 0.27 < mirrored.mean() < 0.33
    factors = out_size[0] / height
    assert (height.min(), height.max(), width.min(), width.max()) == (32, 96, 85, 256)
    np.testing.assert_allclose(width * factors, out_size[1], rtol=0.02)
    for quartile, expected in ((0.25, 0.75), (0.5, 1.0), (0.75, 1.25)):
        assert abs(np.quantile(factors, quartile) - expected) < 0.03
    for start, length, side in ((top, height, 64), (left, width, 128)):
        fits = length <= side
        assert (start >= 0).all() and (start[~fits] == 0).all() and (start + length <= side)[fits].all()
        room = (side - length)[fits & (side - length > 9)]
        share = start[fits & (side - length > 9)] / room
        assert abs(share.mean() - 0.5) < 0.03 and share.min() == 0 and share.max() == 1


def test_nothing_to_draw_leaves_the_frame_as_it_is(x64):
    image = jnp.asarray(np.random.default_rng(3).uniform(0, 255, (*SIZE, 3)))
    view = sample_view(jax.random.key(5), SIZE, SIZE, (1.0, 1.0), 0.0)
    np.testing.assert_array_equal(view_images(image, view, SIZE), image)
    classes = jnp.arange(45).reshape(5, 9)
    np.testing.assert_array_equal(view_classes(classes, view, SIZE, SIZE, (5, 9)), classes)
    assert within_frame(view, SIZE, SIZE, (5, 9)).all()
