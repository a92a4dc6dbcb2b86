"""Where a video is taken: what stands, grows and moves there, and how the camera is mounted.

The source's streets, and in version 1 of the worlds the target's, are of the default place: all that separates the two
domains then is how they look, and batch normalisation with the target's statistics undoes most of that. A real drive is
elsewhere: its camera hangs higher or looks further down, its streets are wider or greener, and its statistics say so.
In version 2 the target is one such drive.
"""

from dataclasses import dataclass

import numpy as np

# Of the worlds. Each gives other bytes for the same spec; what a version writes never changes.
VERSIONS = ("1", "2")


@dataclass(frozen=True)
class Place:
    """Contents of the streets and the camera; the factors are relative to the source's streets.

    Attributes:
      horizon: its row when the camera looks straight ahead, a share of the height.
      focal: focal length, a share of the width.
      height: factor of the camera's height.
      setback: metres of grass between the pavement and the walls, more than the source has.
      storeys: factor of the height of buildings.
      open: factor of the share of gaps between them.
      green: factor of hedges and trees in the rows of walls, and of trees along the kerb.
      traffic: factor of the vehicles on the road and parked.
      heavy: factor of the share of trucks and buses among them.
      people: factor of people and of two-wheelers on the pavement.
      furniture: factor of poles and signs.
      lanes: probability of another lane, on each side.
      crossing: probability of a street that crosses.
    """

    horizon: float = 0.44
    focal: float = 1.0
    height: float = 1.0
    setback: float = 0.0
    storeys: float = 1.0
    open: float = 1.0
    green: float = 1.0
    traffic: float = 1.0
    heavy: float = 1.0
    people: float = 1.0
    furniture: float = 1.0
    lanes: float = 0.2
    crossing: float = 0.4


SOURCE = Place()


def sample_place(rng):
    """Draws a drive's place; how far from the source's streets was chosen by how mIoU changes with its statistics.

    Args:
      rng: numpy Generator.

    Returns:
      The `Place`.
    """

    def factor(deviation):
        return float(np.exp(rng.normal(0, deviation)))

    return Place(
        horizon=0.44 + rng.uniform(-0.14, 0.14),
        focal=factor(0.4),
        height=factor(0.3),
        setback=20.0 * rng.random() ** 2,
        storeys=factor(0.8),
        open=factor(1.4),
        green=factor(1.4),
        traffic=factor(0.8),
        heavy=factor(1.2),
        people=factor(1.2),
        furniture=factor(0.8),
        lanes=float(np.clip(rng.uniform(-0.2, 1.0), 0, 1)),
        crossing=float(np.clip(rng.uniform(-0.2, 1.0), 0, 1)),
    )
