"""Random access to the clips of a prepared set, decoding only what is asked for."""

import bisect
import itertools
import json
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from input_pipeline import encoding
from input_pipeline import spec as spec_lib
from input_pipeline.errors import UserError

# What a prepared set holds beside its shards.
FILES = ("dataset_info.json", "features.json", "metadata.json")


class ClipSource:
    """The examples of a prepared set: `len(source)` and `source[i]`, a dict of feature → encoded bytes.

    Pickles as its path, so that it can be sent to worker processes. Where another set takes its place, shards that are
    open can be read on, and the first read of any other is an error.

    Args:
      path: folder of the prepared set.
      needs: `DomainNeeds` of who reads it, None for all of it; the digest is of these parts alone.

    Attributes:
      path: that folder.
      spec: the `DatasetSpec` that the set was prepared with.
      left_out: number of clips that were left out for bad files.
      digest: text that is the same where the parts that are read are, wherever the set lies and whatever else it holds.

    Raises:
      UserError: the set is damaged.
    """

    def __init__(self, path, needs=None):
        self.path, self._needs = Path(path), needs
        try:
            for name in FILES:
                (self.path / name).stat()
            builder = tfds.builder_from_directory(self.path)
            stored = builder.info.metadata
            self.spec = spec_lib.DatasetSpec(**stored["spec"])
            self.left_out, self._digests = stored["left_out"], stored["digests"]
            self.digest = spec_lib.content_digest(self.spec, self._digests, needs)
            keep_encoded = {name: tfds.decode.SkipDecoding() for name in builder.info.features}
            self._records = builder.as_data_source(self.spec.split, decoders=keep_encoded)
            self._shard_ends = list(itertools.accumulate(builder.info.splits[self.spec.split].shard_lengths))
        except Exception as error:
            raise _unreadable(self.path, error) from None
        self._shards_read = set()

    def __getstate__(self):
        return self.path, self._needs, self._digests

    def __setstate__(self, state):
        path, needs, digests = state
        self.__init__(path, needs)
        if self._digests != digests:
            raise _replaced(self.path)

    def __len__(self):
        return len(self._records)

    def __getitem__(self, i):
        if not 0 <= i < len(self):
            raise IndexError(f"{self.path}: asked for clip {i}, the set holds {len(self)}.")
        try:
            record = self._records[i]
            if None in record.values():
                raise ValueError(f"record {i} is empty")
        except Exception as error:
            self._check_not_replaced()
            raise _unreadable(self.path, error) from None
        # A shard that is open stays readable whatever happens to its name; one that is opened now may be another set's.
        shard = bisect.bisect_right(self._shard_ends, i)
        if shard not in self._shards_read:
            self._check_not_replaced()
            self._shards_read.add(shard)
        return record

    def _check_not_replaced(self):
        try:
            now = json.loads((self.path / "metadata.json").read_bytes())["digests"]
        except FileNotFoundError:
            raise _replaced(self.path) from None
        except (ValueError, KeyError, TypeError) as error:
            raise _unreadable(self.path, error) from None
        if now != self._digests:
            raise _replaced(self.path)

    def check(self, offsets, flow_pairs, label=False):
        """Checks that the set holds what a reader wants.

        Args:
          offsets: frame offsets.
          flow_pairs: pairs (a, b).
          label: whether the label is wanted.

        Raises:
          UserError: a frame or a flow is not in the set, says which key adds it; or the set has no labels.
        """
        if label and not self.spec.classes:
            raise UserError(
                f"{self.path}: {self.spec.split} of {self.spec.name} has no labels: nothing can be scored on it, or "
                "trained with labels."
            )
        for what, key, wanted in (
            ("frames at offsets", "offsets", offsets),
            ("flow for the pairs", "flow_pairs", map(tuple, flow_pairs)),
        ):
            held = getattr(self.spec, key)
            if missing := [part for part in wanted if part not in held]:
                raise UserError(
                    f"{self.path}: no {what} {missing}; the set was prepared with {key}={held}. "
                    f"Add them to DatasetSpec.{key} and prepare the set again."
                )


def open_clips(path, needs=None):
    """Opens a prepared set.

    Args:
      path: folder that `prepare` returned.
      needs: `DomainNeeds` of who reads it, None for all of it; see `ClipSource`.

    Returns:
      `ClipSource`.

    Raises:
      UserError: there is no prepared set, or it is damaged.
    """
    # Of a folder that is something else altogether nobody should be told to delete it.
    if not any((Path(path) / name).is_file() for name in FILES):
        raise UserError(f"{path}: expected a prepared set ({', '.join(FILES)}); run prepare first.")
    return ClipSource(path, needs)


def read_clip(source, i, offsets, flow_pairs, label):
    """Reads one clip; frames, flow and labels that are not asked for are not decoded.

    Args:
      source: `ClipSource`.
      i: index of the clip.
      offsets: frame offsets, newest first, T of them.
      flow_pairs: pairs (a, b), P of them.
      label: whether the label is wanted.

    Returns:
      dict of `frames` `[T, H, W, 3]` uint8 RGB, `flow` `[P, H, W, 2]` int16 (ten times the value in pixels), `label`
      `[HL, WL]` uint8 train ids (only where asked), `index` int32, `name` str.

    Raises:
      UserError: the set does not hold what is asked for, or is damaged.
    """
    source.check(offsets, flow_pairs, label)
    example = source[i]
    height, width = source.spec.size
    frames = np.empty((len(offsets), height, width, 3), np.uint8)
    flow = np.empty((len(flow_pairs), height, width, 2), np.int16)
    try:
        for t, k in enumerate(offsets):
            frames[t] = encoding.decode_frame(example[f"frame_{k}"])
        for p, (a, b) in enumerate(flow_pairs):
            flow[p] = encoding.decode_flow(example[f"flow_{a}_{b}"])
        clip = {"frames": frames, "flow": flow, "index": np.int32(i), "name": example["name"].decode()}
        if label:
            clip["label"] = encoding.decode_image(example["label"])
    except Exception as error:
        raise _unreadable(source.path, error) from None
    return clip


def _unreadable(path, error):
    if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
        return error  # of the disk or of rights, and not of what the set holds
    return UserError(
        f"The prepared set {path} cannot be read ({type(error).__name__}: {error}). Delete {path}: the next run "
        "prepares it again."
    )


def _replaced(path):
    return UserError(
        f"{path} was prepared anew from other raw files, or removed, while it was being read. Start again: a run goes "
        "on from its last checkpoint."
    )
