"""Every setting has a rule, and a wrong one is named before anything begins."""

import fnmatch
import importlib
import json
import math
from pathlib import Path

import pytest

from configs import base, synthetic
from input_pipeline.errors import UserError
from stpl_jax import settings
from stpl_jax.checkpoint import CheckpointError
from stpl_jax.rows import row_config
from stpl_jax.setting_rules import RULES, rule_of

FILES = sorted(p.stem for p in (Path(__file__).parents[1] / "configs").glob("*.py") if p.stem != "__init__")


def change(config, changes):
    with config.unlocked():
        for key, value in changes.items():
            *folders, name = key.split(".")
            section = config
            for folder in folders:
                section = section[folder]
            section[name] = value
    return config


def complaint(changes, config=None):
    with pytest.raises(settings.SettingsError) as caught:
        settings.check(change(config or base.get_config(), changes))
    return str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_files_of_the_project_fit(name):
    settings.check(importlib.import_module(f"configs.{name}").get_config())


def test_every_setting_has_a_rule_and_every_rule_a_setting():
    keys = {
        key
        for config in (base.get_config(), synthetic.get_config())
        for key in settings.flat(config)
        if not key.startswith("rows.")
    }
    assert not [key for key in keys if rule_of(key) is None]
    matched = {next(p for p in RULES if fnmatch.fnmatchcase(key, p)) for key in keys if ".own." not in key}
    # Of the generated worlds, neither file sets these: input_pipeline/world/generate.py has their defaults.
    assert set(RULES) - matched == {"world.source_layout", "world.workers"}


@pytest.mark.parametrize(
    "key, value, expected",
    [
        ("checkpoint.keep", 0, "a whole number from 1 on"),
        ("checkpoint.every", 0, "a whole number from 1 on"),
        ("methods.tent.frame_statistics", 1.5, "a number from 0 to 1"),
        ("methods.cotta.scales", (1.0, 0.0), "a tuple of 1 or more values, each a number above 0"),
        ("log_every", 0, "a whole number from 1 on"),
        ("steps", 0, "a whole number from 1 on, or None"),
        ("optim.steps", -5, "a whole number from 1 on"),
        ("evaluate.every", -1, "a whole number from 0 on"),
        ("seed", 2**31, "a whole number from 0 to 2147483647"),
        ("batch_norm.mode", "foo", "one of batch, sync, running"),
        ("batch_norm.average_over", "foo", "one of all, clean"),
        ("optim.learning_rate", math.nan, "a number above 0"),
        ("optim.learning_rate", math.inf, "a number above 0"),
        ("optim.momentum", 1.0, "a number from 0 to below 1"),
        ("optim.warmup_steps", -1, "a whole number from 0 on"),
        ("optim.warmup_steps", 20_000, "fewer than config.optim.decay_steps=20000, found 20000"),
        ("methods.hcl.label_statistics", "mean", "one of running, batch, found 'mean'"),
        ("optim.frozen", ("(",), "each a regular expression"),
        ("optim.multipliers", (("segmenter",),), "pairs"),
        ("model.backbone.blocks", (1, 1), "4 values"),
        ("model.dtype", "float61", "one of float32, bfloat16"),
        ("data.crop", (5,), "2 values"),
        ("data.crop", (0, 5), "(0, 0) for whole frames"),
        ("data.crop", (600, 2000), "a window within config.data.source.size=(720, 1280)"),
        ("data.target.size", (8, 64), "12 pixels a side or more"),
        ("data.target.offsets", (1, 0), "start with 0 and rise"),
        ("data.target.flow_pairs", ((0, 3),), "frames among config.data.target.offsets=(0, 1)"),
        ("flow.estimator", "raft", "one of dis, flownet2, found 'raft'"),
        ("flow.files", "reed", "one of none, read, write"),
        ("flow.size", "half", "one of training, raw"),
        ("methods.stpl.topk.proportion", 1.5, "above 0, at most 1"),
        ("methods.stpl.augment.hue", 0.7, "from 0 to 0.5"),
        ("methods.pixmatch.augment.value", 20, "from 0 to 1"),
        ("methods.pixmatch.augment.hue", 20, "from 0 to 0.5"),
        ("methods.pixmatch.crop.scale", (1.0, 0.2), "(smallest, largest)"),
        ("methods.tps.scale", (0.2, 1.0), "from 0.5 on"),
        ("methods.ur.label_statistics", "eval", "one of running, batch, found 'eval'"),
        ("methods.ur.view.scale", (1.5, 0.5), "(smallest, largest), each a number from 0.5 on"),
        ("methods.ur.view.scale", (0.4, 1.5), "(smallest, largest), each a number from 0.5 on"),
        ("methods.ur.view.crop", (1.0, 1.5), "2 values, each a number above 0, at most 1"),
        ("methods.ur.view.crop", (0.5,), "2 values"),
        ("methods.ur.view.flip_probability", 1.5, "a number from 0 to 1"),
        ("methods.ur.decoder_multiplier", -1.0, "a number from 0 on"),
        ("methods.ur.own.steps", 0, "a whole number from 1 on"),
        ("analysis.tsne_classes", ("rode",), "each one of road"),
    ],
)
def test_values_out_of_range_are_named_with_what_is_expected(key, value, expected):
    text = complaint({key: value})
    assert f"config.{key}: " in text and expected in text and "1 setting does not fit" in text


