"""A video file opened, and its packets read past what is damaged."""

import dataclasses
import re
from fractions import Fraction

import av
import av.logging
from av.stream import Disposition

from input_pipeline.errors import UserError

# For a video that does not tell its own.
DEFAULT_RATE = Fraction(25)
# FFmpeg's demuxers go on after most errors; one that only repeats itself is at its end.
_MOST_READ_ERRORS = 100
# FFmpeg reads text files as films of their letters.
_NO_FILMS = ("ansi", "bintext", "xbin", "idf")
_MATROSKA = "matroska,webm"


class SourceError(UserError):
    """An input that is not there or cannot be read; the message names the file."""


@dataclasses.dataclass
class Losses:
    """What a video file has lost, added to while it is read.

    Attributes:
      skipped: (number, seconds or None) of frames that could not be decoded.
      damaged: the same of frames that were decoded, and look damaged or build on frames that are lost.
      remarks: texts about anything else that is damaged, such as an end before the end that the file announces.
      notes: texts about what is unusual and no loss: a frame of another size, a hole in the times.
    """

    skipped: list = dataclasses.field(default_factory=list)
    damaged: list = dataclasses.field(default_factory=list)
    remarks: list = dataclasses.field(default_factory=list)
    notes: list = dataclasses.field(default_factory=list)

    def __bool__(self):
        return bool(self.skipped or self.damaged or self.remarks)


def read_packets(container, stream, losses):
    """Reads the packets of a stream, past errors of reading.

    Args:
      container: what `open_video` gives.
      stream: what `best_stream` gives.
      losses: `Losses`; damage of the container is added.

    Yields:
      `av.Packet`. One without data repeats the frame before, and is none for the decoder.
    """
    errors, first = 0, None
    while errors < _MOST_READ_ERRORS:
        packets = container.demux(stream)
        try:
            for packet in _listening(container, packets, losses):
                # The last that PyAV gives has neither data nor a time.
                if packet.size or packet.dts is not None:
                    errors = 0
                    yield packet
            break
        except av.FFmpegError as error:
            errors, first = errors + 1, first or error
    if first:
        losses.remarks.append(f"reading met an error ({first.strerror})")


def _listening(container, packets, losses):
    """Packets as they come; what Matroska's reader jumps over is told by FFmpeg's log alone."""
    if container.format.name != _MATROSKA:
        yield from packets
        return
    heard = []
    while True:
        level = av.logging.get_level()
        av.logging.set_level(av.logging.ERROR)
        try:
            with av.logging.Capture() as logged:
                packet = next(packets, None)
        finally:
            av.logging.set_level(level)
        heard += [text.strip() for _, name, text in logged if name == _MATROSKA]
        if packet is None:
            break
        yield packet
    if heard:
        losses.remarks.append(f"the file is damaged ({heard[0]})")


def announced_packets(container, stream):
    """Returns the number of packets that the file's index names, or None."""
    if _is_mp4(container):
        return len(stream.index_entries) or None
    return stream.frames or None


def missing_packets(container, stream, packets, end, losses):
    """Finds out whether a file ends before the end that it announces.

    Args:
      container: what `open_video` gives, read to its end.
      stream: what `best_stream` gives.
      packets: number of packets that were read.
      end: when the last of them ends, in ticks of the stream.
      losses: `Losses`; an early end is added.

    Returns:
      How many frames the file's index names that are not in it; 0 where only a duration is announced.
    """
    name, announced, missing = container.format.name, announced_packets(container, stream), 0
    seconds, rate = end * stream.time_base, stream.average_rate or DEFAULT_RATE
    if announced and _is_mp4(container):
        missing = max(0, announced - packets)
    elif announced and name == "avi":
        # By the time: where a frame repeats the one before, it may have no packet.
        missing = max(0, announced - round(seconds * rate))
    if missing:
        losses.remarks.append(f"its index names {announced} frames, and {missing} of them are not in the file")
    if name in (_MATROSKA, "flv"):
        promised = _announced_seconds(container, stream)
        if promised and seconds + Fraction(3, 2) / rate < promised:
            losses.remarks.append(f"the file ends after {float(seconds):.2f} s, and announces {promised:.2f} s")
    return missing


def _is_mp4(container):
    return container.format.name.startswith("mov,mp4")


def _announced_seconds(container, stream):
    match = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if match:
        hours, minutes, seconds = match.groups()
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    # With sound, the longer of the two.
    return container.duration / av.time_base if container.duration and len(container.streams) == 1 else None


def open_video(path):
    """Opens a video file.

    Args:
      path: `Path`.

    Returns:
      `av.container.InputContainer`, a context.

    Raises:
      SourceError: FFmpeg cannot read it.
    """
    try:
        # Absolute: FFmpeg takes a name such as `a:b.mp4` for an address.
        return av.open(str(path.absolute()), metadata_errors="replace")
    except PermissionError as error:
        raise SourceError(f"{path}: you may not read this file.") from error
    except (av.FFmpegError, UnicodeError) as error:
        raise SourceError(
            f"{path}: cannot be read as a video ({getattr(error, 'strerror', error)}). It is none, or it was cut off "
            "before its index was written. Expected MP4, AVI, MKV, WebM or the like; for images name their folder."
        ) from error


def video_streams(container):
    """Returns the video streams of a file, without the covers of music files."""
    return [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]


def best_stream(path, container):
    """Returns the video stream that FFmpeg takes for the best, ready to be decoded.

    Args:
      path: the file, for errors.
      container: what `open_video` gives.

    Raises:
      SourceError: there is none, or no decoder for it.
    """
    streams = video_streams(container)
    if not streams:
        kinds = sorted({"a cover" if s.type == "video" else s.type for s in container.streams})
        raise SourceError(f"{path}: has no video, only {' and '.join(kinds) or 'nothing'}.")
    readable = [s for s in streams if s.codec_context is not None and s.codec_context.name not in _NO_FILMS]
    if not readable:
        raise SourceError(f"{path}: has no video that FFmpeg can decode.")
    best = container.streams.best("video")
    stream = best if best in readable else readable[0]
    # With several threads FFmpeg neither hides damage in H.264 nor tells of it, or tells of it late.
    stream.codec_context.thread_count = 1
    return stream
