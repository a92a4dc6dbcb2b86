"""Materials and shape masks of the generated street: what things are made of, and what they look like from one side.

A *material* is the smallest part that has a colour of its own (a tyre, a window, a jacket); each belongs to one class.
A *shape* is a small mask of materials, 0 where one sees through, that the renderer stretches over an upright rectangle.
"""

import functools
from typing import NamedTuple

import cv2
import numpy as np

# The classes of the street, by which random numbers are drawn: another one, or another order, is another world.
WORLD_CLASSES = (
    "road", "sidewalk", "building", "fence", "pole", "light", "sign", "vegetation", "terrain", "sky", "person", "rider",
    "car", "truck", "bus", "motorcycle", "bicycle",
)  # fmt: skip

RGB = tuple[int, int, int]


class Material(NamedTuple):
    """One material: its class, its colour in either look, how much of its owner's own paint it takes, its texture."""

    name: str
    category: str
    game: RGB
    real: RGB
    paint: float = 0.0
    contrast: float = 0.5
    grain: float = 6.0  # texture samples per metre: high is fine-grained


MATERIALS = (
    Material("nothing", "sky", (0, 0, 0), (0, 0, 0)),
    Material("asphalt", "road", (88, 86, 92), (122, 116, 108), 0.0, 0.5, 8.0),
    Material("mark", "road", (228, 228, 222), (196, 190, 178), 0.0, 0.5, 8.0),
    Material("paving", "sidewalk", (176, 160, 156), (142, 136, 134), 0.0, 0.6, 7.0),
    Material("kerb", "sidewalk", (196, 190, 186), (160, 156, 150), 0.0, 0.4, 7.0),
    Material("grass", "terrain", (108, 154, 62), (128, 124, 76), 0.0, 0.9, 5.0),
    Material("facade", "building", (172, 138, 116), (146, 140, 130), 0.35, 0.6, 3.0),
    Material("window", "building", (92, 118, 146), (66, 72, 80), 0.0, 0.4, 2.0),
    Material("cornice", "building", (120, 84, 70), (104, 96, 88), 0.3, 0.4, 3.0),
    Material("boards", "fence", (150, 92, 46), (122, 94, 70), 0.15, 0.5, 5.0),
    Material("post", "fence", (104, 60, 30), (86, 68, 54), 0.15, 0.4, 5.0),
    Material("hedge", "vegetation", (58, 110, 44), (70, 84, 50), 0.0, 1.3, 3.0),
    Material("leaves", "vegetation", (70, 136, 52), (84, 96, 60), 0.12, 1.5, 2.5),
    Material("trunk", "vegetation", (98, 72, 50), (78, 70, 62), 0.0, 0.8, 6.0),
    Material("sky", "sky", (128, 176, 236), (206, 210, 216), 0.0, 0.25, 1.0),
    Material("far_houses", "building", (134, 132, 146), (140, 138, 140), 0.0, 0.4, 30.0),
    Material("far_trees", "vegetation", (86, 122, 84), (98, 106, 90), 0.0, 0.7, 30.0),
    Material("steel", "pole", (112, 114, 118), (92, 92, 90), 0.15, 0.3, 5.0),
    Material("signal", "light", (46, 50, 46), (36, 38, 42), 0.0, 0.3, 5.0),
    Material("lamp_red", "light", (248, 66, 44), (230, 96, 70), 0.0, 0.1, 5.0),
    Material("lamp_amber", "light", (190, 140, 40), (120, 98, 60), 0.0, 0.1, 5.0),
    Material("lamp_green", "light", (44, 214, 116), (90, 190, 150), 0.0, 0.1, 5.0),
    Material("sign_blue", "sign", (30, 78, 196), (52, 86, 150), 0.0, 0.2, 4.0),
    Material("sign_red", "sign", (212, 34, 34), (176, 58, 50), 0.0, 0.2, 4.0),
    Material("sign_yellow", "sign", (242, 202, 36), (206, 176, 70), 0.0, 0.2, 4.0),
    Material("sign_white", "sign", (236, 236, 232), (204, 202, 196), 0.0, 0.2, 4.0),
    Material("skin", "person", (222, 168, 138), (186, 142, 120), 0.0, 0.3, 8.0),
    Material("hair", "person", (66, 46, 34), (52, 44, 40), 0.3, 0.3, 8.0),
    Material("jacket", "person", (206, 44, 66), (150, 66, 78), 0.25, 0.5, 6.0),
    Material("trousers", "person", (70, 40, 120), (66, 54, 92), 0.1, 0.5, 6.0),
    Material("rider_skin", "rider", (222, 168, 138), (186, 142, 120), 0.0, 0.3, 8.0),
    Material("helmet", "rider", (230, 60, 40), (90, 80, 84), 0.4, 0.2, 6.0),
    Material("rider_jacket", "rider", (230, 120, 40), (120, 96, 78), 0.55, 0.5, 6.0),
    Material("rider_trousers", "rider", (44, 46, 60), (50, 52, 58), 0.2, 0.5, 6.0),
    Material("car_paint", "car", (150, 40, 50), (110, 100, 104), 0.8, 0.25, 2.0),
    Material("car_glass", "car", (54, 70, 86), (48, 54, 58), 0.0, 0.25, 2.0),
    Material("car_tyre", "car", (28, 28, 30), (34, 34, 34), 0.0, 0.2, 4.0),
    Material("car_lamp", "car", (236, 70, 56), (196, 84, 70), 0.0, 0.2, 4.0),
    Material("truck_cab", "truck", (56, 112, 168), (96, 112, 126), 0.5, 0.3, 2.0),
    Material("truck_load", "truck", (206, 204, 196), (176, 172, 164), 0.3, 0.4, 2.0),
    Material("truck_dark", "truck", (38, 42, 48), (42, 44, 46), 0.0, 0.2, 3.0),
    Material("bus_paint", "bus", (226, 150, 34), (196, 160, 96), 0.3, 0.25, 2.0),
    Material("bus_glass", "bus", (44, 58, 72), (50, 58, 64), 0.0, 0.25, 2.0),
    Material("bus_dark", "bus", (40, 36, 34), (40, 40, 40), 0.0, 0.2, 3.0),
    Material("moto_body", "motorcycle", (20, 120, 112), (48, 98, 100), 0.2, 0.3, 6.0),
    Material("moto_dark", "motorcycle", (40, 40, 46), (46, 44, 44), 0.0, 0.3, 6.0),
    Material("bike_frame", "bicycle", (206, 40, 170), (150, 70, 130), 0.15, 0.3, 6.0),
    Material("bike_wheel", "bicycle", (140, 96, 150), (112, 92, 118), 0.0, 0.5, 8.0),
)

