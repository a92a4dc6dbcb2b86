"""Which model is applied or started from: what is asked for by name, or an error that says what there is."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import stpl_jax
from stpl_jax import checkpoint, model_choice, modes, predict
from stpl_jax import checkpoint_places as places
from stpl_jax.checkpoint import CheckpointError
from stpl_jax.records import read_scores
from stpl_jax.report import analysis

CLASSES = ["road", "sidewalk", "building", "fence", "light"]


@pytest.fixture
def config(tiny_config):
    with tiny_config.unlocked():
        tiny_config.data.target.size = (32, 64)
    return tiny_config


@pytest.fixture
def put(config, tiny_variables, tmp_path):
    """A function that writes a row's checkpoint into a folder, each with weights of its own."""

    def write(folder, row, number):
        meta = checkpoint.CheckpointMeta(
            config=json.loads(config.to_json_best_effort()),
            classes=tuple(CLASSES),
            label_setting="viper",
            row=row,
            method=row,
            source="random",
        )
        variables = jax.tree.map(lambda x: x + np.float32(number), tiny_variables)
        checkpoint.save_model(tmp_path / folder, variables, meta)
        return tmp_path / folder / "checkpoints"

    return write


def test_a_given_model_is_scored_as_its_own_method_infers(config, tiny_segmenter, put, tmp_path, monkeypatch):
    class Share:
        def __init__(self, settings, workdir, segmenter, progress):
            self.segmenter = segmenter

        def score_model(self, model, step):
            return {"miou": self.segmenter.frame_statistics, "step": step}

    monkeypatch.setattr(modes, "Validation", Share)
    for method, share in (("tent", 1.0), ("cbna", 0.2), ("stpl", 0.0)):
        config.method = method
        config.init_from, config.method = str(put(f"given/{method}", method, 0)), "stpl"
        modes.run_row(config, tmp_path / method, "source_only", lambda line: None)
        assert read_scores(tmp_path / method, "source_only").last["miou"] == share
        assert predict.load(config.init_from).segmenter.frame_statistics == share


@pytest.fixture
def applied(config, tmp_path, monkeypatch):
    """A function that runs `--mode=predict`; returns the checkpoint's folder and the first line of the log."""
    seen = []
    monkeypatch.setattr(predict, "predict_files", lambda model, *_: seen.append(model))

    def run(workdir="run", row=None, **settings):
        config.update(settings)
        lines = []
        modes.predict(config, tmp_path / workdir, row, "in", "out", lines.append)
        return seen.pop().path.parent, lines[0]

    return run


def test_the_first_line_says_row_step_checkpoint_and_classes(put, applied):
    stpl = put("run/stpl", "stpl", 1)
    folder, line = applied()
    assert folder == stpl
    assert line == (
        f"predict  applies row stpl, step 0, {stpl / '0'}, 5 classes: road, sidewalk, building, fence, light "
        "(config.method=stpl, no --row)"
    )
    assert stpl_jax.load(stpl).description in line


def test_a_row_that_is_not_there_is_refused_whatever_else_is_given(put, applied):
    put("run/stpl_plus", "stpl_plus", 1)
    put("run/source_only", "source_only", 2)
    given = put("given", "source_only", 3)
    for row in ("stpl_plsu", "../given", str(given.parent), "oracle", ""):
        with pytest.raises(CheckpointError, match=r"checkpoints of: source_only \(step 0\), stpl_plus \(step 0\)"):
            applied(row=row, init_from=str(given))
    with pytest.raises(CheckpointError, match="Did you mean stpl_plus?"):
        applied(row="stpl_plsu")


def test_the_method_that_is_configured_is_not_replaced_by_another(put, applied, config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"method": "bn_statistics"}')
    put("run/bn_statistics", "bn_statistics", 1)
    message = r"the row stpl \(config.method=stpl, no --row\).*has checkpoints of: bn_statistics \(step 0\).*--row=ROW"
    with pytest.raises(CheckpointError, match=message):
        applied(method="stpl")
    assert applied(row="bn_statistics")[0] == tmp_path / "run" / "bn_statistics" / "checkpoints"
    with pytest.raises(CheckpointError, match="no checkpoint of any row. Run --mode=auto"):
        applied(workdir="empty")


