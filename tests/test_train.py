"""The whole loop: rows, resume, stop, failure. One tiny world and source model serve all tests."""

import json
import os
import shutil

import jax
import numpy as np
import pytest
from tiny_run import tiny_run_config

from stpl_jax import checkpoint, modes, starting_point
from stpl_jax import checkpoint_places as places
from stpl_jax.checkpoint_meta import CheckpointMeta
from stpl_jax.rows import row_config, row_names
from stpl_jax.stopping import Stopped
from stpl_jax.train import train
from stpl_jax.validation import NonFiniteLoss


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of four steps on eight devices, from nothing to the report; with the lines that it printed."""
    workdir, lines = tmp_path_factory.mktemp("run"), []
    modes.auto(tiny_run_config(), workdir, lines.append)
    return workdir, lines


@pytest.fixture
def begun(finished, tmp_path):
    """A copy of the run's data and source model, to adapt in."""
    workdir, _ = finished
    for folder in ("world", "data", "source_only"):
        shutil.copytree(workdir / folder, tmp_path / folder)
    return tmp_path


def adapt(workdir, config, row="stpl", progress=lambda line: None):
    train(row_config(config, row), workdir, row, workdir / "source_only", progress)


def leaves(workdir, row="stpl"):
    """Every array of a row's newest checkpoint, by name."""
    folder = places.find(workdir / row).checkpoints[0]
    with checkpoint.open_manager(folder.parent) as manager:
        out = manager.restore(int(folder.name))
    trees = {"model": out["model"], "train": out["train"]}
    return {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(trees)}


def test_eight_devices_are_used(finished):
    assert jax.device_count() == 8
    assert json.loads((finished[0] / "stpl" / "evaluation.json").read_text())["last"]["step"] == 4


def test_log_has_each_step_once_and_progress_says_how_far(finished):
    workdir, lines = finished
    records = [json.loads(line) for line in (workdir / "stpl" / "metrics.jsonl").read_text().splitlines()]
    losses = [r for r in records if "loss/network" in r]
    assert [r["step"] for r in losses] == [1, 2, 3, 4]
    config = row_config(tiny_run_config(), "stpl").optim
    for r in losses:
        assert np.isclose(r["learning_rate"], config.learning_rate * (1 - (r["step"] - 1) / config.decay_steps) ** 0.9)
    line = next(line for line in lines if line.startswith("stpl  step 3/4"))
    assert "clips/s" in line and "left" in line and "loss" in line and "learning_rate" in line
    assert list((workdir / "stpl").glob("events.out.tfevents*"))


def test_report_has_the_numbers_of_the_rows(finished):
    workdir, _ = finished
    report = json.loads((workdir / "report.json").read_text())
    for row in row_names(tiny_run_config()):
        scores = json.loads((workdir / row / "evaluation.json").read_text())["last"]
        assert report["results"][row]["miou"] == scores["miou"]
    assert list((workdir / "frames").glob("*.png"))


def test_second_call_finds_everything_done(finished):
    workdir, _ = finished
    before, lines = leaves(workdir), []
    modes.auto(tiny_run_config(), workdir, lines.append)
    assert sum("is done" in line for line in lines) == 2
    assert all(np.array_equal(before[name], x) for name, x in leaves(workdir).items())


def test_a_row_that_was_done_with_other_settings_is_not_taken_for_done(finished):
    config = tiny_run_config()
    config.optim.learning_rate = 1.0
    with pytest.raises(checkpoint.CheckpointError, match="optim.learning_rate: was 0.0003, is 1.0"):
        modes.auto(config, finished[0], lambda line: None)


