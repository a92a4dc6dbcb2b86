"""Preparing: faults are all named at once, finished sets are reused, interrupted ones start again."""

import dataclasses
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from raw_trees import frame_pixels, write_cityscapes_seq, write_synthia_seq, write_viper

from input_pipeline import clips, flow_files
from input_pipeline.builders.checks import BadFilesError
from input_pipeline.errors import UserError
from input_pipeline.ordered_map import ordered_map
from input_pipeline.prepare import prepare
from input_pipeline.progress import Progress
from input_pipeline.spec import DatasetSpec, prepared_path


def viper_spec(raw_dir, **changes):
    values = {
        "name": "viper",
        "raw_dir": str(raw_dir),
        "split": "train",
        "classes": "viper",
        "size": (18, 32),
        "label_size": (18, 32),
        "offsets": (0, 1),
        "flow_pairs": ((0, 1),),
        "flow_source": "dis",
    }
    return DatasetSpec(**{**values, **changes})


def names_in(path):
    source = clips.open_clips(path)
    return [source[i]["name"].decode() for i in range(len(source))]


def broken_tree(tmp_path):
    """Writes eleven clips with flow, breaks ten in one way each; returns (spec, {broken file: word of the message})."""
    raw, flow_dir = tmp_path / "viper", tmp_path / "flow"
    labelled = tuple(range(10, 110, 10))
    write_viper(raw, labelled=labelled, before=1, size=(36, 64))
    write_viper(raw, videos=("002",), labelled=(10,), before=1, size=(36, 64))
    for video, number in [("001", n) for n in labelled] + [("002", 10)]:
        flow_files.write_flow(flow_dir / f"{video}_{number:05d}{number - 1:05d}_int16_x10.npy", np.zeros((36, 64, 2)))
    img, cls = raw / "train" / "img", raw / "train" / "cls"
    faults = {}

    def fault(path, word):
        faults[str(path)] = word
        return path

    fault(img / "001" / "001_00009.jpg", "no such file").unlink()
    path = fault(img / "001" / "001_00020.jpg", "cannot be decoded")
    path.write_bytes(path.read_bytes()[:-200])
    fault(img / "001" / "001_00029.jpg", "cannot be decoded").write_bytes(b"no image at all")
    Image.fromarray(frame_pixels(0, (36, 60))).save(fault(img / "001" / "001_00040.jpg", "found 36x60"))
    ids = np.full((36, 64), 3, np.uint8)
    ids[0, 0], ids[1, 1] = 99, 40
    Image.fromarray(ids).save(fault(cls / "001" / "001_00050.png", "unknown label ids [40, 99]"))
    Image.fromarray(ids[:30]).save(fault(cls / "001" / "001_00060.png", "label ids"))
    Image.fromarray(np.zeros((36, 64, 3), np.uint8)).save(fault(cls / "001" / "001_00070.png", "RGB"))
    path = fault(cls / "001" / "001_00080.png", "cannot be decoded")
    path.write_bytes(path.read_bytes()[:60])
    fault(flow_dir / "001_0009000089_int16_x10.npy", "no such file").unlink()
    flow_files.write_flow(fault(flow_dir / "001_0010000099_int16_x10.npy", "found 20x64"), np.zeros((20, 64, 2)))
    shutil.rmtree(fault(img / "002", "no such folder"))
    return viper_spec(raw, flow_source="precomputed", flow_dir=str(flow_dir)), faults


def test_every_fault_is_named_at_once_and_nothing_is_written(tmp_path):
    spec, faults = broken_tree(tmp_path)
    with pytest.raises(BadFilesError) as caught:
        prepare(spec, tmp_path / "prepared", lambda line: None)
    assert {bad.path for bad in caught.value.bad} == set(faults)
    message = str(caught.value)
    assert "11 bad files" in message and "skip_bad" in message
    for line in message.splitlines()[1:-1]:
        path, _, rest = line.strip().partition(": expected ")
        assert faults[path] in rest and "found" in rest
    assert not list((tmp_path / "prepared").rglob("*.array_record*"))


def test_skip_bad_leaves_out_exactly_the_bad_clips(tmp_path):
    spec, _ = broken_tree(tmp_path)
    write_viper(spec.raw_dir, videos=("003",), labelled=(10,), before=1)
    flow_files.write_flow(Path(spec.flow_dir) / "003_0001000009_int16_x10.npy", np.zeros((18, 32, 2)))
    lines = []
    path = prepare(dataclasses.replace(spec, skip_bad=True), tmp_path / "prepared", lines.append)
    assert names_in(path) == ["003_00010"]
    assert clips.open_clips(path).left_out == 11
    assert any("leaves out 11 of 12 clips" in line for line in lines)


