"""Prepares a data set: raw folder → checked → ArrayRecord at the training size, once."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import tensorflow_datasets as tfds

from input_pipeline import clips as clips_lib
from input_pipeline import raw_files, reuse
from input_pipeline import spec as spec_lib
from input_pipeline.builders import base, checks
from input_pipeline.datasets import DATASETS
from input_pipeline.errors import UserError, capped
from input_pipeline.files import read_json
from input_pipeline.whole_folder import turn_to_write

# Sets that the run has compared with their raw files: what its first row reads, all of its rows read.
_settled = set()


def prepare(spec, prepared_dir, progress=print, threads=None, checked=None):
    """Prepares the set that a spec describes, unless that set is there already, or one that holds it and more.

    All files are checked before anything is written (see `checks.check_files`). A finished set is reused as long as it
    is whole and its raw files are those that it was prepared from, by name, size and time, or else by content; and
    where they are gone. Otherwise it is told what differs, and the set is prepared anew: the old one stays until the
    new one is complete; a reader that has it open never gets a clip of the new one (see `ClipSource`). An interrupted
    preparation leaves a folder that the next one removes. Of several processes that ask for the same set, one prepares
    it and the others wait.

    Args:
      spec: `DatasetSpec`.
      prepared_dir: folder that holds all prepared sets.
      progress: called with lines of text.
      threads: threads that check, read and encode; None takes the number of cores.
      checked: of `check`, so that the files are not checked a second time.

    Returns:
      Path of the prepared set, for `clips.open_clips`.

    Raises:
      BadFilesError: files are missing or broken; lists all of them. With `spec.skip_bad` only where a whole folder of
        the layout is missing or no clip is left.
      UserError: the prepared set is damaged and the raw files are gone; raw files changed while they were read;
        `spec.list_file` does not exist.
    """
    threads = threads or os.cpu_count()
    found, verdict = _find(spec, prepared_dir, progress, threads)
    if found is None:
        path = spec_lib.prepared_path(spec, prepared_dir)
        with _alone(path):
            # Another process may have prepared it by now.
            found, verdict = _find(spec, prepared_dir, lambda line: None, threads)
            if found is None:
                if checked is None:
                    _tell(verdict, progress)
                    checked = _check(spec, progress, threads)
                _build(spec, path, checked, progress, threads)
                return path
    _tell(verdict, progress)
    return found


def find(spec, prepared_dir, progress=print, threads=None):
    """Returns the path of the set that `prepare` would use as it is, or None; arguments as it takes them."""
    return _find(spec, prepared_dir, progress, threads or os.cpu_count())[0]


def is_usable(spec, prepared_dir, progress=print, threads=None):
    """Whether `prepare` would use a set that is there; arguments as it takes them."""
    return find(spec, prepared_dir, progress, threads) is not None


def is_there(spec, prepared_dir):
    """Whether there is a set that holds what a spec asks for, up to date or not."""
    return any(path.is_dir() for path, _ in _candidates(spec, prepared_dir))


def check(spec, prepared_dir, progress=print, threads=None):
    """Reads all files that a set is to be prepared from, and writes nothing.

    Args:
      spec, prepared_dir, progress, threads: as `prepare` takes them.

    Returns:
      `Checked`, for `prepare`; None where a usable set is there already.

    Raises:
      BadFilesError, UserError: as `prepare` says.
    """
    threads = threads or os.cpu_count()
    found, verdict = _find(spec, prepared_dir, progress, threads)
    _tell(verdict, progress)
    return None if found else _check(spec, progress, threads)


def settle(paths):
    """Takes sets for up to date from now on, without comparing them with their raw files; replaces an earlier call's.

    Args:
      paths: of prepared sets.
    """
    _settled.clear()
    _settled.update(map(Path, paths))


def stale_flow(spec, prepared_dir, progress=print, threads=None):
    """Finds flow files of frames that have changed since the set was prepared, where the flow itself has not.

    Args:
      spec, prepared_dir, progress, threads: as `prepare` takes them; the spec reads precomputed flow.

    Returns:
      Set of `Path`.
    """
    paths = (path for path, _ in _candidates(spec, prepared_dir))
    record = next((reuse.read_record(path) for path in paths if path.is_dir() and not reuse.damage(path)), None)
    if record is None:
        return set()
    before = record["raw_files"]
    clips, _ = checks.list_clips(spec)
    files = raw_files.files_of(spec, clips)
    found = raw_files.differences(before, raw_files.sizes_and_times(files))
    what = f"{spec.name}/{spec.split}: comparing files with a new time"
    digests = raw_files.digests({n: files[n] for n in found.touched}, progress, what, threads or os.cpu_count())
    changed = {*found.resized, *(name for name in found.touched if digests[name] != before[name][2])}
    of_changed_frames = {
        clip.flows[pair]
        for clip in clips
        for pair in clip.flows
        if any(raw_files.name_of(spec, clip.frames[k]) in changed for k in pair)
    }
    return {flow for flow in of_changed_frames if raw_files.name_of(spec, flow) not in {*changed, *found.added}}


def _find(spec, prepared_dir, progress, threads):
    """The set to be used as it is and what there is to tell of it; or None and why the spec's own is not usable."""
    verdicts = []
    for path, held in _candidates(spec, prepared_dir):
        if path in _settled and path.is_dir():
            return path, reuse.Verdict(True)
        try:
            verdicts.append(reuse.examine(held, path, progress, threads))
        except UserError:
            # Damaged, and of no use to others; the spec's own has to be mended.
            if not verdicts:
                raise
            continue
        if verdicts[-1].usable:
            return path, verdicts[-1]
    return None, verdicts[0]


