"""Generated street videos, written to disk in the layouts of VIPER, SYNTHIA-Seq and Cityscapes-Seq.

Source and target show different streets of the same generator in two looks: a clean game, and a camera in the real
world. Everything follows from the seed: the same spec gives the same bytes on any number of processes.
"""

import contextlib
import json
import math
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

from input_pipeline.errors import UserError, capped
from input_pipeline.files import read_json
from input_pipeline.whole_folder import turn_to_write, whole_folder
from input_pipeline.workers import end_with_parent, without_interrupts
from input_pipeline.world.appearance import paint, sample_camera, sample_look, vary
from input_pipeline.world.layouts import frame_path, frame_size, write_flow_pair, write_frame, write_label
from input_pipeline.world.places import SOURCE, VERSIONS, sample_place
from input_pipeline.world.scenes import sample_scene
from input_pipeline.world.street import exact_flow, render

_MANIFEST = "manifest.json"

# One stream of random numbers each: no source street is a target street.
_STREAMS = {"source": 0, "train": 1, "val": 2, "video": 3, "drive": 4}
_SCENE, _LOOK, _FRAME, _PLACE = 0, 1, 2, 3

# Cities whose sequences all have frame 19 labelled; the last of each split counts frames through a whole drive.
_CITIES = {"train": ("aachen", "bremen", "hamburg"), "val": ("lindau", "munster", "frankfurt")}
_VIDEO_SPLIT, _VIDEO_NAME = "demoVideo", "stuttgart_000000"
_SYNTHIA_VIDEO = "SYNTHIA-SEQS-04-DAWN"
# VIPER numbers its videos with three digits.
_VIPER_VIDEOS = 999
# Fewer are not worth another process.
_SCENES_PER_WORKER = 8


@dataclass(frozen=True)
class WorldSpec:
    """What to generate.

    Attributes:
      seed: of all random numbers, not negative.
      size: `(H, W)` of the frames; SYNTHIA-Seq's are taller by what its reader cuts off.
      source_layout: `viper` or `synthia_seq`.
      source_clips: labelled source frames, each with two frames before it.
      target_train_clips: target clips to adapt on; labelled too, for the oracle.
      target_val_clips: target clips to score on.
      video_frames: length of one more target video, without labels, to look at.
      gap: `(least, most)` strength of the real look, drawn for each target scene, in version 2 once for the drive; 0
        is the game's look.
      workers: processes; 0 takes one for each core.
      version: "1": the target's streets are like the source's, each in a look of its own about one colour cast. "2":
        the target is one drive, at another place with another camera, its frames compressed; see `places`.
    """

    seed: int = 0
    size: tuple[int, int] = (128, 256)
    source_layout: str = "viper"
    source_clips: int = 400
    target_train_clips: int = 240
    target_val_clips: int = 80
    video_frames: int = 30
    gap: tuple[float, float] = (0.1, 1.3)
    workers: int = 0
    version: str = "1"

    def __post_init__(self):
        if self.source_layout not in ("viper", "synthia_seq"):
            raise UserError(f"source_layout is {self.source_layout!r}; expected 'viper' or 'synthia_seq'.")
        if self.version not in VERSIONS:
            raise UserError(f"version is {self.version!r}; expected one of {', '.join(map(repr, VERSIONS))}.")
        for key in ("source_clips", "target_train_clips", "target_val_clips", "video_frames"):
            if getattr(self, key) < 1:
                raise UserError(f"{key} is {getattr(self, key)}; expected at least 1.")
        if self.seed < 0 or self.workers < 0:
            raise UserError(f"seed is {self.seed} and workers is {self.workers}; expected 0 or more.")
        if min(self.size) < 32:
            raise UserError(f"size is {tuple(self.size)}; expected (height, width) of at least 32 pixels each.")
        if not 0 <= self.gap[0] <= self.gap[1]:
            raise UserError(f"gap is {tuple(self.gap)}; expected (least, most) with 0 <= least <= most.")


@dataclass(frozen=True)
class _Drive:
    """One scene to render: which numbers its frames get in which video, and which frames are written and labelled.

    Attributes:
      stream, index: which random numbers it draws.
      dataset, split, video: where its frames go.
      first_number: frame number of time 0.
      frames: times that are written.
      labelled: times that are labelled, each with flow to the two frames before it.
    """

    stream: str
    index: int
    dataset: str
    split: str
    video: str
    first_number: int
    frames: tuple[int, ...]
    labelled: tuple[int, ...]


