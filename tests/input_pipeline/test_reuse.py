"""Prepared sets are used again as long as they are whole and prepared from the files that are there now."""

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from raw_trees import frame_pixels, write_viper

from input_pipeline import clips, flow_files, prepare, reuse
from input_pipeline.builders.checks import BadFilesError
from input_pipeline.errors import UserError
from input_pipeline.prepare import prepare as prepare_set
from input_pipeline.spec import DatasetSpec


@pytest.fixture
def spec(tmp_path):
    """VIPER with two clips of three files and a flow file each."""
    write_viper(tmp_path / "viper", before=1)
    for number in (10, 20):
        flow_files.write_flow(flow_file(tmp_path, number), np.full((18, 32, 2), number))
    return DatasetSpec(
        name="viper",
        raw_dir=str(tmp_path / "viper"),
        split="train",
        classes="viper",
        size=(18, 32),
        label_size=(18, 32),
        offsets=(0, 1),
        flow_pairs=((0, 1),),
        flow_source="precomputed",
        flow_dir=str(tmp_path / "flow"),
    )


def flow_file(root, number):
    return root / "flow" / f"001_{number:05d}{number - 1:05d}_int16_x10.npy"


def image(spec, number):
    return Path(spec.raw_dir) / "train" / "img" / "001" / f"001_{number:05d}.jpg"


def label(spec, number):
    return Path(spec.raw_dir) / "train" / "cls" / "001" / f"001_{number:05d}.png"


def run(spec, tmp_path):
    """Prepares; returns the path, the lines that were printed, and the shards' times."""
    lines = []
    path = prepare_set(spec, tmp_path / "prepared", lines.append)
    return path, lines, {file.name: file.stat().st_mtime_ns for file in path.glob("*array_record*")}


def repaint(path, seed=9):
    """Puts another picture of the same number of bytes and the same size in an image's place."""
    size = path.stat().st_size
    with Image.open(path) as before:
        height, width = before.height, before.width
    for quality in range(90, 5, -1):
        Image.fromarray(frame_pixels(seed, (height, width))).save(path, quality=quality)
        if path.stat().st_size <= size:
            break
    path.write_bytes(path.read_bytes() + bytes(size - path.stat().st_size))


def read(path, number):
    source = clips.open_clips(path)
    names = [source[i]["name"].decode() for i in range(len(source))]
    return clips.read_clip(source, names.index(f"001_{number:05d}"), (0, 1), ((0, 1),), True)


def test_what_is_unchanged_is_used_again_and_nothing_is_said(spec, tmp_path):
    _, lines, first = run(spec, tmp_path)
    assert any("clips prepared" in line for line in lines)
    _, lines, second = run(spec, tmp_path)
    assert lines == [] and first == second


def change_frame(spec, tmp_path):
    repaint(image(spec, 9))
    return "changed  raw_dir/train/img/001/001_00009.jpg"


def change_label(spec, tmp_path):
    Image.fromarray(np.full((36, 64), 11, np.uint8)).save(label(spec, 20))
    return "changed  raw_dir/train/cls/001/001_00020.png"


def change_flow(spec, tmp_path):
    flow_files.write_flow(flow_file(tmp_path, 20), np.full((18, 32, 2), 5.0))
    return "changed  flow_dir/001_0002000019_int16_x10.npy"


def add_clip(spec, tmp_path):
    write_viper(spec.raw_dir, labelled=(30,), before=1)
    flow_files.write_flow(flow_file(tmp_path, 30), np.zeros((18, 32, 2)))
    return "added  raw_dir/train/cls/001/001_00030.png"


def remove_clip(spec, tmp_path):
    label(spec, 10).unlink()
    return "removed  raw_dir/train/cls/001/001_00010.png"


