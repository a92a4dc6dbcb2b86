"""The input benchmark on tiny clips: what it reads is right, what it computes from times is right, and it runs."""

import io
import itertools
import json
import multiprocessing
import time

import numpy as np
import pytest
from PIL import Image

from benchmarks import field_loader, input, measure, performance, raw_frames

RAW_SIZE, SIZE = (64, 128), (32, 64)


def write_clip(folder, colours, flow):
    """Writes frames of one colour each, and flow of one value, `(u, v)` in tenths of a pixel."""
    paths = []
    for k, colour in enumerate(colours):
        path = folder / f"{k}.png"
        Image.new("RGB", RAW_SIZE[::-1], colour).save(path)
        paths.append(str(path))
    np.save(folder / "flow.npy", np.full((*SIZE, 2), flow, np.int16))
    return {"name": "a", "frames": paths, "flow": str(folder / "flow.npy")}


def test_the_field_s_loader_gives_blue_green_red_planes_without_the_mean(tmp_path):
    clip = write_clip(tmp_path, [(10, 20, 30), (200, 0, 255)], (-25, 7))
    for workers in (0, 1):
        (item,) = field_loader.make_loader([clip], SIZE, workers, 1)
        assert item["name"] == ["a"] and len(item["frames"]) == 2
        for frame, (red, green, blue) in zip(item["frames"], [(10, 20, 30), (200, 0, 255)], strict=True):
            assert frame.shape == (1, 3, *SIZE) and str(frame.dtype) == "torch.float32"
            expected = np.array([blue - 104.00698793, green - 116.66876762, red - 122.67891434])
            np.testing.assert_allclose(
                frame[0].numpy(), np.broadcast_to(expected[:, None, None], (3, *SIZE)), atol=1e-5
            )
        flow = item["flow"][0].numpy()
        np.testing.assert_allclose(flow, np.broadcast_to(np.array([-2.5, 0.7]), (*SIZE, 2)), atol=1e-6)
    assert "flow" not in field_loader.RawClips([{**clip, "flow": None}], SIZE)[0]


def test_each_pass_reads_the_number_of_clips_asked_for():
    loader = field_loader.make_loader([{}] * 3, SIZE, 0, 8)
    order = list(loader.sampler)
    assert len(order) == 8 and sorted(order[:3]) == sorted(order[3:6]) == [0, 1, 2]


def test_times_are_those_of_one_clip(monkeypatch):
    clock = {"wall": 100.0, "cpu": 50.0}

    def stream():
        while True:
            clock["wall"] += 0.25
            clock["cpu"] += 0.125
            yield 0

    monkeypatch.setattr(field_loader.time, "perf_counter", lambda: clock["wall"])
    monkeypatch.setattr(field_loader, "cpu_seconds", lambda: clock["cpu"])
    assert field_loader.timed(stream(), 3, 8) == {"seconds": 0.25, "cpu_seconds": 0.125}


def work(seconds, done, end):
    while time.process_time() < seconds:
        sum(range(1000))
    done.set()
    end.wait()


def test_processor_time_counts_living_children():
    context = multiprocessing.get_context("fork")
    done, end = context.Event(), context.Event()
    before, own = field_loader.cpu_seconds(), time.process_time()
    child = context.Process(target=work, args=(0.3, done, end))
    child.start()
    done.wait()
    of_child = field_loader.cpu_seconds() - before - (time.process_time() - own)
    end.set()
    child.join()
    # The system counts in ticks of 10 ms.
    assert 0.25 < of_child < 0.6


def test_timing_takes_what_is_to_be_timed_and_no_more():
    stream = itertools.count()
    result = field_loader.timed(stream, 3, 5)
    assert next(stream) == 3 + 5
    assert set(result) == {"seconds", "cpu_seconds"} and min(result.values()) >= 0
    with pytest.raises(ValueError, match=r"3 \+ 4 clips, 5 were to be timed"):
        field_loader.timed(iter(range(7)), 3, 5)


def test_the_process_answers_every_line(tmp_path):
    clip = write_clip(tmp_path, [(1, 2, 3)], (0, 0))
    asked = json.dumps({"clips": [clip], "size": SIZE, "workers": 0, "count": 2})
    answers = []
    field_loader.serve(iter([asked, "", ""]), answers.append)
    assert len(answers) == 2 and all(set(json.loads(answer)) == {"seconds", "cpu_seconds"} for answer in answers)


def test_a_process_that_dies_is_an_error(tmp_path):
    missing = {"name": "a", "frames": [str(tmp_path / "absent.png")], "flow": None}
    with input.FieldLoader([missing], SIZE, 0, 1) as process, pytest.raises(RuntimeError, match="field_loader ended"):
        process.turn()


