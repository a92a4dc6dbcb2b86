"""Adapting from Python: a checkpoint, the documented network that is not ours, and what is refused."""

import json
import re
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
import video_files

import stpl_jax
from configs import own_video
from input_pipeline import run_folder
from input_pipeline.errors import UserError
from input_pipeline.labels import CLASSES
from stpl_jax import adaptation, checkpoint, modes, settings
from stpl_jax.checkpoint_meta import CheckpointMeta
from stpl_jax.models import NETWORKS, make_segmenter
from stpl_jax.rows import row_config
from stpl_jax.stopping import Stopped

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture
def videos(tmp_path):
    folder = tmp_path / "my_videos"
    folder.mkdir()
    video_files.write(folder / "drive.mp4", video_files.street(40))
    return folder


@pytest.fixture
def source(tmp_path, tiny_config, drawn_variables):
    """A source model of 15 classes, trained at 32×64."""
    tiny_config.data.target.size = (32, 64)
    meta = CheckpointMeta(
        config=json.loads(tiny_config.to_json_best_effort()),
        classes=CLASSES["viper"],
        label_setting="viper",
        row="source_only",
    )
    checkpoint.save_model(tmp_path / "source", drawn_variables(make_segmenter(tiny_config.model, 15)), meta)
    return tmp_path / "source"


def test_a_checkpoint_is_adapted_as_by_the_command(videos, source, tmp_path):
    lines = []
    model = stpl_jax.adapt(source, videos, steps=2, workdir=tmp_path / "run", progress=lines.append)
    assert model.classes == CLASSES["viper"] and model.size == (40, 64), (
        "nearer to the video's ratio of sides than 32×64"
    )
    assert any("own_video" in line and "drive.mp4" in line for line in lines)

    config = own_video.get_config()
    config.init_from, config.data.target.raw_dir = str(source), str(videos)
    config.optim.steps = config.optim.decay_steps = 2
    config.compare_with = ()
    config = settings.expand_paths(config)
    config = modes.with_inputs(config, tmp_path / "other", lines.append)
    modes.adapt(config, tmp_path / "other", lines.append)
    other = checkpoint.load_model(tmp_path / "other", "stpl_plus")
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(model.variables), other.variables)
    before = checkpoint.load_model(source).variables
    moved = [not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (before, other.variables)), strict=True)]
    assert any(moved)
    # The same call again trains nothing.
    del lines[:]
    stpl_jax.adapt(source, videos, steps=2, workdir=tmp_path / "run", progress=lines.append)
    assert any("stpl_plus  is done" in line for line in lines)


def test_the_documented_network_of_ones_own(videos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "own_network.md").read_text(), re.DOTALL)
    assert len(code.splitlines()) < 45
    names = {"__name__": "example"}
    # As a user's program has it: not as strict as these tests.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(code.replace("steps=500", "steps=2, workdir='runs/mine'"), names)
        model, before = names["model"], names["variables"]
        frames = video_files.street(3)
        classes = model.segment(frames)
        assert classes.shape == frames.shape[:3] and set(np.unique(classes)) <= {0, 1, 2}
        again = stpl_jax.load("runs/mine", network=names["network"])
        np.testing.assert_array_equal(again.segment(frames), classes)

        given = dict(steps=2, workdir="runs/mine", size=(64, 128), progress=lambda line: None)
        given |= dict(classes=names["classes"], variables=before)
        stpl_jax.adapt(names["network"], "my_videos/", **given)
        with pytest.raises(UserError, match="other weights or classes than .*road, car, sky.*use another workdir"):
            stpl_jax.adapt(names["network"], "my_videos/", **given | dict(classes=("road", "sky", "car")))
        other = jax.tree.map(lambda x: x + 1, before)
        with pytest.raises(UserError, match="other weights or classes than .*batch_stats/norm/mean.*use another"):
            stpl_jax.adapt(names["network"], "my_videos/", **given | dict(variables=other))
    after = jax.device_get(model.variables)
    same = jax.tree.map(np.array_equal, after, jax.device_get(before))
    assert same["params"]["norm"] == {"scale": True, "bias": True} and same["params"]["head"] == dict.fromkeys(
        ("kernel", "bias"), True
    )
    assert not same["params"]["stem"]["kernel"] and not same["batch_stats"]["norm"]["mean"]
    assert "own" not in NETWORKS
    with pytest.raises(UserError, match="config.model.name='own'.*stpl_jax.load\\(path, network=...\\)"):
        stpl_jax.load("runs/mine")


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(changes={"optim.learning_rte": 1.0}), "no settings optim.learning_rte"),
        (dict(classes=("a",)), "belong to a Network"),
        (dict(method="tps"), "labels|source"),
        (dict(method="stpll"), "did you mean stpl"),
    ],
)
def test_wrong_arguments(given, message, videos, source, tmp_path):
    with pytest.raises(UserError, match=message):
        stpl_jax.adapt(source, videos, steps=1, workdir=tmp_path / "run", progress=lambda line: None, **given)


