"""Which pictures of a folder are neighbours in time, told from their names."""

import collections
import dataclasses
import itertools
import re
from fractions import Fraction

from natsort import natsorted

# Seconds as cameras and robots write them, 1305031102.175304: one number, not two.
_NUMBER = re.compile(r"(?<!\d)\d{9,}\.\d+(?!\d)|\d+")
_FRAME_WORD = re.compile(r"(?<![^\W\d_])(frame|frm|fr|f)[ _.-]?$", re.IGNORECASE)
# A step of 2 where 1 is usual is a hole; time stamps of 33 and 34 ms are not.
_HOLE = 1.5
# Where no step is usual, as with a camera that is triggered now and then.
_HOLE_IN_IRREGULAR = 3
# Steps from which their median tells what is usual; of fewer, the smallest does.
_MANY = 4


@dataclasses.dataclass(frozen=True)
class Video:
    """Pictures that follow each other in time.

    Attributes:
      files: in the order of time.
      why: why the first is no neighbour of the picture before; empty for the first video.
    """

    files: tuple
    why: str


def split_into_videos(files):
    """Sorts pictures by their names, and parts those that are no neighbours in time.

    The frame number of a name is the one after `frame` or `f`; else the last that stands alone (000019 in
    `aachen_000001_000019_leftImg8bit`); else the last with letters before it (`left12`), or else after it. Pictures
    whose names differ in anything else belong to different videos, and so do pictures before and after a step that is
    more than 1.5 times the usual one: the commonest of the video or, where its steps tell none, of the folder. Where no
    step makes up half of all, as with time stamps of an irregular camera, a hole is three times the median.

    Args:
      files: paths in one folder.

    Returns:
      List of `Video`, in natural order: 2 comes before 10.
    """
    by_name = collections.defaultdict(list)
    for file, prefix, number, suffix in _numbered(natsorted(files, key=lambda file: file.name)):
        by_name[prefix, suffix].append((number, file))
    # The sort is stable: of 1 and 01 the natural order decides.
    numbered = [sorted(found, key=lambda pair: pair[0]) for found in by_name.values()]
    steps = [[b - a for (a, _), (b, _) in itertools.pairwise(found)] for found in numbered]
    of_folder = _usual_step([step for found in steps for step in found])
    videos = []
    for found, steps_here in zip(numbered, steps, strict=True):
        usual, most = _usual_step(steps_here, least=2) or of_folder or (None, None)
        start, why = 0, f"another name than {videos[-1].files[-1].name}" if videos else ""
        for i, step in enumerate(steps_here, 1):
            if 0 < step <= most:
                continue
            videos.append(Video(tuple(file for _, file in found[start:i]), why))
            start, before = i, found[i - 1][1].name
            why = f"a step of {_text(step)} from {before}, where {_text(usual)} is usual"
            why = why if step else f"the same number as {before}"
        videos.append(Video(tuple(file for _, file in found[start:]), why))
    return videos


def _numbered(files):
    """[(file, text before the frame number, the number or 0, text after it)]."""
    runs = {file: list(_NUMBER.finditer(file.stem)) for file in files}
    # Names that differ in their numbers alone have the frame number at one place.
    alike = collections.defaultdict(list)
    for file in files:
        alike[_NUMBER.sub("0", file.stem)].append(file)
    place = {form: _place([runs[file] for file in found]) for form, found in alike.items()}
    for file in files:
        at = place[_NUMBER.sub("0", file.stem)]
        if at is None:
            yield file, file.stem, 0, ""
        else:
            match = runs[file][at]
            yield file, file.stem[: match.start()], _value(match[0]), file.stem[match.end() :]


def _place(matches):
    """Which of a name's numbers is the frame number; `matches` has the numbers of each name. None: there is none."""
    columns = list(zip(*matches, strict=True))
    if not columns:
        return None
    varies = [len({match[0] for match in column}) > 1 for column in columns]
    # 000123_2: the camera, and no frame 2 of many videos.
    possible = [
        i for i, column in enumerate(columns) if varies[i] or len(column[0][0]) > 1 or not any(varies)
    ] or range(len(columns))
    return max(possible, key=lambda i: (_rank(columns[i][0]), i))


def _rank(match):
    before, after = match.string[: match.start()], match.string[match.end() :]
    if _FRAME_WORD.search(before):
        return 3
    if after[:1].isalpha():
        return 0
    return 1 if before[-1:].isalpha() else 2


def _value(digits):
    return Fraction(digits) if "." in digits else int(digits)


def _text(number):
    return str(number) if isinstance(number, int) else f"{float(number):.6g}"


def _usual_step(steps, least=1):
    """The usual step, and the largest that is no hole; None where fewer than `least` steps agree and few are there."""
    steps = sorted(step for step in steps if step > 0)
    if not steps:
        return None
    usual, times = max(collections.Counter(steps).items(), key=lambda found: (found[1], -found[0]))
    if times >= least and 2 * times >= len(steps):
        return usual, _HOLE * usual
    many = len(steps) >= _MANY
    if least > 1 and not many:
        return None
    typical = steps[len(steps) // 2] if many else steps[0]
    return typical, _HOLE_IN_IRREGULAR * typical
