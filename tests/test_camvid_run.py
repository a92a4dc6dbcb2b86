"""A run of configs/camvid.py from a checkpoint of Cityscapes' classes, in small."""

import functools
import json

import cv2
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from raw_trees import label_ids, write_camvid

from configs import camvid
from input_pipeline import run_folder
from input_pipeline.errors import UserError
from input_pipeline.labels import CLASSES, colour_table
from stpl_jax import checkpoint, modes, prior_choice, settings
from stpl_jax.checkpoint_meta import CheckpointMeta
from stpl_jax.methods import METHODS, make_method, takes_prior
from stpl_jax.models import frame_statistics, make_segmenter
from stpl_jax.records import read_scores
from stpl_jax.report import analysis, analysis_files
from stpl_jax.rows import row_config
from stpl_jax.run_log import read_log


@pytest.fixture
def config(tmp_path, tiny_config, drawn_variables):
    """Five frames of a drive and a source model of 19 classes, trained at another size."""
    write_camvid(tmp_path / "raw", [f"train/0006R0_f{n:05d}.png" for n in (0, 30, 60, 90, 120)])
    tiny_config.data.target.size = (32, 64)
    meta = CheckpointMeta(
        config=json.loads(tiny_config.to_json_best_effort()),
        classes=CLASSES["cityscapes_seq"],
        label_setting="cityscapes_seq",
        row="source_only",
    )
    checkpoint.save_model(tmp_path / "source", drawn_variables(make_segmenter(tiny_config.model, 19)), meta)
    config = camvid.get_config()
    config.init_from = str(tmp_path / "source")
    config.data.target.update(raw_dir=str(tmp_path / "raw"), drive="0006R0", size=(24, 32))
    config.optim.steps = config.optim.decay_steps = 1
    config.method, config.compare_with = "bn_statistics", ("source_only",)
    config.compilation_cache = False
    return modes.with_inputs(settings.expand_paths(config), tmp_path / "run", lambda line: None)


def test_a_drive_is_adapted_to_and_scored_by_camvids_classes(config, tmp_path):
    assert config.data.target.size == (24, 32) and config.data.classes == "cityscapes_seq"
    lines = []
    modes.auto(config, tmp_path / "run", lines.append)
    assert any("camvid/train: 2 clips prepared" in line for line in lines)
    for row in ("source_only", "bn_statistics"):
        confusion = np.array(read_scores(tmp_path / "run", row).last["confusion"])
        assert confusion.shape == (11, 11)
        # Each pixel of the three frames of the second half, at the size of the labels.
        assert confusion.sum() == 3 * 36 * 48
    report_shows_camvids_classes(tmp_path / "run", label_ids(2, (36, 48), (0, 1, 3, 4, 5, 8)))


def report_shows_camvids_classes(run, label):
    """Pictures and heads of the report are the set's: its ids mean others among the model's classes."""
    palette = colour_table(CLASSES["camvid"], "camvid")
    panels = np.asarray(Image.open(run / "frames" / "0006R0_f00060.png"))
    top = next(y for y in range(panels.shape[0]) if (panels[y, :128] != 255).any(-1).all())
    _, before, after, painted = (panels[top : top + 192, i * 258 : i * 258 + 256] for i in range(4))
    enlarged = cv2.resize(label, (256, 192), interpolation=cv2.INTER_NEAREST)
    np.testing.assert_array_equal(painted, palette[enlarged])
    known = set(map(tuple, palette[:11].tolist()))
    for panel in (before, after):
        found = set(map(tuple, panel.reshape(-1, 3).tolist()))
        assert found <= known and len(found) > 1
    page = (run / "report.html").read_text()
    heads = page.split('class="confusion"')[1].split("</thead>")[0]
    assert heads.count('scope="col"') == 11 and "bicyclist" in heads and "train" not in heads


def test_the_analysis_names_camvids_classes(config, tmp_path, monkeypatch):
    monkeypatch.setattr(analysis, "embed", lambda features, seed: np.zeros((len(features), 2), np.float32))
    config.analysis.update(dict(clips=3, pixels=5, neighbours=(1,), frames=0))
    analysis.analyse(config, tmp_path / "run", {"given": tmp_path / "source"}, lambda line: None)
    results = analysis_files.read_results(tmp_path / "run")
    assert {name for name, count in results["pixels"].items() if count} == {
        "sky", "building", "road", "sidewalk", "tree", "car"
    }  # fmt: skip
    assert results["subsets"]["chosen"] == ["road", "car"]