def test_skip_bad_with_nothing_left_is_an_error(tmp_path):
    spec, _ = broken_tree(tmp_path)
    with pytest.raises(BadFilesError, match="none of 11 usable"):
        prepare(dataclasses.replace(spec, skip_bad=True), tmp_path / "prepared", lambda line: None)


@pytest.mark.parametrize("name", ["viper", "synthia_seq", "cityscapes_seq"])
def test_missing_folders_say_what_the_layout_is(tmp_path, name):
    words = {"viper": "img/SSS", "synthia_seq": "Stereo_Left/Omni_F", "cityscapes_seq": "gtFine/SPLIT/CITY"}
    spec = viper_spec(
        tmp_path / "raw",
        name=name,
        classes="synthia_seq" if name == "synthia_seq" else "viper",
        flow_source="precomputed",
        flow_dir=str(tmp_path / "flow"),
        skip_bad=True,
    )
    with pytest.raises(BadFilesError, match="no such folder") as caught:
        prepare(spec, tmp_path / "prepared", print)
    assert words[name] in str(caught.value)
    assert str(tmp_path / "flow") in [bad.path for bad in caught.value.bad]


def test_synthia_faults(tmp_path):
    raw = tmp_path / "raw"
    write_synthia_seq(raw, count=6)
    folder = raw / "SYNTHIA-SEQS-04-DAWN"
    grey = folder / "GT" / "LABELS" / "Stereo_Left" / "Omni_F" / "000001.png"
    Image.fromarray(np.zeros((38, 64), np.uint8)).save(grey)
    cut = grey.with_name("000002.png")
    cut.write_bytes(cut.read_bytes()[:-30])
    gone = folder / "RGB" / "Stereo_Left" / "Omni_F" / "000004.png"
    gone.unlink()
    spec = viper_spec(raw, name="synthia_seq", classes="synthia_seq")
    with pytest.raises(BadFilesError) as caught:
        prepare(spec, tmp_path / "prepared", lambda line: None)
    assert {bad.path for bad in caught.value.bad} == {str(grey), str(cut), str(gone)}
    path = prepare(dataclasses.replace(spec, skip_bad=True), tmp_path / "prepared", lambda line: None)
    assert names_in(path) == ["SYNTHIA-SEQS-04-DAWN_000003"]


def test_list_file_restricts_the_set_and_names_frames_without_label(tmp_path):
    raw, listed = tmp_path / "raw", tmp_path / "list.txt"
    write_cityscapes_seq(raw)
    listed.write_text("frankfurt/frankfurt_000000_000294_leftImg8bit.png\n\naachen_000001_000019_gtFine_labelIds.png\n")
    spec = viper_spec(raw, name="cityscapes_seq", list_file=str(listed))
    assert names_in(prepare(spec, tmp_path / "prepared", lambda line: None)) == [
        "aachen_000001_000019",
        "frankfurt_000000_000294",
    ]
    listed.write_text("aachen_000001_000018\naachen_000001_000019\n")
    with pytest.raises(BadFilesError, match="aachen_000001_000018"):
        prepare(spec, tmp_path / "prepared", lambda line: None)
    with pytest.raises(UserError, match="absent"):
        prepare(dataclasses.replace(spec, list_file=str(tmp_path / "absent.txt")), tmp_path / "prepared")


def test_list_file_of_bare_synthia_numbers(tmp_path):
    raw, listed = tmp_path / "raw", tmp_path / "list.txt"
    write_synthia_seq(raw, count=4)
    listed.write_text("000003.png\n000001.png\n")
    spec = viper_spec(raw, name="synthia_seq", classes="synthia_seq", list_file=str(listed))
    names = names_in(prepare(spec, tmp_path / "prepared", lambda line: None))
    assert names == ["SYNTHIA-SEQS-04-DAWN_000001", "SYNTHIA-SEQS-04-DAWN_000003"]
    write_synthia_seq(raw, sequence="SYNTHIA-SEQS-04-FOG", count=4)
    with pytest.raises(BadFilesError, match="2 frames of that number"):
        prepare(spec, tmp_path / "elsewhere", lambda line: None)


def test_finished_sets_are_reused_without_the_raw_files(tmp_path):
    raw = tmp_path / "viper"
    write_viper(raw)
    lines = []
    path = prepare(viper_spec(raw), tmp_path / "prepared", lines.append)
    assert path == prepared_path(viper_spec(raw), tmp_path / "prepared")
    assert any("checking files: 6/6" in line for line in lines)
    assert any("preparing clips: 2/2" in line and "/s" in line and "left" in line for line in lines)
    before = {file: file.stat().st_mtime_ns for file in path.iterdir()}
    shutil.rmtree(raw)
    lines.clear()
    assert prepare(viper_spec(raw), tmp_path / "prepared", lines.append) == path
    assert not lines and before == {file: file.stat().st_mtime_ns for file in path.iterdir()}


