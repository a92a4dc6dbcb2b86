"""The loader: order, sharding and position depend on the seed alone; mirroring and cropping keep flow true."""

import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from raw_trees import write_viper

from input_pipeline import clips, loader
from input_pipeline.errors import UserError
from input_pipeline.prepare import prepare
from input_pipeline.spec import DatasetSpec

COUNT = 11


def make_source(root, label_size):
    write_viper(root / "viper", labelled=tuple(range(10, 10 + 10 * COUNT, 10)), before=1, size=(18, 32))
    spec = DatasetSpec(
        name="viper",
        raw_dir=str(root / "viper"),
        split="train",
        classes="viper",
        size=(18, 32),
        label_size=label_size,
        offsets=(0, 1),
        flow_pairs=((0, 1),),
        flow_source="dis",
    )
    return clips.open_clips(prepare(spec, root / "prepared", lambda line: None))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_source(tmp_path_factory.mktemp("loader"), (18, 32))


def train(source, count, **changes):
    """Returns `count` (batch, state) pairs."""
    values = {
        "batch_size": 3,
        "seed": 7,
        "offsets": (0, 1),
        "flow_pairs": ((0, 1),),
        "label": True,
        "num_threads": 2,
        "prefetch": 4,
        "flip": True,
        "crop": (12, 20),
    }
    batches = loader.train_batches(source, **{**values, **changes})
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def evaluate(source, **changes):
    values = {"batch_size": 4, "offsets": (0, 1), "flow_pairs": ((0, 1),), "num_threads": 2}
    return list(loader.eval_batches(source, **{**values, **changes}))


def assert_same(left, right):
    assert len(left) == len(right)
    for (a, state_a), (b, state_b) in zip(left, right, strict=True):
        assert a.keys() == b.keys() and state_a == state_b
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def order(pairs):
    return [int(i) for batch, _ in pairs for i in batch["index"]]


def test_shapes_and_types(source):
    ((batch, _),) = train(source, 1)
    assert {key: (value.shape, value.dtype.name) for key, value in batch.items() if key != "name"} == {
        "frames": ((3, 2, 12, 20, 3), "uint8"),
        "flow": ((3, 1, 12, 20, 2), "int16"),
        "label": ((3, 12, 20), "uint8"),
        "index": ((3,), "int32"),
    }
    assert batch["name"] == [clips.read_clip(source, int(i), (), (), False)["name"] for i in batch["index"]]
    ((batch, _),) = train(source, 1, label=False, offsets=(1,), flow_pairs=())
    assert set(batch) == {"frames", "flow", "index", "name"}
    assert batch["frames"].shape == (3, 1, 12, 20, 3) and batch["flow"].shape == (3, 0, 12, 20, 2)


def test_epochs_hold_every_clip_once_and_are_reshuffled(source):
    indices = order(train(source, COUNT, batch_size=3))
    epochs = [indices[i : i + COUNT] for i in range(0, 3 * COUNT, COUNT)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(COUNT))
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_the_seed_decides(source):
    assert_same(train(source, 5), train(source, 5))
    assert order(train(source, 5)) != order(train(source, 5, seed=8))


@pytest.mark.parametrize("changes", [{"num_threads": 0}, {"num_threads": 5}, {"prefetch": 0}, {"prefetch": 40}])
def test_threads_and_prefetching_change_nothing(source, changes):
    assert_same(train(source, 6), train(source, 6, **changes))


def test_worker_processes_change_nothing_and_a_lost_one_is_told(source):
    values = {"batch_size": 3, "seed": 7, "offsets": (0, 1), "flow_pairs": ((0, 1),), "label": True}
    batches = loader.train_batches(source, **values, num_threads=1, prefetch=1, flip=True, crop=(12, 20), num_workers=2)
    started, interrupted = threading.Event(), set()

    def interrupt():
        # Ctrl-C, again and again while they start.
        while not started.wait(0.02):
            for worker in multiprocessing.active_children():
                interrupted.add(worker.pid)
                os.kill(worker.pid, signal.SIGINT)

    terminal = threading.Thread(target=interrupt)
    terminal.start()
    taken = [next(batches)]
    started.set()
    terminal.join()
    workers = multiprocessing.active_children()
    assert len(workers) == 2 and interrupted == {worker.pid for worker in workers}
    for worker in workers:
        # As a terminal and a job scheduler send them, to all processes: what follows is the parent's to say.
        os.kill(worker.pid, signal.SIGINT)
        os.kill(worker.pid, signal.SIGTERM)
    taken += itertools.islice(batches, 7)
    assert_same(taken, train(source, 8))
    workers[0].kill()
    with pytest.raises(UserError, match="memory.* --config.data.workers=0"):
        list(itertools.islice(batches, 30))


@pytest.mark.parametrize("stop", [1, 3, 4, 7])
def test_a_position_continues_bit_for_bit(source, stop):
    straight = train(source, 9)
    state = json.loads(json.dumps(straight[stop - 1][1]))
    assert_same(straight[stop:], train(source, 9 - stop, state=state, num_threads=3))