def test_a_network_needs_weights_classes_and_size(videos):
    network = stpl_jax.Network(
        num_classes=2,
        normalise=None,
        backbone=None,
        main_classifier=None,
        groups={},
    )
    with pytest.raises(UserError, match="A Network needs variables, classes, size, too"):
        stpl_jax.adapt(network, videos)
    given = dict(variables={"params": {}}, size=(32, 64))
    with pytest.raises(UserError, match="expected 2 names .*found 3"):
        stpl_jax.adapt(network, videos, classes=("a", "b", "c"), **given)
    with pytest.raises(UserError, match="running_statistics=False"):
        stpl_jax.adapt(network, videos, classes=("a", "b"), **given)


def test_weights_whose_saving_was_cut_off_are_saved_again(tmp_path):
    folder = tmp_path / run_folder.OWN_NETWORK / run_folder.CHECKPOINTS
    (folder / "0.orbax-checkpoint-tmp" / "model").mkdir(parents=True)
    variables = {"params": {"a": np.arange(3.0)}, "batch_stats": {}}
    adaptation._save(variables, ("road",), (32, 64), tmp_path)
    assert [path.name for path in folder.iterdir()] == ["0"]
    np.testing.assert_array_equal(checkpoint.load_model(folder).variables["params"]["a"], np.arange(3.0))


def test_steps_are_those_of_a_method_whose_row_has_its_own():
    config = adaptation._config("source", "videos", "alpha_bn", 300, None, {})
    assert row_config(config, "alpha_bn").optim.steps == 300
    config = adaptation._config("source", "videos", "stpl_plus", 300, None, {"optim.decay_steps": 900})
    assert row_config(config, "stpl_plus").optim.decay_steps == 900


@pytest.mark.parametrize(
    "params, message",
    [
        ({"net/~/linear": {"w": np.zeros(2)}}, "the name 'net/~/linear' in variables\\['params'\\]: rename it"),
        ({"blocks": [np.zeros(2)]}, "a list, variables\\['params'\\]\\['blocks'\\]: make it a dict"),
        ({0: np.zeros(2)}, "the name 0 in .*rename it to '0'"),
        ({"a": "text"}, "str, variables\\['params'\\]\\['a'\\]: make it an array"),
    ],
)
def test_weights_that_cannot_be_stored(params, message):
    network = stpl_jax.Network(1, None, None, None, {}, running_statistics=False)
    with pytest.raises(UserError, match=message):
        adaptation._whole(network, {"params": params}, ("road",), (32, 64))


def test_weights_of_numpy_become_jax_arrays():
    network = stpl_jax.Network(1, None, None, None, {}, running_statistics=False)
    with jax.enable_x64(False):
        _, found = adaptation._whole(network, {"params": {"a": np.zeros(2)}}, ("road",), (32, 64))
    assert found["params"]["a"].dtype == np.float32


@pytest.mark.parametrize("workdir", [None, "run"])
def test_what_ends_a_call_says_what_is_kept(workdir, videos, source, tmp_path, monkeypatch):
    workdir = workdir and tmp_path / workdir
    note = r" \(the temporary workdir is removed; give workdir=... to keep it\)$" if workdir is None else "$"
    for raised, expected in (
        (Stopped(signal.SIGINT, "stopped at step 3"), KeyboardInterrupt),
        (UserError("stopped at step 3"), UserError),
    ):

        def fail(*_, error=raised):
            raise error

        monkeypatch.setattr(modes, "with_inputs", fail)
        with pytest.raises(expected, match="^stopped at step 3" + note):
            stpl_jax.adapt(source, videos, workdir=workdir, progress=lambda line: None)
