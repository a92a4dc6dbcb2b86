"""A run on video without labels: its rows are scored and reported, frames are chosen, and masks are scored."""

import dataclasses
import json

import numpy as np
import pytest
from browser import look_at
from film_dataset import FILM, picture, save
from PIL import Image

from input_pipeline.clips import read_clip
from input_pipeline.datasets import DATASETS
from input_pipeline.domains import open_domain
from input_pipeline.errors import UserError
from input_pipeline.labels import CLASSES, colour_table
from stpl_jax import checkpoint, modes, predict, to_label
from stpl_jax.metrics.segmentation import iou
from stpl_jax.models import make_segmenter
from stpl_jax.records import read_scores
from stpl_jax.report import analysis, writing
from stpl_jax.rows import row_config

SIZE = (32, 64)
ROWS = ("source_only", "alpha_bn", "stpl_plus")
NAMES = CLASSES["viper"]


def silent(line):
    del line


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_settings, drawn_variables):
    """Three networks, scored and reported on six held-out clips: (configuration, folder, lines)."""
    folder, lines = tmp_path_factory.mktemp("run"), []
    patch = pytest.MonkeyPatch()
    patch.setitem(DATASETS, "film", FILM)
    for n in range(8):
        save(folder / "raw" / "film" / f"{n}.png", picture(n // 2, SIZE))
    config = tiny_settings
    with config.unlocked():
        config.method, config.compare_with = "stpl_plus", ("source_only", "alpha_bn")
        config.data.target.update(name="film", raw_dir=str(folder / "raw"), size=SIZE)
        config.report.frames, config.label.count = 2, 3
    segmenter = make_segmenter(config.model, len(NAMES))
    stored = json.loads(config.to_json_best_effort())
    meta = checkpoint.CheckpointMeta(config=stored, classes=NAMES, label_setting="viper", source="random")
    for seed, row in enumerate(ROWS):
        variables = drawn_variables(segmenter, seed)
        if row == "alpha_bn":
            variables["batch_stats"] = drawn_variables(segmenter, 0)["batch_stats"]
        checkpoint.save_model(folder / "run" / row, variables, meta)
    modes.evaluate(config, folder / "run", lines.append)
    yield config, folder / "run", lines
    patch.undo()


def maps_of(config, folder, row):
    """Class maps of x_t of each held-out clip, made by `predict`."""
    model, source = predict.load(folder / row, tell=silent), open_domain(config, folder, "val", progress=silent)
    clips = [read_clip(source, i, (0, 1), ((0, 1),), label=False) for i in range(len(source))]
    return np.stack([model.segment(c["frames"][::-1], c["flow"].astype(np.float32) / 10)[-1] for c in clips])


def test_rows_are_known_to_be_scored(run):
    config, folder, lines = run
    for row in ROWS:
        last = json.loads((folder / row / "evaluation.json").read_text())["last"]
        assert last["miou"] is None and "iou" not in last and last["clips"] == 6
        maps = maps_of(config, folder, row)
        expected = np.bincount(maps.ravel(), minlength=15) / maps.size
        # The report's maps are made frame by frame: rounding may turn a pixel.
        np.testing.assert_allclose(list(last["shares"].values()), 100 * expected, atol=0.1)
        assert any(line.startswith(f"{row}  no labels, temporal consistency ") for line in lines)


def test_the_report_has_what_can_be_said(run):
    config, folder, lines = run
    report = json.loads((folder / "report.json").read_text())
    assert not {"gap_closed", "labelled_frames"} & report.keys() and list(report["results"]) == list(ROWS)
    assert all(not {"miou", "iou", "best_on_validation"} & found.keys() for found in report["results"].values())
    maps = {row: maps_of(config, folder, row) for row in ROWS}
    for pair in report["agreement"]:
        a, b = (maps[row] for row in pair["rows"])
        assert pair["pixels"] == pytest.approx(100 * (a == b).mean(), abs=0.1)
    assert [pair["rows"] for pair in report["agreement"]] == [[ROWS[0], r] for r in ROWS[1:]] + [list(ROWS[1:])]
    assert report["results"]["alpha_bn"]["statistics_moved"] == 0 < report["results"]["stpl_plus"]["statistics_moved"]
    told = report["warnings"]
    assert any(
        line.startswith("alpha_bn: the batch statistics are nearly the source model's (moved by 0.00%)")
        for line in told
    )
    assert "Only 6 held-out clips" in told[-1]
    assert all(f"report  warning: {line}" in lines for line in told)
    text = (folder / "report.md").read_text()
    assert "IoU" not in text.replace("mIoU on them", "") and "gap" not in text and "| **stpl_plus** |" in text
    assert text.index("## Warnings") < text.index("## Figures") < text.index("## Pictures") < text.index("video.mp4")
    different = np.mean((maps["source_only"] != maps["alpha_bn"]) | (maps["source_only"] != maps["stpl_plus"]), (1, 2))
    chosen = [int(np.argmax(different[:3])), 3 + int(np.argmax(different[3:]))]
    assert sorted(p.stem for p in (folder / "frames").iterdir()) == [f"film_{2 + i:03}" for i in chosen]


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_can_be_looked_at(run, width, tmp_path):
    page = (run[1] / "report.html").read_text()
    headings = ["warnings", "video", "frames", "figures", "shares", "settings"]
    assert [part.partition('"')[0] for part in page.split('<section id="')[1:]] == headings
    for seen in look_at(page, width, tmp_path):
        assert seen["problems"] == [] and seen["broken"] == [] and seen["width"] <= width
        assert seen["images"] == seen["shown"] == 1 + 2 * 4


def test_one_row_alone_and_a_stretch_of_video(run, tmp_path, monkeypatch):
    config, folder, _ = run
    (tmp_path / "stpl_plus").mkdir()
    for name in ("data", "stpl_plus/checkpoints", "stpl_plus/evaluation.json"):
        (tmp_path / name).symlink_to(folder / name)
    for n in range(3):
        save(tmp_path / "own_video" / "film" / f"{n}.png", picture(n, SIZE))
    kept = dict.fromkeys(("made_from", "settings", "frames", "clips", "size", "lines")) | {"film_rate": 5.0}
    (tmp_path / "own_video" / "manifest.json").write_text(json.dumps(kept))
    writing.write_report(config, tmp_path, silent)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["agreement"] == [] and report["warnings"] == [w for w in report["warnings"] if "Only 6" in w]
    assert "A stretch of video that is held out" in (tmp_path / "report.md").read_text()
    page = (tmp_path / "report.html").read_text()
    assert "– → " in page and 'id="figures"' in page and "Agreement" not in page


def test_feature_space_needs_labels(run):
    config, folder, _ = run
    with pytest.raises(analysis.AnalysisError, match="has no labels"):
        analysis.draw_sample(config, open_domain(config, folder, "val", progress=silent), (8, 16))


def write_masks(folder, names, masks):
    """Masks {name: number of the class} and the list of classes that these numbers are places in."""
    for name, number in masks.items():
        save(folder / "labels" / f"{name}.png", np.full(SIZE, number, np.uint8))
    (folder / "classes.json").write_text(json.dumps([{"id": i, "name": name} for i, name in enumerate(names)]))


def beside(run, folder):
    """Another folder with the run's set and its rows' networks."""
    for name in ("data", *ROWS):
        (folder / name).symlink_to(run[1] / name)
    return open_domain(run[0], folder, "val", progress=silent)


def test_masks_of_the_material_and_those_made_for_it_are_scored_together(run, tmp_path):
    source = beside(run, tmp_path)
    names = [source[i]["name"].decode() for i in range(len(source))]
    write_masks(tmp_path / "own_video", ("dragon", "sky", "car"), {names[0]: 1, names[1]: 2, names[2]: 0})
    given = to_label.read_masks(tmp_path, source, NAMES)
    assert given.own.classes == ("dragon", "sky", "car") and set(given.masks) == {0, 1, 2}
    write_masks(tmp_path / "to_label", ("car", "road"), {names[1]: 1, names[3]: 0})
    both = to_label.read_masks(tmp_path, source, NAMES)
    assert both.own.classes == ("dragon", "sky", "car", "road") and both.digest != given.digest
    assert {i: np.unique(mask).tolist() for i, mask in both.masks.items()} == {0: [1], 1: [3], 2: [255], 3: [2]}


def test_frames_with_a_mask_are_not_proposed(run, tmp_path):
    source = beside(run, tmp_path)
    names = [source[i]["name"].decode() for i in range(len(source))]
    write_masks(tmp_path / "own_video", NAMES, dict.fromkeys(names[:-1], 0))
    config, lines = run[0].copy_and_resolve_references(), []
    config.label.count = len(names)
    modes.choose_frames(config, tmp_path, lines.append)
    assert [path.stem for path in (tmp_path / "to_label" / "frames").iterdir()] == names[-1:]
    assert any(
        f"choose_frames  1 frames in {tmp_path}" in line and "beside 5 that have masks" in line for line in lines
    )


@pytest.mark.parametrize("other", [None, {"labels": "b", "labelled": 3}])
def test_rows_that_were_scored_on_different_masks_are_not_compared(run, tmp_path, other):
    (tmp_path / "data").symlink_to(run[1] / "data")
    scores = {"miou": 50.0, "iou": dict.fromkeys(NAMES, 50.0), "confusion": np.eye(15, dtype=int).tolist()}
    for row in ROWS:
        (tmp_path / row).mkdir()
        (tmp_path / row / "checkpoints").symlink_to(run[1] / row / "checkpoints")
        record = json.loads((run[1] / row / "evaluation.json").read_text())
        record["last"] |= scores | {"labels": "a", "labelled": 2, "classes": list(NAMES)}
        if row == "stpl_plus":
            record["last"] |= other or {}
        (tmp_path / row / "evaluation.json").write_text(json.dumps(record))
    writing.write_report(run[0], tmp_path, silent)
    report, page = json.loads((tmp_path / "report.json").read_text()), (tmp_path / "report.html").read_text()
    assert [found["labelled"] for found in report["results"].values()] == [2, 2, 3 if other else 2]
    told = [line for line in report["warnings"] if "different masks" in line]
    assert told == [line for line in told if "(source_only on 2 frames, alpha_bn on 2 frames, stpl_plus on 3" in line]
    assert len(told) == bool(other) and report["labelled_frames"] == (None if other else 2)
    assert ("On 2 labelled frames, the mean IoU goes from" in page) != bool(other)
    text = (tmp_path / "report.md").read_text()
    assert f"Scores on {'' if other else '2 '}held-out frames that a person labelled" in text


def test_scores_taken_on_the_way_stay_and_new_masks_are_scored(run, tmp_path, monkeypatch):
    (tmp_path / "source_only").mkdir()
    for name in ("data", "source_only/checkpoints"):
        (tmp_path / name).symlink_to(run[1] / name)
    source, config = open_domain(run[0], tmp_path, "val", progress=silent), run[0].copy_and_resolve_references()
    config.method, config.compare_with, config.methods.tent.frame_statistics = "tent", ("source_only",), 0.0
    score = {"miou": None, "shares": dict.fromkeys(NAMES, 100 / 15), "confidence": 50.0, "clips": 6, "step": 6}
    score |= {"temporal_consistency": 90.0, "temporal_consistency_warped": 91.0, "online": True, "data": source.digest}
    stored = checkpoint.load_model(run[1] / "stpl_plus", tell=silent)
    settings = json.loads(row_config(config, "tent").to_json_best_effort())
    meta = dataclasses.replace(stored.meta, config=settings, row="tent", step=6, best=score)
    checkpoint.save_model(tmp_path / "tent", stored.variables, meta)

    with monkeypatch.context() as patch:
        patch.setattr(modes, "_report", lambda *arguments: None)
        modes.evaluate(config, tmp_path, silent)
        assert read_scores(tmp_path, "tent").last == score, "its record was lost, and the checkpoint has the score"
        names = [source[i]["name"].decode() for i in range(len(source))]
        write_masks(tmp_path / "to_label", NAMES, {names[0]: 3, names[4]: 5})
        modes.evaluate(config, tmp_path, silent)
    last, maps, confusion = read_scores(tmp_path, "tent").last, maps_of(config, tmp_path, "tent"), np.zeros((15, 15))
    assert {name: last[name] for name in score if name != "miou"} == {n: x for n, x in score.items() if n != "miou"}
    for i, number in ((0, 3), (4, 5)):
        confusion[number] += np.bincount(maps[i].ravel(), minlength=15)
    assert np.abs(np.array(last["confusion"]) - confusion).sum() <= 4 and last["labelled"] == 2
    assert last["miou"] == pytest.approx(np.nanmean(iou(confusion)), abs=0.2)

    writing.write_report(config, tmp_path, silent)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["results"]["tent"]["statistics_moved"] is None, "it has none that could move"
    assert not [line for line in report["warnings"] if "learned little" in line or "different masks" in line]


def test_frames_are_chosen_and_their_masks_scored(run):
    config, folder, _ = run
    lines = []
    modes.choose_frames(config, folder, lines.append)
    frames = sorted((folder / "to_label" / "frames").iterdir())
    assert len(frames) == 3 and "source_only, alpha_bn, stpl_plus differ in" in lines[-2]
    entries = json.loads((folder / "to_label" / "classes.json").read_text())
    assert [entry["name"] for entry in entries] == [*NAMES, "ignored"] and entries[-1]["id"] == 255
    source = open_domain(config, folder, "val", progress=silent)
    places = {source[i]["name"].decode(): i for i in range(len(source))}
    for frame in frames:
        shown = read_clip(source, places[frame.stem], (0,), (), label=False)["frames"][0]
        np.testing.assert_array_equal(np.asarray(Image.open(frame)), shown)

    # One mask of ids, one of colours; chosen again, frames with masks stay.
    random, masks = np.random.default_rng(0), {}
    for n, frame in enumerate(frames[:2]):
        ids = random.choice(np.array([*range(15), 255], np.uint8), SIZE)
        pixels = ids if n else np.where(ids[..., None] < 255, colour_table(NAMES, "viper")[ids], 0).astype(np.uint8)
        save(folder / "to_label" / "labels" / frame.name, pixels)
        masks[places[frame.stem]] = ids
    modes.choose_frames(config, folder, silent)
    again = sorted((folder / "to_label" / "frames").iterdir())
    assert len(again) == 3 and set(frames[:2]) <= set(again)
    modes.evaluate(config, folder, lines.append)
    for row in ROWS:
        maps, confusion = maps_of(config, folder, row), np.zeros((15, 15), int)
        for i, ids in masks.items():
            np.add.at(confusion, (ids[ids < 255], maps[i][ids < 255]), 1)
        record = json.loads((folder / row / "evaluation.json").read_text())
        last = record["last"]
        assert np.abs(np.array(last["confusion"]) - confusion).sum() <= 4
        assert last["miou"] == pytest.approx(np.nanmean(iou(confusion)), abs=0.2) and last["labelled"] == 2
        assert record["best_on_validation"]["miou"] == last["miou"]
        assert any(line.startswith(f"{row}  mIoU {last['miou']:.2f} on 2 labelled frames") for line in lines)
    page = (folder / "report.html").read_text()
    parts = [part.partition('"')[0] for part in page.split('<section id="')[1:]]
    assert parts == ["warnings", "video", "frames", "figures", "shares", "rows", "classes", "confusion", "settings"]
    assert "Scores on 2 held-out frames that a person labelled" in page and "gap" not in page.partition("<main>")[2]

    # Classes of another list, matched by name; a class that the model does not know is ignored.
    classes = [{"id": 1, "name": "sky"}, {"id": 2, "name": "dragon"}, {"id": 3, "name": "car"}]
    (folder / "to_label" / "classes.json").write_text(json.dumps(classes))
    for path in (folder / "to_label" / "labels").iterdir():
        save(path, random.integers(1, 4, SIZE).astype(np.uint8))
    modes.evaluate(config, folder, silent)
    last = json.loads((folder / "stpl_plus" / "evaluation.json").read_text())["last"]
    assert last["iou"].keys() == {"sky", "car"} and np.sum(last["confusion"]) > 0 == np.sum(last["confusion"], 1)[1]
    assert '<th scope="row">dragon</th>' in (folder / "report.html").read_text()

    stray = folder / "to_label" / "labels" / "film_999.png"
    save(stray, np.ones(SIZE, np.uint8))
    with pytest.raises(UserError, match="film_999.png: expected a mask of a held-out frame, .* no clip of that name"):
        modes.evaluate(config, folder, silent)
    stray.unlink()
    save(folder / "to_label" / "frames" / frames[0].name, picture(99, SIZE))
    with pytest.raises(UserError, match="another picture of that name"):
        modes.evaluate(config, folder, silent)
    for path in (folder / "to_label" / "labels").iterdir():
        save(path, np.full(SIZE, 255, np.uint8))
    (folder / "to_label" / "frames" / frames[0].name).unlink()
    with pytest.raises(UserError, match="no pixel of a class in 2 masks"):
        modes.evaluate(config, folder, silent)
