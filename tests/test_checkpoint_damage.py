"""Damaged checkpoints: never restored silently, never a foreign error, and the older whole one is taken and said."""

import dataclasses
import json
import random
import shutil

import numpy as np
import pytest

from stpl_jax import checkpoint
from stpl_jax import checkpoint_digests as digests
from stpl_jax.checkpoint import CheckpointMeta
from stpl_jax.checkpoint_places import CheckpointError, DamagedCheckpoint
from stpl_jax.train_state import TrainState

CONFIG = {"sizes": (1, 2), "rate": 1e-05}


def make_state(step):
    """A state with a scalar, a vector, an array of another dtype and a matrix, all telling the step."""
    segmenter = {"kernel": np.arange(12, dtype=np.float32).reshape(3, 4) + step, "bias": np.full(2, step, np.float16)}
    trace = {"network": {"trace": np.full((2, 3), step, np.float32)}}
    return TrainState(np.int32(step), {"network": {"segmenter": segmenter}}, {"mean": np.ones(3)}, trace, None)


def make_meta(step):
    return CheckpointMeta(classes=("road", "sky"), row="stpl", config=CONFIG, step=step)


def same_meta(found, step):
    """Whether what was saved came back; a tuple in the configuration is a list by then."""
    return found == dataclasses.replace(make_meta(step), config={"sizes": [1, 2], "rate": 1e-05})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with checkpoints of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("run") / "stpl" / "checkpoints"
    with checkpoint.open_manager(folder) as manager:
        for step in (2, 4):
            checkpoint.save(manager, step, make_state(step), make_meta(step))
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    """A copy of it."""
    return shutil.copytree(whole, tmp_path / "run" / "stpl" / "checkpoints")


def load(path):
    """Loads a model; returns its step, which its values have to agree with, and what was said."""
    told = []
    found = checkpoint.load_model(path, tell=told.append)
    step = found.meta.step
    expected = make_state(step)
    assert same_meta(found.meta, step) and found.path.name == str(step)
    for name, value in expected.params["network"]["segmenter"].items():
        np.testing.assert_array_equal(found.variables["params"][name], value)
    np.testing.assert_array_equal(found.variables["batch_stats"]["mean"], expected.batch_stats["mean"])
    return step, told


def resume(folder):
    """Restores the state to go on from, as `load`."""
    told = []
    with checkpoint.open_manager(folder) as manager:
        state, meta, step = checkpoint.restore_newest(manager, make_state(0), told.append)
        assert manager.latest_step() == step
    expected = make_state(step)
    assert int(state.step) == step and same_meta(meta, step)
    np.testing.assert_array_equal(state.opt_state["network"]["trace"], expected.opt_state["network"]["trace"])
    np.testing.assert_array_equal(
        state.params["network"]["segmenter"]["kernel"], expected.params["network"]["segmenter"]["kernel"]
    )
    return step, told


def files(where):
    return sorted(path for path in where.rglob("*") if path.is_file())


def test_every_array_every_file_and_meta_have_digests(whole):
    where = whole / "4"
    stored = json.loads((where / "meta" / "metadata").read_text())["digests"]
    assert set(stored["model"]) == {"params/kernel", "params/bias", "batch_stats/mean"}
    assert set(stored["train"]) == {"step", "opt_state/network/trace"}
    assert len(stored["meta"]) == 32
    listed = json.loads((where / "files.json").read_text())["files"]
    items = [f for f in files(where) if f.parent != where]
    assert set(listed) == {f.relative_to(where).as_posix() for f in items}
    assert all(listed[f.relative_to(where).as_posix()][0] == f.stat().st_size for f in items)
    assert load(whole) == (4, []) and load(where) == (4, [])


def test_digests_tell_values_dtypes_and_shapes_apart():
    base = np.arange(6, dtype=np.float32).reshape(2, 3)
    others = [base + 1e-6, base.reshape(3, 2), base.view(np.int32), np.asfortranarray(base) * 1.5, base[:, :2]]
    found = digests.of_arrays({str(i): x for i, x in enumerate([base, *others])})
    assert len(set(found.values())) == 6
    assert digests.of_arrays({"a": np.asfortranarray(base)})["a"] == found["0"]
    assert digests.of_json({"a": (1, 2), "b": 0}) == digests.of_json({"b": 0, "a": [1, 2]}) != digests.of_json({"a": 1})