def test_a_given_model_and_one_of_the_working_directory(put, applied, tmp_path):
    given = put("given", "source_only", 1)
    folder, line = applied(init_from=str(given.parent))
    assert folder == given and f"(config.init_from={given.parent})" in line
    stpl = put("run/stpl", "stpl", 2)
    with pytest.raises(
        CheckpointError, match=r"Two models.*init_from=.*given.*stpl \(step 0\).*give --row=source_only"
    ):
        applied(init_from=str(given))
    assert applied(row="source_only", init_from=str(given))[0] == given
    folder, line = applied(row="stpl", init_from=str(given))
    assert folder == stpl and "config.init_from is not used" in line
    assert applied(init_from=str(stpl))[0] == stpl  # the same model
    put("run/source_only", "source_only", 3)
    for row in (None, "source_only"):
        with pytest.raises(CheckpointError, match="Two models could be .*another --workdir"):
            applied(row=row, init_from=str(given))
    assert applied(workdir="elsewhere", init_from=str(given))[0] == given
    assert applied(row="source_only", init_from=None)[0] == tmp_path / "run" / "source_only" / "checkpoints"


def test_a_given_working_directory_means_its_source_model(put, applied, config, tmp_path):
    put("other/stpl", "stpl", 1)
    config.init_from = str(tmp_path / "other")
    for choose in (lambda: applied(), lambda: model_choice.source_model(config, tmp_path / "run")):
        with pytest.raises(CheckpointError, match=r"row source_only.*has checkpoints of: stpl \(step 0\)"):
            choose()
    source = put("other/source_only", "source_only", 2)
    assert applied()[0] == source
    assert model_choice.source_model(config, tmp_path / "run") == source
    config.init_from = str(tmp_path / "other" / "stpl")  # said by name
    assert model_choice.source_model(config, tmp_path / "run") == tmp_path / "other" / "stpl"


def test_a_pytorch_file_as_a_model(applied, config, tmp_path):
    (tmp_path / "model.pth").write_bytes(b"PK")
    for choose in (
        lambda: applied(init_from=str(tmp_path / "model.pth")),
        lambda: stpl_jax.load(tmp_path / "model.pth"),
        lambda: stpl_jax.load(tmp_path),
        lambda: model_choice.start_lines(config, tmp_path, "stpl", tmp_path / "model.pth"),
    ):
        with pytest.raises(CheckpointError, match="python -m stpl_jax.convert accel .*model.pth OUT"):
            choose()


def test_training_says_what_it_starts_from(put, config, tmp_path):
    workdir, lines = (
        tmp_path / "run",
        lambda row, origin: model_choice.start_lines(config, tmp_path / "run", row, origin),
    )
    assert lines("source_only", None) == ["source_only  starts from random weights, seed 0"]
    with pytest.raises(CheckpointError, match="(?s)neither config.init_from nor .*--mode=pretrain.*--config.init_from"):
        model_choice.source_model(config, workdir)
    own = put("run/source_only", "source_only", 1)
    (line,) = lines("stpl", model_choice.source_model(config, workdir))
    assert line.startswith(f"stpl  starts from row source_only, step 0, {own / '0'}, 5 classes: road, ")
    given = put("given", "source_only", 2)
    config.init_from = str(given)
    line, beside = lines("stpl", model_choice.source_model(config, workdir))
    assert str(given / "0") in line and line.endswith(f"(config.init_from={given})")
    assert f"does not start from {own}" in beside
    stpl = put("run/stpl", "stpl", 3)
    (stpl / "0" / "train").mkdir()
    assert lines("stpl", given) == [
        f"stpl  goes on from row stpl, step 0, {stpl / '0'}, 5 classes: {', '.join(CLASSES)}"
    ]


def test_two_source_models_are_not_put_into_one_table(put, config, tmp_path):
    put("run/source_only", "source_only", 1)
    config.init_from = str(put("given", "source_only", 2))
    for use in (
        lambda: modes.run_row(config, tmp_path / "run", "source_only", lambda line: None),
        lambda: model_choice.table_models(config, tmp_path / "run"),
        lambda: analysis.find_checkpoints(config, tmp_path / "run"),
        lambda: analysis.find_checkpoints(config, tmp_path / "run", ["source_only"]),
    ):
        with pytest.raises(CheckpointError, match="Two models could be the row source_only"):
            use()
    assert not (tmp_path / "run" / "source_only" / "evaluation.json").exists()


