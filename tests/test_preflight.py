"""What a run needs is looked at first: everything wrong is said at once, and all sets are prepared before a step."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import raw_trees
from PIL import Image
from tiny_run import tiny_run_config

from input_pipeline import clips, flow_files
from input_pipeline.builders.checks import BadFilesError
from input_pipeline.domains import open_domain
from input_pipeline.errors import UserError
from input_pipeline.labels import CLASSES
from stpl_jax import checkpoint, disk_space, preflight
from stpl_jax.flow_estimators import ESTIMATORS, DeviceEstimator, FlowError
from stpl_jax.methods import make_method
from stpl_jax.records import RowScores, read_scores
from stpl_jax.rows import row_config
from stpl_jax.train import build_segmenter

VAL = (("lindau", 0, 19), ("lindau", 1, 19))


@pytest.fixture
def config(tmp_path, tiny_config):
    """VIPER at 24×40 and Cityscapes-Seq at 32×64, a tiny network, flow by DIS."""
    raw_trees.write_viper(tmp_path / "viper")
    raw_trees.write_cityscapes_seq(tmp_path / "city")
    raw_trees.write_cityscapes_seq(tmp_path / "city", split="val", clips=VAL)
    tiny_config.data.source.raw_dir, tiny_config.data.target.raw_dir = str(tmp_path / "viper"), str(tmp_path / "city")
    tiny_config.data.source.size, tiny_config.data.target.size = (24, 40), (32, 64)
    return tiny_config


@pytest.fixture(scope="module")
def weights(tmp_path_factory, tiny_settings, drawn_variables):
    """A source model of 15 classes."""
    folder = tmp_path_factory.mktemp("weights") / "source"
    stored = json.loads(tiny_settings.to_json_best_effort())
    meta = checkpoint.CheckpointMeta(config=stored, classes=CLASSES["viper"], method="supervised", step=5)
    checkpoint.save_model(folder, drawn_variables(build_segmenter(tiny_settings)), meta)
    return folder


def check(config, tmp_path, *rows, **options):
    lines = []
    preflight.check(config, tmp_path / "run", rows, lines.append, **options)
    return lines


def prepared(tmp_path):
    return sorted(path.parents[2].name + "/" + path.name for path in (tmp_path / "run").rglob("*.array_record*"))


def colour(path):
    Image.fromarray(np.zeros((32, 64, 3), np.uint8)).save(path)
    return path


def label(tmp_path, split, clip, root="city"):
    city = clip.partition("_")[0]
    return tmp_path / root / "gtFine" / split / city / f"{clip}_gtFine_labelIds.png"


def test_everything_wrong_is_said_at_once_and_nothing_is_written(config, tmp_path):
    (tmp_path / "model.pth").write_bytes(b"PK")
    config.init_from = str(tmp_path / "model.pth")
    config.data.target.list = str(tmp_path / "absent.txt")
    config.rows.more = dict(method="pixmatch")
    bad = [colour(label(tmp_path, "val", "lindau_000000_000019")), tmp_path / "viper/train/img/001/001_00009.jpg"]
    bad[1].write_bytes(b"torn")
    with pytest.raises(preflight.PreflightError) as caught:
        check(config, tmp_path, "stpl", "more")
    message = str(caught.value)
    assert message.startswith("4 things stand in the way of this run:\n1. ")
    for text in ("stpl_jax.convert accel", "absent.txt", str(bad[0]), str(bad[1])):
        assert message.count(text) >= 1, text
    assert not (tmp_path / "run").exists()


def test_what_is_seen_at_once_is_said_before_all_files_are_read(config, tmp_path):
    config.init_from = str(tmp_path / "model.pth")
    lines = []
    with pytest.raises(UserError, match="no such file"):
        preflight.check(config, tmp_path / "run", ("stpl",), lines.append)
    told = next(i for i, line in enumerate(lines) if "in the way already" in line)
    assert all("checking files" not in line for line in lines[:told]) and "checking files" in lines[told + 1]


def missing_split(tmp_path):
    shutil.rmtree(tmp_path / "city" / "gtFine" / "val")
    return "gtFine/val"


def empty_split(tmp_path):
    shutil.rmtree(tmp_path / "city" / "gtFine" / "val")
    (tmp_path / "city" / "gtFine" / "val").mkdir()
    return "found no files"


def colour_labels(tmp_path):
    return str(colour(label(tmp_path, "val", "lindau_000000_000019")))


def unknown_ids(tmp_path):
    path = label(tmp_path, "val", "lindau_000001_000019")
    Image.fromarray(np.full((32, 64), 200, np.uint8)).save(path)
    return str(path)


def missing_frame(tmp_path):
    path = tmp_path / "city/leftImg8bit_sequence/val/lindau/lindau_000000_000017_leftImg8bit.png"
    path.unlink()
    return str(path)


@pytest.mark.parametrize("fault", [missing_split, empty_split, colour_labels, unknown_ids, missing_frame])
def test_the_validation_set_is_looked_at_before_anything_is_prepared(config, tmp_path, fault):
    expected = fault(tmp_path)
    with pytest.raises(BadFilesError) as caught:
        check(config, tmp_path, "source_only", "stpl")
    assert expected in str(caught.value)
    assert prepared(tmp_path) == []


def test_all_sets_of_all_rows_are_prepared(config, tmp_path):
    config.rows.longer = dict(method="stpl", num_frames=3)
    check(config, tmp_path, "source_only", "stpl", "longer")
    names = [name.partition("/")[0] for name in prepared(tmp_path)]
    # stpl reads two frames, longer three: of one set of the target.
    assert names == ["cityscapes_seq"] * 2 + ["viper"]
    # And nothing is left to do when the rows open theirs, whatever happens to the raw files meanwhile.
    shutil.rmtree(tmp_path / "viper" / "train" / "img")
    lines = []
    for row, domain in (("source_only", "source"), ("stpl", "target"), ("longer", "target"), ("stpl", "val")):
        settings = row_config(config, row)
        needs = preflight.make_method(settings, build_segmenter(settings)).needs.get(domain)
        open_domain(settings, tmp_path / "run", domain, needs, lines.append)
    assert lines == []


def test_source_data_is_looked_at_only_where_a_row_reads_it(config, tmp_path, weights):
    config.data.source.raw_dir = None
    config.init_from = str(weights)
    check(config, tmp_path, "source_only", "stpl")
    assert all(name.startswith("cityscapes_seq") for name in prepared(tmp_path))
    with pytest.raises(UserError, match="config.data.source.raw_dir is not set"):
        check(config, tmp_path, "fda")
    config.init_from = None
    with pytest.raises(UserError, match="config.data.source.raw_dir is not set"):
        check(config, tmp_path, "source_only", "stpl")


def test_folders_that_are_not_set_are_named_once_each(config, tmp_path):
    config.data.source.raw_dir = config.data.target.raw_dir = None
    with pytest.raises(preflight.PreflightError) as caught:
        check(config, tmp_path, "source_only", "stpl", "oracle")
    assert str(caught.value).startswith("2 things") and str(caught.value).count("raw_dir is not set") == 2
    config.flow.files = "read"
    config.data.source.raw_dir, config.data.target.raw_dir = str(tmp_path / "viper"), str(tmp_path / "city")
    with pytest.raises(preflight.PreflightError) as caught:
        check(config, tmp_path, "source_only", "stpl")
    for key in ("source.flow_dir", "target.flow_dir", "target.val_flow_dir"):
        assert f"--config.data.{key}=FOLDER" in str(caught.value)


@pytest.mark.parametrize(("row", "key"), [("stpl", "init_from"), ("source_only", "pretrain_from")])
def test_weights_that_do_not_fit_are_said_first(config, tmp_path, weights, row, key):
    setattr(config, key, str(tmp_path / "nothing"))
    with pytest.raises(checkpoint.CheckpointError, match="No checkpoint in"):
        check(config, tmp_path, row)
    setattr(config, key, str(weights))
    config.model.backbone.widths = (4, 4, 4, 8)
    with pytest.raises(checkpoint.CheckpointError, match="another network"):
        check(config, tmp_path, row)
    assert prepared(tmp_path) == []


def test_flow_network_is_looked_at_where_flow_is_missing(config, tmp_path, monkeypatch):
    config.flow.estimator, config.flow.files = "flownet2", "write"
    (tmp_path / "flow.pth.tar").write_bytes(b"PK")
    config.flow.weights = str(tmp_path / "flow.pth.tar")
    colour(label(tmp_path, "val", "lindau_000000_000019"))
    with pytest.raises(preflight.PreflightError, match="convert flownet2(.|\n)*lindau_000000_000019"):
        check(config, tmp_path, "source_only")
    config.flow.weights = None
    raw_trees.write_cityscapes_seq(tmp_path / "city", split="val", clips=VAL)
    with pytest.raises(FlowError, match="needs the network's weights"):
        check(config, tmp_path, "source_only")


@pytest.mark.parametrize("key, value", [("frozen", ("layer7",)), ("multipliers", (("decoders", 2.0),))])
def test_parameters_that_there_are_not_are_said_first(config, tmp_path, weights, key, value):
    config.init_from, config.optim[key] = str(weights), value
    with pytest.raises(UserError, match=f"config.optim.{key}: .*means no parameter.*projection.*segmenter/layer5"):
        check(config, tmp_path, "stpl")
    assert not (tmp_path / "run").exists()


def test_adapting_needs_a_source_model(config, tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match="Adapting needs a source model"):
        check(config, tmp_path, "stpl")
    check(config, tmp_path, "source_only", "stpl")


def test_nothing_is_rendered_where_something_is_wrong(tmp_path):
    config = tiny_run_config()
    config.init_from = str(tmp_path / "model.pth")
    with pytest.raises(UserError, match="convert accel"):
        check(config, tmp_path, "source_only", "stpl")
    assert not (tmp_path / "run").exists()


def test_output_that_cannot_be_written_is_named(config, tmp_path):
    (tmp_path / "run").write_text("a file in the way")
    with pytest.raises(OSError, match="the run has to write there.*run"):
        check(config, tmp_path, "source_only")
    (tmp_path / "run").unlink()
    (tmp_path / "disk").write_text("")
    config.data.prepared_dir = str(tmp_path / "disk" / "data")
    with pytest.raises(OSError, match="the run has to write there.*disk"):
        check(config, tmp_path, "source_only")


def test_a_window_larger_than_the_frames(config, tmp_path):
    config.data.crop = (24, 64)
    with pytest.raises(UserError, match=r"within the frames' \(24, 40\), found \(24, 64\)"):
        check(config, tmp_path, "source_only")
    # Without labels nothing is cropped.
    check(config, tmp_path, "source_only", "stpl", training=False)


def test_a_disk_that_may_become_full_is_a_warning(config, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda folder: usage._replace(free=10_000))
    lines = check(config, tmp_path, "source_only")
    assert sum("may become full: 0.0 GiB are free" in line for line in lines) == 1
    assert prepared(tmp_path)


def write_scores(config, tmp_path, row, data, step=10, trained=None):
    settings = row_config(config, row)
    last = {"step": step, "miou": 1.0, "data": data}
    config = json.loads(settings.to_json_best_effort())
    RowScores(row, settings.method, "random", last, last, config, data=trained).write(tmp_path / "run")


def test_rows_that_are_done_need_nothing(config, tmp_path):
    for row in ("source_only", "stpl"):
        write_scores(config, tmp_path, row, "", row_config(config, row).optim.steps)
    shutil.rmtree(tmp_path / "city")
    check(config, tmp_path, "source_only", "stpl")
    assert prepared(tmp_path) == []
    config.optim.weight_decay = 1.0
    with pytest.raises(preflight.PreflightError) as caught:
        check(config, tmp_path, "source_only", "stpl")
    assert str(caught.value).count("optim.weight_decay: was 0.0005, is 1.0") == 2


def test_a_row_with_the_other_kind_of_score_is_not_done(config, tmp_path):
    write_scores(config, tmp_path, "stpl", "", config.optim.steps)
    scores, settings = read_scores(tmp_path / "run", "stpl"), row_config(config, "stpl")
    online = dataclasses.replace(scores, last=scores.last | {"online": True})
    assert preflight.is_done(settings, scores) and not preflight.is_done(settings, online)
    settings.evaluate.online = True
    assert preflight.is_done(settings, online) and not preflight.is_done(settings, scores)


def begin(config, tmp_path, weights, row, data):
    """Leaves a row as a run that was stopped does."""
    settings = row_config(config, row)
    stored, config = checkpoint.load_model(weights), json.loads(settings.to_json_best_effort())
    meta = dataclasses.replace(stored.meta, config=config, data=data)
    checkpoint.save_model(tmp_path / "run" / row, stored.variables, meta)


def test_a_row_goes_on_with_the_clips_that_it_was_begun_with(config, tmp_path, weights):
    digest = open_domain(config, tmp_path / "other", "target", progress=lambda line: None).digest
    begin(config, tmp_path, weights, "stpl", {"target": digest})
    check(config, tmp_path, "stpl")
    # The same files in another place are the same clips.
    shutil.copytree(tmp_path / "city", tmp_path / "moved", copy_function=shutil.copy)
    config.data.target.raw_dir = str(tmp_path / "moved")
    shutil.rmtree(tmp_path / "run" / "stpl")
    begin(config, tmp_path, weights, "stpl", {"target": digest})
    check(config, tmp_path, "stpl")
    Image.fromarray(np.full((32, 64), 7, np.uint8)).save(label(tmp_path, "train", "aachen_000000_000019", "moved"))
    with pytest.raises(UserError, match="was begun with other clips(.|\n)*target: "):
        check(config, tmp_path, "stpl")


def test_rows_with_scores_of_other_clips_are_named(config, tmp_path):
    digest = open_domain(config, tmp_path / "run", "val", progress=lambda line: None).digest
    write_scores(config, tmp_path, "source_only", digest, 40_000)
    write_scores(config, tmp_path, "oracle", "another", 40_000)
    lines = check(config, tmp_path, "source_only", "oracle", "bn_statistics")
    assert [line.partition(" (val)")[0] for line in lines if "other clips" in line] == [
        "oracle was trained or scored on other clips than there are now"
    ]
    # The row is done, and its training clips have changed: there is nothing to prepare, and that is said.
    open_domain(config, tmp_path / "run", "source", progress=lambda line: None)
    Image.fromarray(raw_trees.frame_pixels(77, (36, 64))).save(tmp_path / "viper/train/img/001/001_00010.jpg")
    lines = check(config, tmp_path, "source_only", "bn_statistics")
    assert [line.partition(": ")[0] for line in lines] == [
        "source_only was trained or scored on other clips than there are now (source)"
    ]


def test_rows_that_were_adapted_before_there_were_masks_are_named(config, tmp_path):
    settings, run = row_config(config, "bn_statistics"), tmp_path / "run"
    needs = make_method(settings, build_segmenter(settings)).needs["target"]
    digest = open_domain(settings, run, "target", needs, progress=lambda line: None).digest
    write_scores(config, tmp_path, "bn_statistics", "", trained={"target": digest})
    write_scores(config, tmp_path, "stpl", "")  # of an earlier version: nothing is known

    def told():
        lines = check(config, tmp_path, "bn_statistics", "stpl", training=False)
        return [line.partition(":")[0] for line in lines if "adapted before" in line]

    (run / "own_video" / "labels").mkdir(parents=True)
    colour(run / "own_video" / "labels" / "x.png")
    assert told() == []
    for file in (tmp_path / "city" / "leftImg8bit_sequence" / "train").rglob("*.png"):
        Image.fromarray(raw_trees.frame_pixels(77, (64, 128))).save(file)
    assert told() == ["bn_statistics"]
    (run / "own_video" / "labels" / "x.png").unlink()
    assert told() == []


def test_settings_of_begun_rows_are_compared_before_anything_is_prepared(config, tmp_path, weights):
    begin(config, tmp_path, weights, "stpl", {})
    config.optim.learning_rate = 1.0
    with pytest.raises(checkpoint.CheckpointError, match="optim.learning_rate: was 0.01, is 1.0"):
        check(config, tmp_path, "source_only", "stpl")
    assert prepared(tmp_path) == []


def flow_for_validation(config, tmp_path, earlier=()):
    """Flow files as the field's download has them, F into F-1; `earlier` names clips that have F-1 into F-2, too."""
    for city, sequence, number in VAL:
        for k in (0, 1):
            if k == 0 or sequence in earlier:
                name = f"{city}_{sequence:06d}_{number - k:06d}_{number - k - 1:06d}_int16_x10.npy"
                flow_files.write_flow(tmp_path / "flow" / name, np.full((32, 64, 2), 1.0 + sequence))
    config.flow.files = "read"
    config.data.target.flow_dir = config.data.target.val_flow_dir = str(tmp_path / "flow")