@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "longer", "garbage"])
def test_each_file_of_the_newest_checkpoint(folder, whole, damage):
    where, state = folder / "4", random.Random(1)
    kept = {f: f.read_bytes() for f in files(where)}
    for file, content in kept.items():
        changed = {
            "cut": content[: len(content) // 2],
            "empty": b"",
            "longer": content + b"x",
            "garbage": state.randbytes(len(content)),
        }
        file.unlink() if damage == "missing" else file.write_bytes(changed[damage])
        name = file.relative_to(where).as_posix()
        # Orbax's notes beside the items are not needed; without files.json, there are still the digests in meta.
        idle = file.parent == where and (file.name != "files.json" or damage == "missing")
        if idle or name.startswith("train/"):
            assert load(folder) == load(where) == (4, [])
        else:
            step, told = load(folder)
            assert (
                step == 2
                and len(told) == 1
                and f"{where} is damaged: {name}: " in told[0]
                and str(folder / "2") in told[0]
            )
            with pytest.raises(DamagedCheckpoint, match=f"{name}: .*Restore it from a copy"):
                load(where)
        file.write_bytes(content)
    assert load(folder) == (4, [])


@pytest.mark.parametrize("seed", range(4))
def test_single_bits_anywhere(folder, seed):
    state = random.Random(seed)
    every = [f for f in files(folder / "4") if f.parent != folder / "4" or f.name == "files.json"]
    for file in state.sample(every, 8):
        content = bytearray(file.read_bytes())
        place, bit = state.randrange(len(content)), state.randrange(8)
        content[place] ^= 1 << bit
        file.write_bytes(content)
        with checkpoint.open_manager(folder) as manager, pytest.raises(DamagedCheckpoint, match=f"{file.name}: "):
            checkpoint.restore(manager, 4, make_state(0))
        content[place] ^= 1 << bit
        file.write_bytes(content)
    assert resume(folder) == (4, [])


@pytest.mark.parametrize("item", ["model", "train", "meta"])
@pytest.mark.parametrize("listed", [True, False])
def test_a_missing_item_is_said(folder, item, listed):
    shutil.rmtree(folder / "4" / item)
    if not listed:
        (folder / "4" / "files.json").unlink()
    if item == "train":
        assert load(folder) == (4, [])
    else:
        assert load(folder)[0] == 2
        with pytest.raises(DamagedCheckpoint, match=f"{folder / '4'} is damaged: .*{item}.*Restore it"):
            load(folder / "4")
    step, told = resume(folder)
    assert step == 2 and item in told[0] and "4.damaged" in told[0] and str(folder / "2") in told[1]


def test_values_that_were_not_saved_are_named(folder, tmp_path):
    """The files are whole and other ones: what the digests in meta are for."""
    for step in ("2", "4"):
        (folder / step / "files.json").unlink()
    shutil.rmtree(folder / "4" / "model")
    shutil.copytree(folder / "2" / "model", folder / "4" / "model")
    message = "item model: params/bias: other values than were saved; params/kernel: other values than were saved"
    with pytest.raises(DamagedCheckpoint, match=message):
        load(folder / "4")
    step, told = load(folder)
    assert step == 2 and "params/kernel" in told[0]


@pytest.mark.parametrize("change", ["classes", "digests", "cut", "list"])
def test_meta_that_was_not_saved(folder, change):
    (folder / "4" / "files.json").unlink()
    file = folder / "4" / "meta" / "metadata"
    meta = json.loads(file.read_text())
    changed = {
        "classes": json.dumps(meta | {"classes": ["sky", "road"]}),
        "digests": json.dumps(meta | {"digests": meta["digests"] | {"meta": "0" * 32}}),
        "cut": file.read_text()[:100],
        "list": "[]",
    }
    file.write_text(changed[change])
    with pytest.raises(DamagedCheckpoint, match="meta"):
        load(folder / "4")
    assert load(folder)[0] == 2


def test_a_checkpoint_without_digests_loads_and_says_so(folder):
    for step in ("2", "4"):
        (folder / step / "files.json").unlink()
        file = folder / step / "meta" / "metadata"
        meta = json.loads(file.read_text())
        del meta["digests"]
        file.write_text(json.dumps(meta))
    step, told = load(folder)
    assert step == 4 and len(told) == 1 and "without digests" in told[0]
    with pytest.warns(UserWarning, match="without digests"):
        checkpoint.load_model(folder)
    assert resume(folder)[0] == 4


def test_training_goes_on_from_the_older_one_and_saves_again(folder):
    (folder / "4" / "model" / "_METADATA").write_text("")
    (folder / "4.damaged").mkdir()  # of an earlier time
    damaged = {f.relative_to(folder / "4"): f.read_bytes() for f in files(folder / "4")}
    step, told = resume(folder)
    assert step == 2 and "model/_METADATA: expected" in told[0] and "kept as 4.damaged.2" in told[0]
    assert {f.relative_to(folder / "4.damaged.2"): f.read_bytes() for f in files(folder / "4.damaged.2")} == damaged
    with checkpoint.open_manager(folder) as manager:
        checkpoint.restore_newest(manager, make_state(0))
        checkpoint.save(manager, 3, make_state(3), make_meta(3))
        checkpoint.save(manager, 4, make_state(4), make_meta(4))
        manager.wait_until_finished()
        with pytest.raises(CheckpointError, match="Step 4 was not saved.*has a checkpoint of step 4"):
            checkpoint.save(manager, 4, make_state(4), make_meta(4))
    assert resume(folder) == (4, [])
    assert sorted(p.name for p in folder.iterdir()) == ["3", "4", "4.damaged", "4.damaged.2"]


def test_none_is_whole(folder):
    for step in ("2", "4"):
        shutil.rmtree(folder / step / "train" / "d")
    before = sorted(folder.rglob("*"))
    message = (
        r"(?s)no whole checkpoint:\n  \S+/4: train/d/.*missing.*\n  \S+/2: train/d/.*missing.*\nRestore one from a copy"
    )
    with pytest.raises(CheckpointError, match=message):
        resume(folder)
    assert sorted(folder.rglob("*")) == before
    (folder / "5").mkdir()  # nothing in it at all
    assert load(folder)[0] == 4
    shutil.rmtree(folder)
    with checkpoint.open_manager(folder) as manager:
        assert checkpoint.restore_newest(manager, make_state(0)) is None


def test_another_network_is_no_damage(folder):
    """Nothing is moved aside, and no older one is tried."""
    other = make_state(0).replace(opt_state={})
    with (
        checkpoint.open_manager(folder) as manager,
        pytest.raises(CheckpointError, match="opt_state.*expected missing"),
    ):
        checkpoint.restore_newest(manager, other)
    with pytest.raises(CheckpointError, match="params/bias: expected missing"):
        checkpoint.load_model(folder, template={"params": {"kernel": np.ones((3, 4), np.float32)}})
    assert sorted(p.name for p in folder.iterdir()) == ["2", "4"]


def test_what_the_machine_denies_is_no_damage(folder, monkeypatch):
    def deny(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(digests, "_of_file", deny)
    with pytest.raises(PermissionError, match="Permission denied"):
        load(folder)


def test_processes_that_do_not_choose_restore_what_the_first_chose(folder):
    with checkpoint.open_manager(folder) as manager:
        state, meta, step = checkpoint.restore_newest(manager, make_state(0), from_first=lambda choose: 2)
    assert int(state.step) == meta.step == step == 2


def test_looking_without_the_variables(folder):
    found = checkpoint.peek(folder)
    assert found.variables is None and same_meta(found.meta, 4)
    assert found.description == f"row stpl, step 4, {folder / '4'}, 2 classes: road, sky"
    (folder / "4" / "meta" / "metadata").unlink()
    told = []
    assert checkpoint.peek(folder, tell=told.append).path.name == "2" and len(told) == 1


def test_a_checkpoint_that_cannot_be_written_is_named_with_what_is_kept(tmp_path, monkeypatch):
    variables = {"params": {"kernel": np.ones((2, 3), np.float32)}}
    checkpoint.save_model(tmp_path / "row", variables, CheckpointMeta())

    def full(self):
        raise ValueError('RESOURCE_EXHAUSTED: Error writing "params/kernel" [source locations]\n more')

    monkeypatch.setattr(checkpoint.ocp.CheckpointManager, "wait_until_finished", full)
    folder = tmp_path / "row" / "checkpoints"
    with pytest.raises(CheckpointError, match="RESOURCE_EXHAUSTED.*That of step 0 is kept. Make room") as caught:
        checkpoint.open_manager(folder).wait_until_finished()
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
