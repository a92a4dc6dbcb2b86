"""Whether two frames are of one shot, told from the frames themselves, reduced.

Blocks of the later frame are looked for around their places in the earlier one, by normalised correlation. So neither a
fast pan (everything is found, elsewhere) nor a change of exposure (correlation knows no gain and no offset) is a cut,
and a cut between two streets of the same colours is one (nothing is found).
"""

import cv2
import numpy as np

# Pixels of a reduced frame's longer side, of a block, and how far a block is looked for: an eighth of the picture.
_SIDE, _BLOCK, _REACH = 96, 12, 12
# Of blocks with less contrast (standard deviation; in dark frames as a share of the frame's) noise decides.
_CONTRAST, _CONTRAST_SHARE = 4, 0.3
# Half of the blocks correlate better within a shot. Measured on streets: 0.9 to 1 for pans of a tenth of the picture,
# shaking and doubled or halved exposure, and 0.41 to 0.68 across cuts.
_FOUND = 0.75
# Where the frames correlate so well as they are, no block needs to be looked for.
_SURE = 0.95
# Grey levels between two frames without any contrast that still are one shot, such as fog.
_FOG = 30
# A frame of less contrast is black or of one colour.
_BLANK = 3
# Grey levels, at most and on average, that a repeated frame differs by once it was compressed.
_STILL_MOST, _STILL_MEAN = 6, 1.0


def reduce(frame):
    """Reduces a frame `[H, W, 3]` uint8 RGB to a longer side of 96 pixels; smaller ones stay."""
    scale = _SIDE / max(frame.shape[:2])
    if scale >= 1:
        return np.ascontiguousarray(frame)
    height, width = (max(1, round(side * scale)) for side in frame.shape[:2])
    return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)


def is_blank(reduced):
    """Whether a reduced frame is black, or of one colour."""
    return cv2.cvtColor(reduced, cv2.COLOR_RGB2GRAY).std() < _BLANK


def is_still(reduced, earlier):
    """Whether a reduced frame shows what an earlier one showed, with nothing that moved."""
    if reduced.shape != earlier.shape:
        return False
    difference = cv2.absdiff(reduced, earlier)
    return difference.max() <= _STILL_MOST and difference.mean() <= _STILL_MEAN


def is_cut(reduced, earlier):
    """Whether there is a cut between two neighbouring frames.

    Args:
      reduced: the later frame, of `reduce`.
      earlier: the earlier one.

    Returns:
      bool. Frames of two sizes have one between them.
    """
    if reduced.shape != earlier.shape:
        return True
    later, before = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (reduced, earlier))
    if cv2.matchTemplate(before, later, cv2.TM_CCOEFF_NORMED)[0, 0] > _SURE:
        return False
    least = min(_CONTRAST, _CONTRAST_SHARE * float(later.std()))
    places = [(y, x) for y in _places(later.shape[0]) for x in _places(later.shape[1])]
    found = [match for place in places if (match := _best_match(before, later, place, least)) is not None]
    if not found:
        return abs(float(later.mean()) - float(before.mean())) > _FOG
    return np.median(found) < _FOUND


def _places(side):
    """Where blocks begin along a side."""
    return range(0, max(1, side - _BLOCK + 1), _BLOCK)


def _best_match(before, later, place, least):
    """The best correlation of the block at a place near its place before; None where it has less than that contrast."""
    y, x = place
    block = later[y : y + _BLOCK, x : x + _BLOCK]
    if block.std() < least:
        return None
    window = before[max(0, y - _REACH) : y + _BLOCK + _REACH, max(0, x - _REACH) : x + _BLOCK + _REACH]
    # Of a window of one value the correlation is not defined.
    return cv2.matchTemplate(window, block, cv2.TM_CCOEFF_NORMED).max() if window.std() else 0.0