def test_stopped_run_goes_on_to_the_same_bits(finished, begun):
    straight = leaves(finished[0])

    def stop(line):
        if "step 1/" in line:
            os.kill(os.getpid(), 15)

    with pytest.raises(Stopped) as stopped:
        adapt(begun, tiny_run_config(), progress=stop)
    assert stopped.value.code == 128 + 15
    stopped_at = places.find(begun / "stpl").checkpoints[0]
    assert stopped_at.name in ("1", "2", "3")
    # A newer one that a disk has damaged is left out, said, and does not keep the last one from being saved.
    shutil.copytree(stopped_at, stopped_at.with_name("4"))
    (stopped_at.with_name("4") / "train" / "_METADATA").write_text("")
    lines = []
    adapt(begun, tiny_run_config(), progress=lines.append)
    assert "4 is damaged: train/_METADATA: " in lines[0] and f"goes on from step {stopped_at.name}" in lines[2]
    assert stopped_at.with_name("4.damaged").is_dir()
    resumed = leaves(begun)
    assert straight.keys() == resumed.keys()
    for name, x in straight.items():
        np.testing.assert_array_equal(x, resumed[name], err_msg=name)
    steps = [json.loads(line)["step"] for line in (begun / "stpl" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 4]  # the last line is the validation's


def test_loss_that_is_not_finite_names_step_and_clips(begun):
    config = tiny_run_config()
    adapt(begun, config)  # leaves the checkpoint of step 4
    config.steps = 8
    config.optim.learning_rate = 1e30
    with pytest.raises(checkpoint.CheckpointError, match="optim.learning_rate: was"):
        adapt(begun, config)

    config = tiny_run_config(8)
    config.rows.broken = dict(method="stpl", optim=dict(learning_rate=3e38, clip_norm=0.0))
    with pytest.raises(NonFiniteLoss, match=r"step \d+ gave .*(nan|inf).* on clips \w+_\d{6}_\d{6}"):
        adapt(begun, config, "broken")
    for x in leaves(begun, "stpl").values():
        assert np.isfinite(x).all()


def other_batch(before, devices_before=2, **now):
    """What is said where a row that was begun on `devices_before` devices goes on here, on eight."""
    config = tiny_run_config()
    stored = {"clips_per_device": 1, "optim": {"accumulate": 1}}
    config.clips_per_device, config.optim.accumulate = now.get("clips", 1), now.get("accumulate", 1)
    clips = config.clips_per_device * config.optim.accumulate * jax.device_count()
    return starting_point.other_batch(config, CheckpointMeta(clips_per_step=before, config=stored), clips)


def test_going_on_with_other_devices_says_that_the_batch_is_another():
    assert other_batch(before=8) is None
    assert starting_point.other_batch(tiny_run_config(), CheckpointMeta(config={}), 8) is None, (
        "not known: an older checkpoint"
    )
    line = other_batch(before=16)
    assert "8 clips a step on 8 devices, and 16 before on 16" in line and "--config.optim.accumulate=2 keeps it" in line
    assert other_batch(before=16, accumulate=2) is None
    assert "accumulate" not in other_batch(before=4), "fewer clips than devices cannot be had"
    with pytest.raises(checkpoint.CheckpointError, match="begun with 8 clips a step.*accumulate=3 on 8 devices.*24"):
        other_batch(before=8, accumulate=3)


def test_a_row_that_is_further_than_its_last_step_is_not_scored_as_if_it_were_not(finished):
    with pytest.raises(checkpoint.CheckpointError, match="checkpoint of step 4, and optim.steps=2 ends before it"):
        adapt(finished[0], tiny_run_config(2))


def test_adapting_without_a_source_model_says_how_to_get_one(tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match="--mode=pretrain.*--config.init_from"):
        modes.adapt(tiny_run_config(), tmp_path)


def test_source_model_of_other_classes_or_depth_is_refused(begun):
    config = tiny_run_config()
    config.data.classes = "synthia_seq"
    config.data.source.name = "synthia_seq"
    config.world.source_layout = "synthia_seq"
    shutil.rmtree(begun / "world")
    with pytest.raises(
        checkpoint.CheckpointError, match=r"layer6.*\n?.*expected \(3, 3, 16, 12\).*found \(3, 3, 16, 15\)"
    ):
        adapt(begun, config)
    deeper = tiny_run_config()
    deeper.model.backbone.blocks = (1, 1, 2, 1)
    shutil.rmtree(begun / "world")
    with pytest.raises(checkpoint.CheckpointError, match=r"layer3_1.*expected .*found missing"):
        adapt(begun, deeper)


def test_source_free_adaptation_never_opens_the_source_set(begun):
    shutil.rmtree(begun / "data" / "viper")
    shutil.rmtree(begun / "world" / "viper")
    adapt(begun, tiny_run_config())
    assert not (begun / "data" / "viper").exists()


def test_evaluate_scores_checkpoints_again(finished, begun):
    adapt(begun, tiny_run_config())
    before = json.loads((begun / "stpl" / "evaluation.json").read_text())["last"]
    (begun / "stpl" / "evaluation.json").unlink()
    modes.evaluate(tiny_run_config(), begun, lambda line: None)
    after = json.loads((begun / "stpl" / "evaluation.json").read_text())["last"]
    assert after == before
