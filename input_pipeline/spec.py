"""What a prepared set holds: which data set, which frames and flow, at which size."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path

from input_pipeline import labels, optical_flow
from input_pipeline.errors import UserError
from input_pipeline.files import read_text_lines

# Changes whenever the same files and the same spec would give other prepared content.
VERSION = "1.1.0"

DATASETS = ("viper", "synthia_seq", "cityscapes_seq")


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """One data set, as it is to be prepared.

    Attributes:
      name: `viper`, `synthia_seq` or `cityscapes_seq`.
      raw_dir: the owner's folder, the one that holds `train/img`, `leftImg8bit_sequence` or `SYNTHIA-SEQS-*`.
      split: `train` or `val`. SYNTHIA-Seq has no split folders: every split reads all of it, `list_file` divides it.
      classes: label setting, `viper` or `synthia_seq`.
      size: (height, width) that frames and flow are resized to (frames bicubic by PIL). SYNTHIA-Seq loses its bottom
        120 rows (of 760) first.
      label_size: (height, width) that labels are resized to (nearest by PIL). None keeps the file's size, for scoring.
      offsets: frames kept, newest first: 0 is x_t, 1 is x_{t-1}, …
      flow_pairs: flow kept, pairs (a, b) with a < b: on x_{t-a}'s grid, pointing into x_{t-b}.
      flow_source: `precomputed` (read from files), or an entry of `optical_flow.ESTIMATORS`, which estimates it on the
        resized frames while preparing.
      flow_dir: with `precomputed`, the folder that holds the files, flat or in a sub-folder named after the split.
      flow_estimator: with `precomputed`, what the run estimated the files with; empty for files made elsewhere.
      flow_scale: how values scale when precomputed flow is resized: `align_corners` or `public` (see `resize_flow`).
      list_file: restricts the set to the frames it names, one a line; empty for all labelled frames.
      skip_bad: leaves clips with bad files out instead of stopping.

    Raises:
      UserError: a value is unknown, or two do not fit together.
    """

    name: str
    raw_dir: str
    split: str
    classes: str
    size: tuple[int, int]
    label_size: tuple[int, int] | None
    offsets: tuple[int, ...]
    flow_pairs: tuple[tuple[int, int], ...]
    flow_source: str
    flow_dir: str = ""
    flow_estimator: str = ""
    flow_scale: str = "align_corners"
    list_file: str = ""
    skip_bad: bool = False

    def __post_init__(self):
        # Configs and JSON give lists; tuples make equal specs compare equal.
        object.__setattr__(self, "size", tuple(self.size))
        object.__setattr__(self, "label_size", None if self.label_size is None else tuple(self.label_size))
        object.__setattr__(self, "offsets", tuple(self.offsets))
        object.__setattr__(self, "flow_pairs", tuple(tuple(pair) for pair in self.flow_pairs))
        labels.train_id_table(self.name, self.classes)
        _expect(self.split in ("train", "val"), "split", self.split, "'train' or 'val'")
        _expect(_is_size(self.size), "size", self.size, "(height, width), both at least 2")
        _expect(self.label_size is None or _is_size(self.label_size), "label_size", self.label_size, "a size or None")
        ordered = sorted(set(self.offsets))
        _expect(
            list(self.offsets) == ordered and ordered[:1] == [0],
            "offsets",
            self.offsets,
            "frame offsets that start with 0 and rise, such as (0, 1)",
        )
        for pair in self.flow_pairs:
            _expect(
                len(pair) == 2 and pair[0] < pair[1] and set(pair) <= set(self.offsets),
                "flow_pairs",
                pair,
                f"pairs (a, b) with a < b, both among offsets={self.offsets}",
            )
        sources = (*optical_flow.ESTIMATORS, "precomputed")
        _expect(self.flow_source in sources, "flow_source", self.flow_source, f"one of {', '.join(sources)}")
        _expect(
            self.flow_scale in ("align_corners", "public"), "flow_scale", self.flow_scale, "'align_corners' or 'public'"
        )
        if self.flow_source == "precomputed" and self.flow_pairs:
            _expect(bool(self.flow_dir), "flow_dir", self.flow_dir, "the folder with the flow files")


def _expect(condition, key, found, expected):
    if not condition:
        raise UserError(f"DatasetSpec.{key}: expected {expected}, found {found!r}.")


def _is_size(size):
    return len(size) == 2 and all(isinstance(side, int) and side >= 2 for side in size)


def read_list(path):
    """Reads a list file.

    Args:
      path: text file, one frame a line: a clip name such as `001_00010`, or the path of its image, as the lists of the
        field's public code have it (`frankfurt/frankfurt_000000_000294_leftImg8bit.png`). Empty lines are skipped.

    Returns:
      The names in the file's order, without folders, endings, `_leftImg8bit` and `_gtFine_labelIds`.

    Raises:
      UserError: there is no such file, or it is not text.
    """
    lines = read_text_lines(path, "list_file, a text file with one clip name a line")
    stems = (Path(line).name.partition(".")[0] for line in lines)
    return [stem.removesuffix("_leftImg8bit").removesuffix("_gtFine_labelIds") for stem in stems]


def content(spec):
    """Returns everything in a spec that affects what is prepared, except where the raw files lie.

    Args:
      spec: `DatasetSpec`.

    Returns:
      JSON-able dict, with the list file's names rather than its path.
    """
    values = dataclasses.asdict(spec)
    del values["raw_dir"], values["flow_dir"]
    values["list_file"] = sorted(set(read_list(spec.list_file))) if spec.list_file else None
    if not _reads_flow(spec):
        # Without files to read, how they would scale changes nothing.
        del values["flow_scale"]
    if not spec.flow_estimator:
        del values["flow_estimator"]
    return values | {"version": VERSION}


def _reads_flow(spec):
    return spec.flow_source == "precomputed" and bool(spec.flow_pairs)


def prepared_path(spec, prepared_dir):
    """Names the folder of a prepared set.

    Args:
      spec: `DatasetSpec`.
      prepared_dir: folder that holds all prepared sets.

    Returns:
      `prepared_dir/NAME/SPLIT-HxW-HASH/VERSION`. HASH covers everything in the spec that affects the content, and where
      the raw files lie. What they hold is not part of it: `prepare` compares that itself.
    """
    named = content(spec) | {"raw_dir": os.path.abspath(spec.raw_dir)}
    if _reads_flow(spec):
        named["flow_dir"] = os.path.abspath(spec.flow_dir)
    digest = hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:10]
    height, width = spec.size
    return Path(prepared_dir).expanduser() / spec.name / f"{spec.split}-{height}x{width}-{digest}" / VERSION
