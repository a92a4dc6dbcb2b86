"""Optical flow for whole data sets: estimated once, into the files that sets are prepared from.

A file appears under its name when it is whole, so a run that is killed goes on where it was.
"""

import collections
import dataclasses
import functools
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from input_pipeline import flow_files, run_folder
from input_pipeline.builders import base, checks
from input_pipeline.datasets import DATASETS
from input_pipeline.domains import domain_spec, flow_folder, with_world
from input_pipeline.errors import UserError
from input_pipeline.files import read_json, write_atomically
from input_pipeline.images import read_image
from input_pipeline.optical_flow import dis_flow
from input_pipeline.ordered_map import ordered_map
from input_pipeline.prepare import is_usable, stale_flow
from input_pipeline.progress import Progress
from input_pipeline.spec import DatasetSpec
from input_pipeline.whole_folder import turn_to_write
from stpl_jax import checkpoint, parallel
from stpl_jax.models.flownet2 import FlowNet2, estimate_flow, parameter_shapes

HOW_TO_CONVERT = (
    "Convert the released FlowNet2 checkpoint once, `python -m stpl_jax.convert flownet2 FILE OUTPUT`, and set "
    "--config.flow.weights=OUTPUT."
)
IN_ONE_PROCESS = "Flow is estimated by one process, on all its devices: run --mode=flow in one process first."
# Beside the flow files: what they were estimated with.
ORIGIN = "estimated_with.json"


class FlowError(UserError):
    """Flow cannot be estimated; the message is for the user."""


@dataclasses.dataclass(frozen=True)
class Estimator:
    """An optical flow network.

    Attributes:
      function: (params, frames, earlier) -> flow, what `estimate_flow` is: `[B, H, W, 3]` uint8 RGB to `[B, H, W, 2]`
        float32, pixels; traced, run on every device.
      params: its parameters.
      name: what tells these weights from others, for the record.
    """

    function: Callable
    params: Any = dataclasses.field(repr=False)
    name: str


def load_flownet2(weights):
    """Loads FlowNet2.

    Args:
      weights: folder that `python -m stpl_jax.convert flownet2` wrote (`config.flow.weights`), or None.

    Returns:
      An `Estimator`.

    Raises:
      FlowError: no folder is given.
      CheckpointError: there is no checkpoint, or it holds another network.
    """
    if not weights:
        raise FlowError(f"config.flow.source=flownet2 needs the network's weights. {HOW_TO_CONVERT}")
    network = FlowNet2()
    template = {"params": parameter_shapes(network)}
    try:
        stored = checkpoint.load_model(weights, template=template, network="flownet2")
    except checkpoint.CheckpointError as error:
        raise checkpoint.CheckpointError(f"config.flow.weights={weights}: {error}\n{HOW_TO_CONVERT}") from error
    name = stored.meta.get("sha256") or stored.meta["source"]
    return Estimator(functools.partial(estimate_flow, network), stored.variables["params"], name)


def frame_flow(weights):
    """Returns FlowNet2 as a function like `dis_flow`: two `[H, W, 3]` uint8 frames to `[H, W, 2]`, on the device."""
    estimator = load_flownet2(weights)
    run = jax.jit(lambda params, frame, earlier: estimator.function(params, frame[None], earlier[None])[0])
    return functools.partial(run, jax.device_put(estimator.params))


