"""The pictures of a report: frames with predictions and label, and a video of the network before and after."""

import dataclasses
import io
import itertools

import cv2
import numpy as np
from PIL import Image

from input_pipeline import run_folder
from input_pipeline.clips import read_clip
from input_pipeline.domains import open_domain, with_world
from input_pipeline.labels import CLASSES, PALETTE
from stpl_jax import checkpoint, predict
from stpl_jax.frames import open_source
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


@dataclasses.dataclass(frozen=True)
class Picture:
    """One validation frame, with what the networks see in it.

    Attributes:
      name: of the clip.
      path: of the PNG with all panels, relative to the run's folder.
      panels: caption -> image file, as bytes: frame, each network's classes, label.
    """

    name: str
    path: str
    panels: dict[str, bytes] = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class Strip:
    """A short film of the frame and each network's classes, as animated images: image files, as bytes.

    Attributes:
      captions: of the panels.
      wide: panels beside each other.
      tall: panels below each other, for narrow screens.
      still: the first picture of `wide`, for those who want nothing to move.
      size: (height, width) of `wide`.
    """

    captions: tuple[str, ...]
    wide: bytes = dataclasses.field(repr=False)
    tall: bytes = dataclasses.field(repr=False)
    still: bytes = dataclasses.field(repr=False)
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


def film(pictures, milliseconds=0):
    """Encodes `[H, W, 3]` uint8 RGB, a list, with losses that are hard to see: WebP, as bytes.

    Each picture is shown for so long, and the first follows the last; one alone stands still.
    """
    first, *others = map(Image.fromarray, pictures)
    moving = dict(save_all=True, append_images=others, duration=round(milliseconds), loop=0) if others else {}
    return _encoded(first, format="WEBP", quality=80, method=4, **moving)


def page_photo(frame):
    """Encodes a frame `[H, W, 3]` uint8 RGB for a page, where it is no wider than is seen: WebP, as bytes."""
    return film([_resize(frame, _page_size(frame, _MOST_PAGE_WIDTH), cv2.INTER_AREA)])


def page_classes(ids, palette):
    """Encodes a class map `[H, W]` uint8 for a page, in the colours of `palette` `[256, 3]`: PNG, as bytes."""
    image = Image.fromarray(_resize(ids, _page_size(ids, _MOST_PAGE_WIDTH), cv2.INTER_NEAREST))
    image.putpalette(palette.tobytes())
    return _encoded(image, format="PNG", optimize=True)


def enlarged(pixels):
    """Encodes a small `[h, w, 3]` uint8 RGB, each of whose pixels is to be seen: PNG, as bytes."""
    return _encoded(Image.fromarray(_resize(pixels, _panel_size(pixels), cv2.INTER_NEAREST)), format="PNG")


def _encoded(image, **settings):
    file = io.BytesIO()
    image.save(file, **settings)
    return file.getvalue()


def _panel_size(pixels):
    height, width = pixels.shape[:2]
    factor = -(-_LEAST_PANEL_WIDTH // width)
    return height * factor, width * factor


def _page_size(pixels, most):
    height, width = pixels.shape[:2]
    return (height, width) if width <= most else (round(height * most / width), most)


def _resize(pixels, size, interpolation):
    return pixels if pixels.shape[:2] == size else cv2.resize(pixels, size[::-1], interpolation=interpolation)


def _legend(config):
    return {name: PALETTE[name] for name in CLASSES[config.data.classes]}


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
    pictures = []
    for i in np.unique(np.linspace(0, len(source) - 1, min(config.report.frames, len(source))).round().astype(int)):
        clip = read_clip(source, int(i), *scored_parts(source), label=True)
        # Clips are newest first, a video oldest first; stored flow is in tenths of a pixel.
        frames, flow = clip["frames"][::-1], clip["flow"][::-1].astype(np.float32) / 10
        size = _panel_size(frames[-1])
        frame = _resize(frames[-1], size, cv2.INTER_CUBIC)
        classes = {name: model.segment(frames, flow, size)[-1] for name, model in models.items()}
        classes["label"] = _resize(clip["label"], size, cv2.INTER_NEAREST)
        path = f"{run_folder.FRAMES}/{clip['name']}.png"
        panels = {"frame": frame} | {name: palette[ids] for name, ids in classes.items()}
        write_image(workdir / path, side_by_side(panels, _legend(config)))
        panels = {"frame": page_photo(frame)} | {name: page_classes(ids, palette) for name, ids in classes.items()}
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
    size = _panel_size(np.empty(frames.size))
    every = -(-(frames.count or _MOST_STRIP_FRAMES) // _MOST_STRIP_FRAMES)
    kept = []

    def pictures():
        # Each model reads the frames by itself, so that none need be kept.
        predictions = [predict.segment_frames(model, frames, size) for model in models.values()]
        for i, found in enumerate(zip(*predictions, strict=True)):
            panels = {"frame": _resize(found[0][0].pixels, size, cv2.INTER_CUBIC)}
            panels |= {name: palette[ids] for name, (_, ids) in zip(models, found, strict=True)}
            if i % every == 0:
                small = {n: _resize(x, _page_size(x, _MOST_STRIP_WIDTH), cv2.INTER_AREA) for n, x in panels.items()}
                kept.append((side_by_side(small), side_by_side(small, below=True)))
            yield side_by_side(panels, _legend(config))

    pictures = pictures()
    first = next(pictures)
    with video_writer(workdir / run_folder.VIDEO, first.shape[:2], _VIDEO_FPS) as write:
        for picture in itertools.chain([first], pictures):
            write(picture)
    progress(f"report  {workdir / run_folder.VIDEO}")
    wide, tall = zip(*kept, strict=True)
    films = [film(pictures, every * 1000 / _VIDEO_FPS) for pictures in (wide, tall)]
    return Strip(("frame", *models), *films, film(wide[:1]), wide[0].shape[:2])
