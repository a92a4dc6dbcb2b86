import html
import json
import re
import tomllib
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
import raw_trees
from markdown_it import MarkdownIt
from ml_collections import ConfigDict
from PIL import Image

from input_pipeline.errors import UserError
from input_pipeline.labels import CLASSES, PALETTE, colour_table, train_id_table
from stpl_jax import checkpoint, predict
from stpl_jax.models import make_segmenter
from stpl_jax.models.network import initial_variables
from stpl_jax.report import numbers, writing
from stpl_jax.report.pictures import Picture

TRAIN_SIZE = (32, 64)
LABEL_SIZE = (64, 128)
PANEL = (128, 256)
# Picked so that the shares come out round: the gap is 40 points.
MIOU = {"source_only": 30.0, "bn_statistics": 40.0, "stpl": 55.0, "oracle": 70.0}


@pytest.fixture
def config(tiny_config):
    with tiny_config.unlocked():
        tiny_config.compare_with = ("source_only", "bn_statistics", "oracle")
        tiny_config.data.target.size = TRAIN_SIZE
        tiny_config.report.frames = 2
    return tiny_config


def write_evaluation(workdir, row, miou, source="random", step=7):
    classes = CLASSES["viper"]
    last = {
        "miou": miou,
        "iou": {name: miou + i for i, name in enumerate(classes[:-1])} | {classes[-1]: None},
        "temporal_consistency": 90.0,
        "temporal_consistency_warped": 95.0,
        "confusion": [[0] * 15] * 15,
        "step": step,
    }
    text = {"row": row, "method": row, "source": source, "last": last, "config": {}}
    text["best_on_validation"] = last | {"miou": miou + 1, "step": step - 2}
    (workdir / row).mkdir(parents=True, exist_ok=True)
    (workdir / row / "evaluation.json").write_text(json.dumps(text))


def network(config, seed):
    """Variables drawn by numpy, which compiles nothing; another seed gives other class maps."""
    segmenter = make_segmenter(config.model, 15)
    shapes = jax.eval_shape(lambda: initial_variables(segmenter, jax.random.key(0)))
    random = np.random.default_rng(seed)

    def draw(x):
        # Vectors are scales, biases and averages: all positive, so that they may be variances.
        values = random.uniform(0.5, 1.5, x.shape) if len(x.shape) == 1 else random.normal(0, 0.3, x.shape)
        return values.astype(np.float32)

    return jax.tree.map(draw, shapes)


def save(folder, config, variables):
    stored = json.loads(config.to_json_best_effort())
    meta = checkpoint.CheckpointMeta(config=stored, classes=CLASSES["viper"], label_setting="viper")
    checkpoint.save_model(folder, variables, meta)


def test_numbers_and_shares(tmp_path, config):
    for row, miou in MIOU.items():
        write_evaluation(tmp_path, row, miou)
    evaluations = numbers.read_evaluations(config, tmp_path)
    found = json.loads(json.dumps(numbers.make_report(config, evaluations), allow_nan=False))
    assert found["classes"] == list(CLASSES["viper"])
    assert list(found["results"]) == ["source_only", "bn_statistics", "oracle", "stpl"]
    assert {row: scores["miou"] for row, scores in found["results"].items()} == MIOU
    stpl = found["results"]["stpl"]
    assert stpl["iou"]["road"] == 55 and stpl["iou"]["building"] == 57 and stpl["iou"]["bicycle"] is None
    assert (stpl["temporal_consistency"], stpl["temporal_consistency_warped"]) == (90, 95)
    assert stpl["step"] == 7 and stpl["best_on_validation"] == {"miou": 56, "step": 5}
    assert found["gap_closed"] == pytest.approx(25 / 40)
    assert found["gap_closed_by_bn_statistics"] == pytest.approx(10 / 40)
    assert found["gap_closed_beyond_bn"] == pytest.approx(15 / 30)
    assert found["config"]["method"] == "stpl" and "jax" in found["versions"] and found["device"]

    text = writing.report_text(found, "stpl")
    assert "| **stpl** | 55.0 | +25.0 | 90.0 | 95.0 | 7 | 56.0 (step 5) |" in text
    assert "| source_only | 30.0 | +0.0 |" in text
    assert "| building | 32.0 | 42.0 | 57.0 | 72.0 |" in text and "| bicycle | - | - | - | - |" in text
    assert "62.5%" in text and "25.0%" in text and "50.0%" in text and "validation labels" in text