def prefer_another_flow_file(spec, tmp_path):
    """The `.npy` comes first: the clip is of another file then, though the old one is still there."""
    file = flow_file(tmp_path, 10)
    flow = flow_files.read_flow(file)
    header = np.array([202021.25], "<f4").tobytes() + np.array([32, 18], "<i4").tobytes()
    file.with_suffix(".flo").write_bytes(header + (flow + 1).astype("<f4").tobytes())
    file.unlink()
    return "added  flow_dir/001_0001000009_int16_x10.flo"


@pytest.mark.parametrize(
    "change", [change_frame, change_label, change_flow, add_clip, remove_clip, prefer_another_flow_file]
)
def test_a_change_is_told_and_the_set_prepared_anew(spec, tmp_path, change):
    path, _, _ = run(spec, tmp_path)
    before = clips.open_clips(path).digest
    told = change(spec, tmp_path)
    again, lines, _ = run(spec, tmp_path)
    assert again == path
    reason = next(line for line in lines if "are not those that" in line)
    assert str(path) in reason and "prepared anew" in reason
    assert any(line.strip() == told for line in lines), lines
    # What a set holds that was never there before.
    fresh = clips.open_clips(prepare_set(spec, tmp_path / "fresh", lambda line: None))
    found = clips.open_clips(path)
    assert len(found) == len(fresh) and found.digest == fresh.digest != before
    for i in range(len(found)):
        assert found[i] == fresh[i]
    assert run(spec, tmp_path)[1] == []
    assert sorted(file.name for file in path.parent.iterdir()) == [f".{path.name}.lock", path.name]


def test_long_lists_of_changes_are_cut(spec, tmp_path):
    run(spec, tmp_path)
    write_viper(spec.raw_dir, labelled=range(30, 200, 10), before=1)
    for number in range(30, 200, 10):
        flow_files.write_flow(flow_file(tmp_path, number), np.zeros((18, 32, 2)))
    lines = run(spec, tmp_path)[1]
    assert "(0 changed, 68 added, 0 removed)" in lines[0]
    assert lines[11] == "  ... and 58 more" and not lines[12].startswith("  ")


def test_a_copy_with_new_times_is_the_same_set(spec, tmp_path):
    _, _, first = run(spec, tmp_path)
    for folder in (spec.raw_dir, spec.flow_dir):
        for file in Path(folder).rglob("*.*"):
            os.utime(file, ns=(1, 1))
    _, lines, second = run(spec, tmp_path)
    assert first == second and all("comparing files with a new time: " in line for line in lines)
    # The new times are kept: nothing is read the next time.
    assert run(spec, tmp_path)[1] == []


def test_of_a_copy_only_what_differs_is_told(spec, tmp_path):
    run(spec, tmp_path)
    shutil.copytree(spec.raw_dir, tmp_path / "copy", copy_function=shutil.copy)
    shutil.rmtree(spec.raw_dir)
    (tmp_path / "copy").rename(spec.raw_dir)
    repaint(image(spec, 19))
    lines = run(spec, tmp_path)[1]
    assert [line for line in lines if line.startswith("  ")] == ["  changed  raw_dir/train/img/001/001_00019.jpg"]


def test_a_prepared_folder_that_cannot_be_written_is_used_all_the_same(spec, tmp_path, monkeypatch):
    path, _, first = run(spec, tmp_path)
    os.utime(image(spec, 9), ns=(1, 1))

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(reuse, "write_atomically", refuse)
    assert run(spec, tmp_path)[2] == first


