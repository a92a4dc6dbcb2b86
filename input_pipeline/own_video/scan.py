"""One pass over all material: which frames are usable, at which time, and of which shot each is.

Frames are reduced as they come, and let go. What stays of a frame is its number, time, shot and a digest: a few
megabytes for an hour of video.
"""

import array
import dataclasses
import hashlib
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np

from input_pipeline import video_decode
from input_pipeline.errors import UserError, capped
from input_pipeline.ordered_map import ordered_map
from input_pipeline.own_video import shots
from input_pipeline.own_video.folder import Found, LeftOut, look
from input_pipeline.video_packets import Losses, SourceError

# A folder of frames has no times: it is taken to be recorded at so many frames a second, if no other rate is asked for.
NOMINAL_RATE = 10.0
_USABLE, _BLANK, _STILL, _REPEAT, _DAMAGED = range(5)
_WHY = {
    _BLANK: "black or of one colour",
    _STILL: "still: nothing moves since the frame before",
    _REPEAT: "the same as frames before",
    _DAMAGED: "damaged",
}
_SECONDS_BETWEEN_LINES = 5.0
_MOST_REMARKS = 3  # about one file


@dataclasses.dataclass(frozen=True, eq=False)
class Stretch:
    """A video file or a folder of frames with its usable frames, N of them.

    Attributes:
      found: the `Found`.
      size: (H, W) of most frames.
      frames: number of frames that were read.
      seconds: that they last.
      rate: frames per second; of a folder the nominal one.
      numbers: `[N]` int64, numbers among all frames of the file or folder.
      times: `[N]` float64, seconds from the beginning.
      shots: `[N]` int64, rises with each cut, break in time, change of size and frame that is left out, but for frames
        in which nothing moves.
      left_out: lines about frames that are not usable.
    """

    found: Found
    size: tuple[int, int]
    frames: int
    seconds: float
    rate: float
    numbers: np.ndarray
    times: np.ndarray
    shots: np.ndarray
    left_out: tuple[str, ...] = ()

    def line(self):
        """What it is, in one line."""
        cuts = len(set(self.shots.tolist())) - 1
        kind = f"{self.seconds:.1f} s, {self.rate:.3g} frames/s" if self.found.is_video else "a folder of frames"
        size = f"{self.size[0]}x{self.size[1]}"
        return (
            f"{self.found.name}: {self.frames} frames, {kind}, {size}, {len(self.numbers)} usable, {cuts} cuts or gaps"
        )


def scan(folder, progress=print, rate=None, run_folder=None, threads=1):
    """Reads all videos and frames below a folder once.

    Args:
      folder: `Path`.
      progress: called with lines of text.
      rate: frames per second that folders of frames are taken to be recorded at; None: ten.
      run_folder: as `folder.look` takes it.
      threads: videos and folders that are read at a time.

    Returns:
      (stretches, lines): list of `Stretch` that have two usable frames or more, and lines about all that is left out.

    Raises:
      UserError: nothing usable is there; lists everything that was found and what is wrong with it.
    """
    left_out = LeftOut()
    found = look(Path(folder), left_out, run_folder)
    ticker = _Ticker(progress, len(found))
    read = ordered_map(lambda one: _read(one, rate or NOMINAL_RATE, ticker), found, threads)
    stretches, lines, seen = [], [], {}
    for one, track in zip(found, read, strict=True):
        if isinstance(track, str):
            lines.append(f"left out: {track}")
            continue
        stretch = _without_unusable(one, track, rate or NOMINAL_RATE, seen)
        lines += [f"{one.name}: {line}" for line in stretch.left_out]
        if len(stretch.numbers) >= 2:
            stretches.append(stretch)
        else:
            why = "has one frame only" if stretch.frames == 1 else "has no two usable frames"
            lines.append(f"left out: {one.name} {why}")
    lines += left_out.lines()
    if not stretches:
        expected = "Expected video files (mp4, mov, avi, mkv, webm and the like) or folders of images, in it or below."
        told = "\n".join(f"  {line}" for line in capped(lines, 50)) or "  it is empty"
        raise UserError(f"{folder}: nothing usable is in this folder. {expected}\n{told}")
    return stretches, lines


