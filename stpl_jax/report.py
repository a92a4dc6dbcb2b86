"""The end of a run: `report.json`, `report.md`, pictures and a video of the network before and after adaptation."""

import itertools
import json
import math
from pathlib import Path

import cv2
import jax
import numpy as np

from input_pipeline.clips import read_clip
from input_pipeline.domains import open_domain, with_world
from input_pipeline.labels import CLASSES, PALETTE
from stpl_jax import checkpoint, predict
from stpl_jax.rows import EVALUATION, row_names
from stpl_jax.run_log import write_atomically
from stpl_jax.video import open_source, side_by_side, video_writer, write_image

FRAMES_FOLDER = "frames"
VIDEO = "video.mp4"
# Narrower panels are enlarged by a whole factor.
_LEAST_PANEL_WIDTH = 256
# Slow enough to look at a street of 30 frames.
_VIDEO_FPS = 10.0
_SCORES = ("miou", "temporal_consistency", "temporal_consistency_warped")


def write_report(config, workdir, progress=print):
    """Writes what a run found, from the `evaluation.json` of each of its rows.

    Writes `report.json`, `report.md`, `frames/*.png` (frame, source-only, adapted, label) and, where the run generated
    its videos, `video.mp4` of a street that has no labels. Only the first process writes.

    Args:
      config: the run's configuration; `config.report.frames` is the number of pictures.
      workdir: the run's folder.
      progress: called with lines of text.

    Raises:
      FileNotFoundError: no row has been evaluated yet.
    """
    if jax.process_index():
        return
    workdir = Path(workdir)
    evaluations = read_evaluations(config, workdir)
    report = make_report(config, evaluations)
    write_atomically(workdir / "report.json", json.dumps(report, indent=1, allow_nan=False))
    models = _models(config, workdir, evaluations, progress)
    pictures = _write_pictures(config, workdir, models, progress) if models else []
    video = _write_video(config, workdir, models, progress) if models and config.world.generate else None
    write_atomically(workdir / "report.md", report_text(report, config.method, pictures, video))
    progress(f"report  {workdir / 'report.md'}")


def read_evaluations(config, workdir):
    """Reads the scores of every row that has been evaluated.

    Returns:
      row -> content of its `evaluation.json`, in the order of the results table.

    Raises:
      FileNotFoundError: there are none.
    """
    rows = row_names(config)
    files = {row: Path(workdir) / row / EVALUATION for row in rows}
    found = {row: json.loads(file.read_text()) for row, file in files.items() if file.is_file()}
    if not found:
        raise FileNotFoundError(
            f"{workdir}: no {EVALUATION} in any of {', '.join(rows)}. Train or score something first: --mode=auto, or "
            "--mode=evaluate where there are checkpoints."
        )
    return found


def make_report(config, evaluations):
    """Puts the rows' scores together.

    The shares of the gap, from mIoU at the last step (null where a row is missing, or there is no gap):

        gap_closed                   (method - source_only) / (oracle - source_only)
        gap_closed_by_bn_statistics  (bn_statistics - source_only) / (oracle - source_only)
        gap_closed_beyond_bn         (method - bn_statistics) / (oracle - bn_statistics)

    Args:
      config: the run's configuration.
      evaluations: of `read_evaluations`.

    Returns:
      JSON-able dict: `classes`, `results` (row -> scores in percent), the three shares, `settings` (row -> its method
      and the weights it came from), `config`, `versions`, `device`, `device_count`.
    """
    results, settings = {}, {}
    for row, evaluation in evaluations.items():
        last, best = evaluation["last"], evaluation["best_on_validation"]
        results[row] = {
            **{name: _number(last[name]) for name in _SCORES},
            "iou": {name: _number(value) for name, value in last["iou"].items()},
            "step": last["step"],
            "best_on_validation": {"miou": _number(best["miou"]), "step": best["step"]},
        }
        settings[row] = {"method": evaluation["method"], "source": evaluation["source"]}

    def miou(row):
        return results[row]["miou"] if row in results else None

    method, source, bn, oracle = (miou(row) for row in (config.method, "source_only", "bn_statistics", "oracle"))
    return {
        "classes": list(CLASSES[config.data.classes]),
        "results": results,
        "gap_closed": _share(source, method, oracle),
        "gap_closed_by_bn_statistics": _share(source, bn, oracle),
        "gap_closed_beyond_bn": _share(bn, method, oracle),
        "settings": settings,
        "config": json.loads(config.to_json_best_effort()),
        "versions": checkpoint.versions(),
        "device": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
    }


