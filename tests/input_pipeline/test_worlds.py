"""The generated files: the owners' layouts, exact labels and flow in them, the same bytes for the same seed."""

import dataclasses
import errno
import hashlib
import json
import multiprocessing
import os
import re
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from input_pipeline.datasets import DATASETS
from input_pipeline.errors import UserError
from input_pipeline.flow_files import read_flow
from input_pipeline.labels import CLASSES, IGNORED, train_id_table
from input_pipeline.world import generate
from input_pipeline.world.generate import WorldSpec, _source_drives, write_worlds
from input_pipeline.world.layouts import file_ids, frame_size
from input_pipeline.world.shapes import WORLD_CLASSES

SPEC = WorldSpec(
    seed=100, size=(64, 128), source_clips=3, target_train_clips=3, target_val_clips=3, video_frames=3, workers=1
)


def files(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def silent(line):
    del line


@pytest.fixture(scope="module")
def viper_world(tmp_path_factory):
    root = tmp_path_factory.mktemp("viper_world")
    return write_worlds(SPEC, root, progress=silent)


@pytest.fixture(scope="module")
def synthia_world(tmp_path_factory):
    root = tmp_path_factory.mktemp("synthia_world")
    return write_worlds(dataclasses.replace(SPEC, source_layout="synthia_seq"), root, progress=silent)


# Start of the SHA-256 of what is in files of `SPEC`'s world: pixels as they decode, or flow. Results in the docs are of
# these bytes.
PINNED = {
    "cityscapes_seq/gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png": "67a5df152f9c",
    "cityscapes_seq/leftImg8bit_sequence/demoVideo/stuttgart/stuttgart_000000_000002_leftImg8bit.png": "ed13975e0e30",
    "cityscapes_seq/leftImg8bit_sequence/train/aachen/aachen_000000_000019_leftImg8bit.png": "78f26de1b30d",
    "cityscapes_seq/leftImg8bit_sequence/train/hamburg/hamburg_000000_000293_leftImg8bit.png": "e72ad99a298b",
    "flow/cityscapes_seq/train/aachen_000000_000019_000017_int16_x10.npy": "f695bd494c2d",
    "flow/synthia_seq/train/000012_int16_x10.npy": "a081cdba40a7",
    "flow/viper/train/001_0001000008_int16_x10.npy": "7472ae4b7cdc",
    "flow/viper/train/001_0001000009_int16_x10.npy": "60978c6f715c",
    "synthia_seq/SYNTHIA-SEQS-04-DAWN/GT/LABELS/Stereo_Left/Omni_F/000012.png": "b5cff9dc1081",
    "synthia_seq/SYNTHIA-SEQS-04-DAWN/RGB/Stereo_Left/Omni_F/000012.png": "487e4f393e0e",
    "viper/train/cls/001/001_00010.png": "24ef420e98d1",
    "viper/train/img/001/001_00010.jpg": "651263c427a3",
}


def digest(path):
    content = read_flow(path) if path.suffix == ".npy" else cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    return hashlib.sha256(np.ascontiguousarray(content).tobytes()).hexdigest()[:12]


@pytest.mark.parametrize("name", PINNED)
def test_generated_files_stay_what_they_were(name, viper_world, synthia_world):
    layout = "synthia_seq" if "synthia_seq" in name else "viper"
    root = {"viper": viper_world, "synthia_seq": synthia_world}[layout]["source"].parent
    assert digest(root / name) == PINNED[name]


@pytest.mark.parametrize("dataset", ["viper", "synthia_seq", "cityscapes_seq"])
def test_file_ids_are_read_back_as_the_same_class(dataset):
    ids = file_ids(dataset)
    assert set(ids.tolist()) <= DATASETS[dataset].ids.keys()
    for setting in DATASETS[dataset].settings:
        for name, train_id in zip(WORLD_CLASSES, train_id_table(dataset, setting)[ids], strict=True):
            if name in CLASSES[setting]:
                assert CLASSES[setting][train_id] == name
            elif name == "rider":
                # VIPER's setting counts riders as people.
                assert CLASSES[setting][train_id] == "person"
            else:
                assert train_id == IGNORED


def test_viper_layout(viper_world):
    root = viper_world["source"]
    found = sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())
    frames = [f"train/img/{s}/{s}_{f:05d}.jpg" for s in ("001", "002", "003") for f in (8, 9, 10)]
    labels = [f"train/cls/{s}/{s}_00010.png" for s in ("001", "002", "003")]
    assert found == sorted(frames + labels)
    with Image.open(root / frames[0]) as frame, Image.open(root / labels[0]) as label:
        assert (frame.format, frame.mode, frame.size) == ("JPEG", "RGB", (128, 64))
        assert (label.format, label.mode, label.size) == ("PNG", "L", (128, 64))
        assert set(np.unique(label)) <= DATASETS["viper"].ids.keys()
    pairs = {p.name for p in viper_world["source_flow"].glob("train/001_*")}
    assert pairs == {f"001_{pair}_int16_x10.npy" for pair in ("0001000009", "0000900008", "0001000008")}


