"""Checkpoints: nothing is lost, any number of devices restores them, and what does not fit is refused."""

import dataclasses
import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from input_pipeline import run_folder
from stpl_jax import checkpoint, parallel
from stpl_jax import checkpoint_places as places
from stpl_jax.checkpoint import CheckpointError, CheckpointMeta
from stpl_jax.methods import make_method
from stpl_jax.models import make_segmenter
from stpl_jax.train_state import TrainState, create_state

META = CheckpointMeta(method="stpl", classes=("road", "sky"), step=3, positions={"target": [1, 2]})
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def trained(tiny_settings, tiny_segmenter, tiny_variables):
    """A full state with momenta, and a teacher beside it, every leaf with values of its own."""
    method = make_method(tiny_settings, tiny_segmenter)
    optimisers = method.optimisers(tiny_settings.optim)
    state = create_state(method, optimisers, tiny_variables, jax.random.key(0))
    teacher = {"params": tiny_variables["params"]["layer6"], "age": np.int32(7), "list": [np.ones(2, np.float32)]}
    random = np.random.default_rng(0)

    def values(x):
        x = np.asarray(x)
        return random.normal(size=x.shape).astype(x.dtype) if np.issubdtype(x.dtype, np.floating) else x + 3

    return jax.tree.map(values, state.replace(extra=teacher))


