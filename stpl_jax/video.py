"""Frames out of files and pictures into files: videos, folders of images, overlays, panels side by side."""

import contextlib
import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from input_pipeline.errors import UserError
from input_pipeline.images import IMAGE_SUFFIXES, read_image

# For a video file that does not tell its own, and for videos made of single frames.
DEFAULT_FPS = 25.0
_MOST_ERRORS_SHOWN = 20


class SourceError(UserError):
    """An input that is not there or cannot be read; the message names the file."""


@dataclasses.dataclass(frozen=True)
class FrameSource:
    """The frames of a video file or of a folder of images; iterating gives (name, `[H, W, 3]` uint8 RGB).

    Attributes:
      path: the file or folder.
      size: (H, W) of every frame.
      count: number of frames; for a video file what it says of itself, or None where it says nothing.
      fps: frames per second of a video file, None for a folder.
      files: image files of a folder, in order; empty for a video file.
    """

    path: Path
    size: tuple[int, int]
    count: int | None
    fps: float | None
    files: tuple[Path, ...] = ()

    @property
    def is_video(self):
        """Whether the frames come from a video file."""
        return self.fps is not None

    def __iter__(self):
        if not self.is_video:
            for file in self.files:
                yield file.stem, self._checked(file.name, _read_image(file))
            return
        for i, frame in enumerate(_video_frames(self.path)):
            yield f"{i:06d}", self._checked(f"frame {i}", frame)

    def _checked(self, name, frame):
        if frame.shape[:2] != self.size:
            raise SourceError(_other_size(self.path, name, frame.shape[:2], self.size))
        return frame