def extract(config, workdir, needs, progress=print, unprepared_only=False):
    """Writes the flow files that are not there yet.

    Files go to the domain's `flow_dir`, or else to `<workdir>/flow/<domain>`, under the field's names, as int16, ten
    times the value. A complete file is left as it is, whoever made it, unless a set was prepared from it and its frames
    have changed since; anything else under its name is replaced. All frames and labels of clips with missing flow are
    checked before the first estimate. Of several runs that write into one folder, one does and the others wait.

    Args:
      config: the run's configuration; `config.flow.source` is `flownet2` (on all devices) or `dis` (on the host).
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
    config = with_world(config, workdir, progress)
    if config.flow.size not in ("training", "raw"):
        raise FlowError(f"config.flow.size: expected training or raw, found {config.flow.size!r}.")
    origin = {"source": config.flow.source, "size": config.flow.size}
    works = []
    for domain, extra in needs.items():
        spec = domain_spec(config, domain, extra, workdir)
        prepared = run_folder.prepared(config, workdir)
        if unprepared_only and is_usable(spec, prepared, progress):
            continue
        folder = flow_folder(config, workdir, domain)
        _check_origin(folder, origin)
        spec = dataclasses.replace(spec, flow_source="precomputed", flow_dir=str(folder))
        work = _find_work(spec, folder, stale_flow(spec, prepared, progress))
        if work.pending:
            works.append(work)
        else:
            progress(f"flow  {work.name}: all {work.files} files are in {folder}")
    if not works:
        return 0
    if jax.process_count() > 1:
        raise FlowError(IN_ONE_PROCESS)
    estimator = None
    if config.flow.source == "flownet2":
        # Before the checks, which can take long.
        estimator = load_flownet2(config.flow.weights)
        origin["weights"] = estimator.name
        for work in works:
            _check_origin(work.folder, origin)
    jobs = _checked(works, config.data.threads, progress)
    return sum(_write_flow(work, todo, estimator, origin, config, progress) for work, todo in jobs)


@dataclasses.dataclass(frozen=True)
class _Work:
    """What is to be done for one domain.

    Attributes:
      spec: `DatasetSpec` that reads the files.
      folder: of the files.
      files: number of files, with those that are there.
      pending: [(ClipFiles, pair, file)] of what is missing; clips that overlap name a file twice.
      bad: faults found while listing.
      replaced: number of files that are there and broken.
      stale: number of files whose frames have changed.
    """

    spec: DatasetSpec
    folder: Path
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


def _find_work(spec, folder, stale):
    missing = checks.missing_folders(dataclasses.replace(spec, flow_source="dis"))
    if missing:
        raise checks.BadFilesError(spec, missing, f"raw_dir should hold {DATASETS[spec.name].expected}.")
    clips, bad = checks.list_clips(spec)
    there = {path: path not in stale and _is_complete(path) for clip in clips for path in clip.flows.values()}
    pending = [(c, pair, _npy_name(path)) for c in clips for pair, path in c.flows.items() if not there[path]]
    replaced = sum(path.exists() for path, complete in there.items() if not complete and path not in stale)
    return _Work(spec, folder, len(there), pending, bad, replaced, len(stale))


def _is_complete(path):
    try:
        flow_files.flow_size(path)
    except (FileNotFoundError, ValueError):
        return False
    return True


def _written(path):
    return path.stat().st_mtime_ns if path.exists() else None


def _npy_name(path):
    """The `.npy` name of a flow file; a broken `.flo` file is left where it is, and the `.npy` is read first."""
    return path.with_name(f"{path.stem.removesuffix('_int16_x10')}_int16_x10.npy")


def _check_origin(folder, origin):
    remedy = (
        "It says what the flow files beside it were estimated with. Delete it if you know that they are of these "
        f"settings ({', '.join(f'{key}={value}' for key, value in origin.items())}); else delete the folder and the "
        "sets prepared from it to estimate anew."
    )
    before = read_json(folder / ORIGIN, remedy) or {}
    # A folder without the note holds files made elsewhere: which they are is for the user to know.
    differing = [
        f"{key}={before[key]!r}, now {value!r}" for key, value in origin.items() if before.get(key, value) != value
    ]
    if differing:
        raise FlowError(
            f"{folder} holds flow estimated with other settings ({'; '.join(differing)}), and one set must not mix "
            "them. Delete the folder and the sets prepared from it to estimate anew, or name another one: "
            "--config.data.target.flow_dir and its like."
        )


def _checked(works, threads, progress):
    """Checks the raw files of all domains, then raises or returns [(work, (jobs, size of the raw frames))]."""
    results, errors = [], []
    for work in works:
        spec = work.spec
        # Without their flow, which is what is missing.
        clips = {clip.name: dataclasses.replace(clip, flows={}) for clip, _, _ in work.pending}
        good, faults, raw_size = checks.check_files(spec, list(clips.values()), progress, threads)
        bad = work.bad + faults
        if bad and not spec.skip_bad:
            advice = "Fetch or repair these files, or set skip_bad (--config.data.skip_bad=True) to leave them out."
            errors.append(checks.BadFilesError(spec, bad, advice))
            continue
        if bad:
            progress(f"flow  {work.name}: skip_bad leaves out {len(clips) - len(good)} clips, {len(bad)} bad files")
        names = {clip.name for clip in good}
        jobs = {f: _Job(f, c.frames[a], c.frames[b], _written(f)) for c, (a, b), f in work.pending if c.name in names}
        results.append((work, (list(jobs.values()), raw_size)))
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise FlowError("\n".join(map(str, errors)))
    return results


def _write_flow(work, todo, estimator, origin, config, progress):
    """Estimates and writes the flow of one domain; returns the number of files."""
    jobs, raw_size = todo
    if not jobs:
        return 0
    wait = functools.partial(progress, f"flow  {work.name}: waits for another run that writes into {work.folder}")
    with turn_to_write(work.folder / ORIGIN, wait):
        _check_origin(work.folder, origin)
        _clear_leftovers({job.file.parent for job in jobs})
        # Another run may have written some by now.
        jobs = [job for job in jobs if _written(job.file) == job.written or not _is_complete(job.file)]
        return _estimate(work, jobs, raw_size, estimator, origin, config, progress) if jobs else 0


def _estimate(work, jobs, raw_size, estimator, origin, config, progress):
    threads, started = config.data.threads, time.monotonic()
    size = raw_size if config.flow.size == "raw" else work.spec.size
    again = f", {work.replaced} of them broken until now" if work.replaced else ""
    again += f", {work.stale} of them of frames that have changed" if work.stale else ""
    progress(
        f"flow  {work.name}: {len(jobs)} of {work.files} files to write{again}, by {origin['source']} at "
        f"{size[0]}x{size[1]}, into {work.folder}"
    )
    write_atomically(work.folder / ORIGIN, json.dumps(origin, indent=1))
    read = functools.partial(_read_pair, work.spec, size, raw_size)
    if estimator is None:
        flows = ordered_map(lambda job: (job, dis_flow(*read(job))), jobs, threads)
    else:
        flows = _on_all_devices(estimator, jobs, read, config.flow.batch, threads)
    counter = Progress(progress, f"flow  {work.name}: pairs", len(jobs))
    # Written beside the next estimates.
    for _ in ordered_map(_write_file, flows, threads):
        counter.step()
    progress(f"flow  {work.name}: {len(jobs)} files written in {time.monotonic() - started:.1f} s")
    return len(jobs)


def _read_pair(spec, size, raw_size, job):
    """Decodes a pair's frames: `[H, W, 3]` uint8 RGB each, at `size`."""

    def read(path):
        try:
            if size == raw_size:
                # Nothing is cut off: a flow file of the raw size is cut when it is read.
                return np.asarray(read_image(path))
            return base.read_frame(path, spec)
        except ValueError as error:
            raise FlowError(str(error)) from error

    return read(job.frame), read(job.earlier)