def test_the_digest_is_that_of_the_content_wherever_it_lies(spec, tmp_path):
    path = run(spec, tmp_path)[0]
    shutil.copytree(spec.raw_dir, tmp_path / "b" / "viper", copy_function=shutil.copy)
    shutil.copytree(spec.flow_dir, tmp_path / "b" / "flow", copy_function=shutil.copy)
    moved = dataclasses.replace(spec, raw_dir=str(tmp_path / "b" / "viper"), flow_dir=str(tmp_path / "b" / "flow"))
    other = prepare_set(moved, tmp_path / "prepared", lambda line: None)
    assert other != path and clips.open_clips(other).digest == clips.open_clips(path).digest
    listed = tmp_path / "list.txt"
    listed.write_text("001_00010\n")
    for changes in ({"flow_scale": "public"}, {"list_file": str(listed)}, {"offsets": (0,), "flow_pairs": ()}):
        changed = prepare_set(dataclasses.replace(spec, **changes), tmp_path / "apart", lambda line: None)
        assert clips.open_clips(changed).digest != clips.open_clips(path).digest


def test_a_repaired_file_that_was_left_out_is_a_change(spec, tmp_path):
    broken = image(spec, 10)
    whole, missing = broken.read_bytes(), flow_file(tmp_path, 20).read_bytes()
    broken.write_bytes(whole[:100])
    flow_file(tmp_path, 20).unlink()
    write_viper(spec.raw_dir, labelled=(30,), before=1)
    flow_files.write_flow(flow_file(tmp_path, 30), np.zeros((18, 32, 2)))
    spec = dataclasses.replace(spec, skip_bad=True)
    path = run(spec, tmp_path)[0]
    assert clips.open_clips(path).left_out == 2
    assert run(spec, tmp_path)[1] == []
    broken.write_bytes(whole)
    assert "  changed  raw_dir/train/img/001/001_00010.jpg" in run(spec, tmp_path)[1]
    flow_file(tmp_path, 20).write_bytes(missing)
    assert "  added  flow_dir/001_0002000019_int16_x10.npy" in run(spec, tmp_path)[1]
    assert len(clips.open_clips(path)) == 3 and clips.open_clips(path).left_out == 0


def test_a_set_that_cannot_be_prepared_anew_is_kept(spec, tmp_path):
    path, _, first = run(spec, tmp_path)
    kept = image(spec, 10).read_bytes()
    repaint(image(spec, 9))
    image(spec, 10).write_bytes(b"no image")
    with pytest.raises(BadFilesError, match="001_00010.jpg"):
        run(spec, tmp_path)
    assert {file.name: file.stat().st_mtime_ns for file in path.glob("*array_record*")} == first
    image(spec, 10).write_bytes(kept)
    assert "changed  raw_dir/train/img/001/001_00009.jpg" in "".join(run(spec, tmp_path)[1])


@pytest.mark.parametrize("gone", ["viper/train/img", "viper/train/cls", "flow", "viper/train/img/001/001_00009.jpg"])
def test_where_part_of_the_raw_files_is_gone_the_finished_set_is_used_and_it_is_said(spec, tmp_path, gone):
    _, _, first = run(spec, tmp_path)
    path = tmp_path / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    _, lines, second = run(spec, tmp_path)
    assert first == second
    assert "of the 8 raw files are gone" in lines[0] and "used as it is" in lines[0]


def test_where_all_raw_files_are_gone_the_finished_set_is_used(spec, tmp_path):
    _, _, first = run(spec, tmp_path)
    shutil.rmtree(spec.raw_dir)
    _, lines, second = run(spec, tmp_path)
    assert first == second and lines == []
    # A disk that is not mounted leaves an empty folder.
    Path(spec.raw_dir).mkdir()
    _, lines, second = run(spec, tmp_path)
    assert first == second and "8 of the 8 raw files are gone" in lines[0]


def test_a_set_without_its_record_is_prepared_anew_and_it_is_said(spec, tmp_path):
    path = run(spec, tmp_path)[0]
    digest = clips.open_clips(path).digest
    (path / reuse.RECORD).unlink()
    lines = run(spec, tmp_path)[1]
    assert "prepared_from.json is missing" in lines[0] and "prepared anew" in lines[0]
    assert clips.open_clips(path).digest == digest and run(spec, tmp_path)[1] == []


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


