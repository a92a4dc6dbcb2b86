"""Optical flow for whole data sets: estimated once, into the files that sets are prepared from.

A file appears under its name when it is whole, so a run that is killed goes on where it was.
"""

import dataclasses
import functools
import json
import time
from pathlib import Path

import jax
import numpy as np

from input_pipeline import flow_files, run_folder
from input_pipeline.builders import base, checks
from input_pipeline.datasets import DATASETS
from input_pipeline.domains import domain_spec, with_world
from input_pipeline.files import read_json, write_atomically
from input_pipeline.images import read_image
from input_pipeline.ordered_map import ordered_map
from input_pipeline.prepare import is_usable, stale_flow
from input_pipeline.progress import Progress
from input_pipeline.spec import DatasetSpec
from input_pipeline.whole_folder import turn_to_write
from stpl_jax import flow_estimators
from stpl_jax.flow_estimators import FlowError

IN_ONE_PROCESS = "Flow is estimated by one process, on all its devices: run --mode=flow in one process first."
# Beside the flow files: what they were estimated with.
ORIGIN = "estimated_with.json"


def extract(config, workdir, needs, progress=print, unprepared_only=False):
    """Writes the flow files that are not there yet.

    Files go to the domain's `flow_dir`, or else to `<workdir>/flow/<domain>`, under the field's names, as int16, ten
    times the value. A complete file is left as it is, whoever made it, unless a set was prepared from it and its frames
    have changed since; anything else under its name is replaced. All frames and labels of clips with missing flow are
    checked before the first estimate. Of several runs that write into one folder, one does and the others wait.

    Args:
      config: the run's configuration; `config.flow.estimator` says by what.
      workdir: the run's folder.
      needs: domain (`source`, `target`, `val`) -> what must be there beside the configured flow pairs: an object with
        `offsets` and `flow_pairs`, or None.
      progress: called with lines of text.
      unprepared_only: leave out domains whose prepared set is there and up to date: nobody will read their files.

    Returns:
      Number of files written.

    Raises:
      FlowError: no weights; another estimator's files in the folder; an estimate that is not finite.
      UserError: what the folder says about its files cannot be read.
      BadFilesError: raw files are missing or broken; lists all of one domain (a FlowError those of several).
      CheckpointError: the weights are another network's.
    """
    config = with_world(config, workdir, progress).copy_and_resolve_references()
    config.flow.files = "write"
    origin = {"source": config.flow.estimator, "size": config.flow.size}
    prepared, works = run_folder.prepared(config, workdir), []
    for domain, extra in needs.items():
        spec = domain_spec(config, domain, extra, workdir)
        if unprepared_only and is_usable(spec, prepared, progress):
            continue
        _check_origin(spec.flow_dir, origin)
        work = _find_work(spec, stale_flow(spec, prepared, progress))
        if work.pending:
            works.append(work)
        else:
            progress(f"flow  {work.name}: all {work.files} files are in {spec.flow_dir}")
    if not works:
        return 0
    if jax.process_count() > 1:
        raise FlowError(IN_ONE_PROCESS)
    estimator = flow_estimators.load(config.flow)
    origin |= {"weights": estimator.weights} if estimator.weights is not None else {}
    for work in works:
        _check_origin(work.spec.flow_dir, origin)  # before all files are read, which can take long
    todo = _check_frames(works, config.data.threads, progress)
    return sum(_write_flow(work, jobs, size, estimator, origin, config, progress) for work, jobs, size in todo)


@dataclasses.dataclass(frozen=True)
class _Work:
    """What is to be done for one domain.

    Attributes:
      spec: `DatasetSpec` that reads the files.
      files: number of files, with those that are there.
      pending: [(ClipFiles, pair, file)] of what is missing; clips that overlap name a file twice.
      bad: faults found while listing.
      replaced: number of files that are there and broken.
      stale: number of files whose frames have changed.
    """

    spec: DatasetSpec
    files: int
    pending: list
    bad: list
    replaced: int
    stale: int

    @property
    def name(self):
        return f"{self.spec.name}/{self.spec.split}"


@dataclasses.dataclass(frozen=True)
class _Job:
    """One flow file, the images of the two frames, and when what is there by now was written (None: nothing is)."""

    file: Path
    frame: Path
    earlier: Path
    written: int | None


def _find_work(spec, stale):
    missing = checks.missing_folders(dataclasses.replace(spec, flow_pairs=()))
    if missing:
        raise checks.BadFilesError(spec, missing, f"raw_dir should hold {DATASETS[spec.name].expected}.")
    clips, bad = checks.list_clips(spec)
    there = {path: path not in stale and _is_complete(path) for clip in clips for path in clip.flows.values()}
    # Written as `.npy`, which is read first: a broken `.flo` is left where it is.
    pending = [
        (clip, pair, path.with_name(f"{path.stem.removesuffix('_int16_x10')}_int16_x10.npy"))
        for clip in clips
        for pair, path in clip.flows.items()
        if not there[path]
    ]
    replaced = sum(path.exists() for path, complete in there.items() if not complete and path not in stale)
    return _Work(spec, len(there), pending, bad, replaced, len(stale))


