"""From a folder of somebody's videos to the folder of kept frames that `datasets/own_video.py` lists."""

import collections
import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

from input_pipeline import own_labels, raw_files, run_folder
from input_pipeline.errors import UserError, capped
from input_pipeline.files import write_atomically
from input_pipeline.own_video import choose, given_labels, keep
from input_pipeline.own_video.folder import LeftOut, look
from input_pipeline.own_video.manifest import FILM, FRAMES, MANIFEST, read_manifest
from input_pipeline.own_video.scan import scan
from input_pipeline.whole_folder import turn_to_write, whole_folder

# Changes whenever the same folder and the same settings would give other kept frames.
_VERSION = 1
# What a file's name on disk had better not have.
_NO_NAME = re.compile(r"[^-.\w]+")


@dataclasses.dataclass(frozen=True)
class IngestSettings:
    """How clips are made.

    Attributes:
      size: (height, width) that the model was trained at.
      fit: whether another size of as many pixels is taken where most frames have another ratio of their sides.
      frames_per_second, max_clips, held_out, length: as `choose.choose` takes them.
    """

    size: tuple[int, int]
    fit: bool = True
    frames_per_second: float | None = None
    max_clips: int = 1000
    held_out: float = 0.2
    length: int = 2


@dataclasses.dataclass(frozen=True)
class IngestedVideo:
    """The kept frames.

    Attributes:
      raw_dir: folder of the set `own_video`.
      size: (height, width) of all its frames.
    """

    raw_dir: Path
    size: tuple[int, int]


def ingest(folder, into, settings, progress=print, threads=None):
    """Scans a folder of videos and frames, chooses clips, and keeps their frames; a second call uses what is there.

    Kept frames are used as they are as long as the files in the folder are those that they were made from, by name,
    size and time, and the settings are the same; and where the folder is gone. Otherwise they are made anew. They take
    their place when all of them are written.

    Args:
      folder: of videos and frames, nested and mixed.
      into: folder to write, `<workdir>/own_video`; the workdir is not looked into where it lies in `folder`.
      settings: `IngestSettings`.
      progress: called with lines of text.
      threads: videos and folders that are read at a time; None takes the number of cores.

    Returns:
      `IngestedVideo`.

    Raises:
      UserError: nothing usable is in the folder, or too little; files changed while they were read.
    """
    folder, into, threads = Path(folder), Path(into), threads or os.cpu_count()
    with turn_to_write(into, lambda: progress(f"own_video: waiting for another process that writes {into}")):
        stored = _usable(folder, into, settings, progress)
        if stored is None:
            with whole_folder(into) as unfinished:
                before = _files(folder, into.parent)
                stored = _make(folder, unfinished, settings, progress, into.parent, threads)
                if _files(folder, into.parent) != before:
                    raise UserError(f"{folder}: files changed while they were read. Start again when they do not.")
                write_atomically(unfinished / MANIFEST, json.dumps(stored | {"made_from": before}))
                # What was there is made from something else; `_usable` has looked at what it is.
                shutil.rmtree(into, ignore_errors=True)
    return IngestedVideo(into, tuple(stored["size"]))


def _as_stored(settings):
    return json.loads(json.dumps(dataclasses.asdict(settings))) | {"version": _VERSION}


def _files(folder, workdir):
    """{name: [bytes, time]} of all videos and frames below a folder."""
    paths = {}
    for found in look(folder, LeftOut(), workdir):
        paths |= {f"{found.name}/{file.name}": file for file in found.files} or {found.name: found.path}
        beside = found.path.parent
        if given_labels.has_masks(found):
            given = [beside / own_labels.CLASSES_FILE, *own_labels.find_masks(beside).values()]
            paths |= {f"{found.name}/../{file.relative_to(beside)}": file for file in given}
    entries = raw_files.sizes_and_times(paths)
    return {name: list(entry) for name, entry in entries.items() if entry}


def _usable(folder, into, settings, progress):
    """The manifest of kept frames that are used as they are, or None."""
    stored = read_manifest(into) if into.is_dir() else None
    if stored is None:
        if into.is_dir() and any(into.iterdir()):
            raise UserError(f"{into}: expected a folder of kept frames or nothing, found other files. Remove them.")
        return None
    why, begun = None, run_folder.rows(into.parent)
    if told := _other_settings(stored["settings"], _as_stored(settings)):
        if begun:
            raise UserError(
                f"The frames in {into} were kept with other settings ({told}), and {', '.join(begun)} adapt on them. "
                f"Use another --workdir, or these settings; or delete {into} and these rows' folders to begin again."
            )
        why = [f"with other settings ({told})"]
    elif gone := [name for name, size in stored["frames"].items() if _bytes_of(into / name) != size]:
        why = [f"and {len(gone)} of them are not as they were written, {gone[0]} the first"]
    elif folder.is_dir():
        found = raw_files.differences(stored["made_from"], _files(folder, into.parent))
        changed = sorted(found.resized + found.touched)
        if changed or found.added or found.removed:
            names = {"changed": changed, "added": found.added, "removed": found.removed}
            counts = ", ".join(f"{len(some)} {what}" for what, some in names.items())
            told = [f"  {what}  {name}" for what, some in names.items() for name in some]
            why = [f"from other files than {folder} holds now ({counts})", *capped(told, 10)]
            if begun:
                progress(
                    f"own_video: WARNING: the frames in {into} were kept {why[0]}. They are used all the same, since "
                    f"{', '.join(begun)} adapt on them; for what is there now, use another --workdir"
                )
                return stored
    if why:
        progress(f"own_video: the frames in {into} were kept {why[0]}: they are made anew")
        for line in why[1:]:
            progress(line)
        return None
    progress(f"own_video: the frames kept in {into} are used" + ("" if folder.is_dir() else f"; {folder} is gone"))
    return stored