def test_shards_partition_the_stream(source):
    whole = order(train(source, COUNT, batch_size=2, shard=(0, 1)))
    shards = [train(source, COUNT, batch_size=1, shard=(i, 2)) for i in range(2)]
    assert [order(shard) for shard in shards] == [whole[0::2], whole[1::2]]
    assert sorted(order(shards[0]) + order(shards[1])) == sorted(2 * list(range(COUNT)))
    # A global batch, its augmentation and its position are the same on one process and on two.
    for (batch, state), (first, state_0), (second, state_1) in zip(
        train(source, COUNT, batch_size=2), *shards, strict=True
    ):
        np.testing.assert_array_equal(batch["frames"], np.concatenate([first["frames"], second["frames"]]))
        assert state == state_0 == state_1


@pytest.mark.parametrize("workers", [0, 1])
def test_processes_share_each_global_batch_in_blocks(source, workers):
    # Split over its devices in order, a process's batch then has the clips that one process gives the same devices.
    start = train(source, 2, batch_size=6)[-1][1]
    whole = train(source, 5, batch_size=6, state=start)
    shards = [
        train(source, 5, batch_size=2, shard=(i, 3), state=start, num_workers=workers * (i == 1)) for i in (0, 1, 2)
    ]
    for (batch, state), *parts in zip(whole, *shards, strict=True):
        for key in ("frames", "flow", "label", "index"):
            np.testing.assert_array_equal(batch[key], np.concatenate([part[key] for part, _ in parts]))
        assert batch["name"] == [name for part, _ in parts for name in part["name"]]
        assert all(state == part_state for _, part_state in parts)


def test_a_position_of_two_processes_continues_on_one(source):
    state = train(source, 3, batch_size=2, shard=(1, 2))[-1][1]
    assert order(train(source, 4, batch_size=4, state=state)) == order(train(source, 7, batch_size=4))[12:]


def read(source, i):
    return clips.read_clip(source, i, (0, 1), ((0, 1),), True)


def test_batches_are_the_clips_themselves_without_augmentation(source):
    for batch, _ in train(source, 3, flip=False, crop=None):
        for b, i in enumerate(batch["index"]):
            for key in ("frames", "flow", "label"):
                np.testing.assert_array_equal(batch[key][b], read(source, int(i))[key])


def test_about_half_the_clips_are_mirrored_with_all_their_parts(source):
    kinds = []
    for batch, _ in train(source, 20, crop=None):
        for b, i in enumerate(batch["index"]):
            clip = read(source, int(i))
            flipped = not np.array_equal(batch["frames"][b], clip["frames"])
            kinds.append(flipped)
            if flipped:
                u, v = clip["flow"][..., 0], clip["flow"][..., 1]
                clip = {
                    "frames": np.flip(clip["frames"], 2),
                    "flow": np.stack([-np.flip(u, 2), np.flip(v, 2)], -1),
                    "label": np.flip(clip["label"], 1),
                }
            for key in ("frames", "flow", "label"):
                np.testing.assert_array_equal(batch[key][b], clip[key])
    assert 15 <= sum(kinds) <= 45


def warp_by_loop(image, flow):
    """Warps by whole-pixel flow, clamped to the border."""
    height, width = image.shape[:2]
    out = np.empty_like(image)
    for y, x in np.ndindex(height, width):
        u, v = flow[y, x]
        out[y, x] = image[min(max(y + v, 0), height - 1), min(max(x + u, 0), width - 1)]
    return out


def test_a_mirrored_clip_warps_to_the_mirrored_warp():
    rng = np.random.default_rng(0)
    clip = {
        "frames": rng.integers(0, 256, (2, 9, 11, 3), dtype=np.uint8),
        "flow": rng.integers(-4, 5, (1, 9, 11, 2)).astype(np.int16),
        "label": rng.integers(0, 15, (9, 11), dtype=np.uint8),
        "index": np.int32(0),
        "name": "a",
    }
    mirrored = loader.mirror(clip)
    np.testing.assert_array_equal(
        warp_by_loop(mirrored["frames"][1], mirrored["flow"][0]),
        warp_by_loop(clip["frames"][1], clip["flow"][0])[:, ::-1],
    )
    twice = loader.mirror(mirrored)
    for key in clip:
        np.testing.assert_array_equal(twice[key], clip[key])


def test_crops_cut_one_window_out_of_everything(source):
    places = set()
    for batch, _ in train(source, 15, flip=False):
        for b, i in enumerate(batch["index"]):
            clip = read(source, int(i))
            hits = [
                (y, x)
                for y in range(18 - 12 + 1)
                for x in range(32 - 20 + 1)
                if np.array_equal(batch["frames"][b], clip["frames"][:, y : y + 12, x : x + 20])
            ]
            assert len(hits) == 1
            y, x = hits[0]
            places.add((y, x))
            np.testing.assert_array_equal(batch["flow"][b], clip["flow"][:, y : y + 12, x : x + 20])
            np.testing.assert_array_equal(batch["label"][b], clip["label"][y : y + 12, x : x + 20])
    assert len(places) > 15
    assert {y for y, _ in places} == set(range(7))


