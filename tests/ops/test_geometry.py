"""Random resized crops against PyTorch's resizing of a slice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from stpl_jax.ops import geometry
from stpl_jax.ops.warp import warp

SIZE = (17, 30)
BOXES = [(0, 0, 17, 30), (3, 8, 10, 12), (16, 29, 1, 1), (0, 5, 17, 3), (4, 0, 2, 30)]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def box_of(numbers):
    return geometry.Box(*(jnp.asarray(n, jnp.int32) for n in numbers))


def cut(x, box):
    """`[N, H, W, C]` to the box's part, `[N, C, h, w]`."""
    top, left, height, width = box
    return torch.as_tensor(x[:, top : top + height, left : left + width]).movedim(-1, 1)


@pytest.mark.parametrize("size", [(8, 9), (17, 30), (40, 20)])
def test_crops_agree_with_pytorch(x64, size):
    random = np.random.default_rng(0)
    images, classes = random.uniform(0, 255, (2, *SIZE, 3)), random.integers(0, 256, (2, *SIZE)).astype(np.uint8)
    crop = jax.jit(lambda x, y, b: (geometry.crop_resized(x, b, size), geometry.crop_resized_nearest(y, b, size)))
    for box in BOXES:
        found, labels = crop(jnp.asarray(images), jnp.asarray(classes), box_of(box))
        expected = F.interpolate(cut(images, box), size=size, mode="bilinear", align_corners=False).movedim(1, -1)
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-10, err_msg=str(box))
        expected = F.interpolate(cut(classes[..., None], box).double(), size=size, mode="nearest-exact")[:, 0]
        np.testing.assert_array_equal(labels, expected.numpy(), err_msg=str(box))
        assert labels.dtype == np.uint8


def test_one_box_for_each_clip():
    images = np.random.default_rng(1).uniform(0, 255, (3, *SIZE, 2)).astype(np.float32)
    boxes = jax.tree.map(lambda *n: jnp.stack(n), *map(box_of, BOXES[:3]))
    found = jax.jit(jax.vmap(lambda x, b: geometry.crop_resized(x, b, (6, 7))))(jnp.asarray(images), boxes)
    for image, box, result in zip(images, BOXES, found, strict=False):
        expected = F.interpolate(cut(image[None], box), size=(6, 7), mode="bilinear", align_corners=False)
        np.testing.assert_allclose(result, expected[0].movedim(0, -1), atol=1e-3)


def test_cropped_flow_points_to_the_same_place(x64):
    # On a ramp bilinear sampling is exact, so warping and cropping commute away from the border.
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]].astype(np.float64)
    earlier = np.stack([rows, columns, rows + 2 * columns], -1)
    flow = np.broadcast_to([1.25, -0.75], (*SIZE, 2))
    size = (24, 30)

    @jax.jit
    def both_orders(earlier, flow, box):
        first = geometry.crop_resized(warp(earlier, flow), box, size)
        small = geometry.crop_resized_flow(flow, box, size)
        return first, warp(geometry.crop_resized(earlier, box, size), small), small

    for box in ((2, 4, 12, 20), (1, 3, 15, 10)):
        first, last, small = both_orders(jnp.asarray(earlier), jnp.asarray(flow), box_of(box))
        np.testing.assert_allclose(small[0, 0], [1.25 * 30 / box[3], -0.75 * 24 / box[2]], rtol=1e-12)
        inside = np.s_[6:-6, 6:-8]
        np.testing.assert_allclose(last[inside], first[inside], atol=1e-9)


def test_drawn_boxes_are_in_range_and_cover_it():
    size, scale, ratio = (100, 200), (0.2, 1.0), (0.75, 4 / 3)
    draw = jax.jit(jax.vmap(lambda k: geometry.sample_box(k, size, (50, 50), scale, ratio)))
    top, left, height, width = (np.asarray(x) for x in draw(jax.random.split(jax.random.key(0), 2000)))
    assert (top >= 0).all() and (left >= 0).all() and (height >= 1).all() and (width >= 1).all()
    assert (top + height <= 100).all() and (left + width <= 200).all()
    area, shape = height * width / 20_000, width / height
    # Square boxes of more than half of this frame do not fit, so these are drawn again: 0.2 to 0.667 at most.
    assert 0.19 < area.min() < 0.21 and 0.6 < area.max() < 0.68
    assert 0.73 < shape.min() < 0.77 and 1.30 < shape.max() < 1.37
    assert len(set(zip(top.tolist(), left.tolist(), height.tolist(), strict=True))) > 1900
    assert np.abs(np.log(shape).mean()) < 0.05, "wide and narrow boxes are not alike"
    assert (top + height == 100).any() and (top == 0).any() and len(set(left.tolist())) > 50


def draw_box(key, *settings):
    box = jax.jit(lambda key: geometry.sample_box(key, *settings))(jax.random.key(key))
    return tuple(map(int, box))


def test_stretch_is_against_the_crops_own_shape():
    assert draw_box(1, (100, 200), (10, 20), (0.5, 0.5), (1.0, 1.0))[2:] == (71, 141)


@pytest.mark.parametrize(
    "size, ratio, box",
    [
        ((20, 30), (4.0, 5.0), (6, 0, 8, 30)),  # the widths do not fit: 30 of 30, at 4 times the height, 7.5
        ((20, 30), (0.5, 0.8), (0, 7, 20, 16)),  # the heights do not fit: 20 of 20, 0.8 times as wide
        ((19, 33), (1.0, 1.2), (0, 5, 19, 23)),  # odd: 1.2 times 19 is 22.8, (33 - 23) / 2 in
        ((20, 30), (1.4, 1.6), (0, 0, 20, 30)),  # the frame's own stretch, 1.5: the whole frame
    ],
)
def test_what_never_fits_is_taken_from_the_middle(size, ratio, box):
    # No try fits: a box of the whole area has the frame's own shape, or is too long one way.
    assert draw_box(1, size, (10, 10), (1.0, 1.0), ratio, 3) == box


@pytest.mark.parametrize(
    "scale, ratio", [((0.0, 1.0), (1, 1)), ((0.5, 0.2), (1, 1)), ((0.2, 1.1), (1, 1)), ((0.2, 1.0), (0, 1))]
)
def test_impossible_ranges(scale, ratio):
    with pytest.raises(ValueError, match="shares of the area in 0..1 and stretches above 0"):
        geometry.sample_box(jax.random.key(0), (9, 9), (3, 3), scale, ratio)
