"""Applying a trained network to videos: from Python (`load`), and to files."""

import collections
import colorsys
import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from input_pipeline.flow_files import resize_flow as resize_flow_on_host
from input_pipeline.labels import PALETTE, colour_table
from input_pipeline.optical_flow import dis_flow
from stpl_jax import checkpoint
from stpl_jax.models.accel import make_segmenter
from stpl_jax.ops.resize import argmax_resized, resize_flow
from stpl_jax.ops.warp import warp
from stpl_jax.video import SourceError, open_source, overlay, video_writer, write_image

CLASSES_FOLDER = "classes"
OVERLAYS_FOLDER = "overlays"
OVERLAY_VIDEO = "overlay.mp4"
_SECONDS_BETWEEN_LINES = 2.0


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A trained segmentation network, ready for videos of any size.

    Attributes:
      segmenter: the `Accel`.
      variables: its `params` and `batch_stats`, on the device; the running averages normalise.
      classes: names of the K classes: `classes[i]` is train id i.
      palette: `[256, 3]` uint8 RGB: `palette[ids]` paints a class map.
      size: (height, width) that frames are resized to for the network: that of its training.
      flow_scale: `align_corners` or `public`, how it was trained to resize flow.
      path: the checkpoint.
      description: one line: row, step, path and classes.
      estimate_flow: (frame, earlier), `[H, W, 3]` uint8 RGB at `size`, to flow `[H, W, 2]` where none is given.
    """

    segmenter: Any
    variables: Any = dataclasses.field(repr=False)
    classes: tuple[str, ...]
    palette: np.ndarray = dataclasses.field(repr=False)
    size: tuple[int, int]
    flow_scale: str
    path: Path
    description: str
    estimate_flow: Callable = dis_flow

    def segment(self, frames, flow=None, size=None):
        """Segments a video.

        Args:
          frames: `[T, H, W, 3]` uint8 RGB, in the order of time.
          flow: `[T-1, H, W, 2]` float32, pixels of the H×W grid: `flow[i]` lies on frame i+1's grid and points to where
            each pixel was in frame i, (u, v) to the right and down. None estimates it, by `estimate_flow`.
          size: (height, width) of the class maps; None for the frames' own.

        Returns:
          `[T, H, W]` uint8 train ids.

        Raises:
          ValueError: another shape or type of array.
        """
        frames = _as_array(frames, "frames")
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not frames.size:
            raise ValueError(f"Expected frames [T, H, W, 3] uint8 RGB, found {_describe(frames)}.")
        if flow is not None:
            flow = _as_array(flow, "flow")
            expected = (frames.shape[0] - 1, *frames.shape[1:3], 2)
            if flow.shape != expected:
                raise ValueError(
                    f"Expected flow [T-1, H, W, 2] = {list(expected)} float32 beside frames {list(frames.shape)}, "
                    f"found {_describe(flow)}."
                )
        return np.stack(list(self.segment_stream(frames, flow, size)))

    def segment_stream(self, frames, flows=None, size=None):
        """Segments a video frame by frame: two frames are in memory, however long it is.

        One backbone pass per frame: of the earlier frame the scores before fusion are kept (the first frame is fused
        with itself under zero flow). Results come one frame behind the frames read, so that reading, resizing and flow
        run beside the device.

        Args:
          frames: iterable of `[H, W, 3]` uint8 RGB.
          flows: iterable of `[H, W, 2]` float32, one for each frame but the first; see `segment`.
          size: (height, width) of the class maps; None for the frames' own.

        Yields:
          `[H, W]` uint8 train ids of each frame.

        Raises:
          ValueError: another shape or type of array than the first frame's, or fewer flows than frames.
        """
        flows = None if flows is None else iter(flows)
        shape = earlier = earlier_scores = result = None
        for i, frame in enumerate(frames):
            frame = np.asarray(frame)
            shape = shape or frame.shape
            if frame.ndim != 3 or frame.shape[-1] != 3 or frame.dtype != np.uint8 or not frame.size:
                raise ValueError(f"Frame {i}: expected [H, W, 3] uint8 RGB, found {_describe(frame)}.")
            if frame.shape != shape:
                raise ValueError(
                    f"Frame {i} is {list(frame.shape)}, and frame 0 is {list(shape)}: one size is expected."
                )
            resized = _resize_frame(frame, self.size)
            scores = _score(self.segmenter, self.variables, resized)
            if i == 0:
                earlier_scores, flow = scores, np.zeros((*self.size, 2), np.float32)
            elif flows is None:
                flow = self.estimate_flow(resized, earlier)
            else:
                flow = self._given_flow(next(flows, None), i, shape[:2])
            out_size = tuple(size or shape[:2])
            classes = _fuse(self.segmenter, self.variables, scores, earlier_scores, flow, out_size, self.flow_scale)
            earlier, earlier_scores = resized, scores
            if result is not None:
                yield np.asarray(result)
            result = classes
        if result is not None:
            yield np.asarray(result)

    def _given_flow(self, flow, i, size):
        if flow is None:
            raise ValueError(f"No flow for frame {i}: expected one [H, W, 2] field for each frame but the first.")
        flow = np.asarray(flow)
        if flow.shape != (*size, 2) or not np.issubdtype(flow.dtype, np.floating):
            raise ValueError(
                f"Flow of frame {i}: expected {[*size, 2]} float32 in pixels, found {_describe(flow)}. Flow files hold "
                "int16, ten times the value: divide by 10."
            )
        if not np.isfinite(flow).all():
            raise ValueError(f"Flow of frame {i} has values that are not finite.")
        # In two steps, file to training size to feature grid, as prepared sets have it.
        return resize_flow_on_host(flow, self.size, self.flow_scale)


def load(path, row=None, tell=checkpoint.warn):
    """Loads a trained segmentation network.

    Args:
      path: working directory of a run, folder of one of its rows, folder of checkpoints, or one checkpoint.
      row: with a working directory, which row of its results table; default the method that it adapted with.
      tell: called with a line of text where a damaged checkpoint is left out, or one has no digests; default a warning.

    Returns:
      A `Model`.

    Raises:
      CheckpointError: there is no checkpoint of that row; the message says what there is.
    """
    stored = checkpoint.load_model(path, row, tell=tell)
    checkpoint.check_meta(stored, ("config", "classes", "label_setting"))
    meta, config = stored.meta, stored.meta["config"]
    return Model(
        segmenter=make_segmenter(config["model"], len(meta["classes"])),
        variables=jax.device_put(stored.variables),
        classes=tuple(meta["classes"]),
        palette=_palette(meta["label_setting"], meta["classes"]),
        size=tuple(config["data"]["target"]["size"]),
        flow_scale=config["flow"]["scale"],
        path=stored.path,
        description=stored.description,
    )


def _palette(label_setting, names):
    """Colours `[256, 3]` uint8; where no label setting has these classes: those of known names, and hues far apart."""
    if label_setting:
        return colour_table(label_setting)
    table = np.zeros((256, 3), np.uint8)
    for i, name in enumerate(names):
        hue = i * 0.618 % 1  # of the golden ratio: never near an earlier one for long
        table[i] = PALETTE.get(name) or np.multiply(colorsys.hsv_to_rgb(hue, 0.7, 0.9), 255)
    return table


def predict_files(model, source, output, progress=print):
    """Segments a video file or a folder of frames into files.

    Writes, for each frame, `output/classes/NAME.png` (train ids, one channel) and `output/overlays/NAME.png` (colours
    over the frame), and for a video file `output/overlay.mp4` at its own speed. NAME is the image's name without its
    ending, or the frame's number.

    Args:
      model: a `Model`.
      source: video file, or folder of .png, .jpg and .jpeg files in the order of their names.
      output: folder to write to; made if missing.
      progress: called with lines of text.

    Returns:
      Number of frames.

    Raises:
      SourceError: an input that is not there, is empty, cannot be decoded or changes its size. What can be seen
        beforehand is, before anything is written.
    """
    output, started = Path(output), time.monotonic()
    frames = open_source(source)
    results = [output / name for name in (CLASSES_FOLDER, OVERLAYS_FOLDER, OVERLAY_VIDEO)]
    if frames.path.resolve() in [path.resolve() for path in results]:
        raise SourceError(f"{source} would be overwritten by its own results: give another --output than {output}.")
    for folder in results[:2]:
        folder.mkdir(parents=True, exist_ok=True)
    read = collections.deque()

    def pixels():
        for name, frame in frames:
            read.append((name, frame))
            yield frame

    with contextlib.ExitStack() as stack:
        write_frame = None
        if frames.is_video:
            write_frame = stack.enter_context(video_writer(results[2], frames.size, frames.fps))
        done, told = 0, time.monotonic()
        timed_from, timed_after = told, 0
        for classes in model.segment_stream(pixels()):
            name, frame = read.popleft()
            painted = overlay(frame, classes, model.palette)
            write_image(results[0] / f"{name}.png", classes)
            write_image(results[1] / f"{name}.png", painted)
            if write_frame:
                write_frame(painted)
            done, now = done + 1, time.monotonic()
            if done == 1:
                # The first frame holds the compilation: speed is counted from its end.
                timed_from, timed_after = now, 1
            if now - told > _SECONDS_BETWEEN_LINES:
                told = now
                progress(_progress_line(done, frames.count, now - timed_from, done - timed_after))
    if frames.count and done < frames.count:
        progress(f"predict  {source} announces {frames.count} frames, and {done} could be decoded")
    progress(f"predict  {done} frames written to {output} in {time.monotonic() - started:.1f} s")
    return done


def _progress_line(done, count, seconds, timed):
    parts = [f"predict  {done}/{count} frames" if count else f"predict  {done} frames"]
    if timed and seconds > 0:
        parts.append(f"{timed / seconds:.1f} frames/s")
        if count:
            parts.append(f"about {max(count - done, 0) * seconds / timed:.0f} s left")
    return "  ".join(parts)


# Compiled once for each network, and shared by all models of that network.
@functools.partial(jax.jit, static_argnames="segmenter")
def _score(segmenter, variables, frame):
    """The frame's own scores: `[H, W, 3]` uint8 to `[1, h, w, K]`; running averages normalise."""
    features = segmenter.apply(variables, frame[None, None], method="features")  # [1, 1, h, w, C]
    return segmenter.apply(variables, features.main[0], method="classify_main")


# Compiled once for each size of class maps; no backbone in it.
@functools.partial(jax.jit, static_argnames=("segmenter", "size", "flow_scale"))
def _fuse(segmenter, variables, scores, earlier_scores, flow, size, flow_scale):
    """Class map `[H, W]` uint8 from two frames' own scores `[1, h, w, K]` and the flow between them."""
    flow = resize_flow(flow[None], scores.shape[1:3], flow_scale).astype(scores.dtype)
    fused = segmenter.apply(variables, scores, warp(earlier_scores, flow), method="fuse")
    return argmax_resized(fused[0], size)


def _resize_frame(frame, size):
    """Resizes as the training data is: bicubic, by PIL."""
    return np.asarray(Image.fromarray(frame).resize(size[::-1], Image.Resampling.BICUBIC))


def _as_array(values, name):
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ValueError(f"Expected {name} as one array; its parts differ in shape ({error}).") from error


def _describe(array):
    return f"{array.dtype} {list(array.shape)}"