def shapes_of(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.asarray(x).dtype == np.asarray(y).dtype
        np.testing.assert_array_equal(x, y)


def save(folder, state, steps=(3,), keep=2):
    with checkpoint.open_manager(folder, keep) as manager:
        for step in steps:
            checkpoint.save(manager, step, state.replace(step=np.int32(step)), dataclasses.replace(META, step=step))


def test_everything_comes_back_bit_for_bit(tmp_path, trained):
    save(tmp_path, trained)
    with checkpoint.open_manager(tmp_path) as manager:
        assert manager.latest_step() == 3
        state, meta = checkpoint.restore(manager, 3, shapes_of(trained))
    same(state, trained)
    assert meta == META
    assert isinstance(state, TrainState)
    assert isinstance(jax.tree.leaves(state)[0], np.ndarray)


def test_what_inference_uses_is_the_stored_model(tmp_path, trained):
    student = trained.params["network"]["segmenter"]
    teacher = jax.tree.map(lambda x: x + 1, student)
    state, place = trained.replace(extra={"teacher": teacher, "age": np.int32(7)}), "extra/teacher"
    with checkpoint.open_manager(tmp_path) as manager:
        checkpoint.save(manager, 3, state, META, place)
    same(checkpoint.load_model(tmp_path).variables, {"params": teacher, "batch_stats": state.batch_stats})
    with checkpoint.open_manager(tmp_path) as manager:
        same(checkpoint.restore(manager, 3, shapes_of(state), place)[0], state)
        same(checkpoint.restore_newest(manager, shapes_of(state), inference=place)[0], state)
        # By a method whose inference is the network that is trained.
        with pytest.raises(CheckpointError, match="extra/teacher/.*: expected .*, found missing"):
            checkpoint.restore(manager, 3, shapes_of(state))


def test_the_newest_are_kept(tmp_path, trained):
    save(tmp_path, trained, steps=(1, 2, 3, 4), keep=2)
    assert sorted(int(p.name) for p in tmp_path.iterdir() if p.name.isdigit()) == [3, 4]
    assert places.find(tmp_path).checkpoints[0] == tmp_path / "4"


RESTORE = """
import sys, pickle
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", int(sys.argv[2]))
from stpl_jax import checkpoint, parallel
template, expected = pickle.load(open(sys.argv[3], "rb"))
with checkpoint.open_manager(sys.argv[1]) as manager:
    state, meta = checkpoint.restore(manager, manager.latest_step(), template)
state = parallel.replicate(state)
for leaf, value in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
    assert leaf.shape == (int(sys.argv[2]), *value.shape), leaf.shape
    for copy in np.asarray(leaf):
        np.testing.assert_array_equal(copy, value)
step = parallel.pmap(lambda s: jax.tree.map(lambda x: x + x, s), donate_state=True)
moved = parallel.unreplicate(step(state))
np.testing.assert_array_equal(jax.tree.leaves(moved)[0], 2 * jax.tree.leaves(expected)[0])
print("devices", jax.local_device_count())
"""


@pytest.mark.parametrize("devices", [1, 2])
def test_written_on_eight_devices_restored_on_fewer(tmp_path, trained, devices):
    replicated = parallel.replicate(trained)
    assert all(leaf.shape[0] == 8 and len(leaf.sharding.device_set) == 8 for leaf in jax.tree.leaves(replicated))
    save(tmp_path / "c", parallel.unreplicate(replicated))
    zeros = jax.tree.map(np.zeros_like, trained)
    (tmp_path / "state").write_bytes(pickle.dumps((zeros, trained.replace(step=np.int32(3)))))
    result = subprocess.run(
        [sys.executable, "-c", RESTORE, str(tmp_path / "c"), str(devices), str(tmp_path / "state")],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().endswith(f"devices {devices}")


def test_other_networks_are_refused_with_both_shapes(tmp_path, trained, tiny_config, drawn_variables):
    save(tmp_path, trained)

    def variables(classes=5, blocks=(1, 1, 1, 1)):
        tiny_config.model.backbone.blocks = blocks
        return drawn_variables(make_segmenter(tiny_config.model, classes))

    with pytest.raises(CheckpointError) as error:
        checkpoint.load_model(tmp_path, template=variables(classes=7))
    message = str(error.value)
    assert str(tmp_path / "3") in message
    assert "params/layer6/conv2d_list_0/bias: expected (7,) float32, found (5,) float32" in message
    assert "params/sf_layer/kernel: expected (1, 1, 14, 7) float32, found (1, 1, 10, 5) float32" in message
    assert "backbone" not in message
    with pytest.raises(CheckpointError) as error:
        checkpoint.load_model(tmp_path, template=variables(blocks=(1, 1, 2, 1)))
    assert "backbone/layer3_1/bn1/bias: expected (4,) float32, found missing" in str(error.value)

    other = trained.replace(extra=None)
    with (
        checkpoint.open_manager(tmp_path) as manager,
        pytest.raises(CheckpointError, match="extra/age: expected missing"),
    ):
        checkpoint.restore(manager, 3, shapes_of(other))
    momenta = trained.replace(opt_state={})
    with checkpoint.open_manager(tmp_path) as manager, pytest.raises(CheckpointError, match="opt_state/.*found"):
        checkpoint.restore(manager, 3, shapes_of(momenta))


def test_a_model_is_found_from_every_kind_of_folder(tmp_path, trained, tiny_variables):
    workdir = tmp_path / "run"
    save(workdir / "stpl" / run_folder.CHECKPOINTS, trained, steps=(3, 10))
    checkpoint.save_model(workdir / "source_only", tiny_variables, CheckpointMeta(method="source_only"))
    (workdir / "config.json").write_text(json.dumps({"method": "stpl"}))
    newest = workdir / "stpl" / run_folder.CHECKPOINTS / "10"
    adapted = {"params": trained.params["network"]["segmenter"], "batch_stats": trained.batch_stats}
    template = shapes_of(tiny_variables)
    for path in (workdir, workdir / "stpl", workdir / "stpl" / run_folder.CHECKPOINTS, newest, str(newest)):
        found = checkpoint.load_model(path, template=template)
        assert found.path == newest
        assert found.meta.step == 10
        same(found.variables, adapted)
    found = checkpoint.load_model(workdir, row="source_only")
    same(found.variables, tiny_variables)
    assert found.meta == CheckpointMeta(method="source_only")
    older = checkpoint.load_model(workdir / "stpl" / run_folder.CHECKPOINTS / "3")
    assert older.meta.step == 3


def test_nothing_there_says_where_it_looked(tmp_path):
    with pytest.raises(
        CheckpointError, match=f"No checkpoint in {tmp_path}.*looked in .*checkpoints.*Expected a working dir"
    ):
        checkpoint.load_model(tmp_path)
    (tmp_path / "config.json").write_text('{"method": "stpl"}')
    with pytest.raises(CheckpointError, match="stpl/checkpoints.*no checkpoint of any row"):
        checkpoint.load_model(tmp_path)
    with pytest.raises(CheckpointError, match="there is no such folder"):
        checkpoint.load_model(tmp_path / "nothing")


def test_a_model_alone_is_no_training_state(tmp_path, trained, tiny_variables):
    checkpoint.save_model(tmp_path, tiny_variables, CheckpointMeta())
    folder = tmp_path / run_folder.CHECKPOINTS
    with checkpoint.open_manager(folder) as manager, pytest.raises(CheckpointError, match="no item 'train'"):
        checkpoint.restore(manager, 0, shapes_of(trained))


KILLED = """
import sys
import numpy as np
from stpl_jax import checkpoint
from stpl_jax.train_state import TrainState
values = {"segmenter": {"kernel": np.full((2_000, 2_000), 1.0, np.float32)}}
with checkpoint.open_manager(sys.argv[1]) as manager:
    for step in range(1, 10_000):
        values["segmenter"]["kernel"] = np.full((2_000, 2_000), step, np.float32)
        state = TrainState(np.int32(step), {"network": dict(values)}, {"mean": np.full(3, step, np.float32)}, {}, None)
        checkpoint.save(manager, step, state, checkpoint.CheckpointMeta(step=step))
        print(step, flush=True)
"""


def test_a_killed_save_leaves_the_last_good_one(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if int(line) == 6:  # the sixth is being written; the fifth is whole, since a save waits for the one before
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    found = checkpoint.load_model(tmp_path)
    step = found.meta.step
    assert step >= 5
    template = TrainState(
        np.int32(0),
        {"network": {"segmenter": {"kernel": np.zeros((2_000, 2_000), np.float32)}}},
        {"mean": np.zeros(3, np.float32)},
        {},
        None,
    )
    with checkpoint.open_manager(tmp_path) as manager:
        assert manager.latest_step() == step
        state, meta = checkpoint.restore(manager, step, template)
        assert meta.step == step == int(state.step)
        np.testing.assert_array_equal(
            state.params["network"]["segmenter"]["kernel"], np.full((2_000, 2_000), step, np.float32)
        )
        # Going on from there works, and what was half written is gone.
        checkpoint.save(manager, step + 1, state, CheckpointMeta(step=step + 1))
        manager.wait_until_finished()
    assert places.find(tmp_path).checkpoints[0] == tmp_path / str(step + 1)
    assert not [p.name for p in tmp_path.iterdir() if not p.name.isdigit()]


def test_versions_name_the_libraries():
    versions = checkpoint.versions()
    assert versions["jax"] == jax.__version__
    assert set(versions) >= {"stpl_jax", "jax", "flax", "optax", "orbax-checkpoint", "numpy"}