def _source_drives(spec):
    if spec.source_layout == "synthia_seq":
        for k in range(spec.source_clips):
            yield _Drive("source", k, "synthia_seq", "train", _SYNTHIA_VIDEO, 10 * k, (0, 1, 2), (2,))
        return
    clips_per_video = math.ceil(spec.source_clips / _VIPER_VIDEOS)
    for k, start in enumerate(range(0, spec.source_clips, clips_per_video)):
        count = min(clips_per_video, spec.source_clips - start)
        # Time is the frame number: only every tenth frame has labels, so only it and the two before it are needed.
        labelled = tuple(10 * (j + 1) for j in range(count))
        frames = tuple(t - back for t in labelled for back in (2, 1, 0))
        yield _Drive("source", k, "viper", "train", f"{k + 1:03d}", 0, frames, labelled)


def _target_drives(spec):
    for split, clips in (("train", spec.target_train_clips), ("val", spec.target_val_clips)):
        cities = _CITIES[split]
        for k in range(clips):
            round_, city = divmod(k, len(cities))
            continuous = city == len(cities) - 1
            sequence, labelled_number = (0, 294 + 29 * round_) if continuous else (round_, 19)
            video = f"{cities[city]}_{sequence:06d}"
            yield _Drive(split, k, "cityscapes_seq", split, video, labelled_number - 2, (0, 1, 2), (2,))
    yield _Drive("video", 0, "cityscapes_seq", _VIDEO_SPLIT, _VIDEO_NAME, 0, tuple(range(spec.video_frames)), ())


def _random(spec, drive, *purpose):
    return _stream(spec, drive.stream, drive.index, *purpose)


def _stream(spec, name, *key):
    return np.random.default_rng(np.random.SeedSequence(spec.seed, spawn_key=(_STREAMS[name], *key)))


