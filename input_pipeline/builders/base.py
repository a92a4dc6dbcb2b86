"""Writes prepared sets: a clip's raw files to one stored example.

Examples hold encoded PNG throughout, so that no TensorFlow is needed to write or read them, and a reader decodes only
what it asks for:

    name          text
    frame_{k}     RGB PNG at the spec's size, one for each offset k
    label         grey PNG of train ids, 255 = ignored; not in a split without labels
    flow_{a}_{b}  grey 16-bit PNG [2H, W]: u above v, ten times the value in pixels plus 32768
"""

import dataclasses
import functools
import itertools

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from input_pipeline import encoding, flow_files, label_files, labels, optical_flow
from input_pipeline import spec as spec_lib
from input_pipeline.dataset import ego_vehicle
from input_pipeline.datasets import DATASETS
from input_pipeline.errors import UserError
from input_pipeline.images import read_image
from input_pipeline.ordered_map import ordered_map
from input_pipeline.progress import Progress

# TFDS keeps the examples of one shard in memory while it writes it: this bounds their size before compression.
_SHARD_BYTES = 256 * 2**20


def read_frame(path, spec):
    """Reads a frame as the network is to see it: as a person sees it, cut, then resized bicubic by PIL.

    Args:
      path: image file.
      spec: `DatasetSpec`.

    Returns:
      `[H, W, 3]` uint8 RGB at `spec.size`.

    Raises:
      UserError: the file cannot be read as an image; names it.
    """
    image = read_image(path)
    rows = DATASETS[spec.name].rows_kept(image.height)
    if rows != image.height:
        image = image.crop((0, 0, image.width, rows))
    return np.asarray(image.resize(spec.size[::-1], Image.Resampling.BICUBIC))


def read_label(path, spec):
    """Reads a label as train ids: recording car ignored, cut, then resized nearest by PIL.

    Args:
      path: label file.
      spec: `DatasetSpec`.

    Returns:
      `[H, W]` uint8 train ids, 255 = ignored, at `spec.label_size` or at the file's own size (after the cut).

    Raises:
      UserError: the file holds no class ids; names it.
    """
    dataset, ids = DATASETS[spec.name], label_files.read_ids(path, spec.name)
    classes = labels.train_id_table(spec.name, spec.classes)[ids]
    if dataset.ego_id is not None:
        classes[ego_vehicle(ids == dataset.ego_id)] = labels.IGNORED
    classes = classes[: dataset.rows_kept(classes.shape[0])]
    if spec.label_size is None or spec.label_size == classes.shape:
        return classes
    return np.asarray(Image.fromarray(classes).resize(spec.label_size[::-1], Image.Resampling.NEAREST))


def read_stored_flow(path, spec, raw_size):
    """Reads precomputed flow at the training size: cut where it has the raw frames' size, then resized.

    Args:
      path: flow file.
      spec: `DatasetSpec`.
      raw_size: (height, width) of the raw frames.

    Returns:
      `[H, W, 2]` int16 (ten times the value in pixels) at `spec.size`.

    Raises:
      UserError: the file cannot be read, or not every pixel has flow that can be stored; names it.
    """
    flow = flow_files.read_flow(path)
    if flow.shape[:2] == raw_size:
        flow = flow[: DATASETS[spec.name].rows_kept(raw_size[0])]
    if flow.shape[:2] != spec.size:
        flow = flow_files.resize_flow(flow, spec.size, spec.flow_scale)
    try:
        return flow_files.to_int16(flow)
    except UserError as error:
        raise UserError(f"{path}, resized to {spec.size[0]}x{spec.size[1]}: {error}") from None


def make_example(clip, spec, raw_size):
    """Turns a clip's files into one example.

    Args:
      clip: `ClipFiles`.
      spec: `DatasetSpec`.
      raw_size: (height, width) of the raw frames.

    Returns:
      dict of the features in the module's table: text and encoded PNG.
    """
    frames = {k: read_frame(path, spec) for k, path in clip.frames.items()}
    example = {"name": clip.name}
    if spec.classes:
        example["label"] = encoding.encode_image(read_label(clip.label, spec))
    for k, frame in frames.items():
        example[f"frame_{k}"] = encoding.encode_frame(frame)
    for a, b in spec.flow_pairs:
        if spec.flow_source == "precomputed":
            flow = read_stored_flow(clip.flows[a, b], spec, raw_size)
        else:
            estimator = optical_flow.ESTIMATORS[spec.flow_source]
            flow = flow_files.to_int16(estimator.function(frames[a], frames[b]))
        example[f"flow_{a}_{b}"] = encoding.encode_flow(flow)
    return example