FILES = ("dataset_info.json", "features.json", "metadata.json", "prepared_from.json", "*array_record*")
DAMAGES = [(file, damage) for file in FILES for damage in (cut, Path.unlink, lambda path: path.write_bytes(b""))]
DAMAGES += [(file, flip) for file in FILES[:3]]


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_a_damaged_set_is_prepared_anew_and_it_is_said(spec, tmp_path, name, damage):
    path = run(spec, tmp_path)[0]
    content = [clips.open_clips(path)[i] for i in range(2)]
    damage(next(path.glob(name)))
    lines = run(spec, tmp_path)[1]
    assert "damaged" in lines[0]
    assert str(path) in lines[0] and "prepared anew" in lines[0]
    assert [clips.open_clips(path)[i] for i in range(2)] == content


def test_a_damaged_set_without_raw_files_names_both(spec, tmp_path):
    path = run(spec, tmp_path)[0]
    cut(path / "metadata.json")
    shutil.rmtree(spec.raw_dir)
    with pytest.raises(UserError) as caught:
        run(spec, tmp_path)
    assert str(path / "metadata.json") in str(caught.value) and spec.raw_dir in str(caught.value)


@pytest.mark.parametrize("name", [*FILES[:3], "*array_record*"])
@pytest.mark.parametrize("damage", [cut, Path.unlink, lambda path: path.write_bytes(b"")])
def test_opening_or_reading_a_damaged_set_names_it_and_the_remedy(spec, tmp_path, name, damage):
    path = run(spec, tmp_path)[0]
    damage(next(path.glob(name)))
    with pytest.raises(UserError) as caught:
        read(path, 10)
    assert f"Delete {path}: the next run prepares it again" in str(caught.value)


def test_no_flipped_bit_in_a_shard_is_read_as_something_else(spec, tmp_path):
    path = run(spec, tmp_path)[0]
    shard, random = next(path.glob("*array_record*")), np.random.default_rng(0)
    whole, expected = shard.read_bytes(), [clips.open_clips(path)[i] for i in range(2)]
    used, refused = np.flatnonzero(np.frombuffer(whole, np.uint8)), 0
    for place in random.choice(used, 60):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << random.integers(8)
        shard.write_bytes(damaged)
        try:
            source = clips.open_clips(path)
            assert [source[i] for i in range(2)] == expected
        except UserError as error:
            refused += 1
            assert f"Delete {path}" in str(error)
    assert refused > 30


@pytest.mark.parametrize("feature", ["frame_0", "flow_0_1", "label", "name"])
def test_a_record_that_does_not_decode_names_the_set(spec, tmp_path, monkeypatch, feature):
    source = clips.open_clips(run(spec, tmp_path)[0])
    damaged = source[0] | {feature: b"\xff no image"}
    monkeypatch.setattr(clips.ClipSource, "__getitem__", lambda source, i: damaged)
    with pytest.raises(UserError, match=f"Delete {source.path}"):
        clips.read_clip(source, 0, (0, 1), ((0, 1),), True)


def test_a_reader_goes_on_with_the_old_set_and_never_mixes_two(spec, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare.base, "_SHARD_BYTES", 1)  # a shard for each clip
    path = run(spec, tmp_path)[0]
    assert len(list(path.glob("*array_record*"))) == 2
    source = clips.open_clips(path)
    first = source[0]
    repaint(image(spec, 10))
    repaint(image(spec, 20))
    run(spec, tmp_path)
    assert source[0] == first
    with pytest.raises(UserError, match="prepared anew.*while it was being read"):
        source[1]
    state = source.__getstate__()
    with pytest.raises(UserError, match="prepared anew"):
        clips.ClipSource.__new__(clips.ClipSource).__setstate__(state)
    assert clips.open_clips(path)[0] != first


