"""Frames out of a video file, by FFmpeg: each at its time, past what is damaged."""

import collections
import dataclasses
import heapq
import itertools
from fractions import Fraction

import av
import cv2
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import ColorPrimaries, ColorTrc, Interpolation, VideoReformatter

from input_pipeline.video_packets import (
    DEFAULT_RATE,
    Losses,
    SourceError,
    announced_packets,
    best_stream,
    missing_packets,
    open_video,
    read_packets,
    video_streams,
)

# A packet of so few bytes that gives no frame repeats the frame before (FFmpeg's MAX_NVOP_SIZE).
_REPEATS = 19
_HDR = {16: "PQ", 18: "HLG"}  # the codes of transfer characteristics in ITU-T H.273
# A hole in the times of a video whose steps were regular: of the last fifty, nine in ten within a tenth.
_STEPS_REMEMBERED, _FEWEST_STEPS, _REGULAR, _HOLE = 50, 12, 0.9, 1.5
# Two frames further apart are shown one after the other: MP4 has no room for such times.
_MOST_SECONDS = 3600


@dataclasses.dataclass(frozen=True)
class Found:
    """What a video file is.

    Attributes:
      size: (H, W) of the first frame, as it is shown.
      count: number of frames by the file's index, or None.
      rate: ticks per second.
      notes: lines about what a person should know.
    """

    size: tuple[int, int]
    count: int | None
    rate: Fraction
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Shown:
    """A frame as it is shown.

    Attributes:
      number: among all frames of the file, those that are lost included.
      pixels: `[H, W, 3]` uint8 RGB.
      video: number of the stretch without a gap that it belongs to.
      start: ticks from the beginning.
      duration: ticks.
    """

    number: int
    pixels: np.ndarray
    video: int
    start: int
    duration: int


def look_at(path):
    """Finds out what a video file is, from its headers and its first frame.

    Args:
      path: file.

    Returns:
      A `Found`.

    Raises:
      SourceError: it is no video, or none of its frames can be decoded.
    """
    with open_video(path) as container:
        stream = best_stream(path, container)
        others = [s.index for s in video_streams(container) if s is not stream]
        picture = next((taken.picture for taken in _pictures(container, stream, Losses())), None)
        if picture is None:
            raise SourceError(f"{path}: none of its frames could be decoded ({stream.codec_context.name}).")
        notes = []
        if others:
            notes.append(f"{path} has {len(others) + 1} video streams; number {stream.index} is taken")
        if picture.color_trc in _HDR:
            notes.append(f"{path} is HDR ({_HDR[picture.color_trc]}); its colours are converted to BT.709")
        if picture.interlaced_frame:
            notes.append(f"{path} is interlaced; both fields of a frame are taken together, without deinterlacing")
        size = _upright(np.empty((picture.height, picture.width)), picture, {}).shape
        return Found(size, announced_packets(container, stream), 1 / stream.time_base, tuple(notes))


def decode(path, losses):
    """Decodes a video file.

    Colours are those that OpenCV 5 gives, to the bit: by the matrix and range that the file names, BT.601 where it
    names none; what is BT.2020 or HDR becomes BT.709. Metadata about rotation and mirroring is honoured. What cannot be
    decoded is left out. A frame with damage that the decoder could hide is kept, and so are frames up to the next key
    frame, which may build on it: they are what any player shows.

    Args:
      path: file.
      losses: `Losses` to add to.

    Yields:
      `Shown`, in the order of time.

    Raises:
      SourceError: as `look_at`; or FFmpeg cannot convert the pixels to RGB.
    """
    with open_video(path) as container:
        stream = best_stream(path, container)
        clock, reformatter, matrices = _Clock(stream), VideoReformatter(), {}
        number = video = 0
        size, doubtful, incomplete = None, False, []
        for taken in _pictures(container, stream, losses):
            start, duration, break_in_time = clock.show(taken)
            for pts in taken.lost:
                losses.skipped.append((number, clock.seconds(pts)))
                number += 1
            if taken.picture is None:  # the end
                # Where recordings are joined, the packets before the joint look incomplete and are not.
                losses.damaged = sorted(losses.damaged + (incomplete if not taken.joined else []))
                break
            try:
                pixels = _rgb(taken.picture, reformatter, matrices)
            except av.FFmpegError as error:
                kind = f"{taken.picture.format.name}, {error.strerror}"
                raise SourceError(f"{path}: frame {number} cannot be converted to RGB ({kind}).") from error
            resized = size not in (None, pixels.shape[:2])
            if resized:
                losses.notes.append(
                    f"the size changes at frame {number} ({float(start * stream.time_base):.2f} s) from "
                    f"{size[0]}x{size[1]} to {pixels.shape[0]}x{pixels.shape[1]} pixels (height x width)"
                )
            if break_in_time:
                losses.notes.append(f"frame {number} {break_in_time}")
            if size is not None and (taken.lost or resized or break_in_time):
                video += 1
            size = pixels.shape[:2]
            doubtful = taken.damaged or (doubtful or bool(taken.lost)) and not taken.picture.key_frame
            if doubtful or taken.incomplete:
                (losses.damaged if doubtful else incomplete).append((number, float(start * stream.time_base)))
            yield Shown(number, pixels, video, start, duration)
            number += 1


