"""What is nearly right is named: folders, packages, splits, endings, zeros before numbers, kinds of label files."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from raw_trees import write_cityscapes_seq, write_synthia_seq, write_viper

from input_pipeline import clips
from input_pipeline.builders.checks import BadFilesError
from input_pipeline.prepare import prepare
from input_pipeline.spec import DatasetSpec

WRITERS = {"viper": write_viper, "synthia_seq": write_synthia_seq, "cityscapes_seq": write_cityscapes_seq}


def spec_of(dataset, raw_dir, **changes):
    return DatasetSpec(
        **{
            "name": dataset,
            "raw_dir": str(raw_dir),
            "split": "train",
            "classes": "synthia_seq" if dataset == "synthia_seq" else "viper",
            "size": (18, 32),
            "label_size": (18, 32),
            "offsets": (0, 1),
            "flow_pairs": (),
            "flow_source": "dis",
            **changes,
        }
    )


def names_of(spec, tmp_path):
    source = clips.open_clips(prepare(spec, tmp_path / "prepared", lambda line: None, threads=2))
    return [source[i]["name"].decode() for i in range(len(source))]


def fault_of(spec, tmp_path):
    with pytest.raises(BadFilesError) as caught:
        prepare(spec, tmp_path / "prepared", lambda line: None, threads=2)
    assert len(str(caught.value).splitlines()) <= 23
    return caught.value


def rename_all(root, old, new):
    for path in sorted(Path(root).rglob(f"*{old}*")):
        path.rename(path.with_name(path.name.replace(old, new)))


@pytest.mark.parametrize("dataset", WRITERS)
@pytest.mark.parametrize("kind", [".png", ".jpg", ".webp", ".bmp", ".tif", ".JPG", ".PNG"])
def test_frames_may_be_of_any_kind(tmp_path, dataset, kind):
    names = WRITERS[dataset](tmp_path / "raw")
    frames = {"viper": "img", "synthia_seq": "RGB", "cityscapes_seq": "leftImg8bit_sequence"}[dataset]
    for path in [p for p in (tmp_path / "raw").rglob("*.*") if frames in p.parts]:
        image = Image.open(path)
        image.load()
        path.unlink()
        image.save(path.with_suffix(kind))
    assert names_of(spec_of(dataset, tmp_path / "raw"), tmp_path) == names


@pytest.mark.parametrize("dataset", WRITERS)
def test_the_owners_kind_comes_first_and_labels_may_end_in_capitals(tmp_path, dataset):
    names = WRITERS[dataset](tmp_path / "raw")
    for path in (tmp_path / "raw").rglob("*.*"):
        if {"cls", "GT", "gtFine"} & set(path.parts):
            path.rename(path.with_suffix(".PNG"))
            # As macOS leaves beside files that it copies.
            path.with_name(f"._{path.name}").write_bytes(b"\0\5\26\7")
        else:
            path.with_suffix(".bmp").write_bytes(b"no image")
    assert names_of(spec_of(dataset, tmp_path / "raw"), tmp_path) == names


@pytest.mark.parametrize("dataset", WRITERS)
@pytest.mark.parametrize("given", ["", "outer", "outer/raw/{deeper}"])
def test_raw_dir_too_high_or_too_low(tmp_path, dataset, given):
    raw = tmp_path / "outer" / "raw"
    WRITERS[dataset](raw)
    deeper = {
        "viper": "train",
        "synthia_seq": "SYNTHIA-SEQS-04-DAWN/RGB",
        "cityscapes_seq": "leftImg8bit_sequence/train",
    }[dataset]
    right = raw / "SYNTHIA-SEQS-04-DAWN" if dataset == "synthia_seq" and "deeper" in given else raw
    error = fault_of(spec_of(dataset, tmp_path / given.format(deeper=deeper)), tmp_path)
    assert all(bad.found == f"no such folder, but {right} is laid out so: set raw_dir to it" for bad in error.bad)


def test_the_wrong_package_or_split_is_named(tmp_path):
    raw = tmp_path / "raw"
    write_cityscapes_seq(raw)
    (wrong,) = {
        bad.found for bad in fault_of(spec_of("cityscapes_seq", raw, split="val"), tmp_path).bad if "gtF" in bad.path
    }
    assert wrong == f"no such folder; {raw / 'gtFine'} holds train"
    (raw / "leftImg8bit_sequence").rename(raw / "leftImg8bit")
    (raw / "gtFine").rename(raw / "gtCoarse")
    found = [bad.found for bad in fault_of(spec_of("cityscapes_seq", raw), tmp_path).bad]
    assert all("leftImg8bit (single frames" in text and "gtCoarse (coarse labels" in text for text in found)
    assert len(found) == 2


def test_synthia_colours_instead_of_labels(tmp_path):
    write_synthia_seq(tmp_path / "raw")
    folder = tmp_path / "raw/SYNTHIA-SEQS-04-DAWN/GT"
    (folder / "LABELS").rename(folder / "COLOR")
    (bad,) = fault_of(spec_of("synthia_seq", tmp_path / "raw"), tmp_path).bad
    assert bad.found == f"no such folder; {folder} holds COLOR (colours, not class ids: the folder to get is LABELS)"


def test_a_misspelt_raw_dir_and_an_empty_one(tmp_path):
    sets = tmp_path / "sets"
    write_viper(sets / "VIPER" / "data")
    (sets / "empty").mkdir()
    found = {bad.found for bad in fault_of(spec_of("viper", sets / "Viper" / "a" / "b" / "c" / "d"), tmp_path).bad}
    assert found == {f"no such folder; {sets} holds VIPER, empty"}
    for i in range(20):
        (sets / "empty" / f"video{i:02}").mkdir()
    found = {bad.found for bad in fault_of(spec_of("viper", sets / "empty" / "x/y/z/w"), tmp_path).bad}
    assert len(found) == 1 and "video07 and 12 more" in found.pop()


@pytest.mark.parametrize("skip_bad", [False, True])
def test_only_other_kinds_of_labels(tmp_path, skip_bad):
    raw = tmp_path / "raw"
    write_cityscapes_seq(raw)
    for path in (raw / "gtFine").rglob("*.png"):
        shutil.copy(path, path.with_name(path.name.replace("labelIds", "color")))
        path.with_name(path.name.replace("labelIds.png", "polygons.json")).write_text("{}")
    rename_all(raw, "labelIds", "labelTrainIds")
    error = fault_of(spec_of("cityscapes_seq", raw, skip_bad=skip_bad), tmp_path)
    bad = error.bad[-1]
    assert bad.path == str(raw / "gtFine" / "train")
    assert "CITY_SSSSSS_FFFFFF_gtFine_labelIds.png" in bad.expected
    for kind in ("labelTrainIds.png", "color.png", "polygons.json"):
        assert f"3 *_gtFine_{kind}" in bad.found


def test_labels_one_folder_too_high_and_none_at_all(tmp_path):
    raw = tmp_path / "raw"
    write_viper(raw)
    for path in (raw / "train/cls/001").iterdir():
        path.rename(path.parent.parent / path.name)
    (bad,) = fault_of(spec_of("viper", raw), tmp_path).bad
    assert bad.expected == "labels SSS/SSS_FFFFF.png" and bad.found == "2 *.png (such as 001_00010.png)"
    shutil.rmtree(raw / "train/cls")
    (raw / "train/cls").mkdir()
    assert fault_of(spec_of("viper", raw), tmp_path).bad[0].found == "no files"


def test_other_zeros_before_numbers_are_named_and_long_lists_capped(tmp_path):
    raw = tmp_path / "raw"
    write_viper(raw, labelled=tuple(range(10, 400, 10)), size=(8, 16))
    rename_all(raw / "train/img", "001_00", "001_")
    error = fault_of(spec_of("viper", raw), tmp_path)
    assert len(error.bad) == 2 * 39
    assert error.bad[0].found == "no such file, but 001_009.jpg"
    lines = str(error).splitlines()
    assert "78 bad files" in lines[0] and lines[21] == "  ... and 58 more" and "skip_bad" in lines[22]
    listed = tmp_path / "list.txt"
    listed.write_text("001_10\n")
    bad = fault_of(spec_of("viper", raw, list_file=str(listed)), tmp_path).bad
    assert bad[0].found == "none, but 001_00010"


def test_missing_flow_files_name_what_is_near(tmp_path):
    raw, flow = tmp_path / "raw", tmp_path / "flow"
    write_cityscapes_seq(raw, clips=(("aachen", 0, 19),))
    flow.mkdir()
    np.save(flow / "aachen_0_19_18_int16_x10.npy", np.zeros((32, 64, 2), np.int16))
    spec = spec_of(
        "cityscapes_seq", raw, flow_source="precomputed", flow_dir=str(flow), flow_pairs=((0, 1),), label_size=None
    )
    assert fault_of(spec, tmp_path).bad[0].found == "no such file, but aachen_0_19_18_int16_x10.npy"


def test_what_is_missing_altogether_has_no_near_miss(tmp_path):
    write_viper(tmp_path / "raw")
    (tmp_path / "raw/train/img/001/001_00009.jpg").unlink()
    assert fault_of(spec_of("viper", tmp_path / "raw"), tmp_path).bad[0].found == "no such file"
