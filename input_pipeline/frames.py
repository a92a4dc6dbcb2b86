"""The frames to segment: of a video file, of a folder of pictures, or of one picture."""

import dataclasses
import os
import re
import stat
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np

from input_pipeline import video_decode
from input_pipeline.errors import capped
from input_pipeline.files import expand
from input_pipeline.frame_names import split_into_videos
from input_pipeline.images import IMAGE_SUFFIXES, read_image
from input_pipeline.video_packets import Losses, SourceError

# Pictures that a person would expect to be read, and that are not.
_OTHER_PICTURES = {".avif", ".exr", ".gif", ".heic", ".heif", ".jp2", ".pgm", ".pnm", ".ppm", ".tga"}
# What file managers leave behind.
_NO_WORD_ABOUT = {"thumbs.db", "desktop.ini"}


@dataclasses.dataclass(frozen=True, eq=False)
class Frame:
    """One frame.

    Attributes:
      name: of its result files: the picture's name without its ending, or the frame's number in the video file.
      pixels: `[H, W, 3]` uint8 RGB.
      video: number of the video that it belongs to. Frames of one video are neighbours in time and have one size; after
        a gap or in another sequence the number is higher.
      start: ticks from the beginning of the video file at which it is shown; 0 for pictures.
      duration: ticks that it is shown for, where the next frame does not end it; 0 for pictures.
    """

    name: str
    pixels: np.ndarray = dataclasses.field(repr=False)
    video: int = 0
    start: int = 0
    duration: int = 0


@dataclasses.dataclass(frozen=True)
class FrameSource:
    """Frames that can be read as often as is wanted; iterating gives `Frame`.

    Attributes:
      path: the file or folder.
      size: (H, W) of the first frame.
      count: number of frames; of a video file what its index says, or None where it has none.
      rate: ticks per second of a video file, in which frames have their times; None for pictures.
      files: (number of the video, image file) of each picture, in order; empty for a video file.
      notes: lines about what was found: left out, parted, taken of several.
      left_out: pictures of a kind that is not read.
    """

    path: Path
    size: tuple[int, int]
    count: int | None
    rate: Fraction | None
    files: tuple[tuple[int, Path], ...] = ()
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def is_video(self):
        """Whether the frames come from a video file."""
        return self.rate is not None

    def __iter__(self):
        return self.read(Losses())

    def read(self, losses):
        """Reads the frames.

        Args:
          losses: `Losses`; what a video file has lost is added while it is read.

        Yields:
          `Frame`.

        Raises:
          SourceError: a picture is not what it was when the folder was opened.
        """
        return self._read_video(losses) if self.is_video else self._read_pictures()

    def _read_pictures(self):
        sizes = {}
        for video, file in self.files:
            pixels = read_picture(file)
            size = sizes.setdefault(video, pixels.shape[:2])
            if pixels.shape[:2] != size:
                raise SourceError(_other_size(file, pixels.shape[:2], size))
            yield Frame(file.stem, pixels, video)

    def _read_video(self, losses):
        for shown in video_decode.decode(self.path, losses):
            yield Frame(f"{shown.number:06d}", shown.pixels, shown.video, shown.start, shown.duration)


def open_source(path, threads=None):
    """Opens a video file, a folder of pictures or one picture, and checks what can be checked before the work begins.

    All pictures of a folder are decoded once: a broken one is found now and not an hour later. Of a video file only the
    beginning is, up to the first frame.

    Args:
      path: video file that FFmpeg reads; or folder of pictures (`IMAGE_SUFFIXES`), parted into videos and sorted by
        `frame_names.split_into_videos`; or one picture.
      threads: threads that decode; None takes the number of cores.

    Returns:
      A `FrameSource`.

    Raises:
      SourceError: nothing there, nothing in it, no file that can be read twice, or files that cannot be decoded or that
        change their size within a video; lists them.
    """
    given, path = str(path), expand(path)
    try:
        kind = os.stat(path).st_mode
    except FileNotFoundError:
        raise SourceError(_nothing_there(given, path)) from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise SourceError(f"{given!r}: cannot be read ({getattr(error, 'strerror', None) or error}).") from error
    if stat.S_ISDIR(kind):
        return _open_folder(path, threads or os.cpu_count())
    if not stat.S_ISREG(kind):
        raise SourceError(f"{path} is {_KINDS.get(stat.S_IFMT(kind), 'no file')}. {_READ_TWICE}")
    if not os.path.getsize(path):
        raise SourceError(f"{path}: the file is empty. Expected a video file or a folder of images.")
    if is_picture(path):
        size = read_picture(path).shape[:2]
        return FrameSource(path, size, 1, None, ((0, path),), ("one picture, segmented by itself",))
    found = video_decode.look_at(path)
    return FrameSource(path, found.size, found.count, found.rate, notes=found.notes)


