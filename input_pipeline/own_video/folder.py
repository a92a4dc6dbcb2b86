"""What a folder holds: video files and folders of frames, nested and mixed; and what is neither."""

import collections
import dataclasses
import os
from pathlib import Path

from natsort import natsorted

from input_pipeline import own_labels, video_decode
from input_pipeline.errors import UserError, capped
from input_pipeline.frame_names import split_into_videos
from input_pipeline.frames import is_picture, read_picture
from input_pipeline.video_packets import SourceError

VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".3gp",
    ".ogv", ".h264", ".h265", ".hevc", ".mjpeg", ".mjpg", ".mxf",
)  # fmt: skip
_NAMES = 10  # that a line tells


@dataclasses.dataclass(frozen=True)
class Found:
    """A video file, or a folder of frames.

    Attributes:
      name: path below the folder that was given.
      path: the file or folder.
      files: images in natural order; empty for a video file.
    """

    name: str
    path: Path
    files: tuple[Path, ...] = ()

    @property
    def is_video(self):
        """Whether it is a video file."""
        return not self.files

    def read(self, losses, only=None):
        """Reads the frames, one at a time.

        Args:
          losses: `Losses`; what cannot be read is added.
          only: numbers of the frames that are wanted, None for all; of a video others come, too.

        Yields:
          `video_decode.Shown`, in the order of time. A picture counts as one tick.

        Raises:
          SourceError: nothing of a video file can be read.
        """
        return video_decode.decode(self.path, losses) if self.is_video else self._pictures(losses, only)

    def _pictures(self, losses, only):
        ordered = ((i, file) for i, video in enumerate(split_into_videos(self.files)) for file in video.files)
        breaks, size = 0, None
        for number, (i, file) in enumerate(ordered):
            if only is not None and number not in only:
                continue
            try:
                pixels = read_picture(file)
            except SourceError as error:
                losses.skipped.append((number, None))
                losses.remarks.append(str(error))
                breaks += 1
            else:
                breaks += size not in (None, pixels.shape)
                size = pixels.shape
                yield video_decode.Shown(number, pixels, i + breaks, number, 1)


@dataclasses.dataclass
class LeftOut:
    """What is not used, by the reason.

    Attributes:
      names: reason -> names.
    """

    names: dict = dataclasses.field(default_factory=lambda: collections.defaultdict(list))

    def add(self, why, name):
        """Notes one file or folder."""
        self.names[why].append(name)

    def lines(self):
        """One line for each reason."""
        return [
            f"left out, {why}: {', '.join(line.strip() for line in capped(names, _NAMES))}"
            for why, names in self.names.items()
        ]


def look(folder, left_out, run_folder=None):
    """Lists the video files and the folders of frames below a folder; opens none of them.

    Symbolic links are followed, each folder and each video file is taken once. A folder `labels` beside a folder
    `frames` is no video, and is left out where it holds no masks.

    Args:
      folder: `Path`.
      left_out: `LeftOut` to add to.
      run_folder: the run's own folder, which is not looked into; or None.

    Returns:
      List of `Found`, in natural order of their names.

    Raises:
      UserError: there is no such folder, or it cannot be listed.
    """
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing of that name"
        raise UserError(f"{folder}: expected a folder of videos and frames, found {found}.")
    own = run_folder and Path(run_folder).resolve()
    if folder.resolve() == own:
        raise UserError(f"{folder} is the run's own folder: expected the videos in another one than --workdir.")
    seen, found = {}, []
    _list(folder, "", seen, own, left_out, found)
    return natsorted(found, key=lambda one: one.name)


def _list(folder, name, seen, own, left_out, found):
    try:
        entries = natsorted(os.listdir(folder))
    except OSError as error:
        if not name:
            raise UserError(f"{folder}: the folder cannot be read ({error.strerror}).") from error
        left_out.add(f"not readable ({error.strerror})", name)
        return
    seen[_identity(folder)] = name or "."
    pictures = []
    for entry in entries:
        path, below = folder / entry, f"{name}/{entry}" if name else entry
        if entry.startswith("."):
            left_out.add("hidden", below)
        elif os.path.isdir(path):  # of what cannot be asked, False
            if path.resolve() == own:
                left_out.add("the run's own folder", below)
            elif _identity(path) in seen:
                left_out.add(f"the same folder as {seen[_identity(path)]}", below)
            elif entry.lower() == "labels" and "frames" in map(str.lower, entries):
                # Masks are no frames, but are read: `given_labels`.
                if entry != own_labels.LABELS or not own_labels.holds_masks(folder):
                    left_out.add("labels", below)
            else:
                _list(path, below, seen, own, left_out, found)
        elif not is_picture(path) and path.suffix.lower() not in VIDEO_SUFFIXES:
            left_out.add("neither a video nor an image", below)
        elif not os.path.isfile(path):
            left_out.add("a link to nothing" if path.is_symlink() else "no ordinary file", below)
        elif is_picture(path):
            pictures.append(path)
        elif _identity(path) in seen:
            left_out.add(f"the same file as {seen[_identity(path)]}", below)
        else:
            seen[_identity(path)] = below
            found.append(Found(below, path))
    if pictures:
        found.append(Found(name or ".", folder, tuple(pictures)))


def _identity(path):
    found = path.stat()
    return found.st_dev, found.st_ino
