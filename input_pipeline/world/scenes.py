"""Draws streets: where the walls stand, what grows, parks and moves there.

Every class of both label settings must be there often enough to be learnt and scored, in about the proportions of a
real street: road and buildings fill most of the picture, signs and bicycles less than a hundredth.
"""

import numpy as np

from input_pipeline.world.places import SOURCE
from input_pipeline.world.shapes import MATERIAL_ID
from input_pipeline.world.street import Panel, Scene, WallRow

# Metres of street ahead of the last camera position that are filled.
_REACH = 110.0
_SKYLINE_COLUMNS = 240

# Kind -> (width, height, length) in metres, lowest and highest.
_VEHICLES = {
    "car": ((1.7, 1.95), (1.4, 1.75), (3.9, 4.8)),
    "truck": ((2.3, 2.6), (2.9, 3.8), (6.5, 10.0)),
    "bus": ((2.4, 2.6), (3.0, 3.5), (9.0, 12.0)),
}


class _Builder:
    """Collects panels and the instances that they belong to."""

    def __init__(self, rng, reference_time):
        self.rng = rng
        self.time = reference_time
        self.panels = []
        # Instance 0 is the ground and the sky.
        self.velocity = [np.zeros(3)]
        self.paint = [np.full(3, 128.0)]

    def instance(self, velocity=(0.0, 0.0), paint=None):
        """Opens an instance moving by (x, z) metres a frame; returns its index."""
        self.velocity.append(np.array([velocity[0], 0.0, velocity[1]]))
        self.paint.append(self.rng.uniform(30, 225, 3) if paint is None else np.asarray(paint, np.float64))
        return len(self.velocity) - 1

    def panel(self, shape, x, z, width, height, instance, heading=0.0, mirrored=False, y=0.0):
        """Adds a panel that stands at (x, z) at the reference time."""
        start = np.array([x, y, z]) - self.velocity[instance] * self.time
        self.panels.append(Panel(shape, *start, width, height, heading, instance, mirrored))

    def vehicle(self, kind, x, z, oncoming=False, speed=0.0):
        """Adds a box: the end that faces the camera, and the long side that does."""
        width, height, length = (self.rng.uniform(*limits) for limits in _VEHICLES[kind])
        instance = self.instance((0.0, -speed if oncoming else speed), self._vehicle_paint())
        end = f"{kind}_front" if oncoming else f"{kind}_rear"
        self.panel(end, x, z, width, height, instance)
        side = x - np.sign(x) * width / 2
        self.panel(f"{kind}_side", side, z + length / 2, length, height, instance, np.pi / 2, mirrored=oncoming)

    def passing(self, kind, x, z, to_the_right, speed):
        """Adds a vehicle seen from its side, moving across the view."""
        width, height, length = (self.rng.uniform(*limits) for limits in _VEHICLES[kind])
        instance = self.instance((speed if to_the_right else -speed, 0.0), self._vehicle_paint())
        self.panel(f"{kind}_side", x, z, length, height, instance, mirrored=to_the_right)

    def _vehicle_paint(self):
        # Most cars are a shade of grey; the rest come in colours.
        if self.rng.random() < 0.5:
            return self.rng.uniform(25, 230) + self.rng.normal(0, 6, 3)
        return self.rng.uniform(20, 220, 3)

    def two_wheeler(self, shape, x, z, velocity=(0.0, 0.0), heading=0.0, mirrored=False):
        width, height = {
            "bicycle": (2.0, 1.25), "cyclist": (2.0, 2.0), "motorcycle": (2.3, 1.35), "motorcyclist": (2.3, 1.95),
        }[shape]  # fmt: skip
        size = self.rng.uniform(0.95, 1.1)
        self.panel(shape, x, z, width * size, height * size, self.instance(velocity), heading, mirrored)

    def person(self, x, z, velocity):
        height = self.rng.uniform(1.6, 2.05)
        shape = f"person_{self.rng.integers(3)}"
        self.panel(shape, x, z, 0.5 * height, height, self.instance(velocity), mirrored=self.rng.random() < 0.5)


def _spots(rng, start, stop, step, density=1.0):
    """Draws places along the street, `step = (least, most)` metres apart, more of them with a higher density."""
    step = tuple(metres / density for metres in step)
    places, z = [], start + rng.uniform(0, step[1])
    while z < stop:
        places.append(z)
        z += rng.uniform(*step)
    return places


def _choice(rng, **shares):
    names = list(shares)
    share = np.array(list(shares.values()))
    return names[int(rng.choice(len(names), p=share / share.sum()))]