def _drive_scene(spec, drive):
    """Draws a drive's scene; its camera has a place at every time up to its last frame."""
    height, width = spec.size
    last = drive.frames[-1]
    reference = drive.labelled[len(drive.labelled) // 2] if drive.labelled else last // 2
    size = frame_size(drive.dataset, spec.size)
    place = SOURCE
    if spec.version != "1" and drive.stream != "source":
        place = sample_place(_stream(spec, "drive", _PLACE))
    return sample_scene(
        _random(spec, drive, _SCENE), size, place.horizon * height, place.focal * width, last + 1, reference, place
    )


def _drive_look(spec, drive):
    random = _random(spec, drive, _LOOK)
    if drive.stream == "source":
        return sample_look(random, 0.0)
    if spec.version != "1":
        of_drive = _stream(spec, "drive", _LOOK)
        return vary(random, sample_camera(of_drive, of_drive.uniform(*spec.gap)))
    # The video to look at shows the middle of the gap.
    gap = sum(spec.gap) / 2 if drive.stream == "video" else random.uniform(*spec.gap)
    return sample_look(random, gap)


def _write_drive(spec, drive, root):
    scene, look = _drive_scene(spec, drive), _drive_look(spec, drive)
    folder, flow_folder = root / drive.dataset, root / "flow" / drive.dataset
    place = (drive.dataset, drive.split, drive.video)
    views = {}
    for t in drive.frames:
        view = views[t] = render(scene, t)
        frame = paint(view, scene, look, _random(spec, drive, _FRAME, t))
        write_frame(folder, *place, drive.first_number + t, frame)
    for t in drive.labelled:
        write_label(folder, *place, drive.first_number + t, views[t].classes)
        for current, earlier in ((t, t - 1), (t - 1, t - 2), (t, t - 2)):
            # SYNTHIA-Seq's flow files are named by one frame only: they hold flow over one frame.
            if drive.dataset != "synthia_seq" or current - earlier == 1:
                flow = exact_flow(scene, views[current], earlier)
                numbers = (drive.first_number + current, drive.first_number + earlier)
                write_flow_pair(flow_folder, *place, *numbers, flow)


def _content(spec):
    """Returns all that the written files depend on, as JSON would give it back."""
    content = asdict(spec)
    del content["workers"]
    return json.loads(json.dumps(content))


def _paths(spec, root):
    video = frame_path(root / "cityscapes_seq", "cityscapes_seq", _VIDEO_SPLIT, _VIDEO_NAME, 0).parent
    return {
        "source": root / spec.source_layout,
        "target": root / "cityscapes_seq",
        "source_flow": root / "flow" / spec.source_layout,
        "target_flow": root / "flow" / "cityscapes_seq",
        "video": video,
    }


def _is_finished(content, root):
    """Checks for a manifest; raises if the folder holds another world or something else altogether."""
    if root.exists() and not root.is_dir():
        raise UserError(f"{root} is a file, and generated videos are written into a folder of that name. Move it away.")
    remedy = f"Delete {root} to have its videos generated again."
    found = read_json(root / _MANIFEST, remedy) if root.is_dir() else None
    if found == content:
        return True
    if found is not None:
        keys = sorted(key for key in content.keys() | found.keys() if content.get(key) != found.get(key))
        changes = [f"{key} is {found.get(key)!r} there and {content.get(key)!r} here" for key in keys]
        raise UserError(
            f"{root} holds another generated world: {', '.join(capped(changes))}. Give another folder, or delete "
            f"{root}."
        )
    others = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
    if others:
        raise UserError(
            f"{root} holds {', '.join(capped(others, 5))} but no {_MANIFEST}, so it was not written by this generator. "
            "Nothing was touched. Give an empty folder."
        )
    return False


def write_worlds(spec, root, progress=print):
    """Renders the source and target videos, unless they are there already.

    The folder appears when all is written. Until then the videos lie beside it, in `NAME.*.unfinished`; what an
    interrupted run has left there is removed, and all is rendered anew. Of several processes that ask for a world at
    once, one writes it and the others wait.

    Args:
      spec: what to generate.
      root: folder to write to, which is empty or missing. Will hold `viper` or `synthia_seq`, `cityscapes_seq`, `flow`
        and `manifest.json`.
      progress: called with a line of text now and then.

    Returns:
      Paths: `source` and `target`, the data sets' folders; `source_flow` and `target_flow`, folders of exact flow for
      the pairs (t, t-1), (t-1, t-2) and (t, t-2), where the set's names allow, in a sub-folder for each split; `video`,
      a folder with all frames of one more target video.

    Raises:
      UserError: the folder holds another world, a manifest that cannot be read, or data that this generator did not
        write.
      OSError: a file cannot be written; names it.
    """
    root = Path(root)
    content, paths = _content(spec), _paths(spec, root)
    if _is_finished(content, root):
        return paths
    # A link to a folder on another disk stays one.
    folder = root.resolve()
    with turn_to_write(folder, lambda: progress(f"worlds: waits for another process that writes {root}")):
        if not _is_finished(content, root):
            with whole_folder(folder) as unfinished:
                _write_all(spec, unfinished, progress)
                (unfinished / _MANIFEST).write_text(json.dumps(content, indent=2) + "\n")
    return paths


def _write_all(spec, root, progress):
    drives = [*_source_drives(spec), *_target_drives(spec)]
    started, told = time.monotonic(), 0
    with contextlib.closing(_run(spec, drives, root)) as results:
        for done, _ in enumerate(results, 1):
            if done >= told + len(drives) / 8 or done == len(drives):
                told, seconds = done, time.monotonic() - started
                left = seconds / done * (len(drives) - done)
                progress(f"worlds: {done}/{len(drives)} scenes, {seconds:.0f} s, about {left:.0f} s left")


def _run(spec, drives, root):
    """Writes all scenes, in this process or in several; yields as each is done."""
    workers = min(spec.workers or os.cpu_count() or 1, math.ceil(len(drives) / _SCENES_PER_WORKER))
    if workers == 1:
        # One thread, as each of several processes has.
        cv2.setNumThreads(1)
        for drive in drives:
            yield _write_drive(spec, drive, root)
        return
    # Spawned, not forked: the caller may hold threads and devices that do not survive a fork.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker)
    try:
        # The processes are started as there is work for them.
        waiting = without_interrupts(lambda: [pool.submit(_write_drive, spec, drive, root) for drive in drives])
        for finished in as_completed(waiting):
            yield finished.result()
    except BrokenProcessPool as error:
        raise UserError(
            f"A process that rendered videos for {root.parent} was ended from outside, as happens where memory runs "
            f"out. Start again; fewer processes need less of it: --config.world.workers={workers // 2}."
        ) from error
    finally:
        # Whoever stops waits for the scenes that are being rendered, not for all that are left.
        pool.shutdown(cancel_futures=True)


def _start_worker():
    end_with_parent()
    # The processes share the cores among themselves.
    cv2.setNumThreads(1)
