"""What a prepared set holds: which data set, which frames and flow, at which size."""

import collections
import dataclasses
import hashlib
import itertools
import json
import os
from pathlib import Path

from input_pipeline import labels, optical_flow
from input_pipeline.datasets import DATASETS
from input_pipeline.errors import UserError
from input_pipeline.files import read_text_lines

# Changes whenever the same files and the same spec would give other prepared content.
VERSION = "1.2.0"


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """One data set, as it is to be prepared.

    Attributes:
      name: a name in `datasets.DATASETS`.
      raw_dir: the owner's folder: the one that holds `train/img`, `leftImg8bit_sequence`, `SYNTHIA-SEQS-*` or the like.
      split: a split of the data set, such as `train` or `val`. SYNTHIA-Seq has no split folders: every split reads all
        of it, `list_file` divides it.
      classes: label setting, one that the data set has labels for; None in a split without labels.
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
      drive: the drive that is read, of a set that has several (its `drives`); else empty.

    Raises:
      UserError: a value is unknown, or two do not fit together.
    """

    name: str
    raw_dir: str
    split: str
    classes: str | None
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
    drive: str = ""

    def __post_init__(self):
        # Configs and JSON give lists; tuples make equal specs compare equal.
        object.__setattr__(self, "size", tuple(self.size))
        object.__setattr__(self, "label_size", None if self.label_size is None else tuple(self.label_size))
        object.__setattr__(self, "offsets", tuple(self.offsets))
        object.__setattr__(self, "flow_pairs", tuple(tuple(pair) for pair in self.flow_pairs))
        _expect(self.name in DATASETS, "name", self.name, f"one of {', '.join(DATASETS)}")
        splits = DATASETS[self.name].splits
        _expect(self.split in splits, "split", self.split, f"one of {', '.join(splits)}")
        drives = DATASETS[self.name].drives
        _expect(self.drive in (drives or ("",)), "drive", self.drive, f"one of {', '.join(drives) or repr('')}")
        if splits[self.split]:
            labels.train_id_table(self.name, self.classes)
        else:
            _expect(self.classes is None, "classes", self.classes, f"None: {self.name} has no labels in {self.split}")
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


def _settings(spec):
    """All of a spec that affects what is prepared, but for where files lie and for the list of names."""
    values = dataclasses.asdict(spec)
    del values["raw_dir"], values["flow_dir"], values["list_file"]
    if spec.flow_source != "precomputed":
        # Without files to read, how they would scale changes nothing.
        del values["flow_scale"]
    for optional in ("flow_estimator", "drive"):
        if not values[optional]:
            del values[optional]
    return values | {"version": VERSION}


def prepared_path(spec, prepared_dir):
    """Names the folder of a prepared set.

    Args:
      spec: `DatasetSpec`.
      prepared_dir: folder that holds all prepared sets.

    Returns:
      `prepared_dir/NAME/SPLIT-HxW-HASH-FRAMES-FLOW/VERSION`, such as `viper/val-512x1024-0123456789-0_1-0to1/1.2.0`.
      HASH covers everything else in the spec that affects the content, and where the raw files lie: sets that differ in
      frames and flow alone share it. What the files hold is not part of it: `prepare` compares that itself.
    """
    named = _settings(spec) | {"raw_dir": os.path.abspath(spec.raw_dir)}
    del named["offsets"], named["flow_pairs"]
    if spec.flow_source == "precomputed":
        named["flow_dir"] = os.path.abspath(spec.flow_dir)
    named["list_file"] = sorted(set(read_list(spec.list_file))) if spec.list_file else None
    digest = hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:10]
    parts = f"{'_'.join(map(str, spec.offsets))}-{'_'.join(f'{a}to{b}' for a, b in spec.flow_pairs)}"
    height, width = spec.size
    return Path(prepared_dir).expanduser() / spec.name / f"{spec.split}-{height}x{width}-{digest}-{parts}" / VERSION


def siblings(path):
    """Returns the folders of sets that differ from the one at a prepared path in frames and flow alone, sorted."""
    shared = path.parent.name.rsplit("-", 2)[0]
    return sorted(found for found in path.parents[1].glob(f"{shared}-*/{path.name}") if found != path)


def content_digest(spec, digests, needs=None):
    """Digests what is read of a set: the same for the same clips, wherever they lie and whatever else the set holds.

    Args:
      spec: `DatasetSpec` of the set.
      digests: of `raw_files.feature_digests`.
      needs: `DomainNeeds`; None for all of the set.

    Returns:
      Hexadecimal text.
    """
    read = spec if needs is None else with_parts(spec, needs.offsets, needs.flow_pairs)
    features = ["label", *(f"frame_{k}" for k in read.offsets), *(f"flow_{a}_{b}" for a, b in read.flow_pairs)]
    content = [_settings(read), [[name, digests[name]] for name in features if name in digests]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def with_parts(spec, offsets, flow_pairs):
    """Returns a spec with other frames and flow; frames that flow needs are added."""
    pairs = sorted({tuple(pair) for pair in flow_pairs})
    return dataclasses.replace(
        spec, offsets=tuple(sorted({0, *offsets, *itertools.chain(*pairs)})), flow_pairs=tuple(pairs)
    )


def merged(specs):
    """Describes the fewest sets that serve all of some specs: those that differ in frames and flow alone become one.

    Args:
      specs: iterable of `DatasetSpec`.

    Returns:
      dict of `DatasetSpec` -> list of the given ones that it serves.
    """
    groups = collections.defaultdict(list)
    for spec in specs:
        groups[with_parts(spec, (), ())].append(spec)
    return {
        with_parts(base, {k for s in group for k in s.offsets}, {p for s in group for p in s.flow_pairs}): group
        for base, group in groups.items()
    }