MATERIAL_ID = {material.name: index for index, material in enumerate(MATERIALS)}
# Material -> index into WORLD_CLASSES.
MATERIAL_CLASS = np.array([WORLD_CLASSES.index(material.category) for material in MATERIALS], np.uint8)


def _box(mask, name, left, top, right, bottom):
    """Fills a rectangle given in shares of the mask."""
    h, w = mask.shape
    mask[round(top * h) : round(bottom * h), round(left * w) : round(right * w)] = MATERIAL_ID[name]


def _polygon(mask, name, *corners):
    h, w = mask.shape
    points = np.array([(x * (w - 1), y * (h - 1)) for x, y in corners])
    cv2.fillPoly(mask, [np.round(points).astype(np.int32)], MATERIAL_ID[name])


def _oval(mask, name, x, y, radius_x, radius_y):
    h, w = mask.shape
    centre, axes = (round(x * w), round(y * h)), (max(1, round(radius_x * w)), max(1, round(radius_y * h)))
    cv2.ellipse(mask, centre, axes, 0, 0, 360, MATERIAL_ID[name], -1)


def _drawn(height, width, *parts):
    """Draws (function, material, where) one over the other."""
    mask = np.zeros((height, width), np.uint8)
    for draw, material, *where in parts:
        draw(mask, material, *where)
    return mask


def _car_end(lamp):
    return _drawn(
        64, 80,
        (_polygon, "car_paint", (0.2, 0), (0.8, 0), (0.95, 0.42), (0.05, 0.42)),
        (_polygon, "car_glass", (0.24, 0.07), (0.76, 0.07), (0.88, 0.38), (0.12, 0.38)),
        (_box, "car_paint", 0, 0.4, 1, 0.86),
        *((_box, lamp, left, 0.47, right, 0.58) for left, right in ((0.03, 0.2), (0.8, 0.97))),
        *((_box, "car_tyre", left, 0.82, left + 0.18, 1) for left in (0.05, 0.77)),
        (_box, "car_tyre", 0.2, 0.72, 0.8, 0.86),
    )  # fmt: skip


