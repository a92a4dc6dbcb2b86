"""The renderer and its flow against closed forms, and against what a warp of one frame to the next must reproduce."""

import dataclasses

import numpy as np
import pytest

from input_pipeline.world.appearance import paint, sample_look
from input_pipeline.world.scenes import sample_scene
from input_pipeline.world.shapes import MATERIAL_CLASS, MATERIAL_ID, MATERIALS, WORLD_CLASSES, shapes
from input_pipeline.world.street import INFINITY, Panel, Scene, exact_flow, render

H, W, HORIZON, FOCAL = 64, 128, 28.16, 128.0
ROAD, SKY = WORLD_CLASSES.index("road"), WORLD_CLASSES.index("sky")


def empty_street(track, panels=(), velocity=((0, 0, 0),)):
    """Returns a plain of asphalt under an open sky."""
    velocity = np.array(velocity, np.float64)
    return Scene(
        size=(H, W),
        horizon=HORIZON,
        focal=FOCAL,
        track=np.array(track, np.float64),
        band_edges=np.array([0.0]),
        band_materials=np.full(2, MATERIAL_ID["asphalt"], np.uint8),
        lines=(),
        crossing=(0.0, 0.0),
        rows=(),
        skyline=np.zeros(10, np.float32),
        skyline_materials=np.full(10, MATERIAL_ID["sky"], np.uint8),
        panels=tuple(panels),
        velocity=velocity,
        paint=np.full((len(velocity), 3), 128.0),
    )


def street(number, frames=3):
    return sample_scene(np.random.default_rng([9, number]), (H, W), HORIZON, FOCAL, frames, frames - 1)


def follow(flow):
    """Returns the row and column that each pixel's flow points to, rounded, and whether they are in the frame."""
    rows, columns = np.mgrid[:H, :W]
    rows, columns = np.rint(rows + flow[..., 1]).astype(int), np.rint(columns + flow[..., 0]).astype(int)
    inside = (rows >= 0) & (rows < H) & (columns >= 0) & (columns < W)
    return np.clip(rows, 0, H - 1), np.clip(columns, 0, W - 1), inside


def test_ground_flow_of_a_drive_straight_ahead():
    height, step = 1.5, 0.6
    scene = empty_street([(0, height, 0, 0, 0), (0, height, step, 0, 0)])
    view = render(scene, 1)
    flow = exact_flow(scene, view, 0)
    rows, columns = np.mgrid[:H, :W].astype(np.float64)
    ground = rows > HORIZON + 1
    depth = FOCAL * height / np.where(ground, rows - HORIZON, 1)
    assert np.all(view.classes[ground] == ROAD)
    np.testing.assert_allclose(view.depth[ground], depth[ground], rtol=1e-4)
    # A step back, the same point lay `step` metres farther away.
    shrink = depth / (depth + step) - 1
    np.testing.assert_allclose(flow[ground][:, 0], ((columns - (W - 1) / 2) * shrink)[ground], atol=2e-3)
    np.testing.assert_allclose(flow[ground][:, 1], ((rows - HORIZON) * shrink)[ground], atol=2e-3)


def test_sky_flow_depends_on_turns_only():
    turn = 0.02
    scene = empty_street([(0, 1.5, 0, 0, 0), (0.3, 1.6, 0.5, turn, 0)])
    view = render(scene, 1)
    flow = exact_flow(scene, view, 0)
    row = 0
    assert np.all(view.classes[row] == SKY) and np.all(view.depth[row] == INFINITY)
    x = np.arange(W) - (W - 1) / 2
    # The camera turned right, so what it sees now lay further right before.
    expected = FOCAL * np.tan(np.arctan(x / FOCAL) + turn) - x
    np.testing.assert_allclose(flow[row, :, 0], expected, atol=2e-3)


def test_moving_panel_flow_and_depth_order():
    near = Panel("street_end", x=0.2, y=0.0, z=10.0, width=3.0, height=2.0, heading=0.0, instance=1)
    far = Panel("bus_side", x=0.0, y=0.0, z=20.0, width=12.0, height=5.0, heading=0.0, instance=2)
    still = [(0, 1.5, 0, 0, 0)] * 3
    velocity = ((0, 0, 0), (0.25, 0, 0), (0, 0, -1.0))
    building, bus = WORLD_CLASSES.index("building"), WORLD_CLASSES.index("bus")
    views = {}
    for order in ((near, far), (far, near)):
        scene = empty_street(still, order, velocity)
        views[order] = render(scene, 2)
        flow = exact_flow(scene, views[order], 1)
        # The near panel has moved 2 * 0.25 m to the right; the far one has come 2 m nearer.
        row, column = round(HORIZON + FOCAL * 0.5 / 10), round((W - 1) / 2 + FOCAL * 0.7 / 10)
        assert views[order].classes[row, column] == building and views[order].depth[row, column] == pytest.approx(10)
        np.testing.assert_allclose(flow[row, column], (-FOCAL * 0.25 / 10, 0), atol=1e-3)
        row = round(HORIZON - FOCAL * 2.5 / 18)
        assert views[order].classes[row, column] == bus and views[order].depth[row, column] == pytest.approx(18)
        np.testing.assert_allclose(flow[row, column, 1], (row - HORIZON) * (18 / 19 - 1), atol=1e-3)
    first, second = views.values()
    np.testing.assert_array_equal(first.materials, second.materials)