def test_each_frames_own_statistics_are_not_taken_over_devices():
    text = complaint({"batch_norm.mode": "sync", "method": "cbna"})
    assert "config.batch_norm.mode: expected batch or running where method=cbna normalises each frame" in text
    config = base.get_config()
    config.update_from_flattened_dict(
        {"batch_norm.mode": "sync", "method": "tent", "methods.tent.frame_statistics": 0.0}
    )
    settings.check(config)


def test_all_mistakes_are_told_at_once():
    text = complaint({"checkpoint.keep": 0, "flow.scale": "x", "data.threads": -1})
    assert "3 settings do not fit" in text and text.count("\n  config.") == 3


def test_methods_and_rows_are_looked_up():
    assert "'stpl_plsu' is neither; did you mean stpl_plus?" in complaint({"method": "stpl_plsu"})
    assert "config.compare_with: " in complaint({"compare_with": ("source_only", "orcale")})
    assert "config.method: expected one of" in complaint({"rows.mine": {"method": "stpll"}, "method": "mine"})
    # Any row of the configuration may be asked for.
    settings.check(change(synthetic.get_config(), {"method": "stpl_literal"}))


def test_keys_that_no_code_reads_are_mistakes():
    assert "config.optim.stepz: there is no such setting; did you mean optim.steps?" in complaint({"optim.stepz": 3})
    assert "config.rows.oracle.optim.stepz: there is no such setting" in complaint({"rows.oracle.optim.stepz": 3})
    assert "config.methods.ur.own.stepz: there is no" in complaint({"methods.ur.own.stepz": 3})


@pytest.mark.parametrize(
    "value, now",
    [
        ("dis", "--config.{0}flow.estimator=dis --config.{0}flow.files=none"),
        ("flownet2", "--config.{0}flow.estimator=flownet2 --config.{0}flow.files=write"),
        ("precomputed", "--config.{0}flow.files=read"),
    ],
)
def test_the_old_setting_of_flow_is_told_what_it_is_now(value, now, tmp_path):
    text = complaint({"flow.source": value})
    assert f"config.flow.source: there is no such setting; it is {now.format('')} now" in text
    text = complaint({"rows.oracle.flow": {"source": value}})
    spelled = f"it is {now.format('rows.oracle.')} now"
    assert f"config.rows.oracle.flow.source: there is no such setting; {spelled}" in text
    begun = stored(base.get_config())
    begun["flow"]["source"] = value
    with pytest.raises(CheckpointError, match="begun with flow.source=.*Use another --workdir") as caught:
        settings.check_same_run(base.get_config(), begun, tmp_path)
    assert now.format("") in str(caught.value)


@pytest.mark.parametrize("method, key", [("ur", "view.crop"), ("pixmatch", "crop.size")])
def test_frames_are_cut_to_no_less_than_networks_take(method, key):
    key = f"methods.{method}.{key}"
    # 0.0614 · 512 = 31.4 rows and 0.0313 · 1024 = 32.1 columns are 31 and 32 pixels: 32 are enough.
    text = complaint({"method": method, key: (0.0614, 0.0313)})
    assert f"config.{key}: expected shares that leave (32, 32) pixels or more" in text and "leave (31, 32)" in text
    for changes in ({"method": method, key: (0.0625, 0.0313)}, {"method": "stpl", key: (0.001, 0.001)}):
        settings.check(change(base.get_config(), changes))


def test_what_a_row_changes_is_checked_under_its_name():
    assert "row oracle: config.optim.steps: expected" in complaint({"rows.oracle.optim.steps": 0})
    text = complaint({"data.crop": (520, 1100), "compare_with": ("oracle",)})
    assert "row oracle: config.data.crop: expected a window within config.data.target.size=(512, 1024)" in text


def test_paths_start_at_home_or_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    given = {
        "init_from": "~/source",
        "data.target.raw_dir": "data",
        "data.target.val_list": "~/list.txt",
        "data.prepared_dir": "/prepared",
        "flow.weights": "",
        "rows.oracle.data": {"target": {"raw_dir": "~/other"}},
    }
    config = change(base.get_config(), given)
    found = settings.expand_paths(config)
    assert found.init_from == f"{tmp_path}/source" and found.data.target.raw_dir == f"{tmp_path}/data"
    assert found.data.target.val_list == f"{tmp_path}/list.txt" and found.data.prepared_dir == "/prepared"
    assert found.rows.oracle.data.target.raw_dir == f"{tmp_path}/other"
    assert found.flow.weights == "" and found.pretrain_from is None and found.flow.estimator == "dis"
    assert config.init_from == "~/source", "the configuration that was given does not change"


def stored(config):
    """The configuration as a checkpoint gives it back."""
    return json.loads(config.to_json_best_effort())