def test_a_row_with_source_data_ends_with_what_is_missing(config, tmp_path):
    config.compare_with = ("source_only", "fda")
    assert row_config(config, "fda").method == "fda"
    with pytest.raises(UserError, match="config.data.source.raw_dir is not set"):
        modes.auto(config, tmp_path / "run", lambda line: None)


def model_of(folder):
    return checkpoint.load_model(folder).variables


def test_a_prior_blends_the_statistics_once_and_training_keeps_them(config, tmp_path):
    config.batch_norm.update(dict(prior=0.25, prior_clips=8))  # one on each device
    config.methods.alpha_bn.alpha = 0.75
    config.rows.alpha_bn = ConfigDict(dict(optim=dict(steps=1)))
    config.rows.self_training.optim.learning_rate = 0.1
    config.rows.blend.update(clips_per_device=1, batch_norm=dict(choose_prior=False))
    config.method, config.compare_with = "self_training", ("source_only", "alpha_bn", "blend")
    lines = []
    modes.auto(config, tmp_path / "run", lines.append)
    assert "self_training  statistics: 25% the source's, the rest the target's, of 8 clips drawn" in lines
    source, blend = model_of(tmp_path / "source"), model_of(tmp_path / "run" / "alpha_bn")
    trained = model_of(tmp_path / "run" / "self_training")
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, trained["batch_stats"], blend["batch_stats"])
    assert not tree_equal(trained["params"], source["params"])
    untrained = model_of(tmp_path / "run" / "blend")
    jax.tree.map(close, untrained["batch_stats"], blend["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, untrained["params"], source["params"])
    assert not tree_equal(blend["batch_stats"], source["batch_stats"])
    modes.select(config, tmp_path / "run", lines.append)
    found = json.loads((tmp_path / "run" / "select.json").read_text())
    assert set(found["agreement"]) == {"source_only", "alpha_bn", "blend", "self_training"}
    assert set(found["reference"]) == set(found["cost"]) == {"source_only", "alpha_bn", "blend"}
    assert lines[-1] == f"select  --mode=predict --row={found['chosen']} applies it"
    assert found["chosen"] == max(found["agreement"], key=found["agreement"].get)


def test_a_prior_is_chosen_without_labels(config, tmp_path, monkeypatch):
    config.batch_norm.prior_clips = 8
    config.method, config.compare_with = "blend", ("source_only", "alpha_bn")
    config.methods.alpha_bn.alpha = 0.125
    config.rows.blend.clips_per_device = 1
    config.rows.alpha_bn = ConfigDict(dict(optim=dict(steps=1)))
    lines = []
    monkeypatch.setattr(prior_choice, "lowest", lambda costs: 0.125)
    modes.auto(config, tmp_path / "run", lines.append)
    (line,) = (line for line in lines if line.startswith("blend  statistics: 88% the source's"))
    assert "8 clips drawn; chosen for the lowest cost: 100% " in line and ", 0% " in line
    entries, _ = read_log(run_folder.metrics(tmp_path / "run", "blend"))
    assert [entry["prior"] for entry in entries if "prior" in entry] == [0.875]
    chosen, expected = (model_of(tmp_path / "run" / row)["batch_stats"] for row in ("blend", "alpha_bn"))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), chosen, expected)


def tree_equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_which_methods_take_a_prior(config):
    config.batch_norm.prior = 0.5
    without = {"source_only", "oracle", "alpha_bn", "bn_statistics", "ubna", "cbna", "tent", "cotta", "sar"}
    for name in METHODS:
        config.method = name
        assert takes_prior(config) == (name not in without)
    config.method = "stpl_plus"
    assert make_method(config, make_segmenter(config.model, 19)).config.batch_norm.mode == "running"
    for name, share in (("cbna", 0.1), ("tent", 0.5), ("sar", 0.5), ("cotta", 0.5)):
        config.method = name
        assert frame_statistics(config) == share, "half of the published one"
    config.batch_norm.prior, config.method = 0.0, "stpl"
    assert not takes_prior(config) and frame_statistics(config) is None
