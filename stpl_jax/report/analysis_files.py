"""The files of an analysis: read only where they are what was written."""

import hashlib
import json
from pathlib import Path

from input_pipeline import run_folder
from input_pipeline.errors import UserError
from input_pipeline.files import read_json, write_atomically
from stpl_jax.report.render import render

# Another number for each form of the results: readers count on what the writer of the same form has written.
_FORM = 1
_REMEDY = "The analysis is taken as absent; --mode=analyse writes it anew."


def write_results(workdir, results, pictures):
    """Writes an analysis.

    Args:
      workdir: the run's folder.
      results: of `analysis.analyse`; its `pictures` are names of files, in dicts and lists.
      pictures: name of a file -> its content, bytes.

    Returns:
      Path of the text.
    """
    folder = Path(workdir) / run_folder.ANALYSIS
    files = pictures | {
        run_folder.ANALYSIS_TEXT: render("analysis.md", analysis=results).encode(),
        run_folder.ANALYSIS_RESULTS: json.dumps(results, indent=1, allow_nan=False).encode(),
    }
    for name, content in files.items():
        write_atomically(folder / name, content)
    listed = {"form": _FORM, "files": {name: _digest(content) for name, content in files.items()}}
    text = json.dumps(listed | {"digest": _digest(json.dumps(listed).encode())}, indent=1)
    write_atomically(folder / run_folder.ANALYSIS_FILES, text)
    return folder / run_folder.ANALYSIS_TEXT


def read_results(workdir, progress=print):
    """Reads an analysis.

    Args:
      workdir: the run's folder.
      progress: told where a file is damaged or missing.

    Returns:
      What was written, `pictures` as bytes in the place of names; None where there is none, or where it is not whole:
      it can be made anew.
    """
    folder = Path(workdir) / run_folder.ANALYSIS
    file = folder / run_folder.ANALYSIS_FILES
    try:
        listed = read_json(file, _REMEDY)
        if listed is None:
            return None
        digest = listed.pop("digest", None)
        if digest != _digest(json.dumps(listed).encode()) or listed["form"] != _FORM:
            raise UserError(f"{file}: expected what --mode=analyse writes, found something else. {_REMEDY}")
        contents = {name: _content(folder / name, digest) for name, digest in listed["files"].items()}
    except UserError as error:
        progress(f"analysis  {error}")
        return None
    results = json.loads(contents[run_folder.ANALYSIS_RESULTS])
    return results | {"pictures": _filled(results["pictures"], contents)}


def _content(path, digest):
    content = path.read_bytes() if path.is_file() else None
    if content is None or _digest(content) != digest:
        what = "no file" if content is None else "other bytes"
        raise UserError(f"{path}: expected what --mode=analyse wrote, found {what}. {_REMEDY}")
    return content


def _filled(names, contents):
    """Puts contents into the place of names, in dicts and lists."""
    if isinstance(names, dict):
        return {key: _filled(value, contents) for key, value in names.items()}
    return [_filled(value, contents) for value in names] if isinstance(names, list) else contents[names]


def _digest(content):
    return hashlib.sha256(content).hexdigest()[:16]
