"""The pictures of a report: frames with predictions and label, and a video of the network before and after."""

import io
import itertools
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from input_pipeline import run_folder
from input_pipeline.clips import read_clip
from input_pipeline.domains import open_domain, with_world
from input_pipeline.flow_files import to_pixels
from input_pipeline.frames import open_source
from input_pipeline.labels import colour_table, model_classes
from stpl_jax import checkpoint, predict
from stpl_jax.model_choice import row_model
from stpl_jax.validation import scored_parts
from stpl_jax.video import side_by_side, video_writer, write_image

# Narrower panels are enlarged by a whole factor.
_LEAST_PANEL_WIDTH = 256
# Slow enough to look at a street of 30 frames.
_VIDEO_FPS = 10.0
# Of pictures inside the page: beyond these it would be slow to load, and nobody would see more.
_MOST_PAGE_WIDTH = 512
_MOST_STRIP_WIDTH = 320
_MOST_STRIP_FRAMES = 60


class Picture(NamedTuple):
    """One validation frame, with what the networks see in it.

    Attributes:
      name: of the clip.
      path: of the PNG with all panels, relative to the run's folder.
      panels: caption -> WebP, bytes: frame, each network's classes, label.
    """

    name: str
    path: str
    panels: dict[str, bytes]


class Strip(NamedTuple):
    """A short film of the frame and each network's classes: animated WebP, bytes.

    Attributes:
      seen: names of the networks.
      wide: panels beside each other.
      tall: panels below each other, for narrow screens.
      still: the first picture of `wide`, for those who want nothing to move.
    """

    seen: tuple[str, ...]
    wide: bytes
    tall: bytes
    still: bytes


def load_models(config, workdir, evaluations, progress):
    """Loads the networks to show: caption -> `Model`, source-only first."""
    models = {}
    for row in [row for row in dict.fromkeys(("source_only", config.method)) if row in evaluations]:
        try:
            path = row_model(config, workdir, row) or run_folder.checkpoints(workdir, row)
            models[row] = predict.load(path, tell=progress)
        except checkpoint.CheckpointError as error:
            progress(f"report  no pictures of {row}: {error}")
    return models


def photo(*pictures, **moving):
    """Encodes `[H, W, 3]` uint8 RGB with losses that are hard to see: WebP, bytes.

    Several pictures follow each other, and the first the last; `duration` says for how many milliseconds each is shown.
    """
    first, *others = map(Image.fromarray, pictures)
    film = dict(save_all=True, append_images=others, loop=0, **moving) if others else {}
    return _encoded(first, quality=80, method=4, **film)


def exact(pixels):
    """Encodes `[H, W, 3]` uint8 RGB without losses: WebP, bytes."""
    return _encoded(Image.fromarray(pixels), lossless=True)


def _encoded(image, **settings):
    file = io.BytesIO()
    image.save(file, format="WEBP", **settings)
    return file.getvalue()


def enlarged(pixels, interpolation=cv2.INTER_NEAREST):
    """Enlarges what is too narrow for a panel by a whole factor."""
    factor = -(-_LEAST_PANEL_WIDTH // pixels.shape[1])
    return cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=interpolation)


def shrunk(pixels, interpolation=cv2.INTER_AREA, most=_MOST_PAGE_WIDTH):
    """Shrinks what is wider than a page shows it."""
    factor = min(1, most / pixels.shape[1])
    return cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=interpolation)


def _legend(config):
    names = model_classes(config.data)
    return dict(zip(names, map(tuple, colour_table(names, config.data.classes).tolist()), strict=False))


def write_pictures(config, workdir, models, progress):
    """Writes pictures of clips spread evenly over the validation set, by models of `load_models`: list of `Picture`."""
    if not config.report.frames:
        return []
    source = open_domain(config, workdir, "val", progress=progress)
    palette = next(iter(models.values())).palette
    pictures = []
    for i in np.unique(np.linspace(0, len(source) - 1, min(config.report.frames, len(source))).round().astype(int)):
        clip = read_clip(source, int(i), *scored_parts(source), label=True)
        # Clips are newest first, a video oldest first.
        frames, flow = clip["frames"][::-1], to_pixels(clip["flow"][::-1])
        panels = {"frame": enlarged(frames[-1], cv2.INTER_CUBIC)}
        size = panels["frame"].shape[:2]
        classes = {name: model.segment(frames, flow, size)[-1] for name, model in models.items()}
        classes["label"] = cv2.resize(clip["label"], size[::-1], interpolation=cv2.INTER_NEAREST)
        panels |= {name: palette[ids] for name, ids in classes.items()}
        path = f"{run_folder.FRAMES}/{clip['name']}.png"
        write_image(workdir / path, side_by_side(panels, _legend(config)))
        small = {name: exact(shrunk(x, cv2.INTER_NEAREST)) for name, x in panels.items()}
        small["frame"] = photo(shrunk(panels["frame"]))
        pictures.append(Picture(clip["name"], path, small))
    progress(f"report  {len(pictures)} pictures in {workdir / run_folder.FRAMES}")
    return pictures


def write_video(config, workdir, models, progress):
    """Writes the generated street that has no labels, with each model's classes, as `video.mp4`; returns a `Strip`."""
    frames = open_source(with_world(config, workdir, progress).world.video)
    palette = next(iter(models.values())).palette
    size = enlarged(np.empty(frames.size, np.uint8)).shape
    every = -(-(frames.count or _MOST_STRIP_FRAMES) // _MOST_STRIP_FRAMES)
    kept = []

    def pictures():
        # Each model reads the frames by itself, so that none need be kept.
        predictions = [predict.segment_frames(model, frames, size) for model in models.values()]
        for i, found in enumerate(zip(*predictions, strict=True)):
            panels = {"frame": enlarged(found[0][0].pixels, cv2.INTER_CUBIC)}
            panels |= {name: palette[ids] for name, (_, ids) in zip(models, found, strict=True)}
            if i % every == 0:
                small = {name: shrunk(x, most=_MOST_STRIP_WIDTH) for name, x in panels.items()}
                kept.append((side_by_side(small), side_by_side(small, below=True)))
            yield side_by_side(panels, _legend(config))

    pictures = pictures()
    first = next(pictures)
    with video_writer(workdir / run_folder.VIDEO, first.shape[:2], _VIDEO_FPS) as write:
        for picture in itertools.chain([first], pictures):
            write(picture)
    progress(f"report  {workdir / run_folder.VIDEO}")
    films = [photo(*pictures, duration=round(every * 1000 / _VIDEO_FPS)) for pictures in zip(*kept, strict=True)]
    return Strip(tuple(models), *films, photo(kept[0][0]))