def _wall_row(rng, build, x, start, stop, crossing, kinds, storeys):
    """Draws one row of walls; gables close the houses towards the camera where a gap lies before them."""
    edges, materials, heights, steps, instances = [start], [], [], [], []
    side = np.sign(x)
    while edges[-1] < stop:
        kind = _choice(rng, **kinds)
        length, height = {
            "facade": (rng.uniform(9, 24), rng.uniform(6, 17) * storeys),
            "boards": (rng.uniform(8, 22), rng.uniform(1.6, 2.6)),
            "hedge": (rng.uniform(6, 16), rng.uniform(1.0, 2.8)),
            "leaves": (rng.uniform(10, 25), rng.uniform(4, 9)),
            "nothing": (rng.uniform(4, 12), 0.0),
        }[kind]
        end = edges[-1] + length
        if edges[-1] < crossing[1] and end > crossing[0] and crossing[1] > crossing[0]:
            kind, height, end = "nothing", 0.0, max(end, crossing[1])
        instance = build.instance(paint=rng.uniform(70, 215) + rng.normal(0, 22, 3))
        before = materials[-1] if materials else 0
        if kind == "facade" and before != MATERIAL_ID["facade"]:
            depth = rng.uniform(8, 14)
            build.panel("gable", x + side * depth / 2, edges[-1], depth, height, instance)
        edges.append(end)
        materials.append(MATERIAL_ID[kind])
        heights.append(height)
        steps.append(rng.uniform(2.2, 3.8))
        instances.append(instance)
    return WallRow(
        x, np.array(edges), np.array(materials, np.uint8), np.array(heights), np.array(steps), np.array(instances)
    )


def _skyline(rng):
    """Draws houses and trees on the horizon; returns heights `[A]` (tangents) and materials `[A]`."""
    heights, materials = np.zeros(_SKYLINE_COLUMNS, np.float32), np.zeros(_SKYLINE_COLUMNS, np.uint8)
    column = 0
    while column < _SKYLINE_COLUMNS:
        width = int(rng.integers(4, 16))
        houses = rng.random() < 0.55
        height = rng.uniform(0.03, 0.13) if houses else rng.uniform(0.03, 0.08)
        bumps = 0 if houses else 0.012 * np.sin(np.arange(width) * rng.uniform(0.7, 1.4))
        heights[column : column + width] = (height + bumps * np.ones(width))[: _SKYLINE_COLUMNS - column]
        materials[column : column + width] = MATERIAL_ID["far_houses" if houses else "far_trees"]
        column += width
    return heights, materials


def _camera_track(rng, frames, place):
    """Draws the drive: `[F, 5]` x, y, z, yaw, pitch; it keeps its lane and shakes a little."""
    time = np.arange(frames)
    speed = rng.uniform(0.2, 0.6)
    sway = 0.25 * np.sin(time * rng.uniform(0.02, 0.06) + rng.uniform(0, 6.3))
    yaw = rng.normal(0, 0.03) + 0.05 * np.sin(time * rng.uniform(0.03, 0.1) + rng.uniform(0, 6.3))
    pitch = rng.normal(0, 0.008) + rng.normal(0, 0.0025, frames)
    height = rng.uniform(1.4, 1.75) * place.height + 0.02 * np.sin(time * rng.uniform(0.3, 0.9))
    return np.stack([sway, np.broadcast_to(height, (frames,)), time * speed, yaw, pitch], axis=-1), speed


def _traffic(rng, build, camera_z, own_speed, lanes, crossing, place):
    """Fills the lanes; `lanes` are (x, oncoming)."""
    for x, oncoming in lanes:
        nearest = rng.uniform(10, 26) if x == 0 else rng.uniform(5, 22)
        if x == 0 and rng.random() < 0.35:
            nearest += 30
        z = camera_z + nearest
        while z < camera_z + 55:
            # The vehicle ahead never comes close: at the bottom centre of VIPER's frames a car counts as one's own.
            speed = own_speed * rng.uniform(0.95, 1.15) if x == 0 else rng.uniform(0.2, 0.75)
            heavy = 0.13 * place.heavy
            kind = _choice(rng, car=0.53, truck=heavy, bus=heavy, motorcyclist=0.13, cyclist=0.12)
            if kind in _VEHICLES:
                build.vehicle(kind, x + rng.normal(0, 0.12), z, oncoming, speed)
            else:
                heading = rng.uniform(0.35, 1.0) * rng.choice([-1, 1])
                across = x if kind == "motorcyclist" else x + 0.8
                velocity = (0.0, -speed if oncoming else speed)
                build.two_wheeler(kind, across, z, velocity, heading, rng.random() < 0.5)
            z += rng.uniform(12, 34) / place.traffic
    if crossing[1] > crossing[0] and rng.random() < 0.7:
        for z, to_the_right in ((crossing[0] + 2.5, True), (crossing[1] - 2.5, False)):
            shares = dict(truck=0.16 * place.heavy, bus=0.14 * place.heavy)
            kind = _choice(rng, car=0.5, **shares, motorcyclist=0.1, cyclist=0.1)
            x, speed = rng.uniform(-10, 10), rng.uniform(0.15, 0.5)
            if kind in _VEHICLES:
                build.passing(kind, x, z, to_the_right, speed)
            else:
                build.two_wheeler(kind, x, z, (speed if to_the_right else -speed, 0.0), 0.0, mirrored=to_the_right)