def _vehicles():
    bus_end = _drawn(
        96, 80,
        (_box, "bus_paint", 0, 0, 1, 0.92),
        (_box, "bus_glass", 0.07, 0.12, 0.93, 0.5),
        (_box, "bus_dark", 0.2, 0.02, 0.8, 0.09),
        *((_box, "bus_dark", left, 0.86, left + 0.2, 1) for left in (0.06, 0.74)),
    )  # fmt: skip
    return {
        "car_rear": _car_end("car_lamp"),
        "car_front": _car_end("car_glass"),
        "car_side": _drawn(
            64, 160,
            (_polygon, "car_paint", (0.3, 0), (0.72, 0), (0.9, 0.42), (0.16, 0.42)),
            (_polygon, "car_glass", (0.33, 0.08), (0.69, 0.08), (0.8, 0.4), (0.23, 0.4)),
            (_box, "car_paint", 0.5, 0, 0.53, 0.5),
            (_polygon, "car_paint", (0.02, 0.48), (0.16, 0.4), (1, 0.4), (1, 0.84), (0, 0.84)),
            *((_oval, "car_tyre", x, 0.8, 0.075, 0.19) for x in (0.19, 0.81)),
        ),
        "truck_rear": _drawn(
            96, 72,
            (_box, "truck_load", 0, 0, 1, 0.8),
            (_box, "truck_cab", 0, 0, 1, 0.04),
            (_box, "truck_dark", 0.48, 0.06, 0.52, 0.76),
            (_box, "truck_dark", 0.04, 0.78, 0.96, 0.88),
            *((_box, "truck_dark", left, 0.86, left + 0.26, 1) for left in (0.06, 0.68)),
        ),
        "truck_front": _drawn(
            96, 72,
            (_box, "truck_load", 0.02, 0, 0.98, 0.3),
            (_box, "truck_cab", 0, 0.2, 1, 0.88),
            (_box, "truck_dark", 0.08, 0.28, 0.92, 0.52),
            (_box, "truck_dark", 0.2, 0.68, 0.8, 0.8),
            *((_box, "truck_dark", left, 0.86, left + 0.25, 1) for left in (0.05, 0.7)),
        ),
        "truck_side": _drawn(
            96, 200,
            (_box, "truck_load", 0.27, 0, 1, 0.78),
            (_box, "truck_dark", 0.27, 0.74, 1, 0.8),
            (_polygon, "truck_cab", (0.04, 0.2), (0.25, 0.2), (0.25, 0.86), (0, 0.86), (0, 0.5)),
            (_polygon, "truck_dark", (0.06, 0.27), (0.18, 0.27), (0.18, 0.5), (0.03, 0.5)),
            *((_oval, "truck_dark", x, 0.87, 0.055, 0.13) for x in (0.12, 0.7, 0.86)),
        ),
        "bus_rear": bus_end,
        "bus_front": bus_end,
        "bus_side": _drawn(
            96, 240,
            (_box, "bus_paint", 0, 0, 1, 0.9),
            (_box, "bus_glass", 0.02, 0.16, 0.98, 0.5),
            *((_box, "bus_paint", x - 0.008, 0.12, x + 0.008, 0.52) for x in (0.2, 0.4, 0.6, 0.8)),
            *((_oval, "bus_dark", x, 0.88, 0.045, 0.12) for x in (0.16, 0.78)),
        ),
    }  # fmt: skip


def _person(stride, arms):
    mask = _drawn(96, 48)
    for foot, top in ((0.5 - stride, 0.42), (0.5 + stride, 0.58)):
        _polygon(mask, "trousers", (top - 0.11, 0.5), (top + 0.11, 0.5), (foot + 0.1, 1), (foot - 0.1, 1))
    for hand, shoulder in ((0.5 - arms, 0.3), (0.5 + arms, 0.7)):
        _polygon(
            mask, "jacket", (shoulder - 0.09, 0.2), (shoulder + 0.09, 0.2), (hand + 0.08, 0.54), (hand - 0.08, 0.54)
        )
    _polygon(mask, "jacket", (0.24, 0.19), (0.76, 0.19), (0.7, 0.54), (0.3, 0.54))
    _oval(mask, "skin", 0.5, 0.1, 0.15, 0.085)
    _polygon(mask, "hair", (0.34, 0.1), (0.36, 0.03), (0.5, 0.0), (0.64, 0.03), (0.66, 0.1))
    return mask