def _write_file(item):
    job, flow = item
    if not np.isfinite(flow).all():
        raise FlowError(f"The flow from {job.frame} to {job.earlier} has values that are not finite. Wrong weights?")
    flow_files.write_flow(job.file, flow)


def _clear_leftovers(folders):
    """Removes the temporary files of runs that were killed while they wrote; nobody writes here now but this run."""
    for folder in folders:
        for path in folder.glob(".*.partial.npy"):
            path.unlink(missing_ok=True)


def _on_all_devices(estimator, jobs, read, per_device, threads):
    """Yields (job, flow): threads decode, transfers run ahead, and results are fetched one batch late."""
    count = per_device * jax.local_device_count()
    step = parallel.pmap(estimator.function)
    params = parallel.replicate(estimator.params)

    def batches():
        pairs = zip(jobs, ordered_map(read, jobs, threads), strict=True)
        while group := list(itertools.islice(pairs, count)):
            # The last batch is filled up with its last pair: one shape, one compilation.
            filled = group + [group[-1]] * (count - len(group))
            frames, earlier = (np.stack([images[k] for _, images in filled]) for k in (0, 1))
            yield [job for job, _ in group], parallel.split_over_devices((frames, earlier))

    def fetch(group, flow):
        shards = np.concatenate([np.asarray(shard.data) for shard in flow.addressable_shards])
        yield from zip(group, shards.reshape(-1, *shards.shape[2:]), strict=False)

    waiting = collections.deque()
    for group, (frames, earlier) in parallel.prefetch(batches()):
        waiting.append((group, step(params, frames, earlier)))
        if len(waiting) > 1:
            yield from fetch(*waiting.popleft())
    for item in waiting:
        yield from fetch(*item)