def test_more_clips_than_viper_has_video_numbers():
    drives = list(_source_drives(dataclasses.replace(SPEC, source_clips=1001)))
    assert sum(len(drive.labelled) for drive in drives) == 1001
    assert drives[0].labelled == (10, 20) and drives[0].frames == (8, 9, 10, 18, 19, 20)
    assert all(re.fullmatch(r"\d{3}", drive.video) for drive in drives)


def test_synthia_layout(synthia_world):
    root = synthia_world["source"] / "SYNTHIA-SEQS-04-DAWN"
    # 640 of 760 rows stay when the bottom is cut.
    height = frame_size("synthia_seq", SPEC.size)[0]
    assert height == 76
    frames = sorted((root / "RGB" / "Stereo_Left" / "Omni_F").iterdir())
    labels = sorted((root / "GT" / "LABELS" / "Stereo_Left" / "Omni_F").iterdir())
    assert [p.name for p in frames] == [f"{10 * k + t:06d}.png" for k in range(3) for t in range(3)]
    assert [p.name for p in labels] == [f"{10 * k + 2:06d}.png" for k in range(3)]
    with Image.open(frames[0]) as frame:
        assert (frame.format, frame.mode, frame.size) == ("PNG", "RGB", (128, height))
    header = labels[0].read_bytes()[:33]
    # PNG's header chunk: bit depth 16, colour type 2 (RGB).
    assert (header[24], header[25]) == (16, 2)
    red, green, blue = read_16_bit_rgb(labels[0])
    assert set(np.unique(red)) <= DATASETS["synthia_seq"].ids.keys() and len(np.unique(red)) > 4
    assert not green.any() and not blue.any()
    names = sorted(p.name for p in (synthia_world["source_flow"] / "train").iterdir())
    assert names == [f"{10 * k + t:06d}_int16_x10.npy" for k in range(3) for t in (1, 2)]