def test_a_crop_of_the_whole_frame_changes_nothing(source):
    assert_same(train(source, 2, crop=(18, 32)), train(source, 2, crop=None))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"offsets": (0, 2)}, r"DatasetSpec\.offsets"),
        ({"flow_pairs": ((0, 2),)}, r"DatasetSpec\.flow_pairs"),
        ({"batch_size": 0}, "batch_size"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"shard": (2, 2)}, "shard"),
        ({"num_threads": -1}, "num_threads"),
        ({"num_workers": -1}, "num_workers"),
        ({"prefetch": -1}, "prefetch"),
        ({"crop": (19, 20)}, "crop"),
        ({"crop": (0, 20)}, "crop"),
        ({"state": {"position": 3, "seed": 8, "clips": COUNT}}, "does not belong"),
        ({"state": {"position": 3, "seed": 7, "clips": COUNT + 1}}, "does not belong"),
        ({"state": {}}, "does not belong"),
    ],
)
def test_requests_that_make_no_sense_are_refused_at_once(source, changes, word):
    with pytest.raises(ValueError, match=word):
        train(source, 0, **changes)


def test_labels_of_another_size_are_not_cropped(tmp_path):
    source = make_source(tmp_path, None)
    with pytest.raises(ValueError, match=r"DatasetSpec\.label_size"):
        train(source, 0)
    assert train(source, 1, label=False)[0][0]["frames"].shape == (3, 2, 12, 20, 3)


def test_a_broken_record_is_an_error_not_a_gap(source, monkeypatch):
    def fail(data):
        raise OSError("disk")

    monkeypatch.setattr(clips.encoding, "decode_flow", fail)
    with pytest.raises(OSError, match="disk"):
        train(source, 1)


def test_closing_ends_the_threads(source):
    others = set(threading.enumerate())
    batches = loader.train_batches(
        source, batch_size=2, seed=0, offsets=(0,), flow_pairs=(), label=False, num_threads=3, prefetch=6
    )
    next(batches)
    workers = [thread for thread in threading.enumerate() if thread not in others]
    assert workers
    batches.close()
    for thread in workers:
        thread.join(timeout=30)
        assert not thread.is_alive()
    with pytest.raises(StopIteration):
        next(batches)


# A worker decodes; the parent takes one batch, and then does nothing any more.
PARENT = """
import multiprocessing, sys, time
from input_pipeline import clips, loader

if __name__ == "__main__":
    batches = loader.train_batches(
        clips.open_clips(sys.argv[1]), batch_size=1, seed=0, offsets=(0,), flow_pairs=(), label=False, num_threads=1,
        prefetch=1, num_workers=1,
    )
    next(batches)
    print("taken", len(multiprocessing.active_children()), flush=True)
    time.sleep(600)
"""


def test_killed_while_it_trains_no_worker_is_left(source, tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, tmp_path / "parent.py", source.path]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        assert parent.stdout.readline() == b"taken 1\n"
        parent.kill()
        # All descendants hold the other end of this pipe: it ends when the last of them does.
        parent.communicate(timeout=60)


@pytest.mark.parametrize("num_threads", [0, 3])
def test_evaluation_reads_every_clip_once_in_order(source, num_threads):
    batches = evaluate(source, num_threads=num_threads)
    assert [batch["index"].tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 10]]
    assert [batch["valid"].tolist() for batch in batches] == [[True] * 4, [True] * 4, [True, True, True, False]]
    for batch in batches:
        assert batch["valid"].dtype == np.bool_ and len(batch["name"]) == 4
        for b, i in enumerate(batch["index"]):
            for key in ("frames", "flow", "label"):
                np.testing.assert_array_equal(batch[key][b], read(source, int(i))[key])


@pytest.mark.parametrize(("count", "batch_size"), [(2, 4), (3, 2), (4, 3), (13, 1)])
def test_evaluation_shards_have_equally_many_batches_and_no_clip_twice(source, count, batch_size):
    shards = [evaluate(source, batch_size=batch_size, shard=(i, count)) for i in range(count)]
    assert len({len(shard) for shard in shards}) == 1
    valid = [
        int(i)
        for shard in shards
        for batch in shard
        for i, ok in zip(batch["index"], batch["valid"], strict=True)
        if ok
    ]
    assert sorted(valid) == list(range(COUNT))


def test_evaluation_refuses_bad_requests(source):
    for changes, word in (
        ({"batch_size": 0}, "batch_size"),
        ({"shard": (1, 1)}, "shard"),
        ({"offsets": (5,)}, "offsets"),
    ):
        with pytest.raises(ValueError, match=word):
            evaluate(source, **changes)