def test_rows_that_are_scored(put, config, tmp_path, monkeypatch):
    config.compare_with = ("source_only",)
    put("run/bn_statistics", "bn_statistics", 1)
    with pytest.raises(CheckpointError, match=r"config.method=stpl.*bn_statistics \(step 0\)"):
        modes.evaluate(config, tmp_path / "run")
    with pytest.raises(CheckpointError, match="config.method=stpl.*or name some by --checkpoints=PATH,NAME=PATH"):
        analysis.find_checkpoints(config, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()  # a mistyped method is not written down
    source, stpl = put("given", "source_only", 2), put("run/stpl", "stpl", 3)
    config.init_from = str(source)
    scored, lines = [], []

    def score(settings, workdir, stored, progress):
        scored.append(stored.path.parent)
        return {"miou": 50.0, "step": 0}

    monkeypatch.setattr(modes, "_score", score)
    monkeypatch.setattr(modes, "_report", lambda *_: None)
    monkeypatch.setattr(modes.preflight, "check", lambda *_, **__: None)
    modes.evaluate(config, tmp_path / "run", lines.append)
    assert scored == [source, stpl]
    assert lines[0].startswith(f"evaluate  source_only: row source_only, step 0, {source / '0'}, 5 classes")
    assert lines[-1] == "evaluate  left out, not in config.method or config.compare_with: bn_statistics"
    written = json.loads((tmp_path / "run" / "source_only" / "evaluation.json").read_text())
    assert written["source"] == str(source / "0")


def test_loading_names_what_there_is(put, tmp_path, monkeypatch):
    stpl = put("run/stpl", "stpl", 1)
    workdir = tmp_path / "run"
    with pytest.raises(CheckpointError, match=r"does not say which row.*stpl \(step 0\)"):
        stpl_jax.load(workdir)
    (workdir / "config.json").write_text('{"method": "bn_statistics"}')
    with pytest.raises(CheckpointError, match=r"row bn_statistics \(the method in config.json\).*stpl \(step 0\)"):
        stpl_jax.load(workdir)
    with pytest.raises(CheckpointError, match=r"row stlp .*Did you mean stpl\?"):
        stpl_jax.load(workdir, "stlp")
    assert stpl_jax.load(workdir, "stpl").path == stpl / "0"
    for path in (stpl, stpl.parent, stpl / "0"):
        assert stpl_jax.load(path, "stpl").path == stpl / "0"
        with pytest.raises(CheckpointError, match="is the row stpl, and the row source_only is asked for"):
            stpl_jax.load(path, "source_only")
    (workdir / "config.json").write_text('{"meth')
    with pytest.raises(ValueError, match="config.json: expected JSON"):
        stpl_jax.load(workdir)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert stpl_jax.load("~/run/stpl").path == stpl / "0"
    monkeypatch.chdir(workdir)
    assert stpl_jax.load(Path("stpl")).path == stpl / "0"
    checkpoint.save_model(tmp_path / "bare", {"params": {"a": np.ones(2, np.float32)}}, checkpoint.CheckpointMeta())
    with pytest.raises(CheckpointError, match="does not say its config, classes in meta"):
        stpl_jax.load(tmp_path / "bare")


@pytest.mark.parametrize("name", ["model.pth", "Model.PT", "FlowNet2_checkpoint.pth.tar", "epoch.ckpt"])
@pytest.mark.parametrize("where", ["file", "missing", "folder"])
def test_weights_in_another_form_name_the_converter(tmp_path, name, where):
    given = file = tmp_path / "given" / name
    if where != "missing":
        file.parent.mkdir()
        file.write_bytes(b"PK")
    given = file.parent if where == "folder" else file
    with pytest.raises(CheckpointError, match="expected a checkpoint, which is a folder") as caught:
        places.find(given)
    assert f"stpl_jax.convert accel {file} OUT" in str(caught.value)
    with pytest.raises(CheckpointError, match="stpl_jax.convert flownet2"):
        places.find(given, network="flownet2")


def test_weights_beside_rows_are_no_obstacle(tmp_path):
    (tmp_path / "stpl").mkdir()
    (tmp_path / "adapted.pth").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="No checkpoint in"):
        places.find(tmp_path)
