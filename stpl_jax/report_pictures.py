"""The pictures of a report: frames with predictions and label, and a video of the network before and after."""

import dataclasses
import itertools

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from input_pipeline import run_folder
from input_pipeline.clips import read_clip
from input_pipeline.domains import open_domain, with_world
from input_pipeline.flow_files import to_pixels
from input_pipeline.labels import CLASSES, PALETTE
from stpl_jax import checkpoint, predict
from stpl_jax.frames import open_source
from stpl_jax.model_choice import row_model
from stpl_jax.page.data_uri import classes_uri, film_uri, photo_uri
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


@dataclasses.dataclass(frozen=True)
class Picture:
    """One validation frame, with what the networks see in it.

    Attributes:
      name: of the clip.
      path: of the PNG with all panels, relative to the run's folder.
      panels: caption -> image as a data URI: frame, each network's classes, label.
    """

    name: str
    path: str
    panels: dict[str, str] = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class Strip:
    """A short film of the frame and each network's classes, as animated images in data URIs.

    Attributes:
      captions: of the panels.
      wide: panels beside each other.
      tall: panels below each other, for narrow screens.
      still: the first picture of `wide`, for those who want nothing to move.
      size: (height, width) of `wide`.
    """

    captions: tuple[str, ...]
    wide: str = dataclasses.field(repr=False)
    tall: str = dataclasses.field(repr=False)
    still: str = dataclasses.field(repr=False)
    size: tuple[int, int]


def load_models(config, workdir, evaluations, progress):
    """Loads the networks to show: caption -> `Model`, source-only first."""
    models = {}
    for row in dict.fromkeys(("source_only", config.method)):
        if row not in evaluations:
            continue
        try:
            path = row_model(config, workdir, row) or run_folder.checkpoints(workdir, row)
            models[row] = predict.load(path, tell=progress)
        except checkpoint.CheckpointError as error:
            progress(f"report  no pictures of {row}: {error}")
    return models


def _panel_size(size):
    factor = -(-_LEAST_PANEL_WIDTH // size[1])
    return size[0] * factor, size[1] * factor


def _resize(pixels, size, interpolation):
    return pixels if pixels.shape[:2] == size else cv2.resize(pixels, size[::-1], interpolation=interpolation)


def _legend(config):
    return {name: PALETTE[name] for name in CLASSES[config.data.classes]}


def _page_size(size, most):
    """The size in the page: no wider than that."""
    return size if size[1] <= most else (round(size[0] * most / size[1]), most)


def write_pictures(config, workdir, models, progress):
    """Writes pictures of clips spread evenly over the validation set.

    Args:
      config: the run's configuration.
      workdir: the run's folder.
      models: caption -> `Model`, at least one.
      progress: called with lines of text.

    Returns:
      List of `Picture`.
    """
    if not config.report.frames:
        return []
    source = open_domain(config, workdir, "val", progress=progress)
    palette = next(iter(models.values())).palette
    size = _panel_size(source.spec.size)
    small = _page_size(size, _MOST_PAGE_WIDTH)
    pictures = []
    for i in np.unique(np.linspace(0, len(source) - 1, min(config.report.frames, len(source))).round().astype(int)):
        clip = read_clip(source, int(i), *scored_parts(source), label=True)
        # Clips are newest first, a video oldest first.
        frames, flow = clip["frames"][::-1], to_pixels(clip["flow"][::-1])
        classes = {name: model.segment(frames, flow, size)[-1] for name, model in models.items()}
        classes["label"] = _resize(clip["label"], size, cv2.INTER_NEAREST)
        frame = _resize(clip["frames"][0], size, cv2.INTER_CUBIC)
        path = f"{run_folder.FRAMES}/{clip['name']}.png"
        panels = {"frame": frame} | {name: palette[ids] for name, ids in classes.items()}
        write_image(workdir / path, side_by_side(panels, _legend(config)))
        panels = {"frame": photo_uri(_resize(frame, small, cv2.INTER_AREA))}
        panels |= {name: classes_uri(_resize(x, small, cv2.INTER_NEAREST), palette) for name, x in classes.items()}
        pictures.append(Picture(clip["name"], path, panels))
    progress(f"report  {len(pictures)} pictures in {workdir / run_folder.FRAMES}")
    return pictures


def write_video(config, workdir, models, progress):
    """Writes the generated street that has no labels, with both predictions, as `video.mp4`.

    Args:
      config: the run's configuration.
      workdir: the run's folder.
      models: caption -> `Model`, at least one.
      progress: called with lines of text.

    Returns:
      The same as a `Strip`.
    """
    frames = open_source(with_world(config, workdir, progress).world.video)
    palette = next(iter(models.values())).palette
    size = _panel_size(frames.size)
    small = _page_size(size, _MOST_STRIP_WIDTH)
    every = -(-(frames.count or _MOST_STRIP_FRAMES) // _MOST_STRIP_FRAMES)
    kept = []

    def pictures():
        # Each model reads the frames by itself, so that none need be kept.
        predictions = [predict.segment_frames(model, frames, size) for model in models.values()]
        for i, found in enumerate(zip(*predictions, strict=True)):
            panels = {"frame": _resize(found[0][0].pixels, size, cv2.INTER_CUBIC)}
            panels |= {name: palette[ids] for name, (_, ids) in zip(models, found, strict=True)}
            if i % every == 0:
                kept.append([_resize(x, small, cv2.INTER_AREA) for x in panels.values()])
            yield side_by_side(panels, _legend(config))

    pictures = pictures()
    first = next(pictures)
    with video_writer(workdir / run_folder.VIDEO, first.shape[:2], _VIDEO_FPS) as write:
        for picture in itertools.chain([first], pictures):
            write(picture)
    progress(f"report  {workdir / run_folder.VIDEO}")
    return _make_strip(("frame", *models), kept, every * 1000 / _VIDEO_FPS)


def _make_strip(captions, kept, milliseconds):
    """Puts panels `[H, W, 3]` uint8 RGB, a list of them for each moment, into a `Strip`."""
    height, width = kept[0][0].shape[:2]
    gap = max(2, width // 64)

    def joined(panels, down, across):
        image = Image.new("RGB", (width + across * (len(panels) - 1), height + down * (len(panels) - 1)), "white")
        for i, (caption, pixels) in enumerate(zip(captions, panels, strict=True)):
            image.paste(Image.fromarray(pixels), (i * across, i * down))
            _caption(image, (i * across, i * down), caption, max(11, width // 22))
        return image

    wide = [joined(panels, 0, width + gap) for panels in kept]
    tall = [joined(panels, height + gap, 0) for panels in kept]
    films = [film_uri(pictures, milliseconds) for pictures in (wide, tall)]
    return Strip(captions, *films, photo_uri(np.asarray(wide[0])), wide[0].size[::-1])


def _caption(image, corner, text, size):
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size)
    x, y = corner[0] + size // 2, corner[1] + size // 2
    left, top, right, bottom = draw.textbbox((x, y), text, font)
    inset = size // 4
    draw.rectangle((left - inset, top - inset, right + inset, bottom + inset), "white")
    draw.text((x, y), text, "black", font)
