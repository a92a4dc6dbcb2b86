"""Applying a trained network to videos: from Python (`load`), and to files."""

import collections
import contextlib
import dataclasses
import functools
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from input_pipeline import optical_flow
from input_pipeline.errors import Incomplete, UserError, capped
from input_pipeline.files import expand
from input_pipeline.flow_files import resize_flow as resize_flow_on_host
from input_pipeline.frames import open_source
from input_pipeline.labels import colour_table
from input_pipeline.video_packets import Losses
from stpl_jax import checkpoint, frame_arrays, loss_lines, result_folder
from stpl_jax.models import frame_statistics, make_segmenter, with_frame_statistics
from stpl_jax.ops.resize import argmax_resized, resize_flow
from stpl_jax.result_folder import CLASSES_FOLDER, OVERLAY_VIDEO, OVERLAYS_FOLDER
from stpl_jax.run_lock import run_lock
from stpl_jax.video import fit, overlay, video_writer, write_image

_SECONDS_BETWEEN_LINES = 2.0


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A trained segmentation network, ready for videos of any size.

    Attributes:
      segmenter: the `Network`.
      variables: its `params` and `batch_stats`, on the device.
      classes: names of the classes: `classes[i]` is train id i.
      palette: `[256, 3]` uint8 RGB: `palette[ids]` paints a class map.
      size: (height, width) that frames are resized to for the network: that of its training.
      flow_scale: `align_corners` or `public`, how it was trained to resize flow.
      path: the checkpoint.
      description: one line: row, step, path and classes.
      groups: which of `classes` each of the network's K classes counts as, see `class_maps.class_indices`; None where
        they are the same.
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
    groups: tuple[int, ...] | None = None
    estimate_flow: Callable = optical_flow.DEFAULT.function

    def segment(self, frames, flow=None, size=None):
        """Segments a video.

        Args:
          frames: `[T, H, W, 3]` uint8 RGB, in the order of time; an array, or a list of frames or PIL images.
          flow: `[T-1, H, W, 2]` float32, pixels of the H×W grid: `flow[i]` lies on frame i+1's grid and points to where
            each pixel was in frame i, (u, v) to the right and down. None estimates it, by `estimate_flow`.
          size: (height, width) of the class maps; None for the frames' own.

        Returns:
          `[T, H, W]` uint8 train ids.

        Raises:
          UserError: another shape or type of array; says how to convert it.
        """
        frames = frame_arrays.video_array(frames)
        flow = None if flow is None else frame_arrays.flows_array(flow, frames.shape)
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
          UserError: another shape or type of array than the first frame's, or another number of flows than goes with
            the frames.
        """
        size, flows = frame_arrays.size_pair(size), None if flows is None else iter(flows)
        shape = earlier = earlier_scores = result = None
        for i, frame in enumerate(frames):
            frame = frame_arrays.frame_array(frame, i)
            shape = shape or frame.shape
            if frame.shape != shape:
                raise UserError(
                    f"Frame {i} is {list(frame.shape)}, and frame 0 is {list(shape)}: one size is expected."
                )
            resized = _resize_frame(frame, self.size)
            scores = _score(self.segmenter, self.variables, resized)
            if i == 0 or (flows is None and self.segmenter.fusion is None):
                earlier_scores, flow = scores, np.zeros((*self.size, 2), np.float32)
            elif flows is None:
                flow = self.estimate_flow(resized, earlier)
            else:
                flow = self._given_flow(next(flows, None), i, shape[:2])
            out_size = size or shape[:2]
            classes = _fuse(
                self.segmenter, self.variables, scores, earlier_scores, flow, out_size, self.flow_scale, self.groups
            )
            earlier, earlier_scores = resized, scores
            if result is not None:
                yield np.asarray(result)
            result = classes
        if result is not None:
            yield np.asarray(result)
        if result is not None and flows is not None and next(flows, None) is not None:
            raise UserError(
                f"More flow than {i} fields for {i + 1} frames. Flow lies between two frames, one field less than "
                "frames: flow[i] on the grid of frame i+1. The classes were made with the first ones."
            )

    def _given_flow(self, flow, i, size):
        if flow is None:
            raise UserError(f"No flow for frame {i}: expected one [H, W, 2] field for each frame but the first.")
        flow = frame_arrays.flow_array(flow, i, size)
        # In two steps, file to training size to feature grid, as prepared sets have it.
        return resize_flow_on_host(flow, self.size, self.flow_scale)


def load(path, row=None, network=None, tell=checkpoint.warn):
    """Loads a trained segmentation network.

    Args:
      path: working directory of a run, folder of one of its rows, folder of checkpoints, or one checkpoint.
      row: with a working directory, which row of its results table; default the method that it adapted with.
      network: the `Network` whose weights these are, where it was given from Python.
      tell: called with a line of text where a damaged checkpoint is left out, or one has no digests; default a warning.

    Returns:
      A `Model`.

    Raises:
      CheckpointError: there is no checkpoint of that row; the message says what there is.
    """
    stored = checkpoint.load_model(path, row, tell=tell)
    meta, config = stored.meta, stored.meta.config
    meta.require(stored.path, "config", "classes")
    network = network or make_segmenter(config["model"], len(meta.classes))
    return Model(
        segmenter=with_frame_statistics(network, frame_statistics(config)),
        variables=jax.device_put(stored.variables),
        classes=meta.classes,
        palette=colour_table(meta.classes, meta.label_setting),
        size=tuple(config["data"]["target"]["size"]),
        flow_scale=config["flow"]["scale"],
        path=stored.path,
        description=stored.description,
    )


def segment_frames(model, frames, size=None):
    """Segments frames video by video: none is fused with a frame of another video, which may have another size.

    Args:
      model: a `Model`.
      frames: iterable of `Frame`; two are in memory.
      size: (height, width) of the class maps; None for the frames' own.

    Yields:
      (`Frame`, `[H, W]` uint8 train ids).
    """
    for _, video in itertools.groupby(frames, key=lambda frame: frame.video):
        yield from _segment_video(model, video, size)


def _segment_video(model, frames, size):
    read = collections.deque()

    def pixels():
        for frame in frames:
            read.append(frame)
            yield frame.pixels

    for classes in model.segment_stream(pixels(), size=size):
        yield read.popleft(), classes


def predict_files(model, source, output, progress=print):
    """Segments a video file, a folder of frames or one picture into files.

    Writes, for each frame, `output/classes/NAME.png` (train ids, one channel) and `output/overlays/NAME.png` (colours
    over the frame), and for a video file `output/overlay.mp4`, each frame for as long as in the original. NAME is the
    image's name without its ending, or the frame's number in the video. `output/predict.json` says what was written; by
    it a later predict into the same folder removes these results.

    Args:
      model: a `Model`.
      source: as `frames.open_source` takes it.
      output: folder to write to; made if missing.
      progress: called with lines of text.

    Returns:
      Number of frames.

    Raises:
      SourceError: an input that is not there, is empty, or cannot be decoded. What can be seen beforehand is, before
        anything is written.
      UserError: the results would replace their input or other files that predict did not write.
      OSError: a result cannot be written. What is written by then stays.
      Incomplete: all that can be is written, and part of the input could not be read.
    """
    output, started = expand(output), time.monotonic()
    frames = open_source(source)
    for line in frames.notes:
        progress(f"predict  {line}")
    manifest = {"model": str(model.path), "classes": list(model.classes)}
    with run_lock(output, progress, ".lock", "--output"):
        return _predict_alone(model, frames, output, manifest, started, progress)


def _predict_alone(model, frames, output, manifest, started, progress):
    result_folder.prepare(output, frames, manifest, progress)
    losses, written = Losses(), _Written()
    try:
        _write_results(model, frames, output, losses, written, progress)
    except BaseException:
        # Where the disk is full, the manifest from the beginning stays: it names what may be there.
        with contextlib.suppress(OSError):
            result_folder.write_manifest(output, frames, manifest, written.names, False)
        video = f", without {OVERLAY_VIDEO}" if frames.is_video else ""
        progress(f"predict  stopped: {_summary(written, output, losses, started)}{video}")
        raise
    result_folder.write_manifest(output, frames, manifest, written.names, True)
    for line in loss_lines.lines(losses):
        progress(f"predict  {frames.path}: {line}")
    progress(f"predict  {_summary(written, output, losses, started)}")
    if losses or frames.left_out:
        lost = loss_lines.in_short(losses) or f"left out: {', '.join(capped(frames.left_out, 10))}"
        raise Incomplete(f"{frames.path} was not segmented completely ({lost}). Results of the rest are in {output}.")
    return written.frames


@dataclasses.dataclass
class _Written:
    """Names of the frames that have results, the one that is being written included, and the number that is done."""

    names: list = dataclasses.field(default_factory=list)
    frames: int = 0


def _summary(written, output, losses, started):
    lost = loss_lines.in_short(losses)
    count = f"{written.frames} frame{'' if written.frames == 1 else 's'}"
    return f"{count} written to {output} in {time.monotonic() - started:.1f} s" + (f"; {lost}" if lost else "")


def _write_results(model, frames, output, losses, written, progress):
    """Segments the frames into files; counts them in `written`."""
    with contextlib.ExitStack() as stack:
        write_frame = None
        if frames.is_video:
            write_frame = stack.enter_context(video_writer(output / OVERLAY_VIDEO, frames.size, frames.rate))
        told = timed_from = time.monotonic()
        timed_after, sizes = 0, {frames.size}
        for frame, classes in segment_frames(model, frames.read(losses)):
            painted = overlay(frame.pixels, classes, model.palette)
            written.names.append(frame.name)
            write_image(output / CLASSES_FOLDER / f"{frame.name}.png", classes)
            write_image(output / OVERLAYS_FOLDER / f"{frame.name}.png", painted)
            if write_frame:
                size = frame.pixels.shape[:2]
                if size not in sizes:
                    sizes.add(size)
                    told_size = f"{size[0]}x{size[1]} pixels, to {frames.size[0]}x{frames.size[1]}"
                    progress(
                        f"predict  {OVERLAY_VIDEO} keeps its size: frames as {frame.name} are brought from {told_size}"
                    )
                write_frame(fit(painted, frames.size), frame.start, frame.duration)
            written.frames += 1
            done, now = written.frames, time.monotonic()
            if done == 1:
                # The first frame holds the compilation: speed is counted from its end.
                timed_from, timed_after = now, 1
            if now - told > _SECONDS_BETWEEN_LINES:
                told = now
                progress(_progress_line(done, frames.count, now - timed_from, done - timed_after))


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
    """The frame's own scores: `[H, W, 3]` uint8 to `[1, h, w, K]`."""
    features, _ = segmenter.features(variables, frame[None, None])  # [1, 1, h, w, C]
    return segmenter.classify(variables["params"], features.replace(auxiliary=None)).main[0]


# Compiled once for each size of class maps; no backbone in it.
@functools.partial(jax.jit, static_argnames=("segmenter", "size", "flow_scale", "groups"))
def _fuse(segmenter, variables, scores, earlier_scores, flow, size, flow_scale, groups):
    """Class map `[H, W]` uint8 from two frames' own scores `[1, h, w, K]` and the flow between them."""
    flow = resize_flow(flow[None], scores.shape[1:3], flow_scale)
    return argmax_resized(segmenter.fuse(variables["params"], scores, earlier_scores, flow)[0], size, groups=groups)


def _resize_frame(frame, size):
    """Resizes as the training data is: bicubic, by PIL."""
    return np.asarray(Image.fromarray(frame).resize(size[::-1], Image.Resampling.BICUBIC))