def test_mirrored_panel_is_flipped():
    panel = Panel("cyclist", x=0.0, y=0.0, z=6.0, width=1.8, height=1.8, heading=0.0, instance=1)
    flipped = dataclasses.replace(panel, mirrored=True)
    plain, mirror = (
        render(empty_street([(0, 1.5, 0, 0, 0)], [p], np.zeros((2, 3))), 0).materials for p in (panel, flipped)
    )
    assert np.any(plain != mirror)
    # Samples at pixel centres can fall on either side of a mask's cell border once mirrored.
    assert np.mean(plain[:, ::-1] == mirror) > 0.995


def test_flow_carries_labels_instances_and_surfaces():
    warped, unwarped, same_instance, drift = [], [], [], []
    for number in range(12):
        scene = street(number)
        for current, earlier in ((2, 1), (1, 0), (2, 0)):
            view, before = render(scene, current), render(scene, earlier)
            rows, columns, inside = follow(exact_flow(scene, view, earlier))
            if current - earlier == 1:
                warped.append(np.mean(before.classes[rows, columns] == view.classes))
                unwarped.append(np.mean(before.classes == view.classes))
            same = inside & (before.instances[rows, columns] == view.instances)
            same_instance.append(np.mean(same[inside]))
            # On a surface that faces the camera, position on it is known to half a pixel; ground and side walls are
            # seen at a slant, so only panels across the view are compared.
            facing = {p.instance for p in scene.panels if p.heading == 0} - {
                p.instance for p in scene.panels if p.heading != 0
            }
            walls = {int(i) for row in scene.rows for i in row.instances}
            flat = same & np.isin(view.instances, list(facing - walls))
            distance = np.abs(before.surface[rows, columns] - view.surface)[flat].max(axis=-1)
            drift.append(distance / (view.depth[flat] / FOCAL))
    assert np.mean(warped) >= 0.95
    assert np.mean(warped) > np.mean(unwarped) + 0.02
    assert np.mean(same_instance) > 0.94
    drift = np.concatenate(
        drift
    )  # in pixels; rounding the position costs half a pixel, the surface's tilt a little more
    assert len(drift) > 1000 and np.quantile(drift, 0.99) < 0.8


@pytest.mark.parametrize("gap", [0.0, 1.0])
def test_pictures_move_with_the_flow(gap):
    better, worse = [], []
    for number in range(4):
        scene = street(number)
        look = sample_look(np.random.default_rng(number), gap)
        # Noise, flicker and vignette belong to the camera and stay where they are.
        look = dataclasses.replace(look, noise=0.0, flicker=0.0, vignette=0.0, light=(0.0, 0.0))
        now, before = (
            paint(render(scene, t), scene, look, np.random.default_rng(0)).astype(np.float64) for t in (2, 1)
        )
        rows, columns, inside = follow(exact_flow(scene, render(scene, 2), 1))
        better.append(np.abs(before[rows, columns] - now)[inside].mean())
        worse.append(np.abs(before - now)[inside].mean())
    assert np.mean(better) < 0.75 * np.mean(worse)


def test_every_class_is_seen_often_and_the_tail_is_long():
    pixels = np.stack([np.bincount(render(street(k), 2).classes.ravel(), minlength=17) for k in range(60)])
    seen = np.mean(pixels >= 8, axis=0)
    assert {name: share for name, share in zip(WORLD_CLASSES, seen, strict=True) if share < 0.2} == {}
    share = dict(zip(WORLD_CLASSES, pixels.sum(axis=0) / pixels.sum(), strict=True))
    assert 0.25 < share["road"] < 0.45
    assert share["sign"] < 0.01 and share["bicycle"] < 0.01 and share["light"] < 0.01


def test_no_car_is_taken_for_the_camera_s_own():
    car = WORLD_CLASSES.index("car")
    middle = slice(W // 2 - W // 8, W // 2 + W // 8)
    assert not any(np.any(render(street(k), 2).classes[-1, middle] == car) for k in range(40))


def test_materials_cover_every_class_and_shapes_use_them():
    assert set(MATERIAL_CLASS[1:]) == set(range(len(WORLD_CLASSES)))
    for name, mask in shapes().items():
        assert mask.dtype == np.uint8 and 0 < mask.max() < len(MATERIALS), name


def test_the_real_look_leaves_the_game_the_further_the_larger_its_gap():
    distances = []
    for gap in (0.0, 0.3, 1.3):
        differences = []
        for number in range(4):
            scene = street(number)
            view = render(scene, 2)
            pictures = [
                paint(view, scene, sample_look(np.random.default_rng(number), g), np.random.default_rng(1)).astype(int)
                for g in (0.0, gap)
            ]
            assert pictures[0].shape == (H, W, 3)
            differences.append(np.abs(pictures[0] - pictures[1]).mean())
        distances.append(np.mean(differences))
    assert distances[0] == 0 and distances[0] < distances[1] < distances[2]