_READ_TWICE = "The input is read more than once: save it as a video file or a folder of images, and name that."
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def _nothing_there(given, path):
    if path.is_symlink():
        return f"{path}: a link to {os.readlink(path)}, which is not there."
    if re.search(r"(^|/)[A-Za-z][A-Za-z0-9+.-]+:/", given):
        return f"{given} is an address. {_READ_TWICE}"
    if re.search(r"[*?%]", path.name):
        return f"{given}: no such file. Patterns are not read: name the folder of the images."
    return f"{given}: no such file or folder. Expected a video file or a folder of images."


def _open_folder(path, threads):
    try:
        entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise SourceError(f"{path}: the folder cannot be read ({error.strerror}).") from error
    folders = [entry for entry in entries if entry.is_dir()]
    files = [entry for entry in entries if not entry.is_dir()]
    pictures = [file for file in files if is_picture(file)]
    other = [file.name for file in files if not is_picture(file) and file.name.lower() not in _NO_WORD_ABOUT]
    with_pictures = [folder.name for folder in folders if _has_pictures(folder)]
    if not pictures:
        hint = f" Its sub-folders have: {_listed(with_pictures)}; name one of them." if with_pictures else ""
        raise SourceError(f"{path}: no images in this folder. Expected {', '.join(IMAGE_SUFFIXES)} files.{hint}")
    by_stem = {}
    for file in pictures:
        if file.stem in by_stem:
            raise SourceError(
                f"{path}: {by_stem[file.stem].name} and {file.name} would give one result file: rename one."
            )
        by_stem[file.stem] = file
    videos = split_into_videos(pictures)
    ordered = tuple((i, file) for i, video in enumerate(videos) for file in video.files)

    def size_or_error(item):
        try:
            return read_picture(item[1]).shape[:2]
        except SourceError as error:
            return str(error)

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(size_or_error, ordered))
    bad = [error for error in found if isinstance(error, str)]
    if not bad:
        sizes = {}
        for (video, file), size in zip(ordered, found, strict=True):
            if size != sizes.setdefault(video, size):
                bad.append(_other_size(file, size, sizes[video]))
    if bad:
        raise SourceError("\n".join(capped(bad)))
    notes = _notes(path, videos, len(ordered))
    if other:
        notes.append(f"left out, being none of {', '.join(IMAGE_SUFFIXES)}: {_listed(other)}")
    if with_pictures:
        notes.append(f"left out, being sub-folders of {path}: {_listed(with_pictures)}")
    left_out = tuple(name for name in other if Path(name).suffix.lower() in _OTHER_PICTURES)
    return FrameSource(path, found[0], len(ordered), None, ordered, tuple(notes), left_out)


def _notes(path, videos, count):
    """What the names were taken to say; nothing where all pictures are one video."""
    if len(videos) == 1:
        return []
    if len(videos) == count:
        return [
            f"no two pictures of {path} are neighbours in time, by their names; each is segmented by itself: "
            f"{_listed([video.files[0].name for video in videos])}"
        ]
    lines = [f"  {v.files[0].name} starts a new video of {len(v.files)}: {v.why}" for v in videos[1:]]
    first = f"{path} has {len(videos)} videos, by the names; no frame is fused with one of another video:"
    return [first, *capped(lines)]


def _listed(names):
    return ", ".join(line.strip() for line in capped(names, 10))


def is_picture(file):
    """Whether a file has the name of a picture that is read."""
    return file.suffix.lower() in IMAGE_SUFFIXES


def _has_pictures(folder):
    try:
        return any(is_picture(file) and file.is_file() for file in folder.iterdir())
    except OSError:
        return False


def _other_size(file, found, expected):
    return (
        f"{file}: {file.name} has {found[0]}x{found[1]} pixels (height x width), and the first frame has "
        f"{expected[0]}x{expected[1]}. All frames of a video must have one size."
    )


def read_picture(file):
    """Reads one picture as a person sees it.

    Args:
      file: `Path`.

    Returns:
      `[H, W, 3]` uint8 RGB.

    Raises:
      SourceError: it is not there, or cannot be decoded; names it.
    """
    if not file.is_file():
        what = f"a link to {os.readlink(file)}, which is not there" if file.is_symlink() else "no ordinary file"
        raise SourceError(f"{file}: {what}. Expected an image.")
    try:
        return np.asarray(read_image(file))
    except (ValueError, OSError) as error:
        raise SourceError(str(error)) from error
