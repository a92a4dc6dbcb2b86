"""Views of a clip, `stpl_jax/ops/view.py`, pixel by pixel and with exact fractions."""

import itertools
import math
from fractions import Fraction

import numpy as np


def numbers(view):
    """A `View` of scalars as mirrored, (top, left, height, width)."""
    return bool(view.mirrored), tuple(map(int, view.box))


def place(pixel, start, length, count):
    """Where the centre of a pixel of `count`, whole or not, lies in the frame."""
    return (Fraction(pixel) + Fraction(1, 2)) * Fraction(length, count) - Fraction(1, 2) + start


def inside(position, side):
    return Fraction(-1, 2) <= position < side - Fraction(1, 2)


def image_shown(image, view, out_size):
    """`[H, W, C]` to `[h, w, C]` float64: bilinear, border pixels repeated, 0 beyond the frame."""
    mirrored, (top, left, height, width) = numbers(view)
    image = (image[:, ::-1] if mirrored else image).astype(np.float64)
    found = np.zeros((*out_size, image.shape[-1]))
    for r, c in np.ndindex(*out_size):
        y, x = place(r, top, height, out_size[0]), place(c, left, width, out_size[1])
        if not inside(y, image.shape[0]) or not inside(x, image.shape[1]):
            continue
        y = min(max(y, top), top + height - 1, image.shape[0] - 1)
        x = min(max(x, left), left + width - 1, image.shape[1] - 1)
        for i, j in itertools.product((math.floor(y), math.floor(y) + 1), (math.floor(x), math.floor(x) + 1)):
            weight = (1 - abs(y - i)) * (1 - abs(x - j))
            if weight:
                found[r, c] += float(weight) * image[i, j]
    return found


def flow_shown(flow, view, out_size):
    """As `image_shown` for flow: u turns round in a mirrored frame, and both grow with the image."""
    mirrored, (_, _, height, width) = numbers(view)
    return image_shown(flow, view, out_size) * [(-1) ** mirrored * out_size[1] / width, out_size[0] / height]


def classes_shown(classes, view, size, out_size, grid):
    """`[h', w']` on the frame's grid to `[*grid]` on the view's; 255 beyond the frame."""
    mirrored, (top, left, height, width) = numbers(view)
    classes = classes[:, ::-1] if mirrored else classes
    found = np.full(grid, 255)
    for r, c in np.ndindex(*grid):
        y = place(Fraction(r * (out_size[0] - 1), grid[0] - 1), top, height, out_size[0])
        x = place(Fraction(c * (out_size[1] - 1), grid[1] - 1), left, width, out_size[1])
        if inside(y, size[0]) and inside(x, size[1]):
            i = math.floor(y * Fraction(classes.shape[0] - 1, size[0] - 1) + Fraction(1, 2))
            j = math.floor(x * Fraction(classes.shape[1] - 1, size[1] - 1) + Fraction(1, 2))
            found[r, c] = classes[max(i, 0), max(j, 0)]
    return found
