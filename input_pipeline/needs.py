"""What is read of a data set's clips: which frames, which flow, and whether labels."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DomainNeeds:
    """What is read of one domain's clips, by a method or for scoring; the loader decodes nothing else.

    Attributes:
      offsets: frames of a clip, newest first: 0 is x_t, 1 is x_{t-1}.
      flow_pairs: pairs (a, b), flow on the grid of x_{t-a} that points into x_{t-b}.
      labels: whether x_t's label is read.
      mirrored: whether half of the clips, chosen at random, are mirrored left to right, flow and label with them.
    """

    offsets: tuple[int, ...] = (0, 1)
    flow_pairs: tuple[tuple[int, int], ...] = ((0, 1),)
    labels: bool = False
    mirrored: bool = False