@dataclasses.dataclass(frozen=True)
class Checked:
    """The raw files of a set, all of them read, and nothing wrong with what is left.

    Attributes:
      clips: the `ClipFiles` to prepare.
      raw_size: (height, width) of the raw frames.
      left_out: number of clips that are left out for bad files.
      files: dict of name -> path of all files, with those of clips that are left out.
      seen: dict of name -> (bytes, time) or None of these files, as they were before they were read.
    """

    clips: tuple = dataclasses.field(repr=False)
    raw_size: tuple[int, int]
    left_out: int
    files: dict = dataclasses.field(repr=False)
    seen: dict = dataclasses.field(repr=False)


@dataclasses.dataclass
class ClipConfig(tfds.core.BuilderConfig):
    """TFDS configuration of one preparation.

    Attributes:
      spec: `DatasetSpec`.
      checked: the `Checked` files.
      digests: {feature: digest of the raw files that it comes from}, which tells the raw set from another in the same
        place.
      report: called with lines of progress.
      threads: number of threads that read and encode.
    """

    spec: spec_lib.DatasetSpec | None = None
    # TFDS prints configurations; a hundred thousand paths are left out of that.
    checked: Checked | None = dataclasses.field(default=None, repr=False)
    digests: dict = dataclasses.field(default_factory=dict, repr=False)
    report: object = dataclasses.field(default=print, repr=False)
    threads: int = 1


class ClipBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
    """Writes clips shard after shard, in order of their names.

    TFDS's `GeneratorBasedBuilder` shuffles through temporary files that it opens with TensorFlow once a set passes a
    gigabyte; writing shards directly needs neither, and shuffling is the loader's work.
    """

    name = "clips"
    VERSION = tfds.core.Version(spec_lib.VERSION)

    def _create_builder_config(self, builder_config, version):
        """Takes the configuration as it is: TFDS would warn of each that is not in a list known beforehand."""
        del version
        return builder_config

    def _log_download_bytes(self):
        """Says nothing: nothing is downloaded, and the configuration's `report` tells the progress."""

    def _log_download_done(self):
        """Says nothing, for the same reason."""

    def _info(self):
        spec = self.builder_config.spec
        height, width = spec.size
        features = {"name": tfds.features.Text()}
        for k in spec.offsets:
            features[f"frame_{k}"] = tfds.features.Image(shape=(height, width, 3), encoding_format="png")
        if spec.classes:
            features["label"] = tfds.features.Image(shape=(None, None, 1), encoding_format="png")
        for a, b in spec.flow_pairs:
            features[f"flow_{a}_{b}"] = tfds.features.Image(
                shape=(2 * height, width, 1), dtype=np.uint16, encoding_format="png"
            )
        stored = {
            "spec": dataclasses.asdict(spec),
            "left_out": self.builder_config.checked.left_out,
            "digests": self.builder_config.digests,
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"Clips of {spec.name} for semantic segmentation of video.",
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(stored),
        )

    def _shard_iterators_per_split(self, dl_manager):
        del dl_manager
        config = self.builder_config
        spec, clips = config.spec, config.checked.clips
        values = spec.size[0] * spec.size[1] * (3 * len(spec.offsets) + 4 * len(spec.flow_pairs) + 1)
        per_shard = max(1, _SHARD_BYTES // values)
        counter = Progress(config.report, f"{spec.name}/{spec.split}: preparing clips", len(clips))

        def keyed():
            encode = functools.partial(make_example, spec=spec, raw_size=config.checked.raw_size)
            for example in ordered_map(encode, clips, config.threads):
                counter.step()
                yield example["name"], example

        # All shards draw from one stream, so that the threads never idle between two shards.
        stream = keyed()
        shards = -(-len(clips) // per_shard)
        return {spec.split: [lambda: itertools.islice(stream, per_shard) for _ in range(shards)]}
