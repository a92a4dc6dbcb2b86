"""Which clips are made of the material: neighbours at one frame rate, within one shot, spread over all of it.

The end of each video is held out for scoring, with a gap before it. All of this follows from the material and the
settings alone: the same folder gives the same clips.
"""

import dataclasses
import math
from collections import Counter
from pathlib import PurePosixPath

import numpy as np

from input_pipeline.errors import UserError

HIGHEST_RATE = 30.0  # frames per second, where no rate is asked for
# A clip for scoring: temporal consistency compares x_t's classes with x_{t-1}'s, which is fused with x_{t-2}.
HELD_OUT_FRAMES = 3
# Between training frames and what is held out: a quarter of that, at most so many seconds.
_GAP_SHARE, _MOST_GAP = 0.25, 10.0
# The shortest run of frames of which some are held out.
_FEWEST_FRAMES = 8
FILM_SECONDS = 10.0
# Seconds in which nothing needs to move between two frames of a clip.
_LONGEST_PAUSE = 1.0
_MULTIPLE = 8  # of which a size that is chosen for the material is
_SMALLEST_SIDE = 16
# Ratios of width to height that count as one.
_SAME_RATIO = 0.01


@dataclasses.dataclass(frozen=True)
class Clip:
    """Frames of one clip.

    Attributes:
      stretch: index of the `Stretch`.
      numbers: frame numbers, newest first.
    """

    stretch: int
    numbers: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Clips and a film.

    Attributes:
      train: list of `Clip` to adapt on.
      val: list of `Clip` that are held out.
      film: (index of the stretch, frame numbers in the order of time) of the longest run that is held out.
      film_rate: its frames per second.
    """

    train: list[Clip]
    val: list[Clip]
    film: tuple[int, tuple[int, ...]]
    film_rate: float


def choose(stretches, frames_per_second=None, max_clips=1000, held_out=0.2, length=2, labelled=None):
    """Chooses the clips.

    Args:
      stretches: list of `scan.Stretch`.
      frames_per_second: between the frames of a clip; None: as recorded, at most `HIGHEST_RATE`.
      max_clips: most clips to adapt on; of held-out ones, the share of that.
      held_out: share of each video's time, at its end.
      length: frames of a clip to adapt on.
      labelled: {index of the stretch: numbers of frames that have labels}: all of them are held out, whenever they are,
        or as many as leave something to adapt on.

    Returns:
      `Chosen`.

    Raises:
      UserError: there are not enough frames; says of each video how long its longest run is.
    """
    plans = [_plan(stretch, frames_per_second, held_out) for stretch in stretches]
    marked = [
        _marked(stretch, plan, sorted((labelled or {}).get(i, ())))
        for i, (stretch, plan) in enumerate(zip(stretches, plans, strict=True))
    ]
    train, scored = _train(stretches, plans, marked, length)
    val = [_windows(plan.late, HELD_OUT_FRAMES) for plan in plans]
    films = [(i, plan.rate, run) for i, plan in enumerate(plans) for run in plan.late if len(run) >= HELD_OUT_FRAMES]
    if not any(map(len, train)) or not any(map(len, val)):
        raise UserError(_too_short(stretches, frames_per_second))
    groups = [str(PurePosixPath(s.found.name).parent) for s in stretches]
    i, rate, run = max(films, key=lambda film: min(len(film[2]) / film[1], FILM_SECONDS))
    film = tuple(int(stretches[i].numbers[k]) for k in run[: math.ceil(FILM_SECONDS * rate)])
    most_held_out = max(1, round(max_clips * held_out))
    train = _spread(stretches, train, groups, max_clips)
    scored = [_clip(stretches, i, row) for i, rows in enumerate(scored) for row in rows]
    val = _sorted({*_spread(stretches, val, groups, most_held_out), *scored})
    return Chosen(train, val, (i, film), rate)


@dataclasses.dataclass(frozen=True, eq=False)
class _Plan:
    """How one stretch is divided: its rate and runs, the time from which on it is held out, the gap, and late runs."""

    rate: float
    runs: list
    cutoff: float
    gap: float
    late: list


def _plan(stretch, frames_per_second, held_out):
    rate = frames_per_second or min(stretch.rate, HIGHEST_RATE)
    runs = _runs(stretch, rate)
    cutoff, gap = _held_out_from(stretch, runs, held_out, rate)
    return _Plan(rate, runs, cutoff, gap, [run[stretch.times[run] >= cutoff] for run in runs])


def _marked(stretch, plan, numbers):
    """Windows whose newest frame has labels: `[clips, HELD_OUT_FRAMES]`."""
    windows = _windows(plan.runs, HELD_OUT_FRAMES)
    return windows[np.isin(stretch.numbers[windows[:, -1]], numbers)]


def _train(stretches, plans, marked, length):
    """Windows to adapt on, and those of `marked` that are held out for it, each a list with an entry a stretch.

    All of `marked`, if something is left to adapt on then; otherwise half as many of those that lie before what is held
    out anyway, a quarter, and so on, spread evenly.
    """
    late = [s.times[rows[:, 0]] >= plan.cutoff for s, plan, rows in zip(stretches, plans, marked, strict=True)]
    early = [(i, k) for i, is_late in enumerate(late) for k in np.flatnonzero(~is_late)]
    count = len(early)
    while True:
        taken = [is_late.copy() for is_late in late]
        for place in np.linspace(0, len(early) - 1, count).round().astype(int):
            i, k = early[place]
            taken[i][k] = True
        held = [rows[these] for rows, these in zip(marked, taken, strict=True)]
        train = []
        for stretch, plan, rows in zip(stretches, plans, held, strict=True):
            far = _far_from(stretch.times, rows, max(plan.gap, 1.5 / plan.rate))
            before = stretch.times < plan.cutoff - plan.gap
            train.append(_windows([run[before[run] & far[run]] for run in plan.runs], length))
        if any(map(len, train)) or not count:
            return train, held
        count //= 2


def _far_from(times, windows, gap):
    """Whether each frame lies further than a gap from the time of all windows, `[frames]` bool."""
    far = np.ones(len(times), bool)
    for window in windows:
        far &= (times < times[window[0]] - gap) | (times > times[window[-1]] + gap)
    return far


def _clip(stretches, i, row):
    return Clip(i, tuple(stretches[i].numbers[row[::-1]].tolist()))


def _sorted(clips):
    return sorted(clips, key=lambda clip: (clip.stretch, clip.numbers[0]))


def _runs(stretch, rate):
    """Usable frames that follow each other at a rate within one shot: a list of arrays of indices."""
    step = 1 / rate
    longest = max(2 * step, 2 / stretch.rate, _LONGEST_PAUSE)
    runs = []
    for k in range(len(stretch.times)):
        if runs:
            last = runs[-1][-1]
            passed = stretch.times[k] - stretch.times[last]
            if stretch.shots[k] == stretch.shots[last] and passed <= longest:
                # Time stamps tremble: a frame that comes a quarter of a step early is taken.
                if passed >= 0.75 * step:
                    runs[-1].append(k)
                continue
        runs.append([k])
    return [np.array(run) for run in runs if len(run) > 1]


def _held_out_from(stretch, runs, share, rate):
    """(time from which on frames are held out, time before it that is left out); infinite where nothing is."""
    if sum(map(len, runs)) < _FEWEST_FRAMES:
        return math.inf, 0.0
    start, end = stretch.times[runs[0][0]], stretch.times[runs[-1][-1]]
    cutoff = end - share * (end - start)
    # A run that ends what there is may be too short for a clip: the last that is long enough then is held out.
    last = next((run for run in reversed(runs) if len(run) >= HELD_OUT_FRAMES), None)
    if last is not None:
        cutoff = min(cutoff, stretch.times[last[-HELD_OUT_FRAMES]])
    if last is None or cutoff < (start + end) / 2:
        return math.inf, 0.0
    return cutoff, max(1.5 / rate, min(_MOST_GAP, _GAP_SHARE * (end - cutoff)))


def _windows(runs, length):
    """`[clips, length]` indices of neighbouring frames, in the order of time."""
    views = [np.lib.stride_tricks.sliding_window_view(run, length) for run in runs if len(run) >= length]
    return np.concatenate(views) if views else np.empty((0, length), int)


def _spread(stretches, candidates, groups, most):
    """Takes clips from all stretches: each group its share, each stretch of a group its share, evenly over its time."""
    counts = Counter()
    for group, clips in zip(groups, candidates, strict=True):
        counts[group] += len(clips)
    of_group = dict(zip(counts, _shares(list(counts.values()), most), strict=True))
    taken = []
    for group, total in of_group.items():
        members = [i for i, name in enumerate(groups) if name == group]
        for i, share in zip(members, _shares([len(candidates[i]) for i in members], total), strict=True):
            rows = candidates[i][np.linspace(0, len(candidates[i]) - 1, share).round().astype(int)]
            taken += [_clip(stretches, i, row) for row in rows]
    return _sorted(taken)


def _shares(available, most):
    """Divides a number evenly; who has less than an equal share leaves the rest to the others."""
    shares, left = [0] * len(available), most
    for rank, i in enumerate(sorted(range(len(available)), key=lambda i: (available[i], i))):
        shares[i] = min(available[i], left // (len(available) - rank))
        left -= shares[i]
    return shares


def _too_short(stretches, rate):
    lines = []
    for stretch in stretches:
        runs = _runs(stretch, rate or min(stretch.rate, HIGHEST_RATE))
        lines.append(f"  {stretch.line()}; the longest run without a cut or gap has {max(map(len, runs), default=1)}")
    asked = f" at {rate:g} frames per second (data.target.frames_per_second)" if rate else ""
    return "\n".join(
        [
            f"The videos are too short to adapt on one part and to score on another: expected a run of "
            f"{_FEWEST_FRAMES} frames or more{asked}, found",
            *lines,
        ]
    )


def fitting_size(stretches, size):
    """Chooses the size that frames are brought to.

    Args:
      stretches: list of `scan.Stretch`.
      size: (H, W) that the model was trained at.

    Returns:
      (H, W): the model's own where most frames have its ratio of width to height; else the multiples of eight with
      about as many pixels whose ratio is next to theirs.
    """
    ratios = Counter()
    for stretch in stretches:
        ratios[stretch.size] += len(stretch.numbers)
    by_ratio = Counter()
    for (height, width), count in ratios.items():
        by_ratio[round(math.log(width / height) / _SAME_RATIO)] += count
    commonest = by_ratio.most_common(1)[0][0]
    height, width = next(s for s, _ in ratios.most_common() if round(math.log(s[1] / s[0]) / _SAME_RATIO) == commonest)
    ratio, pixels = width / height, size[0] * size[1]
    if abs(math.log(ratio * size[0] / size[1])) <= _SAME_RATIO:
        return tuple(size)
    rows = max(_SMALLEST_SIDE, _MULTIPLE * round(math.sqrt(pixels / ratio) / _MULTIPLE))
    return rows, max(_SMALLEST_SIDE, _MULTIPLE * round(rows * ratio / _MULTIPLE))
