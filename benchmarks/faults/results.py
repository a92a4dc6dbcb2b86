"""What a run ends with, in a form that can be compared: name -> value, for each result."""

import hashlib
import json
from pathlib import Path

import cv2
import jax
import numpy as np
import orbax.checkpoint as ocp

from input_pipeline import run_folder

ROWS = ("source_only", "stpl")


def of_training(run):
    """Returns arrays of each row's newest checkpoint (network and optimiser), lines of its log, and its scores."""
    found = of_scores(run)
    for row in ROWS:
        found[f"{row}/log"] = _guarded(lambda row=row: run_folder.metrics(run, row).read_text())
        steps = [p for p in run_folder.checkpoints(run, row).glob("*") if p.name.isdigit()]
        newest = max(steps, key=lambda p: int(p.name), default=None)
        found[f"{row}/step"] = newest and newest.name
        for item in ("model", "train"):
            found[f"{row}/{item}"] = _guarded(lambda item=item, newest=newest: _arrays(newest / item))
    return found


def of_scores(run):
    """Returns the scores of each row, those of the report, and how many frames its film has."""
    found = {f"{row}/scores": _guarded(lambda row=row: _scores(run, row)) for row in ROWS}
    found["report/film"] = _frames(Path(run) / run_folder.VIDEO)
    return found | {"report/results": _guarded(lambda: _report(run))}


def of_prediction(output):
    """Returns the pictures in a folder that `--mode=predict` has written, and how many frames its films have."""
    films = {str(path.relative_to(output)): _frames(path) for path in Path(output).rglob("*.mp4")}
    return _files(output, "*.png") | films


def of_flow(run):
    """Returns the flow files that `--mode=flow` has written."""
    return _files(Path(run) / run_folder.FLOW, "*.npy")


def differing(expected, found):
    """Returns the names of the results that are not as expected, sorted."""
    return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))


def _files(folder, pattern):
    return {str(p.relative_to(folder)): _digest(p.read_bytes()) for p in sorted(Path(folder).rglob(pattern))}


def _guarded(read):
    try:
        return read()
    except Exception as error:  # a file that is missing or damaged is a result, too
        return f"cannot be read: {type(error).__name__}"


def _scores(run, row):
    content = json.loads(run_folder.evaluation(run, row).read_text())
    return [content["last"], content["best_on_validation"]]


def _report(run):
    results = json.loads((Path(run) / run_folder.REPORT_NUMBERS).read_text())["results"]
    return {
        row: {name: x for name, x in scores.items() if name != "seconds_per_step"} for row, scores in results.items()
    }


def _arrays(folder):
    leaves = jax.tree_util.tree_leaves_with_path(ocp.PyTreeCheckpointer().restore(folder))
    named = sorted((jax.tree_util.keystr(path), np.asarray(leaf)) for path, leaf in leaves)
    return {name: f"{leaf.dtype}{leaf.shape} {_digest(leaf.tobytes())}" for name, leaf in named}


def _frames(path):
    film, count = cv2.VideoCapture(str(path)), 0
    while film.read()[0]:
        count += 1
    return count


def _digest(content):
    return hashlib.sha256(content).hexdigest()[:16]