def _roadside(rng, build, side, kerb, wall, camera_z, stop, parking, crossing, place):
    """Fills one side from the kerb to the wall: parked vehicles, trees, poles, signs, people, bicycles."""

    def free(z):
        return not crossing[0] - 5 < z < crossing[1] + 1

    start = camera_z + 1
    for z in filter(free, _spots(rng, start, camera_z + 50, (6.5, 15), place.traffic) if parking else []):
        kind = _choice(rng, car=0.74, truck=0.08 * place.heavy, bus=0.03 * place.heavy, motorcycle=0.15)
        x = kerb - side * 1.1
        if kind == "motorcycle":
            build.two_wheeler(kind, x, z, heading=rng.uniform(-0.9, 0.9), mirrored=rng.random() < 0.5)
        else:
            build.vehicle(kind, x, z, oncoming=side < 0)
    edge = kerb + side * 0.5
    if rng.random() < 0.65:
        for z in filter(free, _spots(rng, camera_z + 5, stop, (9, 24), place.green)):
            height = rng.uniform(4.0, 7.5)
            shape, instance = f"tree_{rng.integers(4)}", build.instance()
            build.panel(
                shape, edge + side * rng.uniform(0.2, 1.2), z, height * rng.uniform(0.6, 0.85), height, instance
            )
    for z in _spots(rng, camera_z + 5, stop, (14, 30), place.furniture):
        height = rng.uniform(5.5, 7.5)
        instance = build.instance(paint=rng.uniform(60, 170) + np.zeros(3))
        build.panel("street_lamp", edge, z, 2.0, height, instance, mirrored=side > 0)
    for z in _spots(rng, camera_z + 6, camera_z + 40, (9, 26), place.furniture):
        face = rng.uniform(0.85, 1.15)
        instance = build.instance(paint=rng.uniform(60, 170) + np.zeros(3))
        build.panel(f"sign_{rng.integers(4)}", edge + side * 0.2, z, face, face * rng.uniform(2.5, 2.9), instance)
    if rng.random() < 0.3:
        for z in _spots(rng, camera_z + 5, camera_z + 30, (1.8, 3.5)):
            build.panel("bollard", kerb + side * 0.25, z, 0.2, 1.0, build.instance())
    for z in _spots(rng, camera_z + 5, camera_z + 32, (3, 14), place.people):
        walk = rng.uniform(-0.09, 0.09)
        x = kerb + side * rng.uniform(0.8, abs(wall - kerb) - 0.4)
        build.person(x, z, (rng.normal(0, 0.01), walk))
        if rng.random() < 0.35:
            build.person(x + side * 0.7, z + 0.3, (0.0, walk))
    for z in _spots(rng, camera_z + 6, camera_z + 32, (12, 40), place.people):
        shape = _choice(rng, bicycle=0.7, motorcycle=0.3)
        x = kerb + side * rng.uniform(0.8, abs(wall - kerb) - 0.4)
        build.two_wheeler(shape, x, z, heading=rng.uniform(-0.8, 0.8), mirrored=rng.random() < 0.5)
    if rng.random() < 0.3:
        z, ahead = camera_z + rng.uniform(6, 20), rng.random() < 0.6
        velocity = (0.0, rng.uniform(0.1, 0.3) * (1 if ahead else -1))
        heading = rng.uniform(0.2, 0.9) * rng.choice([-1, 1])
        build.two_wheeler("cyclist", kerb + side * rng.uniform(0.7, 1.6), z, velocity, heading, rng.random() < 0.5)


def _signals(rng, build, z, left, right):
    """Puts traffic lights at the stop line."""
    state = _choice(rng, red=0.5, green=0.35, amber=0.15)
    for side, kerb in ((-1, left), (1, right)):
        instance = build.instance(paint=rng.uniform(60, 150) + np.zeros(3))
        if state != "amber" and rng.random() < 0.45:
            build.panel(f"gantry_{state}", kerb - side * 1.6, z, 5.0, 5.2, instance, mirrored=side < 0)
        else:
            build.panel(f"light_{state}", kerb + side * 0.4, z, 1.0, rng.uniform(3.2, 3.8), instance)