class _Track:
    """What stays of the frames of one video or folder: parallel arrays, and what was lost."""

    def __init__(self):
        self.numbers, self.shots, self.digests = array.array("q"), array.array("i"), array.array("q")
        self.times, self.states = array.array("d"), array.array("b")
        self.sizes, self.losses, self.end = Counter(), Losses(), 0.0
        # Reduced: the frame before, and the newest that is none of those that repeat it.
        self._before = self._kept = self._video = None

    def add(self, reduced, size, when, ticks):
        """Notes one frame: reduced, its (H, W), its (number, video, start, duration), and the ticks of a second."""
        number, video, start, duration = when
        state, kept = _USABLE, reduced
        if shots.is_blank(reduced):
            # No neighbour of anything.
            state, reduced, kept = _BLANK, None, None
        elif self._kept is not None and shots.is_still(reduced, self._kept):
            state, kept = _STILL, self._kept
        begins = self._before is None or video != self._video or (reduced is not None and self._cut(reduced))
        self.numbers.append(number)
        self.times.append(start / ticks)
        self.shots.append((self.shots[-1] if self.shots else 0) + begins)
        self.states.append(state)
        digest = b"" if reduced is None else hashlib.blake2b(reduced, digest_size=8).digest()
        self.digests.append(int.from_bytes(digest, "big", signed=True))
        self.sizes[size] += 1
        self.end = (start + duration) / ticks
        self._before, self._kept, self._video = reduced, kept, video

    def _cut(self, reduced):
        return shots.is_cut(reduced, self._before)


def _read(found, rate, ticker):
    """A `_Track`, or a text that says why there is none."""
    track = _Track()
    try:
        ticks = float(video_decode.look_at(found.path).rate) if found.is_video else rate
        for frame in _reduced(found.read(track.losses)):
            track.add(*frame, ticks)
            ticker.step(found.name)
    except SourceError as error:
        return str(error)
    if not track.numbers:
        return f"{found.name}: none of its {len(found.files)} images can be read ({track.losses.remarks[0]})"
    damaged = {number for number, _ in track.losses.damaged}
    for i, number in enumerate(track.numbers):
        if number in damaged:
            track.states[i] = _DAMAGED
    return track


def _reduced(frames):
    """Yields (reduced frame, size, number and time): the frame itself is let go before the next one is decoded."""
    for shown in frames:
        size, reduced = shown.pixels.shape[:2], shots.reduce(shown.pixels)
        when = shown.number, shown.video, shown.start, shown.duration
        del shown
        yield reduced, size, when


def _without_unusable(found, track, nominal_rate, seen):
    """Makes a `Stretch`; `seen` is {digest of a frame: name of the video that it was seen in}, and is added to."""
    states, repeats = np.array(track.states), Counter()
    for i in np.flatnonzero(states == _USABLE):
        first = seen.get(track.digests[i])
        if first is None:
            seen[track.digests[i]] = found.name
        else:
            states[i] = _REPEAT
            repeats[first] += 1
    # Within a shot nothing but still frames is missing.
    breaks = np.cumsum((states != _USABLE) & (states != _STILL))
    numbers, times, shot = np.array(track.numbers), np.array(track.times), np.array(track.shots) + breaks
    steps = np.diff(times)
    usable = states == _USABLE
    return Stretch(
        found=found,
        size=track.sizes.most_common(1)[0][0],
        frames=len(numbers),
        seconds=track.end,
        rate=float(f"{1 / np.median(steps):.6g}") if len(steps) else nominal_rate,
        numbers=numbers[usable],
        times=times[usable],
        shots=shot[usable],
        left_out=tuple(_lines(states, times, repeats, track)),
    )


def _lines(states, times, repeats, track):
    """Says which frames are not used."""
    for state, why in _WHY.items():
        these = times[states == state]
        if len(these):
            where = f" ({', '.join(name for name, _ in repeats.most_common(3))})" if state == _REPEAT else ""
            yield f"{len(these)} of {len(states)} frames left out, {why}{where}; the first at {these[0]:.1f} s"
    if track.losses.skipped:
        count = len(track.losses.skipped)
        yield f"{count} frame{'' if count == 1 else 's'} cannot be decoded"
    yield from capped(track.losses.remarks, _MOST_REMARKS)
    if len(track.sizes) > 1:
        yield f"frames of {len(track.sizes)} sizes: each change of size counts as a cut"


class _Ticker:
    """Says every few seconds how far the scan is; called by several threads."""

    def __init__(self, report, total):
        self._report, self._total = report, total
        self._lock, self._frames, self._names = threading.Lock(), 0, set()
        self._start = self._last = time.monotonic()

    def step(self, name):
        """Counts a frame."""
        with self._lock:
            self._frames += 1
            self._names.add(name)
            now = time.monotonic()
            if now - self._last < _SECONDS_BETWEEN_LINES:
                return
            self._last = now
            rate = self._frames / (now - self._start)
            of_all = f"{len(self._names)} of {self._total}"
            line = f"own_video: scanning {name} ({of_all}), {self._frames} frames so far, {rate:.0f}/s"
        self._report(line)