def _number(value):
    """JSON has no NaN: a score that is not defined, such as the IoU of a class that does not occur, is null."""
    return None if value is None or not math.isfinite(value) else value


def _share(low, value, high):
    if None in (low, value, high) or high == low:
        return None
    return (value - low) / (high - low)


def report_text(report, method, pictures=(), video=None):
    """Sets the report as Markdown.

    Args:
      report: of `make_report`.
      method: name of the adapted row.
      pictures: (clip name, path relative to the report) of each picture.
      video: path of the video relative to the report, or None.

    Returns:
      The text.
    """
    results, config = report["results"], report["config"]
    source = results.get("source_only", {}).get("miou")
    target = config["data"]["target"]["name"]
    parts = [
        f"# Adaptation to {target} by {method}",
        "Scores on the validation set, in percent. The main figure is the last step's; the best on validation looks at "
        "validation labels to choose the step, as the public code of the field does, and is there for comparison only.",
        _table(
            ("row", "mIoU, last step", "to source_only", "temporal consistency", "the same, warped", "steps")
            + ("best on validation",),
            [
                (
                    f"**{row}**" if row == method else row,
                    _percent(scores["miou"]),
                    _difference(scores["miou"], source),
                    _percent(scores["temporal_consistency"]),
                    _percent(scores["temporal_consistency_warped"]),
                    str(scores["step"]),
                    f"{_percent(scores['best_on_validation']['miou'])} (step {scores['best_on_validation']['step']})",
                )
                for row, scores in results.items()
            ],
        ),
        "Temporal consistency is the share of pixels whose class is the same in x_t and x_{t-1}; *warped*: after "
        "moving x_{t-1}'s classes along the flow.",
        "## The gap between source_only and oracle",
        _gap_text(report, method),
        "## IoU of each class",
        _iou_table(results),
    ]
    if pictures:
        parts += ["## Pictures", "Ignored pixels of the label are black."]
        parts += [f"{name}\n\n![{name}]({path})" for name, path in pictures]
    if video:
        parts += ["## Video", f"[{video}]({video}): one more street, without labels, frame by frame."]
    parts += ["## How it was run", _settings_text(report), "All settings are in `report.json`, under `config`."]
    return "\n\n".join(parts) + "\n"


def _gap_text(report, method):
    shares = (
        (f"{method} closes (mIoU of {method} - source_only) / (oracle - source_only)", "gap_closed"),
        ("bn_statistics, which trains nothing, closes", "gap_closed_by_bn_statistics"),
        (f"of what bn_statistics leaves open, {method} closes", "gap_closed_beyond_bn"),
    )
    unknown = "not known: a row is missing, or there is no gap"
    return "\n".join(
        f"- {text}: {unknown if report[key] is None else f'{100 * report[key]:.1f}%'}" for text, key in shares
    )


def _iou_table(results):
    names = list(dict.fromkeys(name for scores in results.values() for name in scores["iou"]))
    lines = [(name, *(_percent(scores["iou"].get(name)) for scores in results.values())) for name in names]
    lines.append(("**mean**", *(_percent(scores["miou"]) for scores in results.values())))
    return _table(("class", *results), lines)


def _settings_text(report):
    config = report["config"]
    data, flow = config["data"], config["flow"]
    height, width = data["target"]["size"]
    lines = [
        f"- label setting {data['classes']}, source {data['source']['name']}, target {data['target']['name']} at "
        f"{height}x{width} pixels"
        + (
            ", videos generated by this software"
            if config["world"].get("generate")
            else f", {data['target']['raw_dir']}"
        ),
        f"- flow: {flow['source']}; batch normalisation: {config['batch_norm']['mode']}; seed {config['seed']}",
        f"- devices: {report['device_count']} × {report['device']}; clips per device: {config['clips_per_device']}",
        "- " + ", ".join(f"{name} {version}" for name, version in report["versions"].items()),
    ]
    lines += [
        f"- {row}: method {settings['method']}, from {settings['source']}"
        for row, settings in report["settings"].items()
    ]
    return "\n".join(lines)