def sample_scene(rng, size, horizon, focal, frames, reference_time, place=SOURCE):
    """Draws a street and a drive through it.

    Args:
      rng: numpy Generator.
      size: `(H, W)` of the frames.
      horizon: row of the horizon.
      focal: focal length in pixels.
      frames: number of times in the camera's track.
      reference_time: time around which traffic and people are placed, so that they are in view then.
      place: what the street is like, see `Place`.

    Returns:
      The `Scene`.
    """
    track, speed = _camera_track(rng, frames, place)
    camera_z, stop = track[reference_time, 2], track[-1, 2] + _REACH
    build = _Builder(rng, reference_time)
    lane = rng.uniform(3.2, 3.8)
    right_lanes, left_lanes = int(rng.random() < place.lanes), int(rng.random() < place.lanes)
    parking = rng.random(2) < 0.45
    left = -lane * (1.5 + left_lanes) - 2.3 * parking[0]
    right = lane * (0.5 + right_lanes) + 2.3 * parking[1]
    z0 = camera_z + rng.uniform(11, 26)
    crossing = (z0, z0 + rng.uniform(8, 12)) if rng.random() < place.crossing else (0.0, 0.0)

    edges, materials, walls = [left, right], [MATERIAL_ID["asphalt"]], []
    for side, kerb in ((-1, left), (1, right)):
        paving = rng.uniform(2.6, 5.0)
        grass = rng.uniform(2.0, 7.0) if rng.random() < 0.6 else 0.0
        grass += place.setback
        walls.append(kerb + side * (paving + grass))
        # Grass lies between the paving and the wall, and behind the wall.
        edges += [kerb + side * 0.25, kerb + side * paving]
        outward = [MATERIAL_ID["kerb"], MATERIAL_ID["paving"], MATERIAL_ID["grass"]]
        materials = materials + outward if side > 0 else outward[::-1] + materials

    lines = [(-lane / 2, 0.14, 0 if rng.random() < 0.3 else 3.0)]
    lines += [(lane / 2, 0.12, 2.5 if right_lanes else 0.0)] if right_lanes or parking[1] else []
    lines += [(-lane * 1.5, 0.12, 2.5 if left_lanes else 0.0)] if left_lanes or parking[0] else []
    lanes = [(0.0, False), (-lane, True)]
    lanes += [(lane, False)] if right_lanes else []
    lanes += [(-2 * lane, True)] if left_lanes else []

    green = rng.uniform(0.5, 1.6) * place.green
    rows, start = [], track[0, 2] - 10
    for wall in walls:
        near = {"facade": 1.0, "boards": 1.0, "hedge": 0.35 * green, "nothing": 0.6 * green * place.open}
        far = {"facade": 0.8, "leaves": 0.6 * green, "nothing": 0.7 * green * place.open}
        rows.append(_wall_row(rng, build, wall, start, stop, crossing, near, place.storeys))
        rows.append(
            _wall_row(rng, build, wall + np.sign(wall) * rng.uniform(14, 22), start, stop, crossing, far, place.storeys)
        )
    if rng.random() < 0.4:
        width = rng.uniform(50, 90)
        build.panel(
            "street_end", rng.uniform(-6, 6), stop - rng.uniform(5, 40), width, rng.uniform(8, 15), build.instance()
        )

    _traffic(rng, build, camera_z, speed, lanes, crossing, place)
    for side, kerb, wall, parked in ((-1, left, walls[0], parking[0]), (1, right, walls[1], parking[1])):
        _roadside(rng, build, side, kerb, wall, camera_z, stop, parked, crossing, place)
    if crossing[1] > 0 or rng.random() < 0.35:
        _signals(rng, build, (crossing[0] or z0) - 0.6, left, right)
    for _ in range(int(rng.random() < 0.4) * int(rng.integers(1, 4))):
        direction = rng.choice([-1, 1])
        build.person(
            rng.uniform(left, right), camera_z + rng.uniform(10, 24), (direction * rng.uniform(0.04, 0.1), 0.0)
        )

    heights, skyline_materials = _skyline(rng)
    return Scene(
        size, horizon, focal, track, np.sort(np.array(edges)), np.array(materials, np.uint8), tuple(lines), crossing,
        tuple(rows), heights, skyline_materials, tuple(build.panels), np.array(build.velocity), np.array(build.paint),
    )  # fmt: skip