@pytest.mark.parametrize("earlier", [(), (1,), (0, 1)])
def test_flow_of_one_pair_is_enough_to_score(config, tmp_path, weights, earlier):
    flow_for_validation(config, tmp_path, earlier)
    config.init_from = str(weights)
    lines = check(config, tmp_path, "source_only")
    said = [line for line in lines if "temporal consistency" in line]
    whole = len(earlier) == 2
    assert len(said) == (not whole)
    assert whole or f"{len(earlier)} of 2 files" in said[0]
    spec = open_domain(config, tmp_path / "run", "val", progress=lambda line: None).spec
    assert spec.offsets == ((0, 1, 2) if whole else (0, 1))
    assert spec.flow_pairs == (((0, 1), (1, 2)) if whole else ((0, 1),))
    # The set is found again where the raw files are gone.
    path = open_domain(config, tmp_path / "run", "val", progress=lambda line: None).path
    shutil.rmtree(tmp_path / "flow")
    assert open_domain(config, tmp_path / "run", "val", progress=lambda line: None).path == path
    shutil.rmtree(tmp_path / "city")
    assert open_domain(config, tmp_path / "run", "val", progress=lambda line: None).path == path


def test_flow_into_the_frame_before_has_to_be_there(config, tmp_path, weights):
    flow_for_validation(config, tmp_path)
    config.init_from = str(weights)
    (tmp_path / "flow" / "lindau_000001_000019_000018_int16_x10.npy").unlink()
    with pytest.raises(BadFilesError) as caught:
        check(config, tmp_path, "source_only")
    assert [Path(fault.path).name for fault in caught.value.bad] == ["lindau_000001_000019_000018_int16_x10.npy"]


