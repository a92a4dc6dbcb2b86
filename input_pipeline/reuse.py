"""Whether a prepared set may be used: it has to be whole, and prepared from the raw files that are there now.

Beside its shards a set holds `prepared_from.json`: the size of each file of its own, and the size, time and digest of
each raw file that went in. Sizes and times are compared each time, which reads nothing. Where a time alone differs, as
in a set that was copied, the digest decides.
"""

import contextlib
import dataclasses
import hashlib
import json
from pathlib import Path

from input_pipeline import raw_files
from input_pipeline.builders import checks
from input_pipeline.errors import UserError, capped
from input_pipeline.files import read_json, write_atomically

RECORD = "prepared_from.json"
_MOST_LINES = 10


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What is to be done about a set.

    Attributes:
      usable: it is used as it is.
      lines: what there is to tell, the reason why it is not usable first; empty where none was prepared so far.
    """

    usable: bool
    lines: tuple[str, ...] = ()


def seal(folder, files, digests):
    """Writes down what a set that was just prepared holds and what it was prepared from.

    Args:
      folder: of the set.
      files: dict of name -> (bytes, time) or None, see `raw_files.sizes_and_times`.
      digests: dict of name -> digest or None.
    """
    contents = {path.name: _measure(path) for path in sorted(Path(folder).iterdir())}
    raw = {name: None if entry is None else [*entry, digests[name]] for name, entry in files.items()}
    write_atomically(Path(folder) / RECORD, json.dumps({"contents": contents, "raw_files": raw}))


def _measure(path):
    """Size of a file; of the small ones, which have no checks of their own as ArrayRecord has, a digest, too."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.suffix == ".json" else None
    return [path.stat().st_size, digest]


def read_record(folder):
    """Reads `prepared_from.json`; returns None where there is none.

    Raises:
      UserError: it is damaged.
    """
    remedy = f"Delete {folder}: the next run prepares the set again."
    record = read_json(Path(folder) / RECORD, remedy, ("contents", "raw_files"))
    if record is not None and not (_is_table(record["contents"], 2) and _is_table(record["raw_files"], 3)):
        raise UserError(f"{Path(folder) / RECORD}: expected two tables of files, found something else. {remedy}")
    return record


def _is_table(found, columns):
    entries = found.values() if isinstance(found, dict) else [0]
    return all(entry is None or (isinstance(entry, list) and len(entry) == columns) for entry in entries)


def damage(folder):
    """Looks for files of a prepared set that are missing, cut or changed; shards by their size.

    Args:
      folder: of the set.

    Returns:
      What is wrong, or None.
    """
    folder = Path(folder)
    try:
        record = read_record(folder)
    except UserError as error:
        return str(error).partition(" Delete ")[0]
    if record is None:
        return f"{folder / RECORD} is missing"
    for name, expected in record["contents"].items():
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        if (found := _measure(path)) != expected:
            return f"{path} is not as it was written: {expected[0]} bytes then, {found[0]} now"
    return None


def examine(spec, path, progress, threads):
    """Decides whether a prepared set may be used, and says why not.

    Args:
      spec: `DatasetSpec`.
      path: folder of the set; it need not exist.
      progress: called with lines of text while digests are computed.
      threads: number of threads for that.

    Returns:
      A `Verdict`.

    Raises:
      UserError: the set is damaged, and its raw files are not there to prepare it anew.
    """
    if not path.is_dir():
        return Verdict(False)
    name, problem = f"{spec.name}/{spec.split}", damage(path)
    missing = checks.missing_folders(spec)
    if problem and missing:
        raise UserError(
            f"The prepared set {path} is damaged ({problem}), and it cannot be prepared anew: no such folder: "
            f"{missing[0].path}. Put the raw files back."
        )
    if problem:
        return Verdict(False, (f"{name}: the prepared set {path} is damaged ({problem}): it is prepared anew",))
    if not Path(spec.raw_dir).is_dir():
        return Verdict(True)
    clips, bad = checks.list_clips(spec)
    files = raw_files.files_of(spec, clips)
    now = raw_files.sizes_and_times(files)
    record = read_record(path)
    before = record["raw_files"]
    found = raw_files.differences(before, now)
    changed = found.resized
    if found.touched and not (changed or found.added):
        # Known to be another set already, or else worth reading.
        what = f"{name}: comparing files with a new time"
        digests = raw_files.digests({key: files[key] for key in found.touched}, progress, what, threads)
        changed = [key for key in found.touched if digests[key] != before[key][2]]
        if not changed:
            _note_times(path, record, {key: [*now[key], digests[key]] for key in found.touched})
    if not (found.added or found.removed or changed):
        return Verdict(True)
    if not (found.added or changed):
        # Only a set that can be prepared again may be given up.
        incomplete = any(before.get(key) and entry is None for key, entry in now.items())
        if missing or incomplete or not clips or (bad and not spec.skip_bad):
            return Verdict(True, _still_used(name, path, found.removed, len(before)))
    return Verdict(False, _told(name, path, spec, found, changed))


def _note_times(path, record, entries):
    """Keeps the new times, so that these files need not be read the next time."""
    raw = record["raw_files"] | entries
    # Where prepared sets cannot be written, they are read again.
    with contextlib.suppress(OSError):
        write_atomically(path / RECORD, json.dumps(record | {"raw_files": raw}))


def _still_used(name, path, removed, count):
    return (
        f"{name}: {len(removed)} of the {count} raw files are gone since {path} was prepared; the set is used as it is",
        *capped([f"  removed  {key}" for key in removed], 3),
    )


def _told(name, path, spec, found, changed):
    counts = f"{len(changed)} changed, {len(found.added)} added, {len(found.removed)} removed"
    lines = [f"  changed  {key}" for key in changed]
    lines += [f"  added  {key}" for key in found.added] + [f"  removed  {key}" for key in found.removed]
    return (
        f"{name}: the raw files in {spec.raw_dir} are not those that {path} was prepared from ({counts}): it is "
        "prepared anew",
        *capped(lines, _MOST_LINES),
    )