def test_frames_are_as_large_as_real_ones():
    sizes = []
    for frame in raw_frames.draw_pair(0, (256, 512)):
        assert frame.shape == (256, 512, 3) and frame.dtype == np.uint8
        with io.BytesIO() as file:
            Image.fromarray(frame).save(file, "PNG")
            sizes.append(file.tell())
    # Cityscapes-Seq: 324 GB in 150,000 frames of 1024×2048.
    real = 324e9 / 150_000 / (1024 * 2048)
    for size in sizes:
        assert size / (256 * 512) == pytest.approx(real, rel=0.25)


def test_rates_and_ratios():
    turns = {
        "prepared, flow in the set": [(2.0, 1.0), (4.0, 1.0), (3.0, 5.0)],
        "prepared, no flow": [(1.0, 1.0)] * 3,
        "DataLoader, flow in .npy": [(6.0, 8.0), (40.0, 6.0), (12.0, 10.0)],
        "DataLoader, no flow": [(2.0, 4.0)] * 3,
    }
    turns = {name: [{"seconds": s, "cpu_seconds": c} for s, c in values] for name, values in turns.items()}
    rows = input.summarise(turns)
    assert rows["prepared, flow in the set"] == {
        "clips_per_second": 1 / 3.0,
        "clips_per_second_and_core": 1.0,
        "cpu_ms_per_clip": 1000.0,
    }
    # Ratios of a round: 3, 10, 4 and 8, 6, 2.
    assert input.ratios_of(turns) == {
        "with flow": {"seconds": 4.0, "cpu_seconds": 6.0},
        "no flow": {"seconds": 2.0, "cpu_seconds": 4.0},
    }


@pytest.mark.parametrize(("rate", "per_core", "cores"), [(40, 40.0, 1), (40.1, 40.0, 2), (320, 50, 7), (1, 1000, 1)])
def test_cores_needed(rate, per_core, cores):
    assert input.cores_needed(rate, per_core) == cores
    assert cores * per_core >= rate > (cores - 1) * per_core


@pytest.mark.parametrize(("rate", "per_core"), [(0, 1), (1, 0), (-1, 1)])
def test_rates_of_nothing_are_refused(rate, per_core):
    with pytest.raises(ValueError, match="above 0"):
        input.cores_needed(rate, per_core)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("input")
    options = dict(workers=1, clips=3, count=4, rounds=2, raw_size=RAW_SIZE, size=SIZE)
    return folder, input.run(folder, **options)


def test_the_benchmark_runs(measured):
    folder, result = measured
    assert json.loads(json.dumps(result))["settings"]["raw_size"] == [64, 128]
    assert len(result["rows"]) == 7
    for row in result["rows"].values():
        assert row["clips_per_second"] > 0 and row["clips_per_second_and_core"] > 0
    frames = sorted((folder / "raw").rglob("*_leftImg8bit.png"))
    assert len(frames) == 2 * 3
    assert result["bytes"]["raw_frame"] == np.mean([path.stat().st_size for path in frames])
    text = performance.reading({"machine": measure.machine(), **result})
    for name in result["rows"]:
        assert name in text


def test_both_sides_have_to_read_the_same(measured):
    folder, _ = measured
    frames = sorted((folder / "raw").rglob("aachen_000000_*_leftImg8bit.png"))
    clip = {"name": "aachen_000000_000019", "frames": [str(path) for path in reversed(frames)]}
    clip["flow"] = str(next((folder / "flow").glob("aachen_000000*")))
    source = input.clips_lib.open_clips(next((folder / "prepared").rglob("metadata.json")).parent)
    input.check_same(source, [clip], SIZE)
    with pytest.raises(ValueError, match="different frames or flow for aachen_000000_000019"):
        input.check_same(source, [{**clip, "frames": clip["frames"][::-1]}], SIZE)
    other = str(next((folder / "flow").glob("aachen_000001*")))
    with pytest.raises(ValueError, match="different frames or flow"):
        input.check_same(source, [{**clip, "flow": other}], SIZE)


def test_each_contender_takes_one_turn_a_round():
    calls = []

    def contender(name):
        calls.append(name)
        return {"seconds": len(calls), "cpu_seconds": 0}

    names = ("a", "b")
    turns = input.take_turns({name: (lambda name=name: contender(name)) for name in names}, 3)
    assert [len(values) for values in turns.values()] == [3, 3]
    # Turns alternate, and those that count are the last ones.
    assert calls[-6:] == ["a", "b"] * 3
    assert [value["seconds"] for value in turns["b"]] == [len(calls) - 4, len(calls) - 2, len(calls)]
