"""Small videos for tests, written by PyAV, whole or damaged at known packets; and their frames by OpenCV."""

from fractions import Fraction

import av
import cv2
import numpy as np
import raw_trees

SIZE = (64, 96)
# MP4 counts 10240 ticks a second for ten frames.
TICKS = 1024


def street(count, size=SIZE):
    """Returns `[count, H, W, 3]` uint8: a random picture that moves to the right by two pixels a frame."""
    wide = raw_trees.frame_pixels(7, (size[0], size[1] + 2 * count))
    return np.stack([wide[:, 2 * t : 2 * t + size[1]] for t in range(count)])


def write(path, frames, codec="libx264", pixels="yuv420p", times=None, b_frames=0, options=None, change=None, **more):
    """Writes a video of ten frames a second, every fourth a key frame, or with frames at the given milliseconds.

    Args:
      path: file; its ending is the format.
      frames: `[H, W, 3]` uint8 arrays.
      codec: FFmpeg's name of the encoder.
      pixels: FFmpeg's name of the pixel format.
      times: milliseconds of each frame, or None.
      b_frames: most frames in a row that build on later ones.
      options: of the encoder.
      change: called with the stream before the first frame.
      **more: arguments of `av.open`.

    Returns:
      The path.
    """
    timing = {"time_base": Fraction(1, 1000)} if times else {}
    with av.open(str(path), "w", **more) as container:
        stream = container.add_stream(codec, rate=10, options=options or {}, **timing)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = 4, b_frames
        if change:
            change(stream)
        for i, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            if times:
                picture.pts, picture.time_base = times[i], Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def packets(path):
    """Returns [(place in the file, size, time in ticks)] of a video's packets, in the order of decoding."""
    with av.open(str(path)) as container:
        return [(p.pos, p.size, p.pts) for p in container.demux(video=0) if p.size]


def spoil(path, target, numbers, part=1.0):
    """Copies an MP4 video with the packets of these numbers set to zero, or a part of each from its middle on."""
    content = bytearray(path.read_bytes())
    for number in numbers:
        place, size, _ = packets(path)[number]
        start = place if part == 1 else place + size // 2
        content[start : start + round(size * part)] = bytes(round(size * part))
    target.write_bytes(content)
    return target


def cut(path, target, number):
    """Copies a video up to the middle of a packet."""
    place, size, _ = packets(path)[number]
    target.write_bytes(path.read_bytes()[: place + size // 2])
    return target


def frames_by_opencv(path):
    """Returns the frames of a whole video, `[H, W, 3]` uint8 RGB."""
    capture, frames = cv2.VideoCapture(str(path)), []
    while True:
        there, frame = capture.read()
        if not there:
            return frames
        frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))


def shown_times(path):
    """Returns ([seconds from the first frame on at which each frame is shown], seconds that the video lasts)."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        shown = sorted((p.pts, p.duration) for p in container.demux(stream) if p.size)
        times = [float((pts - shown[0][0]) * stream.time_base) for pts, _ in shown]
        return times, times[-1] + float(shown[-1][1] * stream.time_base)