def _table(head, lines):
    rows = [head, ["---", *["---:"] * (len(head) - 1)], *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _percent(value):
    return "-" if value is None else f"{value:.1f}"


def _difference(value, base):
    return "-" if value is None or base is None else f"{value - base:+.1f}"


def _models(config, workdir, evaluations, progress):
    """Loads the networks to show: caption -> `Model`, source-only first."""
    models = {}
    for row in dict.fromkeys(("source_only", config.method)):
        if row not in evaluations:
            continue
        try:
            models[row] = predict.load(_checkpoint_of(config, workdir, row, evaluations[row]))
        except checkpoint.CheckpointError as error:
            progress(f"report  no pictures of {row}: {error}")
    return models


def _checkpoint_of(config, workdir, row, evaluation):
    own = workdir / row / checkpoint.FOLDER
    # A source model that was given and not trained here stays where it is.
    return evaluation["source"] if row == "source_only" and config.init_from and not own.is_dir() else own


def _panel_size(size):
    factor = -(-_LEAST_PANEL_WIDTH // size[1])
    return size[0] * factor, size[1] * factor


def _resize(pixels, size, interpolation):
    return pixels if pixels.shape[:2] == size else cv2.resize(pixels, size[::-1], interpolation=interpolation)


def _legend(config):
    return {name: PALETTE[name] for name in CLASSES[config.data.classes]}


def _write_pictures(config, workdir, models, progress):
    """Writes pictures of clips spread evenly over the validation set; returns (clip name, relative path) of each."""
    if not config.report.frames:
        return []
    source = open_domain(config, workdir, "val", progress=progress)
    palette = next(iter(models.values())).palette
    pictures = []
    for i in np.unique(np.linspace(0, len(source) - 1, min(config.report.frames, len(source))).round().astype(int)):
        clip = read_clip(source, int(i), (0, 1, 2), ((0, 1), (1, 2)), label=True)
        size = _panel_size(source.spec.size)
        panels = {"frame": _resize(clip["frames"][0], size, cv2.INTER_CUBIC)}
        # Clips are newest first, a video oldest first; stored flow is in tenths of a pixel.
        frames, flow = clip["frames"][::-1], clip["flow"][::-1].astype(np.float32) / 10
        for name, model in models.items():
            panels[name] = palette[model.segment(frames, flow, size)[-1]]
        panels["label"] = palette[_resize(clip["label"], size, cv2.INTER_NEAREST)]
        path = f"{FRAMES_FOLDER}/{clip['name']}.png"
        write_image(workdir / path, side_by_side(panels, _legend(config)))
        pictures.append((clip["name"], path))
    progress(f"report  {len(pictures)} pictures in {workdir / FRAMES_FOLDER}")
    return pictures


def _write_video(config, workdir, models, progress):
    """Writes the generated street that has no labels, with both predictions; returns the relative path."""
    frames = open_source(with_world(config, workdir, progress).world.video)
    palette = next(iter(models.values())).palette
    size = _panel_size(frames.size)

    def pictures():
        # Each model reads the frames by itself, so that none need be kept.
        predictions = [model.segment_stream((f for _, f in frames), size=size) for model in models.values()]
        for (_, frame), *classes in zip(frames, *predictions, strict=True):
            panels = {"frame": _resize(frame, size, cv2.INTER_CUBIC)}
            panels |= {name: palette[ids] for name, ids in zip(models, classes, strict=True)}
            yield side_by_side(panels, _legend(config))

    pictures = pictures()
    first = next(pictures)
    with video_writer(workdir / VIDEO, first.shape[:2], _VIDEO_FPS) as write:
        for picture in itertools.chain([first], pictures):
            write(picture)
    progress(f"report  {workdir / VIDEO}")
    return VIDEO
