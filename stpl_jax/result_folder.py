"""The folder that predict writes to: what is in it is known, and nobody else's files are touched."""

import json
from pathlib import Path

from input_pipeline.errors import UserError, capped
from input_pipeline.files import read_json, write_atomically
from input_pipeline.video_packets import SourceError

CLASSES_FOLDER = "classes"
OVERLAYS_FOLDER = "overlays"
OVERLAY_VIDEO = "overlay.mp4"
MANIFEST = "predict.json"
_FOLDERS = (CLASSES_FOLDER, OVERLAYS_FOLDER)


def prepare(output, frames, manifest, progress):
    """Makes the folder ready: what an earlier predict wrote is removed, and what others wrote stays.

    The manifest is written first, so that a run that is killed leaves its results known.

    Args:
      output: `Path` of the folder; made if it is missing.
      frames: `FrameSource` of the run that is to write.
      manifest: dict, what is known of the run so far.
      progress: called with lines of text.

    Raises:
      SourceError: the results would replace their own input.
      UserError: the results would replace files that predict did not write.
      OSError: the folder cannot be written to.
    """
    for folder in (output, *(output / name for name in _FOLDERS)):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file, and predict writes a folder of that name: give another --output.")
    for place in (output / CLASSES_FOLDER, output / OVERLAYS_FOLDER, output / OVERLAY_VIDEO):
        if place.resolve() in (frames.path.resolve(), *frames.path.resolve().parents):
            raise SourceError(
                f"{frames.path} would be overwritten by its own results: give another --output than {output}."
            )
    before = read_json(
        output / MANIFEST, "Remove it, or give another --output.", ("input", "video", "names", "complete")
    )
    earlier = [output / name for name in _results(output, before)] if before else []
    wanted = _names_to_come(output, frames)
    foreign = [path for path in _present(output) if path not in set(earlier)]
    in_the_way = [path for path in foreign if wanted(path)]
    if in_the_way:
        raise UserError(
            f"{output} holds files that predict did not write, by its {MANIFEST}, and would overwrite. Move them, or "
            "give another --output:\n" + "\n".join(capped([f"  {path}" for path in in_the_way], 10))
        )
    removed = [path for path in earlier if path.is_file()]
    for path in removed:
        path.unlink()
    if before and not before["complete"]:
        _remove_unfinished(output)
    if removed:
        progress(f"predict  removed the {len(removed)} results of an earlier predict, of {before['input']}")
    if foreign:
        names = ", ".join(line.strip() for line in capped([str(path.relative_to(output)) for path in foreign], 10))
        progress(f"predict  left alone in {output}, as no results of predict: {names}")
    names = None if frames.is_video else [file.stem for _, file in frames.files]
    write_manifest(output, frames, manifest, names, False)


def write_manifest(output, frames, manifest, names, complete):
    """Writes down which results there are.

    Args:
      output: `Path` of the folder.
      frames: `FrameSource`.
      manifest: dict, what else is to be known of the run.
      names: of the class maps and overlays, in order; None: numbers, which are not known yet.
      complete: whether the run has come to its end.

    Raises:
      OSError: it cannot be written.
    """
    more = {"input": str(frames.path), "video": frames.is_video, "complete": complete, "names": names}
    write_atomically(output / MANIFEST, json.dumps(manifest | more, indent=1))


def _results(output, manifest):
    """Relative names of what a manifest says was written. Whatever it holds, none lies outside the folder."""
    names = manifest["names"]
    if names is None:
        names = [path.stem for path in _present(output) if _is_number(path.stem)]
    names = names if isinstance(names, list) else []
    plain = dict.fromkeys(name for name in names if isinstance(name, str) and name == Path(name).name)
    video = [OVERLAY_VIDEO] if manifest["video"] else []
    return video + [f"{folder}/{name}.png" for folder in _FOLDERS for name in plain]


def _is_number(stem):
    return stem.isdecimal() and len(stem) >= 6


def _present(output):
    """Files that lie where results lie."""
    found = [path for folder in _FOLDERS if (output / folder).is_dir() for path in sorted((output / folder).iterdir())]
    found += [output / OVERLAY_VIDEO] if (output / OVERLAY_VIDEO).exists() else []
    return [path for path in found if not path.name.startswith(".")]


def _names_to_come(output, frames):
    """A function that tells whether the run may write a path."""
    if frames.is_video:
        return lambda path: path == output / OVERLAY_VIDEO or (path.suffix == ".png" and _is_number(path.stem))
    names = {file.stem for _, file in frames.files}
    return lambda path: path != output / OVERLAY_VIDEO and path.suffix == ".png" and path.stem in names


def _remove_unfinished(output):
    """Removes what a run that was killed was writing just then."""
    for folder in (output, *(output / name for name in _FOLDERS)):
        for path in folder.glob(".*.partial.*"):
            path.unlink()