def test_files_that_change_while_a_set_is_prepared(spec, tmp_path):
    def meddle(line):
        if "preparing clips" in line:
            repaint(image(spec, 9), seed=5)
            os.utime(image(spec, 9), ns=(1, 1))

    with pytest.raises(UserError, match="1 raw files changed while.*001_00009.jpg"):
        prepare_set(spec, tmp_path / "prepared", meddle)
    assert len(clips.open_clips(run(spec, tmp_path)[0])) == 2


def test_a_set_that_cannot_be_written_is_named_and_the_old_one_stays(spec, tmp_path, monkeypatch):
    path, _, first = run(spec, tmp_path)
    repaint(image(spec, 9))

    def full(*_, **__):
        raise RuntimeError("write() failed: No space left on device")

    monkeypatch.setattr(prepare.base.ClipBuilder, "download_and_prepare", full)
    with pytest.raises(UserError, match=f"{path} cannot be written: .*No space left on device"):
        run(spec, tmp_path)
    assert {file.name: file.stat().st_mtime_ns for file in path.glob("*array_record*")} == first
    assert sorted(file.name for file in path.parent.iterdir()) == [f".{path.name}.lock", path.name]


@pytest.mark.parametrize("old_is_there", [True, False])
def test_a_kill_between_the_moves_loses_nothing(spec, tmp_path, old_is_there):
    """Killed once the new set was complete, with the old one still in its place or out of it."""
    path = run(spec, tmp_path)[0]
    shutil.copytree(path, tmp_path / "old")
    repaint(image(spec, 9))
    run(spec, tmp_path)
    shards = {file.name: file.read_bytes() for file in path.glob("*array_record*")}
    os.rename(path, path.with_name(f".{path.name}.whole"))
    os.rename(tmp_path / "old", path if old_is_there else path.with_name(f".{path.name}.replaced"))
    _, lines, _ = run(spec, tmp_path)
    assert not any("checking files" in line for line in lines)
    assert {file.name: file.read_bytes() for file in path.glob("*array_record*")} == shards
    assert sorted(file.name for file in path.parent.iterdir()) == [f".{path.name}.lock", path.name]


def test_a_set_that_was_checked_is_not_checked_again(spec, tmp_path):
    lines = []
    checked = prepare.check(spec, tmp_path / "prepared", lines.append)
    assert len(checked.clips) == 2 and not (tmp_path / "prepared").exists()
    path = prepare_set(spec, tmp_path / "prepared", lines.append, checked=checked)
    assert sum("checking files" in line for line in lines) == 1 and len(clips.open_clips(path)) == 2
    assert prepare.check(spec, tmp_path / "prepared", lines.append) is None
    # What is told is told once, and before all files are read again.
    repaint(image(spec, 9))
    lines.clear()
    prepare_set(
        spec, tmp_path / "prepared", lines.append, checked=prepare.check(spec, tmp_path / "prepared", lines.append)
    )
    told = [i for i, line in enumerate(lines) if "prepared anew" in line]
    assert len(told) == 1 and "checking files" in "".join(lines[told[0] :])


def test_settled_sets_are_not_compared_again(spec, tmp_path):
    path, _, first = run(spec, tmp_path)
    repaint(image(spec, 9))
    prepare.settle([path])
    try:
        assert run(spec, tmp_path)[1:] == ([], first)
    finally:
        prepare.settle([])
    assert run(spec, tmp_path)[2] != first


def test_flow_of_changed_frames_is_stale_until_it_is_written_again(spec, tmp_path):
    run(spec, tmp_path)
    assert prepare.stale_flow(spec, tmp_path / "prepared") == set()
    repaint(image(spec, 9))
    os.utime(image(spec, 20), ns=(1, 1))  # the same content
    assert prepare.stale_flow(spec, tmp_path / "prepared") == {flow_file(tmp_path, 10)}
    flow_files.write_flow(flow_file(tmp_path, 10), np.full((18, 32, 2), 3.0))
    assert prepare.stale_flow(spec, tmp_path / "prepared") == set()
