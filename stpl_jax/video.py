"""Pictures into files: images, videos, overlays, panels side by side."""

import contextlib
import errno
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from PIL import Image, ImageDraw, ImageFont

from input_pipeline.errors import UserError
from input_pipeline.files import whole_file, write_atomically

# Finer ticks than microseconds would overflow MP4's fields within hours.
_MOST_TICKS = 1_000_000
# By it the encoder chooses the level that players look at; fine ticks taken for frames would give the highest.
_NOMINAL_RATE = 30
_THREADS = 4  # each holds frames: more would cost memory, and the network is slower anyway


@contextlib.contextmanager
def video_writer(path, size, rate):
    """Writes an MP4 video (H.264); it appears under its name when it is complete and on the disk.

    The format halves the resolution of colour: a frame of odd height or width is repeated by one pixel at its edge.

    Args:
      path: file to write, ending in .mp4.
      size: (H, W) of the video.
      rate: ticks per second; frames per second, where each frame is shown for one tick.

    Yields:
      A function that takes the next frame, `[H, W, 3]` uint8 RGB; when it is shown, in ticks, default when the frame
      before ends; and for how many ticks, default one. A frame that starts later than the frame before ends leaves that
      one on.

    Raises:
      OSError: the file cannot be written; the message names it.
    """
    path, (height, width) = Path(path), size
    tick = 1 / min(Fraction(rate).limit_denominator(_MOST_TICKS), Fraction(_MOST_TICKS))
    scale = 1 / (Fraction(rate).limit_denominator(_MOST_TICKS) * tick)
    pad_y, pad_x = height % 2, width % 2
    reformatter = VideoReformatter()
    with whole_file(path) as unfinished, _naming(path), av.open(str(unfinished), "w", format="mp4") as container:
        stream = container.add_stream(
            "libx264", rate=min(1 / tick, _NOMINAL_RATE), time_base=tick, options={"crf": "18", "preset": "veryfast"}
        )
        stream.width, stream.height, stream.pix_fmt = width + pad_x, height + pad_y, "yuv420p"
        stream.codec_context.thread_count = _THREADS
        # Frames come out as they go in, and none has a time before the beginning.
        stream.codec_context.max_b_frames = 0
        stream.codec_context.flags |= av.codec.context.Flags.frame_duration
        stream.codec_context.colorspace, stream.codec_context.color_range = Colorspace.ITU601, ColorRange.MPEG
        end = 0

        def write(frame, start=None, duration=1):
            nonlocal end
            if frame.shape != (height, width, 3) or frame.dtype != np.uint8:
                raise ValueError(
                    f"{path}: expected uint8 {[height, width, 3]}, found {frame.dtype} {list(frame.shape)}."
                )
            padded = cv2.copyMakeBorder(frame, 0, pad_y, 0, pad_x, cv2.BORDER_REPLICATE)
            picture = reformatter.reformat(
                av.VideoFrame.from_ndarray(padded, format="rgb24"),
                format="yuv420p",
                dst_colorspace=Colorspace.ITU601,
                dst_color_range=ColorRange.MPEG,
                interpolation=Interpolation.BICUBIC,
                threads=1,
            )
            start = end if start is None else start
            picture.pts, picture.time_base = round(start * scale), tick
            picture.duration = round((start + duration) * scale) - picture.pts
            end = start + duration
            with _naming(path):
                container.mux(stream.encode(picture))

        yield write
        if not end:
            raise UserError(f"{path}: no frame was written, and a video needs one.")
        container.mux(stream.encode())
        container.close()


@contextlib.contextmanager
def _naming(path):
    """Errors of FFmpeg, which do not name the file."""
    try:
        yield
    except av.FFmpegError as error:
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise UserError(f"{path}: the video cannot be written ({error.strerror}).") from error


def write_image(path, pixels):
    """Writes a PNG; it appears under its name when it is complete and on the disk.

    Args:
      path: file, ending in .png; its folder is made if it is missing.
      pixels: `[H, W, 3]` RGB or `[H, W]`, uint8.

    Raises:
      OSError: the file cannot be written; the message names it.
    """
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    encoded, content = cv2.imencode(".png", pixels)
    if not encoded:
        raise OSError(errno.EINVAL, "OpenCV cannot encode this as PNG", str(path))
    write_atomically(path, content.tobytes())


def fit(frame, size):
    """Brings a frame to another size, as large as it can be without distortion, in the middle of black.

    Args:
      frame: `[h, w, 3]` uint8 RGB.
      size: (H, W).

    Returns:
      `[H, W, 3]` uint8 RGB; the frame itself where it has that size.
    """
    if frame.shape[:2] == size:
        return frame
    factor = min(size[0] / frame.shape[0], size[1] / frame.shape[1])
    height, width = (max(1, min(round(side * factor), most)) for side, most in zip(frame.shape, size, strict=False))
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    canvas = np.zeros((*size, 3), np.uint8)
    canvas[top : top + height, left : left + width] = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
    return canvas


def overlay(frame, classes, palette, opacity=0.5):
    """Paints classes over a frame.

    Args:
      frame: `[H, W, 3]` uint8 RGB.
      classes: `[H, W]` uint8.
      palette: `[256, 3]` uint8 RGB.
      opacity: of the colours, 0 to 1.

    Returns:
      `[H, W, 3]` uint8 RGB.
    """
    return cv2.addWeighted(frame, 1 - opacity, palette[classes], opacity, 0)


def side_by_side(panels, legend=None, below=False):
    """Sets pictures beside each other, each under its name, above a legend of colours.

    Args:
      panels: name -> `[H, W, 3]` uint8 RGB, all of one size, at least one.
      legend: name -> (red, green, blue); None for no legend.
      below: below each other instead.

    Returns:
      `[H', W', 3]` uint8 RGB, white where nothing is drawn.
    """
    height, width = next(iter(panels.values())).shape[:2]
    font = ImageFont.load_default(max(12, width // 40))
    line = round(font.size * 1.6)
    across, down = (0, line + height) if below else (width + max(2, width // 128), 0)
    total, bottom = across * (len(panels) - 1) + width, down * (len(panels) - 1) + line + height
    places, rows = _legend_places(legend, font, line, total) if legend else ([], 0)
    # Even, so that a video takes the picture as it is.
    canvas = Image.new("RGB", (total + total % 2, (bottom + rows * line + 1) // 2 * 2), "white")
    draw = ImageDraw.Draw(canvas)
    for i, (name, pixels) in enumerate(panels.items()):
        draw.text((i * across + width // 2, i * down + line // 2), name, "black", font, anchor="mm")
        canvas.paste(Image.fromarray(pixels), (i * across, i * down + line))
    for (name, colour), (x, row) in zip((legend or {}).items(), places, strict=True):
        top, inset = bottom + row * line, line // 5
        draw.rectangle((x + inset, top + inset, x + line - inset, top + line - inset), tuple(map(int, colour)), "black")
        draw.text((x + line, top + line // 2), name, "black", font, anchor="lm")
    return np.asarray(canvas)


def _legend_places(names, font, line, total):
    """Sets the legend's entries in rows no wider than the picture: [(x, row)], and the number of rows."""
    places, x, row = [], 0, 0
    for name in names:
        width = line + round(font.getlength(name)) + line // 2
        if x and x + width > total:
            x, row = 0, row + 1
        places.append((x, row))
        x += width
    return places, row + 1