def test_names_and_paths_show_as_they_are(tmp_path, config):
    for row, miou in MIOU.items():
        write_evaluation(tmp_path, row, miou, source="/data/a_b|c *d* [e](f) <i>/caf\udce9\n# g")
    found = numbers.make_report(config, numbers.read_evaluations(config, tmp_path))
    row, clip = "mine|<b>_x_", "# clip *1* [a](b)\n<script>"
    for part in ("results", "settings"):
        found[part][row] = found[part].pop("stpl")
    found["config"]["data"]["target"]["name"] = "_city_"
    text = writing.report_text(found, row, [Picture(clip, f"frames/{clip}.png", {})])
    page = MarkdownIt("commonmark").enable("table").render(text)
    assert html.unescape(re.findall("<h1>(.*)</h1>", page)[0]) == f"Adaptation to _city_ by {row}"
    cells = [html.unescape(cell) for cell in re.findall("<td>(.*?)</td>", page)]
    assert f"<strong>{row}</strong>" in cells and "source_only" in cells
    heads = [html.unescape(head) for head in re.findall("<th.*?>(.*?)</th>", page)]
    assert heads[-5:] == ["class", "source_only", "bn_statistics", row, "oracle"]
    shown = html.unescape(page)
    assert "from /data/a_b|c *d* [e](f) <i>/caf\\udce9\\n# g</li>" in shown
    assert "<p># clip *1* [a](b)\\n<script></p>" in shown and 'src="frames/%23%20clip' in page
    for mark in ("<b>", "<i>", "<script>", "<em>c", "<em>d", "<em>1", "<a "):
        assert mark not in page
    # Bytes that are no text are told apart from it, and neither file stops over them.
    writing.write_report(config, tmp_path, lambda line: None)
    for name in ("report.md", "report.html"):
        assert "caf" in (tmp_path / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("missing", ["source_only", "bn_statistics", "stpl", "oracle"])
def test_a_missing_row_makes_its_shares_null(tmp_path, config, missing):
    for row, miou in MIOU.items():
        if row != missing:
            write_evaluation(tmp_path, row, miou)
    found = numbers.make_report(config, numbers.read_evaluations(config, tmp_path))
    needs = {
        "gap_closed": {"source_only", "stpl", "oracle"},
        "gap_closed_by_bn_statistics": {"source_only", "bn_statistics", "oracle"},
        "gap_closed_beyond_bn": {"bn_statistics", "stpl", "oracle"},
    }
    assert missing not in found["results"]
    for share, rows in needs.items():
        assert (found[share] is None) == (missing in rows)
    assert "not known" in writing.report_text(found, "stpl")


def test_no_gap_and_scores_that_are_not_defined(tmp_path, config):
    for row in MIOU:
        write_evaluation(tmp_path, row, 30.0)
    write_evaluation(tmp_path, "bn_statistics", float("nan"))
    found = numbers.make_report(config, numbers.read_evaluations(config, tmp_path))
    assert found["gap_closed"] is None and found["gap_closed_by_bn_statistics"] is None
    assert found["results"]["bn_statistics"]["miou"] is None
    assert "NaN" not in json.dumps(found)


def test_templates_travel_with_the_package():
    folder = Path(writing.__file__).parent
    project = tomllib.loads((folder.parents[1] / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["stpl_jax.report"]
    there = {path for path in (folder / "templates").rglob("*") if path.is_file()}
    assert len(there) > 10 and there <= {path for pattern in patterns for path in folder.glob(pattern)}


def test_nothing_to_report(tmp_path, config):
    with pytest.raises(UserError, match="no evaluation.json in any of source_only, bn_statistics, oracle, stpl"):
        writing.write_report(config, tmp_path)
    assert not list(tmp_path.iterdir())


def read(path):
    return np.asarray(Image.open(path))


def panels_of(picture, count):
    """Cuts a picture into its panels: they stand side by side, two pixels apart, under a line of text."""
    top = next(y for y in range(picture.shape[0]) if (picture[y, :128] != 255).any(-1).all())
    return [picture[top : top + PANEL[0], i * (PANEL[1] + 2) :][:, : PANEL[1]] for i in range(count)]


def test_pictures_show_frame_predictions_and_label(tmp_path, config):
    raw = tmp_path / "raw"
    clips = (("lindau", 0, 19), ("lindau", 1, 19), ("frankfurt", 0, 294), ("munster", 4, 19), ("munster", 5, 19))
    names = raw_trees.write_cityscapes_seq(raw, split="val", clips=clips, size=LABEL_SIZE, ids=(7, 11, 21, 26, 0))
    with config.unlocked():
        config.data.target.raw_dir = str(raw)
        config.init_from = str(tmp_path / "given")
    save(tmp_path / "given", config, network(config, 0))
    save(tmp_path / "run" / "stpl", config, network(config, 1))
    for row, miou in MIOU.items():
        write_evaluation(tmp_path / "run", row, miou, source=str(tmp_path / "given" / "checkpoints" / "0"))
    writing.write_report(config, tmp_path / "run", progress=lambda line: None)

    files = sorted(p.name for p in (tmp_path / "run" / "frames").iterdir())
    assert files == [f"{names[0]}.png", f"{names[-1]}.png"]
    text = (tmp_path / "run" / "report.md").read_text()
    assert all(f"![{file[:-4]}](frames/{file})" in text for file in files) and "video.mp4" not in text
    assert json.loads((tmp_path / "run" / "report.json").read_text())["gap_closed"] == pytest.approx(0.625)

    picture = read(tmp_path / "run" / "frames" / files[-1])
    assert picture.shape[0] > PANEL[0] and picture.shape[1] == 4 * (PANEL[1] + 2) - 2
    frame, before, after, label = panels_of(picture, 4)
    raw_frame = Image.open(raw / "leftImg8bit_sequence/val/munster/munster_000005_000019_leftImg8bit.png")
    expected = np.asarray(raw_frame.resize(TRAIN_SIZE[::-1], Image.Resampling.BICUBIC).resize(PANEL[::-1]))
    assert np.abs(frame.astype(int) - expected).mean() < 4
    # The panels are the two networks' class maps of the last frame, drawn from the scores at the panel's own size.
    prefix = raw / "leftImg8bit_sequence/val/munster/munster_000005_0000"
    paths = [f"{prefix}{number}_leftImg8bit.png" for number in (17, 18, 19)]
    frames = np.stack([np.asarray(Image.open(p).resize(TRAIN_SIZE[::-1], Image.Resampling.BICUBIC)) for p in paths])
    for folder, panel in ((tmp_path / "given", before), (tmp_path / "run" / "stpl", after)):
        classes = predict.load(folder).segment(frames, size=PANEL)[-1]
        # Stored flow is rounded to tenths of a pixel, which may turn a few pixels.
        same = (panel == colour_table(CLASSES["viper"])[classes]).all(-1)
        assert same.mean() > 0.99, f"{folder.name}: {same.mean():.4f} of the panel's pixels are the network's"
        assert len(np.unique(classes)) > 1
    assert (before != after).any()
    ids = read(raw / "gtFine/val/munster/munster_000005_000019_gtFine_labelIds.png")
    classes = train_id_table("cityscapes_seq", "viper")[ids].repeat(2, 0).repeat(2, 1)
    assert (classes == 255).any() and (label[classes == 255] == 0).all()
    np.testing.assert_array_equal(label, colour_table(CLASSES["viper"])[classes])
    legend = picture[-60:]
    assert all((legend == PALETTE[name]).all(-1).sum() > 20 for name in CLASSES["viper"])


def test_a_generated_run_ends_with_a_video(tmp_path, config):
    with config.unlocked():
        clips = {"source_clips": 1, "target_train_clips": 1, "target_val_clips": 2, "video_frames": 3}
        config.world = ConfigDict({"generate": True, "size": TRAIN_SIZE, "workers": 1} | clips)
        config.report.frames = 1
    for seed, row in enumerate(("source_only", "stpl")):
        save(tmp_path / row, config, network(config, seed))
        write_evaluation(tmp_path, row, MIOU[row])
    writing.write_report(config, tmp_path, progress=lambda line: None)
    assert "(video.mp4)" in (tmp_path / "report.md").read_text()
    assert len(list((tmp_path / "frames").iterdir())) == 1
    capture = cv2.VideoCapture(str(tmp_path / "video.mp4"))
    shown = []
    while (read_one := capture.read())[0]:
        shown.append(cv2.cvtColor(read_one[1], cv2.COLOR_BGR2RGB))
    assert len(shown) == 3 and shown[0].shape[1] == 3 * (PANEL[1] + 2) - 2
    for picture in shown:
        assert picture.std() > 10
    assert (shown[0] != shown[-1]).any()


def test_without_networks_the_numbers_still_come(tmp_path, config):
    for row, miou in MIOU.items():
        write_evaluation(tmp_path, row, miou)
    lines = []
    writing.write_report(config, tmp_path, lines.append)
    assert not (tmp_path / "frames").exists() and "## Pictures" not in (tmp_path / "report.md").read_text()
    assert any("no pictures of source_only: No checkpoint" in line for line in lines)
    assert json.loads((tmp_path / "report.json").read_text())["results"]["stpl"]["miou"] == 55


def test_only_the_first_process_writes(tmp_path, config, monkeypatch):
    for row, miou in MIOU.items():
        write_evaluation(tmp_path, row, miou)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    writing.write_report(config, tmp_path)
    assert not (tmp_path / "report.json").exists()


def test_scores_on_other_clips_are_marked(config, tmp_path):
    for row, miou in (("source_only", 30.0), ("stpl", 50.0)):
        write_evaluation(tmp_path, row, miou)
    told = "scored on different validation clips"
    found = numbers.make_report(config, numbers.read_evaluations(config, tmp_path))
    assert told not in writing.report_text(found, "stpl")
    for row, digest in (("source_only", "one"), ("stpl", "other")):
        path = tmp_path / row / "evaluation.json"
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record | {"last": record["last"] | {"data": digest}}))
    found = numbers.make_report(config, numbers.read_evaluations(config, tmp_path))
    assert told in writing.report_text(found, "stpl") and told in writing.report_page(found, "stpl", {}, {})