def _ride(mask, hip_x, hip_y, hand_x, hand_y, foot_x, foot_y):
    """Sits a rider on a two-wheeler that faces left."""
    thigh = ((hip_x - 0.12, hip_y - 0.06), (hip_x + 0.08, hip_y - 0.06), (hip_x + 0.06, hip_y + 0.06))
    _polygon(
        mask, "rider_trousers", *thigh, (foot_x + 0.05, foot_y), (foot_x - 0.07, foot_y), (hip_x - 0.16, hip_y + 0.08)
    )
    back = ((hip_x - 0.16, 0.15), (hip_x + 0.06, 0.15), (hip_x + 0.1, hip_y), (hip_x - 0.13, hip_y))
    _polygon(mask, "rider_jacket", *back)
    sleeve = ((hip_x - 0.14, 0.18), (hip_x - 0.02, 0.2), (hand_x + 0.02, hand_y + 0.04), (hand_x - 0.02, hand_y - 0.03))
    _polygon(mask, "rider_jacket", *sleeve)
    _oval(mask, "rider_skin", hip_x - 0.09, 0.095, 0.075, 0.065)
    _polygon(mask, "helmet", (hip_x - 0.18, 0.085), (hip_x - 0.15, 0.015), (hip_x - 0.03, 0.01), (hip_x + 0.01, 0.09))


def _bicycle(with_rider):
    """A bicycle that faces left; alone it fills its mask, under a rider it takes the lower half."""
    mask = _drawn(96, 96) if with_rider else _drawn(64, 96)
    top, axle = (0.46, 0.79) if with_rider else (0.0, 0.66)
    radius = 1 - axle
    for x in (0.21, 0.79):
        _oval(mask, "bike_wheel", x, axle, 0.2, radius * 0.98)
        _oval(mask, "bike_frame", x, axle, 0.05, radius * 0.25)
    low, high = axle + 0.02, axle - radius * 0.9
    _polygon(mask, "bike_frame", (0.3, high), (0.7, high), (0.54, low), (0.46, low))
    _polygon(mask, "bike_frame", (0.26, top), (0.34, top), (0.26, axle), (0.18, axle))
    _polygon(mask, "bike_frame", (0.64, top + 0.06), (0.76, top + 0.06), (0.56, low), (0.48, low))
    _polygon(mask, "bike_frame", (0.48, low - 0.04), (0.79, axle - 0.04), (0.79, axle + 0.04), (0.48, low + 0.04))
    if with_rider:
        _ride(mask, 0.66, 0.5, 0.3, 0.46, 0.5, 0.86)
    return mask


def _motorcycle(with_rider):
    mask = _drawn(96, 112) if with_rider else _drawn(64, 112)
    top, axle = (0.44, 0.81) if with_rider else (0.02, 0.7)
    radius = 1 - axle
    for x in (0.17, 0.82):
        _oval(mask, "moto_dark", x, axle, 0.16, radius)
    middle = axle - radius * 0.4
    tank = ((0.18, top), (0.34, top + 0.02), (0.5, top + 0.08), (0.94, top + 0.06))
    _polygon(mask, "moto_body", *tank, (0.9, middle - 0.06), (0.68, axle + 0.08), (0.32, axle + 0.08))
    _polygon(mask, "moto_dark", (0.5, top + 0.06), (0.96, top + 0.04), (0.9, top + 0.16), (0.54, top + 0.16))
    if with_rider:
        _ride(mask, 0.64, 0.52, 0.28, 0.46, 0.46, 0.9)
    return mask


def _tree(variant):
    rng = np.random.default_rng([71, variant])
    mask = _drawn(128, 96)
    _box(mask, "trunk", 0.46, 0.5, 0.54, 1)
    for angle in np.linspace(0, 2 * np.pi, 11):
        reach, radius = rng.uniform(0.5, 1.0), rng.uniform(0.13, 0.2)
        x, y = 0.5 + 0.29 * reach * np.cos(angle), 0.34 + 0.22 * reach * np.sin(angle)
        _oval(mask, "leaves", x, y, radius, radius * 0.72)
    _oval(mask, "leaves", 0.5, 0.34, 0.3, 0.24)
    return mask


