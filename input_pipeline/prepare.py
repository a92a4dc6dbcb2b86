"""Prepares a data set: raw folder → checked → ArrayRecord at the training size, once."""

import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import tensorflow_datasets as tfds

from input_pipeline import spec as spec_lib
from input_pipeline.builders import base, checks, cityscapes_seq, synthia_seq, viper
from input_pipeline.errors import UserError

BUILDERS = {"viper": viper.Viper, "synthia_seq": synthia_seq.SynthiaSeq, "cityscapes_seq": cityscapes_seq.CityscapesSeq}


def prepare(spec, prepared_dir, progress=print, threads=None):
    """Prepares the set that a spec describes, unless that very set is there already.

    All files are checked before anything is written (see `checks.check_files`). A set appears under its name only when
    it is complete: an interrupted preparation leaves a folder that the next one removes. A finished set is reused,
    even where the raw folder is gone by then; where it is there, its labels have to be those of the preparation. Of
    several processes that ask for the same set, one prepares it and the others wait.

    Args:
      spec: `DatasetSpec`.
      prepared_dir: folder that holds all prepared sets.
      progress: called with lines of text.
      threads: threads that check, read and encode; None takes the number of cores.

    Returns:
      Path of the prepared set, for `clips.open_clips`.

    Raises:
      BadFilesError: files are missing or broken; lists all of them. With `spec.skip_bad` only where a whole folder of
        the layout is missing or no clip is left.
      UserError: the set was prepared from other raw files than are there now.
      UserError: `spec.list_file` does not exist.
    """
    path = spec_lib.prepared_path(spec, prepared_dir)
    if path.is_dir():
        _check_fingerprint(spec, path)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.parent / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.is_dir():
            _build(spec, path, progress, threads or os.cpu_count())
    return path


def _fingerprint(spec):
    """Digests the names and sizes of all label files: a copied set keeps them, another set in its place does not."""
    plain = dataclasses.replace(spec, flow_source="dis")
    files = [(clip.name, clip.label.stat().st_size) for clip in BUILDERS[spec.name].LAYOUT.list_clips(plain)]
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def _check_fingerprint(spec, path):
    if any(not folder.is_dir() for folder in BUILDERS[spec.name].LAYOUT.folders(spec)):
        return
    stored = json.loads((path / "metadata.json").read_text(encoding="utf-8"))["fingerprint"]
    if _fingerprint(spec) != stored:
        raise UserError(
            f"{path} was prepared from other files than {spec.raw_dir} holds now (names and sizes of its label files "
            "differ). Delete the prepared set to prepare it again, or put the raw files back."
        )


def _build(spec, path, progress, threads):
    builder_class = BUILDERS[spec.name]
    layout = builder_class.LAYOUT
    for unfinished in path.parent.glob("*incomplete*"):
        shutil.rmtree(unfinished)
    missing = checks.missing_folders(spec, layout)
    if missing:
        raise checks.BadFilesError(spec, missing, f"raw_dir should hold {layout.expected}.")
    clips, bad = checks.list_clips(spec, layout)
    wanted = len(clips) + len(bad)
    good, faults, raw_size = checks.check_files(spec, layout, clips, progress, threads)
    bad += faults
    if bad and not spec.skip_bad:
        raise checks.BadFilesError(
            spec, bad, "Fetch or repair these files, or set skip_bad (--config.data.skip_bad=True) to leave them out."
        )
    if not good:
        empty = checks.BadFile(spec.raw_dir, "at least one complete labelled clip", f"none of {wanted} usable")
        raise checks.BadFilesError(spec, [*bad, empty], f"raw_dir should hold {layout.expected}.")
    if bad:
        progress(f"{spec.name}/{spec.split}: skip_bad leaves out {wanted - len(good)} of {wanted} clips:")
        for fault in bad:
            progress(f"  {fault}")
    config = base.ClipConfig(
        name=path.parent.name,
        spec=spec,
        clips=tuple(good),
        raw_size=raw_size,
        left_out=wanted - len(good),
        fingerprint=_fingerprint(spec),
        report=progress,
        threads=threads,
    )
    builder = builder_class(data_dir=path.parents[2], config=config)
    if Path(builder.data_dir) != path:
        raise RuntimeError(f"TFDS wants to write to {builder.data_dir}, expected {path}: its naming has changed.")
    tfds.disable_progress_bar()
    with tempfile.TemporaryDirectory() as unused:
        # Nothing is downloaded, but TFDS makes a folder for downloads beside the prepared sets if none is given.
        builder.download_and_prepare(file_format="array_record", download_dir=unused)
    progress(f"{spec.name}/{spec.split}: {len(good)} clips prepared in {path}")