def test_an_interrupted_preparation_starts_again_cleanly(tmp_path):
    write_viper(tmp_path / "viper")
    spec = viper_spec(tmp_path / "viper")
    path = prepared_path(spec, tmp_path / "prepared")
    # What a killed process leaves behind.
    left = path.parent / f"{path.name}.incompleteAB12CD"
    left.mkdir(parents=True)
    (left / "half.array_record").write_bytes(b"half")

    def interrupt(line):
        if "preparing" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(spec, tmp_path / "prepared", interrupt)
    assert not path.exists()
    assert names_in(prepare(spec, tmp_path / "prepared", lambda line: None)) == ["001_00010", "001_00020"]
    assert sorted(p.name for p in path.parent.iterdir()) == [f".{path.name}.lock", path.name]


def test_of_two_at_once_one_prepares_and_the_other_waits(tmp_path):
    write_viper(tmp_path / "viper")
    lines, paths = [], []
    spec = viper_spec(tmp_path / "viper")
    threads = [
        threading.Thread(target=lambda: paths.append(prepare(spec, tmp_path / "prepared", lines.append)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert paths[0] == paths[1] and sum("clips prepared" in line for line in lines) == 1


def test_the_folder_name_follows_the_content(tmp_path):
    spec = viper_spec(tmp_path / "viper")
    listed = tmp_path / "list.txt"
    listed.write_text("001_00010\n")
    changes = [
        {},
        {"size": (20, 32)},
        {"label_size": None},
        {"offsets": (0, 1, 2)},
        {"flow_pairs": ()},
        {"split": "val"},
        {"raw_dir": str(tmp_path / "other")},
        {"list_file": str(listed)},
        {"skip_bad": True},
        {"flow_source": "precomputed", "flow_dir": "a"},
        {"flow_source": "precomputed", "flow_dir": "b"},
        {"flow_source": "precomputed", "flow_dir": "a", "flow_scale": "public"},
        {"name": "cityscapes_seq"},
        {"name": "cityscapes_seq", "classes": "synthia_seq"},
    ]
    paths = [prepared_path(dataclasses.replace(spec, **change), "prepared") for change in changes]
    assert len(set(paths)) == len(changes)
    # Where flow is estimated, keys about flow files change nothing; and lists serve as well as tuples.
    same = dataclasses.replace(spec, flow_dir="a", flow_scale="public", size=[18, 32], flow_pairs=[[0, 1]])
    assert prepared_path(same, "prepared") == paths[0]
    elsewhere = tmp_path / "renamed.txt"
    listed.rename(elsewhere)
    assert prepared_path(dataclasses.replace(spec, list_file=str(elsewhere)), "prepared") == paths[7]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"name": "kitti"}, "kitti"),
        ({"classes": "synthia_seq"}, "viper"),
        ({"split": "test"}, "split"),
        ({"size": (18,)}, "size"),
        ({"size": (18, 1)}, "size"),
        ({"label_size": (0, 3)}, "label_size"),
        ({"offsets": (1, 2)}, "offsets"),
        ({"offsets": (0, 2, 1)}, "offsets"),
        ({"offsets": ()}, "offsets"),
        ({"flow_pairs": ((1, 0),)}, "flow_pairs"),
        ({"flow_pairs": ((0, 2),)}, "flow_pairs"),
        ({"flow_source": "raft"}, "flow_source"),
        ({"flow_scale": "half"}, "flow_scale"),
        ({"flow_source": "precomputed"}, "flow_dir"),
    ],
)
def test_specs_that_make_no_sense_are_refused(change, word):
    with pytest.raises(ValueError, match=word):
        viper_spec("raw", **change)


def test_prepared_sets_are_self_describing(tmp_path):
    write_viper(tmp_path / "viper")
    spec = viper_spec(tmp_path / "viper", label_size=None)
    path = prepare(spec, tmp_path / "prepared", lambda line: None)
    assert clips.open_clips(path).spec == spec
    assert json.loads((path / "dataset_info.json").read_text())["fileFormat"] == "array_record"


def test_ordered_map_keeps_order_and_holds_few():
    taken = []

    def items():
        for i in range(50):
            taken.append(i)
            yield i

    results = ordered_map(lambda i: i * i, items(), threads=2)
    assert next(results) == 0
    assert len(taken) <= 6
    assert list(results) == [i * i for i in range(1, 50)]

    def fail(i):
        if i == 3:
            raise OSError("three")
        return i

    results = ordered_map(fail, range(10), threads=2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="three"):
        next(results)


def test_progress_says_the_last_item():
    lines = []
    progress = Progress(lines.append, "reading", 3, every_s=1e9)
    for _ in range(3):
        progress.step()
    assert len(lines) == 1 and lines[0].startswith("reading: 3/3, ")