def test_changed_frames_get_new_flow(config, tmp_path, monkeypatch):
    """Where the run estimates flow itself, files of frames that were replaced are estimated again."""

    def function(params, frames, earlier):
        return (frames.astype(np.float32) - earlier.astype(np.float32))[..., :2] * params["scale"]

    entry = DeviceEstimator(function, lambda weights: ({"scale": np.float32(1)}, "stand-in"))
    monkeypatch.setitem(ESTIMATORS, "toy", entry)
    config.flow.estimator, config.flow.files = "toy", "write"
    check(config, tmp_path, "source_only")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run" / "flow" / "source").glob("*.npy")}
    frame = tmp_path / "viper/train/img/001/001_00010.jpg"
    Image.fromarray(raw_trees.frame_pixels(77, (36, 64))).save(frame)
    lines = check(config, tmp_path, "source_only")
    assert any("1 of 2 files to write, 1 of them of frames that have changed" in line for line in lines)
    after = {path.name: path.read_bytes() for path in (tmp_path / "run" / "flow" / "source").glob("*.npy")}
    assert [name for name in before if after[name] != before[name]] == ["001_0001000009_int16_x10.npy"]
    source = open_domain(config, tmp_path / "run", "source", progress=lambda line: None)
    stored = clips.read_clip(source, 0, (0,), ((0, 1),), False)["flow"][0]
    np.testing.assert_array_equal(stored, np.load(tmp_path / "run/flow/source/001_0001000009_int16_x10.npy"))
    assert check(config, tmp_path, "source_only") == []
