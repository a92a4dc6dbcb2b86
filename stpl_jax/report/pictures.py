"""The pictures of a report: frames with predictions and label, and a video of the network before and after."""

import dataclasses
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
from input_pipeline.labels import class_groups, colour_table, shown_classes
from input_pipeline.own_video.manifest import FILM, read_manifest
from stpl_jax import checkpoint, predict
from stpl_jax.model_choice import row_model
from stpl_jax.validation import scored_parts
from stpl_jax.video import side_by_side, video_writer, write_image

# Narrower panels are enlarged by a whole factor.
_LEAST_PANEL_WIDTH = 256
# Slow enough to look at a street of 30 frames.
_VIDEO_FPS = 10.0
# Of frames that do not follow each other.
_CLIPS_FPS = 2.0
# Of a stretch: enough to see by, and every network has to segment them.
_MOST_FILM_FRAMES = 150
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
      note: what it shows.
    """

    seen: tuple[str, ...]
    wide: bytes
    tall: bytes
    still: bytes
    note: str


def load_models(config, workdir, rows, progress):
    """Loads the networks of rows, as far as there are any, to show as they were scored: caption -> `Model`."""
    shown = {"size": tuple(config.data.target.size)}  # a source model that was given may come from another
    names, setting = shown_classes(config.data)
    if (groups := class_groups(config.data.classes, config.data.target.name, setting)) is not None:
        shown |= {"groups": groups, "classes": names, "palette": colour_table(names, setting)}
    models = {}
    for row in rows:
        try:
            path = row_model(config, workdir, row) or run_folder.checkpoints(workdir, row)
            models[row] = dataclasses.replace(predict.load(path, tell=progress), **shown)
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


def _legend(models):
    model = next(iter(models.values()))
    return {name: model.palette[i] for i, name in enumerate(model.classes)}


def write_pictures(config, workdir, models, progress):
    """Writes pictures of clips spread evenly over the validation set, by models of `load_models`: list of `Picture`."""
    if not config.report.frames:
        return []
    source = open_domain(config, workdir, "val", progress=progress)
    pictures = []
    for i in np.unique(np.linspace(0, len(source) - 1, min(config.report.frames, len(source))).round().astype(int)):
        clip = read_clip(source, int(i), *scored_parts(source), label=True)
        # Clips are newest first, a video oldest first.
        frames, flow = clip["frames"][::-1], to_pixels(clip["flow"][::-1])
        frame = enlarged(frames[-1], cv2.INTER_CUBIC)
        size = frame.shape[:2]
        classes = {name: model.segment(frames, flow, size)[-1] for name, model in models.items()}
        classes["label"] = cv2.resize(clip["label"], size[::-1], interpolation=cv2.INTER_NEAREST)
        pictures.append(_write_picture(workdir, clip["name"], frame, classes, models))
    progress(f"report  {len(pictures)} pictures in {workdir / run_folder.FRAMES}")
    return pictures


def write_differing(config, workdir, models, source, comparison, progress):
    """Writes pictures of clips without labels, spread over the set, where networks differ most: list of `Picture`.

    Args:
      config: the run's configuration.
      workdir: the run's folder.
      models: of `load_models`.
      source: `ClipSource` of the clips.
      comparison: `unlabelled.Comparison` of these models on it.
      progress: called with lines of text.
    """
    pictures = []
    for i in comparison.most_differing(config.report.frames):
        frame, classes = _compared(source, comparison, i)
        pictures.append(_write_picture(workdir, comparison.names[i], frame, classes, models))
    progress(f"report  {len(pictures)} pictures in {workdir / run_folder.FRAMES}")
    return pictures


def _compared(source, comparison, i):
    """Frame and class maps of a clip that was compared, as large as panels are."""
    frame = read_clip(source, comparison.clips[i], (0,), (), label=False)["frames"][0]
    return enlarged(frame, cv2.INTER_CUBIC), {row: enlarged(maps[i]) for row, maps in comparison.maps.items()}


def _write_picture(workdir, name, frame, classes, models):
    palette = next(iter(models.values())).palette
    panels = {"frame": frame} | {caption: palette[ids] for caption, ids in classes.items()}
    path = f"{run_folder.FRAMES}/{name}.png"
    write_image(workdir / path, side_by_side(panels, _legend(models)))
    small = {caption: exact(shrunk(x, cv2.INTER_NEAREST)) for caption, x in panels.items()}
    small["frame"] = photo(shrunk(panels["frame"]))
    return Picture(name, path, small)


def write_street(config, workdir, models, progress):
    """Writes the generated street that has no labels, with each model's classes, as `video.mp4`; returns a `Strip`."""
    frames = open_source(with_world(config, workdir, progress).world.video)
    note = "One more street, without labels, frame by frame"
    return _write_film(workdir, models, _segmented(frames, models), frames.count, _VIDEO_FPS, note, progress)


def write_film(workdir, models, source, comparison, progress):
    """Writes held-out video that has no labels, with each model's classes, as `video.mp4`; returns a `Strip`.

    That is a stretch of consecutive frames where the run has kept one, else one frame of each clip that was compared.

    Args:
      workdir, models, source, comparison, progress: as `write_differing` takes them.
    """
    kept = run_folder.own_video(workdir)
    stretch = kept / FILM
    if stretch.is_dir() and any(stretch.iterdir()):
        frames, note = open_source(stretch), "A stretch of video that is held out, frame by frame"
        rate = (read_manifest(kept) or {}).get("film_rate", _VIDEO_FPS)
        count = min(frames.count, _MOST_FILM_FRAMES)
        moments = itertools.islice(_segmented(frames, models), count)
        return _write_film(workdir, models, moments, count, rate, note, progress)
    count = len(comparison.clips)
    moments = (_compared(source, comparison, i) for i in range(count))
    note = f"One frame of each of {count} held-out clips, in their order"
    return _write_film(workdir, models, moments, count, _CLIPS_FPS, note, progress)


def _segmented(frames, models):
    """Yields frame by frame what `_compared` returns; each model reads the frames by itself, so that none are kept."""
    size = enlarged(np.empty(frames.size, np.uint8)).shape
    predictions = [predict.segment_frames(model, frames, size) for model in models.values()]
    for found in zip(*predictions, strict=True):
        frame = enlarged(found[0][0].pixels, cv2.INTER_CUBIC)
        yield frame, {name: ids for name, (_, ids) in zip(models, found, strict=True)}


def _write_film(workdir, models, moments, count, fps, note, progress):
    palette, legend = next(iter(models.values())).palette, _legend(models)
    every = -(-(count or _MOST_STRIP_FRAMES) // _MOST_STRIP_FRAMES)
    kept = []

    def pictures():
        for i, (frame, classes) in enumerate(moments):
            panels = {"frame": frame} | {name: palette[ids] for name, ids in classes.items()}
            if i % every == 0:
                small = {name: shrunk(x, most=_MOST_STRIP_WIDTH) for name, x in panels.items()}
                kept.append((side_by_side(small), side_by_side(small, below=True)))
            yield side_by_side(panels, legend)

    pictures = pictures()
    first = next(pictures)
    with video_writer(workdir / run_folder.VIDEO, first.shape[:2], fps) as write:
        for picture in itertools.chain([first], pictures):
            write(picture)
    progress(f"report  {workdir / run_folder.VIDEO}")
    films = [photo(*pictures, duration=round(every * 1000 / fps)) for pictures in zip(*kept, strict=True)]
    return Strip(tuple(models), *films, photo(kept[0][0]), note)