def _signal(left, top, right, bottom, lit):
    """A case with the lamps that are lit, from red to green."""
    step = (bottom - top) / 3
    lamps = [(slot, name) for slot, name in enumerate(("lamp_red", "lamp_amber", "lamp_green")) if slot in lit]
    middle, radius = (left + right) / 2, (right - left) * 0.36
    return (
        (_box, "signal", left, top, right, bottom),
        *((_oval, name, middle, top + (slot + 0.5) * step, radius, step * 0.36) for slot, name in lamps),
    )


def _traffic_light(lit):
    return _drawn(160, 40, (_box, "steel", 0.42, 0.2, 0.58, 1), *_signal(0.08, 0.0, 0.92, 0.36, lit))


def _gantry(lit):
    """A pole with an arm to the left, over the road; one signal hangs on the arm, one on the pole."""
    arm = ((_box, "steel", 0.93, 0.02, 0.97, 1), (_box, "steel", 0.05, 0.05, 0.97, 0.08))
    return _drawn(160, 176, *arm, *_signal(0.08, 0.0, 0.22, 0.26, lit), *_signal(0.87, 0.4, 1.0, 0.64, lit))


def _signs():
    """Signs on their poles: the face takes the upper part, the full width."""
    faces = (
        ((_oval, "sign_red", 0.5, 0.18, 0.49, 0.18), (_oval, "sign_white", 0.5, 0.18, 0.32, 0.12)),
        ((_box, "sign_blue", 0, 0, 1, 0.34), (_box, "sign_white", 0.3, 0.08, 0.7, 0.26)),
        (
            (_polygon, "sign_red", (0.5, 0), (1, 0.34), (0, 0.34)),
            (_polygon, "sign_white", (0.5, 0.1), (0.78, 0.3), (0.22, 0.3)),
        ),
        (
            (_polygon, "sign_yellow", (0.5, 0), (1, 0.18), (0.5, 0.36), (0, 0.18)),
            (_box, "sign_blue", 0.1, 0.39, 0.9, 0.5),
        ),
    )
    return {f"sign_{k}": _drawn(128, 48, (_box, "steel", 0.43, 0.2, 0.57, 1), *face) for k, face in enumerate(faces)}


def _houses(columns, rows):
    """A building's gable: rows of windows under a cornice."""
    mask = _drawn(24 * rows, 20 * columns)
    mask[:] = MATERIAL_ID["facade"]
    for row in range(rows):
        for column in range(columns):
            mask[24 * row + 8 : 24 * row + 19, 20 * column + 5 : 20 * column + 14] = MATERIAL_ID["window"]
    mask[:4] = MATERIAL_ID["cornice"]
    return mask


@functools.cache
def shapes():
    """Draws all shapes.

    Returns:
      `{name: [h, w] uint8}` masks of materials, the top row first; 0 is see-through.
    """
    lamp = ((0.44, 0.02, 0.54, 1), (0.5, 0.0, 1.0, 0.03), (0.8, 0.0, 1.0, 0.045))
    table = _vehicles() | {
        "bicycle": _bicycle(False), "cyclist": _bicycle(True),
        "motorcycle": _motorcycle(False), "motorcyclist": _motorcycle(True),
        "street_lamp": _drawn(160, 64, *((_box, "steel", *part) for part in lamp)),
        "bollard": _drawn(32, 8, (_box, "steel", 0, 0, 1, 1)),
        "light_red": _traffic_light((0,)), "light_green": _traffic_light((2,)), "light_amber": _traffic_light((0, 1)),
        "gantry_red": _gantry((0,)), "gantry_green": _gantry((2,)),
        "gable": _houses(4, 3), "street_end": _houses(14, 4),
    }  # fmt: skip
    table |= {f"person_{k}": _person(*pose) for k, pose in enumerate(((0.06, 0.22), (0.22, 0.3), (0.14, 0.36)))}
    return table | {f"tree_{k}": _tree(k) for k in range(4)} | _signs()