class _Clock:
    """Gives frames their times: ticks from the first, rising, whatever the file says."""

    def __init__(self, stream):
        self.tick = stream.time_base
        rate = next((r for r in (stream.average_rate, stream.guessed_rate) if r and 0 < r < 1000), DEFAULT_RATE)
        self.usual = max(1, round(1 / (rate * self.tick)))
        self.origin = self.start = None
        self.before = self.end = 0
        self.steps = collections.deque(maxlen=_STEPS_REMEMBERED)

    def seconds(self, pts):
        """Seconds of a lost frame from the beginning of the video, or None."""
        return None if pts is None or self.origin is None else float((pts - self.origin) * self.tick)

    def show(self, taken):
        """(start, duration, what is wrong with the time since the frame before or an empty text)."""
        time, lost = taken.time, [time for time in taken.lost if time is not None]
        if self.origin is None:
            self.origin = min([*lost, *([] if time is None else [time])], default=0)
        if taken.picture is None:
            return self.end, 0, ""
        duration = taken.picture.duration if taken.picture.duration > 0 else self.usual
        wrong = ""
        if self.start is None:
            # Where the first frames are lost, the first that is there is shown from the beginning.
            start, duration = 0, max(1, duration + (0 if time is None else time - self.origin))
        elif time is None or (time < self.before and not taken.joined):
            start = self.end
        elif time < self.before or (time - self.before) * self.tick > _MOST_SECONDS:
            jump = float((time - self.before) * self.tick)
            wrong = (
                f"comes {abs(jump):.2f} s {'after' if jump > 0 else 'before'} the frame before it, by the time stamps"
            )
            start = self.end
            self.origin = time - start
        else:
            start = max(time - self.origin, self.start + 1)
            wrong = "" if lost else self._hole(start - self.start)
        if self.start is not None and not taken.lost:
            self.steps.append(start - self.start)
        if time is not None:
            self.before = time if self.start is None or wrong else max(self.before, time)
        self.start, self.end = start, start + duration
        return start, duration, wrong

    def _hole(self, step):
        if len(self.steps) < _FEWEST_STEPS:
            return ""
        usual = sorted(self.steps)[len(self.steps) // 2]
        alike = sum(abs(known - usual) <= max(1, usual / 10) for known in self.steps)
        if step <= _HOLE * usual or alike < _REGULAR * len(self.steps):
            return ""
        step, usual = float(step * self.tick), float(usual * self.tick)
        return f"comes {step:.3g} s after the frame before, where {usual:.3g} s is usual"


@dataclasses.dataclass(frozen=True, eq=False)
class _Taken:
    """What comes out of the decoder next.

    Attributes:
      picture: `av.VideoFrame`, or None at the end of the video.
      lost: time stamps (or None) of the frames before it that did not come.
      damaged: whether the picture shows damage.
      time: its time stamp, or None where the file has none.
      joined: whether time stamps have gone back, as where two recordings are joined.
      incomplete: whether the file has not all of its packet.
    """

    picture: av.VideoFrame | None
    lost: list
    damaged: bool = False
    time: int | None = None
    joined: bool = False
    incomplete: bool = False


def _pictures(container, stream, losses):
    """Yields `_Taken`, the last without a picture."""
    awaited = _Awaited(stream)
    for packet in itertools.chain(read_packets(container, stream, losses), [None]):
        awaited.sent(packet)
        if packet is not None and not packet.size:
            continue
        try:
            pictures = stream.codec_context.decode(packet)
        except av.FFmpegError:
            pictures = []
            awaited.failed(packet)
        for picture in pictures:
            incomplete, lost, time = picture.pts in awaited.incomplete, awaited.before(picture), awaited.time(picture)
            yield _Taken(picture, lost, picture.is_corrupt, time, awaited.joined, incomplete)
    missing = missing_packets(container, stream, awaited.packets, awaited.end, losses)
    yield _Taken(None, awaited.rest() + [None] * missing, joined=awaited.joined)


class _Awaited:
    """The packets whose frames have not come out of the decoder yet.

    Decoders give frames in the order of time, packets come in the order of decoding: of what is awaited, all that is
    older than a frame that comes is lost. A packet that the decoder refuses is lost for sure; one that it swallows is
    taken for lost as long as each packet has been a frame.
    """

    def __init__(self, stream):
        self.stream = stream
        self.times, self.refused, self.quiet, self.incomplete = [], set(), set(), set()
        # AVI has no times, and FFmpeg's guess is wrong where frames are reordered.
        self.guessed = stream.container.format.name == "avi" and stream.codec_context.reorder_depth > 0
        self.one_to_one, self.joined, self.dts = not self.guessed, False, None
        self.packets = self.end = self.lost_without_time = 0

    def sent(self, packet):
        if packet is None:
            return
        self.packets += 1
        if packet.dts is not None:
            self.joined |= self.dts is not None and packet.dts < self.dts
            self.dts = packet.dts
        time = self.time(packet)
        self.end = max(self.end, (time or 0) + (packet.duration or 0))
        if packet.pts is None or packet.is_discard:
            return
        heapq.heappush(self.times, packet.pts)
        if packet.size <= _REPEATS or _is_built_upon_only(self.stream, packet):
            self.quiet.add(packet.pts)
        if packet.is_corrupt:
            self.incomplete.add(packet.pts)

    def time(self, what):
        """The time stamp of a packet or picture."""
        return what.dts if what.pts is None or self.guessed else what.pts

    def failed(self, packet):
        if packet is None or packet.is_discard:
            return
        if packet.pts is None:
            self.lost_without_time += 1
        else:
            self.refused.add(packet.pts)

    def before(self, picture):
        # Fields come in packets of their own, and some decoders give times of their own.
        self.one_to_one &= not self.joined and not picture.interlaced_frame and picture.pts in self.times
        return self._take(lambda time: picture.pts is not None and time <= picture.pts, picture.pts)

    def rest(self):
        return self._take(lambda time: True)

    def _take(self, is_due, there=None):
        lost, self.lost_without_time = [None] * self.lost_without_time, 0
        while self.times and is_due(self.times[0]):
            time = heapq.heappop(self.times)
            if time != there and (time in self.refused or (self.one_to_one and time not in self.quiet)):
                lost.append(time)
            for known in (self.refused, self.quiet, self.incomplete):
                known.discard(time)
        return lost


def _is_built_upon_only(stream, packet):
    # VP8 keeps pictures that are never shown in packets of their own.
    return stream.codec_context.name in ("vp8", "libvpx") and not bytes(packet)[0] & 0x10


def _rgb(picture, reformatter, matrices):
    target = {}
    if picture.color_primaries == ColorPrimaries.BT2020 or picture.color_trc in _HDR:
        target = {"dst_color_trc": ColorTrc.BT709, "dst_color_primaries": ColorPrimaries.BT709}
    # BGR and these options: what OpenCV asks for, to the bit. RGB is rounded otherwise where pixels have ten bits.
    bgr = reformatter.reformat(picture, format="bgr24", interpolation=Interpolation.BICUBIC, threads=1, **target)
    return np.ascontiguousarray(_upright(cv2.cvtColor(bgr.to_ndarray(), cv2.COLOR_BGR2RGB), picture, matrices))


def _upright(pixels, picture, matrices):
    """Turns and mirrors a frame as the file's display matrix says, to the nearest right angle.

    `matrices` keeps the matrix of each angle: PyAV's list of a frame's side data holds the frame, which holds the list,
    so that a frame whose list was asked for lives until Python looks for such cycles.
    """
    angle = picture.rotation
    if angle not in matrices:
        matrices[angle] = next((bytes(d) for d in picture.side_data if d.type == SideDataType.DISPLAYMATRIX), None)
    matrix = matrices[angle]
    if matrix is None:
        return pixels
    # A point (x, y) goes to (a x + c y, b x + d y).
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    if abs(a) + abs(d) < abs(b) + abs(c):
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