def _is_complete(path):
    try:
        flow_files.flow_size(path)
    except (FileNotFoundError, ValueError):
        return False
    return True


def _written(path):
    return path.stat().st_mtime_ns if path.exists() else None


def _check_origin(folder, origin):
    remedy = (
        "It says what the flow files beside it were estimated with. Delete it if you know that they are of these "
        f"settings ({', '.join(f'{key}={value}' for key, value in origin.items())}); else delete the folder and the "
        "sets prepared from it to estimate anew."
    )
    before = read_json(Path(folder) / ORIGIN, remedy) or {}
    # A folder without the note holds files made elsewhere: which they are is for the user to know.
    differing = [f"{key}={before[key]!r}, now {new!r}" for key, new in origin.items() if before.get(key, new) != new]
    if differing:
        raise FlowError(
            f"{folder} holds flow estimated with other settings ({'; '.join(differing)}), and one set must not mix "
            "them. Delete the folder and the sets prepared from it to estimate anew, or name another one: "
            "--config.data.target.flow_dir and its like."
        )


def _check_frames(works, threads, progress):
    """Checks the raw files of all domains, then raises or returns [(work, jobs, size of the raw frames)]."""
    todo, errors = [], []
    for work in works:
        # Without their flow, which is what is missing.
        clips = {clip.name: dataclasses.replace(clip, flows={}) for clip, _, _ in work.pending}
        good, faults, raw_size = checks.check_files(work.spec, list(clips.values()), progress, threads)
        bad = work.bad + faults
        if bad and not work.spec.skip_bad:
            advice = "Fetch or repair these files, or set skip_bad (--config.data.skip_bad=True) to leave them out."
            errors.append(checks.BadFilesError(work.spec, bad, advice))
        elif bad:
            progress(f"flow  {work.name}: skip_bad leaves out {len(clips) - len(good)} clips, {len(bad)} bad files")
        names = {clip.name for clip in good}
        jobs = {f: _Job(f, c.frames[a], c.frames[b], _written(f)) for c, (a, b), f in work.pending if c.name in names}
        todo.append((work, list(jobs.values()), raw_size))
    if errors:
        raise errors[0] if len(errors) == 1 else FlowError("\n".join(map(str, errors)))
    return todo


def _write_flow(work, jobs, raw_size, estimator, origin, config, progress):
    """Estimates and writes the flow of one domain; returns the number of files."""
    note, threads, started = Path(work.spec.flow_dir) / ORIGIN, config.data.threads, time.monotonic()
    wait = functools.partial(progress, f"flow  {work.name}: waits for another run that writes into {note.parent}")
    if not jobs:
        return 0
    with turn_to_write(note, wait):
        _check_origin(note.parent, origin)
        # Of runs that were killed while they wrote; nobody writes here now but this run.
        for path in {path for job in jobs for path in job.file.parent.glob(".*.partial.npy")}:
            path.unlink(missing_ok=True)
        # Another run may have written some by now.
        jobs = [job for job in jobs if _written(job.file) == job.written or not _is_complete(job.file)]
        if not jobs:
            return 0
        size = raw_size if config.flow.size == "raw" else work.spec.size
        again = f", {work.replaced} of them broken until now" if work.replaced else ""
        again += f", {work.stale} of them of frames that have changed" if work.stale else ""
        progress(
            f"flow  {work.name}: {len(jobs)} of {work.files} files to write{again}, by {origin['source']} at "
            f"{size[0]}x{size[1]}, into {note.parent}"
        )
        write_atomically(note, json.dumps(origin, indent=1))
        read = functools.partial(_read_pair, work.spec, size, raw_size)
        flows = estimator.of_pairs(jobs, read, config.flow.batch, threads)
        counter = Progress(progress, f"flow  {work.name}: pairs", len(jobs))
        # Written beside the next estimates.
        for _ in ordered_map(_write_file, flows, threads):
            counter.step()
        progress(f"flow  {work.name}: {len(jobs)} files written in {time.monotonic() - started:.1f} s")
        return len(jobs)


def _read_pair(spec, size, raw_size, job):
    """Decodes a pair's frames: `[H, W, 3]` uint8 RGB each, at `size`."""
    try:
        # At the raw size nothing is cut off: a flow file of that size is cut when it is read.
        read = base.read_frame if size != raw_size else lambda path, *_: np.asarray(read_image(path))
        return [read(path, spec) for path in (job.frame, job.earlier)]
    except ValueError as error:
        raise FlowError(str(error)) from error


def _write_file(item):
    job, flow = item
    if not np.isfinite(flow).all():
        raise FlowError(f"The flow from {job.frame} to {job.earlier} has values that are not finite. Wrong weights?")
    flow_files.write_flow(job.file, flow)