def _candidates(spec, prepared_dir):
    """Sets that a spec can be read from, [(path, spec of the set)]: its own, there or not, then larger ones."""
    own = spec_lib.prepared_path(spec, prepared_dir)
    larger = []
    for path in spec_lib.siblings(own):
        # One that cannot be read is nobody's but its own reader's.
        with contextlib.suppress(UserError, OSError, TypeError, KeyError):
            stored = read_json(path / "metadata.json", "")["spec"]
            held = spec_lib.with_parts(spec, stored["offsets"], stored["flow_pairs"])
            if set(spec.offsets) <= set(held.offsets) and set(spec.flow_pairs) <= set(held.flow_pairs):
                larger.append((path, held))
    return [(own, spec), *sorted(larger, key=lambda entry: len(entry[1].offsets) + len(entry[1].flow_pairs))]


def _tell(verdict, progress):
    for line in verdict.lines:
        progress(line)


@contextlib.contextmanager
def _alone(path):
    """Keeps other processes from preparing the same set, and clears what an interrupted preparation has left."""
    with turn_to_write(path):
        whole, building = _names(path)
        if whole.is_dir():
            # Killed between the two moves that put a complete set in its place.
            _put_in_place(whole, path)
        try:
            _remove(building, *path.parent.glob("*incomplete*"))
            yield
        finally:
            _remove(building)


def _names(path):
    """Where a set lies that is complete and not in its place yet, and where it is written."""
    return path.with_name(f".{path.name}.whole"), path.with_name(f".{path.name}.building")


def _put_in_place(whole, path):
    replaced = path.with_name(f".{path.name}.replaced")
    _remove(replaced)
    if path.exists():
        os.rename(path, replaced)
    os.rename(whole, path)
    _remove(replaced)


def _remove(*folders):
    for folder in filter(Path.exists, folders):
        shutil.rmtree(folder)


def _check(spec, progress, threads):
    expected = f"raw_dir should hold {DATASETS[spec.name].expected}."
    missing = checks.missing_folders(spec)
    if missing:
        raise checks.BadFilesError(spec, missing, expected)
    clips, bad = checks.list_clips(spec)
    wanted, files = len(clips) + len(bad), raw_files.files_of(spec, clips)
    seen = raw_files.sizes_and_times(files)
    good, faults, raw_size = checks.check_files(spec, clips, progress, threads)
    bad += faults
    if bad and not spec.skip_bad:
        raise checks.BadFilesError(
            spec, bad, "Fetch or repair these files, or set skip_bad (--config.data.skip_bad=True) to leave them out."
        )
    if not good:
        one = "at least one complete labelled clip" if spec.classes else "at least one complete clip"
        empty = checks.BadFile(spec.raw_dir, one, f"none of {wanted} usable")
        raise checks.BadFilesError(spec, [*bad, empty], expected)
    if bad:
        progress(f"{spec.name}/{spec.split}: skip_bad leaves out {wanted - len(good)} of {wanted} clips:")
        for line in capped([f"  {fault}" for fault in bad]):
            progress(line)
    return base.Checked(tuple(good), raw_size, wanted - len(good), files, seen)


def _build(spec, path, checked, progress, threads):
    name = f"{spec.name}/{spec.split}"
    whole, building = _names(path)
    digests = raw_files.digests(checked.files, progress, f"{name}: digesting files", threads)
    config = base.ClipConfig(
        name=path.parent.name,
        spec=spec,
        checked=checked,
        digests=raw_files.feature_digests(spec, checked.clips, digests),
        report=progress,
        threads=threads,
    )
    builder = base.ClipBuilder(data_dir=building, config=config)
    written = building / builder.name / path.parent.name / path.name
    if Path(builder.data_dir) != written:
        raise RuntimeError(f"TFDS wants to write to {builder.data_dir}, expected {written}: its naming has changed.")
    tfds.disable_progress_bar()
    try:
        with tempfile.TemporaryDirectory() as unused:
            # Nothing is downloaded, but TFDS makes a folder for downloads beside the prepared sets if none is given.
            builder.download_and_prepare(file_format="array_record", download_dir=unused)
    except RuntimeError as error:
        # What ArrayRecord raises for a full disk, say.
        raise UserError(f"{name}: the prepared set {path} cannot be written: {error}") from error
    _check_nothing_changed(spec, checked)
    reuse.seal(written, checked.seen, digests)
    held = len(clips_lib.open_clips(written))
    if held != len(checked.clips):
        raise UserError(f"{written}: wrote {len(checked.clips)} clips, and {held} can be read. Is the disk full?")
    os.rename(written, whole)
    _put_in_place(whole, path)
    progress(f"{name}: {len(checked.clips)} clips prepared in {path}")


def _check_nothing_changed(spec, checked):
    now = raw_files.sizes_and_times(checked.files)
    changed = [checked.files[name] for name in now if now[name] != checked.seen[name]]
    if changed:
        raise UserError(
            f"{spec.name}/{spec.split}: {len(changed)} raw files changed while the set was prepared from them, "
            f"{changed[0]} the first: start again once they stay as they are."
        )