def open_source(path, threads=None):
    """Opens a video file or a folder of images, and checks what can be checked before the work begins.

    All images of a folder are decoded once: a broken one is found now and not an hour later. Of a video file only the
    first frame is.

    Args:
      path: video file that OpenCV reads, or folder of .png, .jpg and .jpeg files, taken in the order of their names.
      threads: threads that decode; None takes the number of cores.

    Returns:
      A `FrameSource`.

    Raises:
      SourceError: nothing there, nothing in it, or files that cannot be decoded or differ in size; lists them.
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path, threads or os.cpu_count())
    if not path.is_file():
        raise SourceError(f"{path}: no such file or folder. Expected a video file or a folder of images.")
    if not path.stat().st_size:
        raise SourceError(f"{path}: the file is empty. Expected a video file.")
    frames = _video_frames(path)
    first = next(frames, None)
    frames.close()
    if first is None:
        raise SourceError(
            f"{path}: OpenCV could not decode a frame. Expected a video file (MP4, AVI, MKV, WebM) with a picture; for "
            "images name their folder."
        )
    with _capture(path) as capture:
        fps, count = capture.get(cv2.CAP_PROP_FPS), int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    # Streams without a header give 0, a negative number or NaN.
    return FrameSource(path, first.shape[:2], count if count > 0 else None, fps if 0 < fps < 1000 else DEFAULT_FPS)


def _open_folder(path, threads):
    files = sorted(
        (f for f in path.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES and not f.name.startswith(".")),
        key=lambda file: file.name,
    )
    if not files:
        raise SourceError(f"{path}: no images in this folder. Expected {', '.join(IMAGE_SUFFIXES)} files.")
    by_stem = {}
    for file in files:
        if file.stem in by_stem:
            raise SourceError(
                f"{path}: {by_stem[file.stem].name} and {file.name} would give one result file: rename one."
            )
        by_stem[file.stem] = file

    def size_or_error(file):
        try:
            return _read_image(file).shape[:2]
        except SourceError as error:
            return str(error)

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(size_or_error, files))
    bad = [error for error in found if isinstance(error, str)]
    if not bad:
        size = found[0]
        bad = [_other_size(path, f.name, s, size) for f, s in zip(files, found, strict=True) if s != size]
    if bad:
        more = [f"... and {len(bad) - _MOST_ERRORS_SHOWN} more"] if len(bad) > _MOST_ERRORS_SHOWN else []
        raise SourceError("\n".join([*bad[:_MOST_ERRORS_SHOWN], *more]))
    return FrameSource(path, size, len(files), None, tuple(files))


def _other_size(path, name, found, expected):
    return (
        f"{path}: {name} has {found[0]}x{found[1]} pixels (height x width), and the first frame has "
        f"{expected[0]}x{expected[1]}. All frames of a video must have one size."
    )


def _read_image(file):
    try:
        return np.asarray(read_image(file))
    except ValueError as error:
        raise SourceError(str(error)) from error


@contextlib.contextmanager
def _capture(path):
    capture = cv2.VideoCapture(str(path))
    try:
        yield capture
    finally:
        capture.release()


def _video_frames(path):
    with _capture(path) as capture:
        while True:
            there, frame = capture.read()
            if not there:
                return
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


@contextlib.contextmanager
def video_writer(path, size, fps):
    """Writes an MP4 video; it appears under its name when it is complete.

    MPEG-4 halves the resolution of colour: a frame of odd height or width is repeated by one pixel at its edge.

    Args:
      path: file to write, ending in .mp4.
      size: (H, W) of the frames.
      fps: frames per second.

    Yields:
      A function that takes the next frame, `[H, W, 3]` uint8 RGB.

    Raises:
      OSError: the file cannot be written.
    """
    path, (height, width) = Path(path), size
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.stem}.unfinished.mp4")
    pad_y, pad_x = height % 2, width % 2
    writer = cv2.VideoWriter(str(unfinished), cv2.VideoWriter_fourcc(*"mp4v"), fps, (width + pad_x, height + pad_y))

    def write(frame):
        # OpenCV drops frames of another size without a word.
        if frame.shape != (height, width, 3) or frame.dtype != np.uint8:
            raise ValueError(f"{path}: expected uint8 {[height, width, 3]}, found {frame.dtype} {list(frame.shape)}.")
        frame = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
        writer.write(cv2.copyMakeBorder(frame, 0, pad_y, 0, pad_x, cv2.BORDER_REPLICATE))

    try:
        if not writer.isOpened():
            raise OSError(f"{path}: OpenCV could not open the file for MPEG-4 video. Can its folder be written to?")
        yield write
        writer.release()
        if not unfinished.is_file():
            raise OSError(f"{path}: OpenCV wrote no video.")
        os.replace(unfinished, path)
    finally:
        writer.release()
        unfinished.unlink(missing_ok=True)


def write_image(path, pixels):
    """Writes a PNG.

    Args:
      path: file, ending in .png; its folder is made if it is missing.
      pixels: `[H, W, 3]` RGB or `[H, W]`, uint8.

    Raises:
      OSError: the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    if not cv2.imwrite(str(path), pixels):
        raise OSError(f"{path} could not be written. Is the disk full, or the folder read-only?")


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


def side_by_side(panels, legend):
    """Sets pictures beside each other, each under its name, above a legend of colours.

    Args:
      panels: name -> `[H, W, 3]` uint8 RGB, all of one size, at least one.
      legend: name -> (red, green, blue).

    Returns:
      `[H', W', 3]` uint8 RGB, white where nothing is drawn.
    """
    height, width = next(iter(panels.values())).shape[:2]
    font = ImageFont.load_default(max(12, width // 40))
    line = round(font.size * 1.6)
    gap = max(2, width // 128)
    total = len(panels) * (width + gap) - gap
    places, rows = _legend_places(legend, font, line, total)
    # Even, so that a video takes the picture as it is.
    canvas = Image.new("RGB", (total + total % 2, (line + height + rows * line + 1) // 2 * 2), "white")
    draw = ImageDraw.Draw(canvas)
    for i, (name, pixels) in enumerate(panels.items()):
        left = i * (width + gap)
        draw.text((left + width // 2, line // 2), name, "black", font, anchor="mm")
        canvas.paste(Image.fromarray(pixels), (left, line))
    for (name, colour), (x, row) in zip(legend.items(), places, strict=True):
        top = line + height + row * line
        inset = line // 5
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
