"""What more chips cost, on paper: bytes that a compiled step all-reduces, links, and the time that both take."""

import dataclasses
import math
import re

from benchmarks.program_cost import shape_bytes

GIB = 2**30
UTILISATION = 0.35  # share of a chip's peak arithmetic that a step is assumed to reach


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip of a kind of TPU, as its maker publishes it.

    Attributes:
      peak_flops: bfloat16 operations a second.
      memory: bytes.
      memory_bandwidth: bytes a second between memory and chip.
      link_bandwidth: bytes a second that a chip sends over all its links to other chips together.
      links: how many of these there are.
      source: where that is published.
    """

    peak_flops: float
    memory: int
    memory_bandwidth: float
    link_bandwidth: float
    links: int
    source: str


# Links: the tables give both directions together (400 and 800 GByte/s). Half of that is what a chip sends, 1,600 and
# 3,200 Gbit/s, and 1/256 of the all-reduce bandwidth that the same tables give for a pod. An earlier edition of the
# table of v6e had 3,584 Gbit/s.
CHIPS = {
    "v5e": Chip(197e12, 16 * GIB, 819e9, 200e9, 4, "https://cloud.google.com/tpu/docs/v5e"),
    "v6e": Chip(918e12, 32 * GIB, 1600e9, 400e9, 4, "https://cloud.google.com/tpu/docs/v6e"),
}
# A row or column of so many chips is closed to a ring; a shorter one is a line (TPU v5e and v6e: two-dimensional
# meshes of up to 16×16).
CLOSED = 16

_COLLECTIVE = re.compile(r"=\s*(?P<type>\(.*?\)|\S+)\s+all-reduce(?:-start)?\(")


def all_reduced_bytes(hlo):
    """Adds up what a device hands to all-reduces in one run of a compiled program.

    An all-reduce inside a loop counts once, however often the loop runs.

    Args:
      hlo: the compiled program as text, one device's part of it.

    Returns:
      Bytes.
    """
    # `all-reduce-done` ends what `all-reduce-start` began and is not matched.
    return sum(shape_bytes(match["type"]) for match in _COLLECTIVE.finditer(hlo))


def ring_seconds(size, devices, bandwidth):
    """Time of a ring all-reduce, 2·(n-1)/n · bytes / bandwidth: each device sends that many bytes.

    Args:
      size: bytes on each device.
      devices: n.
      bandwidth: bytes a second that a device sends.
    """
    return 2 * (devices - 1) / devices * size / bandwidth


def usable_links(sides):
    """Links of the chip that has the fewest, in a mesh: two along a closed ring, one at the end of a line.

    Args:
      sides: chips along each axis, `(4, 4)`.
    """
    return sum(2 if side >= CLOSED else 1 for side in sides if side > 1)


def scaling(chip, sides, flops, reduced):
    """Times a step by its arithmetic at `UTILISATION`, and the all-reduce by the links, one after the other.

    Nothing is taken to overlap, so the share is the most that the all-reduce can take of a step at this utilisation; a
    step that uses the chip better has a larger share to wait for, or to overlap.

    Args:
      chip: a `Chip`.
      sides: chips along each axis.
      flops: of a step on one chip.
      reduced: bytes that a step all-reduces.

    Returns:
      Seconds of the arithmetic at `UTILISATION` of the peak; seconds of the all-reduce and its share of both together,
      over all the links that a chip has and over those that a corner of this mesh has.
    """
    devices = math.prod(sides)
    arithmetic = flops / (UTILISATION * chip.peak_flops)
    found = {"step_seconds": arithmetic}
    for name, links in (("all_links", chip.links), ("corner_links", usable_links(sides))):
        # One chip has no neighbour and nothing to send.
        seconds = ring_seconds(reduced, devices, chip.link_bandwidth * links / chip.links) if devices > 1 else 0.0
        found[name] = {"all_reduce_seconds": seconds, "share_of_step": seconds / (seconds + arithmetic)}
    return found


def largest_fitting(fits, limit):
    """Finds the largest count that fits, if every count below one that fits does, too: doubles, then halves the gap.

    Args:
      fits: function of a count, 1 or more, that returns whether it fits. It is never asked twice about one count.
      limit: largest count to ask about.

    Returns:
      The count; 0 if not even one fits.
    """
    low, high = 0, 1
    while high <= limit and fits(high):
        low, high = high, 2 * high
    high = min(high, limit + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