def test_a_row_goes_on_with_the_settings_that_it_was_begun_with(tmp_path):
    config = base.get_config()
    settings.check_same_run(config, stored(config), tmp_path)
    for key, value in {"log_every": 7, "checkpoint.keep": 9, "data.workers": 3, "optim.accumulate": 2}.items():
        settings.check_same_run(change(base.get_config(), {key: value}), stored(config), tmp_path)
    with pytest.raises(CheckpointError, match="optim.momentum: was 0.9, is 0.5") as caught:
        settings.check_same_run(change(base.get_config(), {"optim.momentum": 0.5}), stored(config), tmp_path)
    assert isinstance(caught.value, UserError)


def test_the_same_folder_written_in_another_way_is_no_change(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = change(base.get_config(), {"data.target.raw_dir": "city"})
    settings.check_same_run(
        change(base.get_config(), {"data.target.raw_dir": f"{tmp_path}/city"}), stored(before), tmp_path
    )


def test_a_setting_that_each_method_has_now_says_so():
    assert (
        "it is --config.methods.supervised.mirror (source_only and oracle) and --config.methods.METHOD.mirror now"
        in (complaint({"data.flip": True}))
    )


@pytest.mark.parametrize(
    "method, mirrors, fits, source_free",
    [
        ("source_only", True, True, False),
        ("source_only", False, False, False),
        ("stpl", False, True, False),
        ("tps", False, False, False),
        ("tps", False, True, True),
    ],
)
def test_a_row_that_was_begun_with_the_former_setting_goes_on_where_it_means_the_same(
    method, mirrors, fits, source_free
):
    config = base.get_config()
    config.method, config.source_free = method, source_free
    stored = json.loads(config.to_json_best_effort())
    del stored["methods"]["supervised"]
    stored["data"]["flip"] = True
    config.methods.supervised.mirror = mirrors
    if fits:
        settings.check_same_run(config, stored, "run/row")
    else:
        with pytest.raises(CheckpointError, match=r"methods.\w+.mirror: was True, is False"):
            settings.check_same_run(config, stored, "run/row")


def test_own_settings_stand_in_for_the_batch_too():
    config = base.get_config()
    config.optim.profile, config.clips_per_device, config.optim.clip_norm = "own", 4, 5.0
    # Public code: UR two images a step, HCL nine, TPS one; STPL, and rows that say otherwise, what the run says.
    config.rows.three = {"method": "hcl", "clips_per_device": 3}
    rows = {row: row_config(config, row) for row in ("ur", "hcl", "tps", "stpl", "three")}
    assert {row: settings.clips_per_device for row, settings in rows.items()} == {
        "ur": 2, "hcl": 9, "tps": 1, "stpl": 4, "three": 3,
    }  # fmt: skip
    assert {row: settings.optim.clip_norm for row, settings in rows.items()} == {
        "ur": 0, "hcl": 0, "tps": 0, "stpl": 5, "three": 0,
    }  # fmt: skip
    assert row_config(base.get_config(), "hcl").clips_per_device == 1
    assert "config.methods.hcl.own.clips_per_device: expected a whole number from 1 on, found 0" in complaint(
        {"methods.hcl.own.clips_per_device": 0}
    )


@pytest.mark.parametrize(
    "method, key, value, counts",
    [
        ("stpl", "methods.tps.target_weight", 0.7, False),
        ("tps", "methods.tps.target_weight", 0.7, True),
        ("spatial", "methods.stpl.topk.proportion", 0.3, True),
        ("oracle", "methods.supervised.mirror", True, True),
        ("stpl_plus", "methods.stpl.topk.proportion", 0.3, False),
        # What a publication says has been put into optim, which is compared.
        ("tps", "methods.tps.own.learning_rate", 0.7, False),
        ("tps", "optim.learning_rate", 0.7, True),
    ],
)
def test_a_row_goes_on_whatever_other_methods_settings_are(method, key, value, counts):
    config = base.get_config()
    config.method = method
    stored = json.loads(config.to_json_best_effort())
    change(config, {key: value})
    if counts:
        with pytest.raises(CheckpointError, match=f"{key}: was .*, is {value}"):
            settings.check_same_run(config, stored, "run/row")
    else:
        settings.check_same_run(config, stored, "run/row")


@pytest.mark.parametrize(
    "method, missing, expected",
    [
        ("ur", "methods.ur.pseudo_labels", "was 'current', is 'source'"),
        ("ur", "methods.ur.view", r"view.scale: was \[1.0, 1.0\], is \[0.5, 1.5\]"),
        ("hcl", "methods.hcl.label_statistics", "was 'batch', is 'running'"),
        ("rda", "methods.rda.clip_norm", "was 5.0, is 1.0"),
    ],
)
def test_a_row_that_was_begun_before_there_was_a_setting_is_compared_with_what_was_done_then(method, missing, expected):
    config = base.get_config()
    config.method, config.optim.clip_norm = method, 5.0
    stored = json.loads(config.to_json_best_effort())
    settings.check_same_run(config, stored, "run/row")
    *folders, name = missing.split(".")
    section = stored
    for folder in folders:
        section = section[folder]
    del section[name]
    with pytest.raises(CheckpointError, match=expected):
        settings.check_same_run(config, stored, "run/row")