def read_16_bit_rgb(path):
    """Decodes an unfiltered or filtered 16-bit RGB PNG by the rules of the format, without an image library."""
    data, place, packed = path.read_bytes(), 8, b""
    while place < len(data):
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        body = data[place + 8 : place + 8 + length]
        if kind == b"IHDR":
            width, height = struct.unpack(">II", body[:8])
        packed += body if kind == b"IDAT" else b""
        place += 12 + length
    raw, stride = zlib.decompress(packed), width * 6
    lines, above = [], [0] * stride
    for row in range(height):
        kind, *line = raw[row * (stride + 1) : (row + 1) * (stride + 1)]
        for k in range(stride):
            left, corner = (line[k - 6], above[k - 6]) if k >= 6 else (0, 0)
            guess = left + above[k] - corner
            nearest = min((left, above[k], corner), key=lambda value, guess=guess: abs(guess - value))
            line[k] = (line[k] + (0, left, above[k], (left + above[k]) // 2, nearest)[kind]) % 256
        lines.append(line)
        above = line
    pixels = np.array(lines).reshape(height, width, 3, 2)
    return np.moveaxis(pixels[..., 0] * 256 + pixels[..., 1], -1, 0)


def test_cityscapes_layout(viper_world):
    root = viper_world["target"]
    labels = sorted(str(p.relative_to(root / "gtFine")) for p in (root / "gtFine").rglob("*.png"))
    clips = {
        "train": ("aachen_000000_000019", "bremen_000000_000019", "hamburg_000000_000294"),
        "val": ("frankfurt_000000_000294", "lindau_000000_000019", "munster_000000_000019"),
    }
    assert labels == [
        f"{split}/{name.partition('_')[0]}/{name}_gtFine_labelIds.png" for split in clips for name in clips[split]
    ]
    for split, names in clips.items():
        for name in names:
            city, sequence, number = name.split("_")
            for back in range(3):
                earlier = f"{city}_{sequence}_{int(number) - back:06d}"
                path = root / "leftImg8bit_sequence" / split / city / f"{earlier}_leftImg8bit.png"
                with Image.open(path) as frame:
                    assert (frame.format, frame.mode, frame.size) == ("PNG", "RGB", (128, 64))
            flows = {p.name for p in (viper_world["target_flow"] / split).glob(f"{city}_*")}
            f, g, h = (f"{int(number) - back:06d}" for back in range(3))
            pairs = ((f, g), (g, h), (f, h))
            assert flows == {f"{city}_{sequence}_{a}_{b}_int16_x10.npy" for a, b in pairs}
    video = sorted(viper_world["video"].iterdir())
    assert [p.name for p in video] == [f"stuttgart_000000_{t:06d}_leftImg8bit.png" for t in range(3)]


def test_written_flow_carries_the_written_frames(viper_world):
    better, worse = [], []
    folder = viper_world["source"] / "train" / "img"
    for scene in ("001", "002", "003"):
        now, before = (
            np.asarray(Image.open(folder / scene / f"{scene}_{n:05d}.jpg")).astype(np.float64) for n in (10, 9)
        )
        flow = read_flow(viper_world["source_flow"] / "train" / f"{scene}_0001000009_int16_x10.npy")
        assert flow.shape == (64, 128, 2)
        rows, columns = np.mgrid[:64, :128]
        rows = np.clip(np.rint(rows + flow[..., 1]).astype(int), 0, 63)
        columns = np.clip(np.rint(columns + flow[..., 0]).astype(int), 0, 127)
        better.append(np.abs(before[rows, columns] - now).mean())
        worse.append(np.abs(before - now).mean())
    assert np.mean(better) < 0.8 * np.mean(worse)


def test_same_seed_same_bytes_on_any_number_of_processes(viper_world, tmp_path):
    first = files(viper_world["source"].parent)
    chunked = dataclasses.replace(SPEC, workers=2)
    again = files(write_worlds(chunked, tmp_path / "again", progress=silent)["source"].parent)
    assert first.keys() == again.keys()
    assert [name for name in first if first[name] != again[name]] == []


def test_another_seed_is_another_world(viper_world, tmp_path):
    root = tmp_path / "other"
    other = files(write_worlds(dataclasses.replace(SPEC, seed=101), root, progress=silent)["source"].parent)
    first = files(viper_world["source"].parent)
    assert [name for name in first if first[name] == other[name]] == []


def test_source_and_target_show_other_streets(viper_world):
    table = train_id_table("viper", "viper")
    source = table[np.asarray(Image.open(viper_world["source"] / "train/cls/001/001_00010.png"))]
    label = viper_world["target"] / "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png"
    target = train_id_table("cityscapes_seq", "viper")[np.asarray(Image.open(label))]
    assert np.mean(source != target) > 0.05


def test_a_finished_world_is_kept(viper_world):
    root = viper_world["source"].parent
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    lines = []
    # The number of processes does not change the content.
    assert write_worlds(dataclasses.replace(SPEC, workers=2), root, progress=lines.append) == viper_world
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert not lines, "nothing was rendered, so there is nothing to tell"


def test_another_world_in_the_folder_is_refused(viper_world):
    root = viper_world["source"].parent
    with pytest.raises(ValueError, match=r"seed is 100 there and 7 here"):
        write_worlds(dataclasses.replace(SPEC, seed=7), root, progress=silent)
    manifest = root / "manifest.json"
    kept = manifest.read_text()
    assert json.loads(kept)["version"] == "1"
    manifest.write_text(json.dumps(json.loads(kept) | {"version": "0"}))
    with pytest.raises(ValueError, match=r"version is '0' there"):
        write_worlds(SPEC, root, progress=silent)
    manifest.write_text(kept)


def test_foreign_data_is_not_touched(tmp_path):
    precious = tmp_path / "viper" / "train" / "img" / "001" / "001_00001.jpg"
    precious.parent.mkdir(parents=True)
    precious.write_bytes(b"a real frame")
    with pytest.raises(ValueError, match="holds viper but no manifest.json"):
        write_worlds(SPEC, tmp_path, progress=silent)
    assert files(tmp_path) == {"viper/train/img/001/001_00001.jpg": b"a real frame"}


@pytest.mark.parametrize("content", [b"", b'{"seed": 1', b"\xff\x00\xfe", b"[1, 2]", b"null"])
def test_a_damaged_manifest_names_file_and_remedy(tmp_path, content):
    (tmp_path / "viper").mkdir()
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(UserError, match=r"manifest\.json: expected.* Delete .* generated again") as caught:
        write_worlds(SPEC, tmp_path, progress=silent)
    assert str(tmp_path / "manifest.json") in str(caught.value) and "\n" not in str(caught.value)
    assert files(tmp_path) == {"manifest.json": content}


def test_a_file_in_its_place_is_told_before_the_work(tmp_path):
    (tmp_path / "world").write_text("mine")
    with pytest.raises(UserError, match="world is a file"):
        write_worlds(SPEC, tmp_path / "world", progress=silent)
    assert files(tmp_path) == {"world": b"mine"}


def test_an_interrupted_world_starts_again(viper_world, tmp_path):
    def stop(line):
        raise KeyboardInterrupt(line)

    root = tmp_path / "world"
    with pytest.raises(KeyboardInterrupt):
        write_worlds(SPEC, root, progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == [".world.lock"], "not even half of it is left"
    # What SIGKILL leaves; and another folder, whose name only begins alike.
    folders = ("world.0a1b.unfinished", "world2.0a1b.unfinished")
    stray, other = (tmp_path / name / "viper" / "stray.jpg" for name in folders)
    for path in (stray, other):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"left over")
    write_worlds(SPEC, root, progress=silent)
    assert files(root) == files(viper_world["source"].parent)
    assert not stray.parent.parent.exists() and other.exists()


def test_a_link_to_another_disk_stays_one(viper_world, tmp_path):
    (tmp_path / "disk" / "empty").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "world").symlink_to(tmp_path / "disk" / "empty")
    found = write_worlds(SPEC, tmp_path / "run" / "world", progress=silent)
    assert found["source"] == tmp_path / "run" / "world" / "viper" and (tmp_path / "run" / "world").is_symlink()
    assert files(tmp_path / "disk" / "empty") == files(viper_world["source"].parent)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["world"]


def test_of_two_that_want_a_world_one_writes_it(viper_world, tmp_path, monkeypatch):
    written, lines, write, both = [], [], generate._write_drive, threading.Barrier(2)

    def counted(spec, drive, root):
        if not written:
            # Only now does the other ask, and it finds neither a world nor an empty folder to write to.
            both.wait(timeout=60)
        written.append(drive)
        while len(written) == 1 and not any("waits for another" in line for line in lines):
            time.sleep(0.01)
        write(spec, drive, root)

    monkeypatch.setattr(generate, "_write_drive", counted)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(write_worlds, SPEC, tmp_path / "world", lines.append)
        both.wait(timeout=60)
        second = pool.submit(write_worlds, SPEC, tmp_path / "world", lines.append)
        assert first.result(60) == second.result(60)
    assert len(written) == 10 and files(tmp_path / "world") == files(viper_world["source"].parent)


def test_a_full_disk_is_told_with_the_file_and_leaves_nothing(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/viper/train/img/001/001_00008\.jpg'"):
        write_worlds(SPEC, tmp_path / "world", progress=silent)
    assert [path.name for path in tmp_path.iterdir()] == [".world.lock"]


# Two processes render scenes; the parent tells of the first ones, and then does nothing any more.
PARENT = """
import dataclasses, multiprocessing, sys, time
from pathlib import Path
from input_pipeline.world.generate import WorldSpec, write_worlds

def stay(line):
    print(line, flush=True)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(600)

if __name__ == "__main__":
    spec = WorldSpec(size=(64, 128), source_clips=60, target_train_clips=1, target_val_clips=1, workers=2)
    write_worlds(spec, Path(sys.argv[1]), progress=stay)
"""


def test_killed_while_it_writes_no_process_is_left(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, tmp_path / "parent.py", tmp_path / "world"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as parent:
        assert b"scenes" in parent.stdout.readline()
        assert len(parent.stdout.readline().split()) == 2
        parent.kill()
        # All descendants hold the other end of this pipe: it ends when the last of them does.
        parent.communicate(timeout=60)
    assert not (tmp_path / "world").exists() and len(list(tmp_path.glob("world.*.unfinished/viper"))) == 1


# Ctrl-C, again and again while both processes start.
INTERRUPTED = """
import multiprocessing, os, signal, sys, threading, time
from pathlib import Path
from input_pipeline.world.generate import WorldSpec, write_worlds

def interrupt():
    while len(multiprocessing.active_children()) < 2:
        time.sleep(0.001)
    for _ in range(5):
        time.sleep(0.05)
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)

if __name__ == "__main__":
    # A shell's background job, and what it starts, ignores the signal.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=interrupt, daemon=True).start()
    try:
        write_worlds(WorldSpec(size=(64, 128), source_clips=60, workers=2), Path(sys.argv[1]))
    except KeyboardInterrupt:
        print("stopped")
"""


def test_of_all_processes_one_answers_to_an_interrupt(tmp_path):
    (tmp_path / "parent.py").write_text(INTERRUPTED)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, tmp_path / "parent.py", tmp_path / "world"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr, done.returncode) == ("stopped\n", "", 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".world.lock", "parent.py"]


def test_a_worker_that_is_killed_is_told(tmp_path):
    def kill(line):
        multiprocessing.active_children()[0].kill()

    spec = dataclasses.replace(SPEC, size=(32, 64), source_clips=20, workers=2)
    with pytest.raises(UserError, match="memory.* --config.world.workers=1"):
        write_worlds(spec, tmp_path / "world", progress=kill)
    assert [path.name for path in tmp_path.iterdir()] == [".world.lock"]


def test_progress_tells_how_far_it_is(tmp_path):
    lines = []
    small = dataclasses.replace(SPEC, size=(32, 64), source_clips=20, target_train_clips=20)
    write_worlds(small, tmp_path, progress=lines.append)
    counts = [int(re.match(r"worlds: (\d+)/44 scenes", line)[1]) for line in lines]
    assert counts == sorted(set(counts)) and counts[-1] == 44 and len(counts) > 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source_layout": "kitti"}, "'viper' or 'synthia_seq'"),
        ({"source_clips": 0}, "source_clips is 0"),
        ({"video_frames": 0}, "video_frames is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"size": (16, 256)}, "at least 32"),
        ({"gap": (1.0, 0.5)}, "least <= most"),
    ],
)
def test_bad_specs_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SPEC, **change)