def _other_settings(stored, wanted):
    """Says which settings differ; clips that are longer than they have to be serve as well."""
    if stored.get("length", 0) >= wanted["length"]:
        stored = stored | {"length": wanted["length"]}
    names = sorted(name for name in stored.keys() | wanted.keys() if stored.get(name) != wanted.get(name))
    return "; ".join(f"{name} was {stored.get(name)}, is {wanted.get(name)}" for name in names)


def _bytes_of(path):
    return path.stat().st_size if path.is_file() else None


def _make(folder, unfinished, settings, progress, workdir, threads):
    """Scans, chooses and writes frames; returns the manifest without `made_from`."""
    # A bad mask is better known of now than once hours of video have been read.
    given = given_labels.find(look(folder, LeftOut(), workdir), threads)
    stretches, left_out = scan(folder, progress, settings.frames_per_second, workdir, threads)
    for line in (*(stretch.line() for stretch in stretches), *left_out):
        progress(f"own_video: {line}")
    masks = {i: given[stretch.found.name] for i, stretch in enumerate(stretches) if stretch.found.name in given}
    chosen = choose.choose(
        stretches, settings.frames_per_second, settings.max_clips, settings.held_out, settings.length, masks
    )
    size = choose.fitting_size(stretches, settings.size) if settings.fit else tuple(settings.size)
    for line in (*_size_lines(stretches, size, settings), *_clip_lines(stretches, chosen)):
        progress(f"own_video: {line}")
    folders = [f"{i:03d}_{_NO_NAME.sub('_', stretch.found.name)[:60]}" for i, stretch in enumerate(stretches)]
    wanted = collections.defaultdict(lambda: collections.defaultdict(list))
    clips = {"train": [], "val": []}
    for split, found in (("train", chosen.train), ("val", chosen.val)):
        for clip in found:
            names = [f"{FRAMES}/{folders[clip.stretch]}/{number:06d}.png" for number in clip.numbers]
            clips[split].append({"name": f"{folders[clip.stretch]}_{clip.numbers[0]:06d}", "frames": names})
            for number, name in zip(clip.numbers, names, strict=True):
                if name not in wanted[clip.stretch][number]:
                    wanted[clip.stretch][number].append(name)
    i, numbers = chosen.film
    for k, number in enumerate(numbers):
        wanted[i][number].append(f"{FILM}/{k:06d}.png")
    keep.keep(stretches, wanted, size, unfinished, progress, threads)
    if masks:
        names = {
            (clip.stretch, clip.numbers[0]): found["name"] for clip, found in zip(chosen.val, clips["val"], strict=True)
        }
        kept = given_labels.keep(stretches, masks, names, size, unfinished)
        total = sum(map(len, given.values()))
        why = "" if kept == total else "; the frames of the others are left out, or needed to adapt on"
        progress(f"own_video: {kept} of {total} masks belong to held-out clips, and are scored{why}")
    names = sorted(name for of_frame in wanted.values() for found in of_frame.values() for name in found)
    return {
        "settings": _as_stored(settings),
        "size": list(size),
        "frames": {name: _bytes_of(unfinished / name) for name in names},
        "clips": clips,
        "film_rate": chosen.film_rate,
    }


def _size_lines(stretches, size, settings):
    own = f"the model's {settings.size[0]}x{settings.size[1]}"
    why = "" if size == tuple(settings.size) else f", in their ratio of sides and with about as many pixels as {own}"
    yield f"frames are brought to {size[0]}x{size[1]} (height x width){why}"
    for stretch in stretches:
        share = keep.cut_share(stretch.size, size)
        if share > 0.02:
            yield f"{stretch.found.name}: {share:.0%} of each frame is cut off at its edges, to keep its proportions"


def _clip_lines(stretches, chosen):
    yield f"{len(chosen.train)} clips to adapt on and {len(chosen.val)} held out for the report"
    train, val = (collections.Counter(clip.stretch for clip in clips) for clips in (chosen.train, chosen.val))
    lines = [f"  {s.found.name}: {train[i]} to adapt on, {val[i]} held out" for i, s in enumerate(stretches)]
    yield from capped(lines, 50)
