"""Labels of a whole set: ids of another numbering, nothing but ignored pixels, and what is only told."""

import re

import numpy as np
import pytest
from PIL import Image
from raw_trees import label_ids, write_cityscapes_seq, write_synthia_seq, write_viper

from input_pipeline.builders import label_checks
from input_pipeline.builders.checks import BadFilesError
from input_pipeline.labels import CLASSES
from input_pipeline.prepare import prepare
from input_pipeline.spec import DatasetSpec

# Shares of the classes in percent, about those of Cityscapes' training set.
STREET = {
    "road": 33, "sidewalk": 5, "building": 21, "wall": 1, "fence": 1, "pole": 1, "light": 1, "sign": 1,
    "vegetation": 14, "terrain": 1, "sky": 4, "person": 1, "rider": 1, "car": 6, "truck": 1, "bus": 1, "train": 1,
    "motorcycle": 1, "bicycle": 1,
}  # fmt: skip
VOID = 3
# As the owners publish them.
IDS = {
    "viper": {
        "sky": 2, "road": 3, "sidewalk": 4, "terrain": 6, "vegetation": 8, "building": 9, "fence": 11, "light": 13,
        "sign": 14, "person": 20, "bicycle": 22, "motorcycle": 23, "car": 24, "bus": 26, "truck": 27,
    },
    "synthia_seq": {
        "sky": 1, "building": 2, "road": 3, "sidewalk": 4, "fence": 5, "vegetation": 6, "pole": 7, "car": 8, "sign": 9,
        "person": 10, "rider": 11, "light": 15,
    },
    "cityscapes_seq": {
        "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "light": 19, "sign": 20,
        "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28,
        "train": 31, "motorcycle": 32, "bicycle": 33,
    },
    "train ids": {name: i for i, name in enumerate(CLASSES["cityscapes_seq"])},
    "viper's train ids": {name: i for i, name in enumerate(CLASSES["viper"])},
}  # fmt: skip
NAMED = {
    "viper": "VIPER's ids",
    "synthia_seq": "SYNTHIA's ids",
    "cityscapes_seq": "Cityscapes' ids (*_labelIds.png)",
    "train ids": "Cityscapes' train ids (*_labelTrainIds.png)",
    "viper's train ids": "train ids",
}


def spec_of(dataset, raw_dir="raw", **changes):
    return DatasetSpec(
        **{
            "name": dataset,
            "raw_dir": str(raw_dir),
            "split": "train",
            "classes": "synthia_seq" if dataset == "synthia_seq" else "viper",
            "size": (18, 32),
            "label_size": None,
            "offsets": (0,),
            "flow_pairs": (),
            "flow_source": "dis",
            **changes,
        }
    )


def counts_of(content, void=0, extra=()):
    counts = np.zeros(256, np.int64)
    for name, share in STREET.items():
        counts[IDS[content].get(name, void)] += 1000 * share
    counts[void] += 1000 * VOID
    for i in extra:
        counts[i] += 1
    return counts


def judge(dataset, *counts, **changes):
    return label_checks.check_labels(spec_of(dataset, **changes), {f"f{i}.png": c for i, c in enumerate(counts)})


@pytest.mark.parametrize("dataset", ["viper", "synthia_seq", "cityscapes_seq"])
@pytest.mark.parametrize("content", IDS)
@pytest.mark.parametrize("void", [0, 255])
def test_streets_in_every_numbering(dataset, content, void):
    fault, faults, lines = judge(dataset, counts_of(content, void))
    if content == dataset:
        assert fault is None and not faults and len(lines) == 1
        assert re.search(r"labels hold \d+ ids, [\d.]+% of the pixels are ignored", lines[0])
    elif {content, dataset} == {"viper", "synthia_seq"}:
        # Half of these numberings is the same. (What SYNTHIA does not know is refused in each file.)
        assert fault is None and "warning" in lines[1] and NAMED[content] in lines[1]
    else:
        assert "fit" in fault and NAMED[content].removeprefix("Cityscapes' ") in fault
        assert re.search(r"ids \d+ \(\d+%\), .* of the pixels have a class by them, \d+% by the ids of ", fault)


def test_the_share_that_is_ignored():
    counts = np.zeros(256, np.int64)
    counts[[7, 11, 26, 0]] = 30, 20, 10, 20
    assert judge("cityscapes_seq", counts)[2] == ["labels hold 4 ids, 25.0% of the pixels are ignored"]
    counts[1] = 40
    lines = judge("cityscapes_seq", counts)[2]
    assert lines[0] == "labels hold 5 ids, 50.0% of the pixels are ignored" and len(lines) == 1
    counts[1] = 120
    assert (
        "more than half of the label pixels are ignored: ids 1 (60%), 7 (15%)" in judge("cityscapes_seq", counts)[2][1]
    )


def test_a_set_of_which_only_parts_are_labelled():
    """Void by the owners' numbering is road and pavement by the train ids, and there are ids that those do not have."""
    counts = counts_of("cityscapes_seq", 0)
    counts[[0, 1]] += 500_000, 20_000
    fault, faults, lines = judge("cityscapes_seq", counts)
    assert fault is None and not faults and "more than half" in lines[1] and "fit" not in lines[1]


@pytest.mark.parametrize("content", ["train ids", "viper", "viper's train ids"])
def test_one_file_of_another_numbering_in_a_good_set(content):
    fault, faults, _ = judge("cityscapes_seq", *[counts_of("cityscapes_seq")] * 9, counts_of(content))
    assert fault is None
    assert list(faults) == ["f9.png"] and NAMED[content].removeprefix("Cityscapes' ") in faults["f9.png"]


def test_a_doubtful_set_is_warned_of():
    counts = np.zeros(256, np.int64)
    # Road, fence, sky and bicycles of the setting's train ids; void, road, vegetation and signs of VIPER.
    counts[[0, 3, 8, 14]] = 30, 30, 30, 3
    fault, faults, lines = judge("viper", counts)
    assert fault is None and not faults
    assert "warning" in lines[1] and "train ids" in lines[1]


def test_a_few_classes_are_enough():
    for ids in ((7, 8, 11), (7, 11, 21, 26), (7,), (11, 21, 0), tuple(range(34))):
        counts = np.zeros(256, np.int64)
        counts[list(ids)] = 100
        assert judge("cityscapes_seq", counts)[:2] == (None, {})


@pytest.mark.parametrize("ids", [(0,), (255,), (0, 255), (0, 1, 2, 3, 255)])
def test_nothing_but_ignored_pixels(ids):
    counts = np.zeros(256, np.int64)
    counts[list(ids)] = 100
    fault = judge("cityscapes_seq", counts, counts)[0]
    assert f"{ids[0]} ({100 // len(ids)}%)" in fault
    assert "no pixel of a class that is scored" in fault or "train ids" in fault


def test_a_class_that_is_trained_and_not_scored_is_not_enough():
    counts = np.zeros(256, np.int64)
    counts[5] = 100  # SYNTHIA's fence
    assert "no pixel of a class that is scored" in judge("synthia_seq", counts)[0]
    counts[3] = 1
    assert judge("synthia_seq", counts)[0] is None


def test_files_without_a_class_in_a_good_set_are_told_in_one_line():
    good, empty = counts_of("cityscapes_seq"), np.zeros(256, np.int64)
    empty[[0, 3]] = 50
    fault, faults, lines = judge("cityscapes_seq", *[good] * 20, *[empty] * 5)
    assert fault is None and not faults
    assert lines[1] == (
        "warning: 5 of 25 label files have no pixel of a class: f20.png, f21.png, f22.png, ... and 2 more"
    )


def test_no_labels_at_all_are_judged_elsewhere():
    assert judge("viper") == (None, {}, [])


def prepare_it(spec, tmp_path):
    lines = []
    prepare(spec, tmp_path / "prepared", lines.append, threads=2)
    return lines


WRITERS = {"viper": write_viper, "synthia_seq": write_synthia_seq, "cityscapes_seq": write_cityscapes_seq}


@pytest.mark.parametrize("skip_bad", [False, True])
@pytest.mark.parametrize("dataset", WRITERS)
def test_train_ids_in_the_owners_files_end_the_preparation(tmp_path, dataset, skip_bad):
    names = ("road", "sidewalk", "building", "vegetation", "sky", "person", "car")
    WRITERS[dataset](tmp_path / "raw", ids=[CLASSES["cityscapes_seq"].index(name) for name in names])
    with pytest.raises(BadFilesError) as caught:
        prepare_it(spec_of(dataset, tmp_path / "raw", skip_bad=skip_bad), tmp_path)
    (bad,) = caught.value.bad
    assert "train ids (*_labelTrainIds.png)" in bad.found and "3 road" in bad.expected or "7 road" in bad.expected
    assert not list((tmp_path / "prepared").rglob("*.array_record*"))


def test_all_255_labels_end_the_preparation(tmp_path):
    write_cityscapes_seq(tmp_path / "raw", split="val", ids=(255,))
    with pytest.raises(BadFilesError, match=r"in 3 files ids 255 \(100%\), and no pixel of a class"):
        prepare_it(spec_of("cityscapes_seq", tmp_path / "raw", split="val"), tmp_path)


def test_all_255_labels_of_a_training_set_are_told(tmp_path):
    write_cityscapes_seq(tmp_path / "raw", ids=(255,))
    lines = prepare_it(spec_of("cityscapes_seq", tmp_path / "raw", label_size=(18, 32)), tmp_path)
    (line,) = [line for line in lines if "nothing can be trained with them" in line]
    assert "warning: the labels hold ids 255 (100%)" in line


def test_one_all_255_label_is_told(tmp_path):
    write_cityscapes_seq(tmp_path / "raw")
    path = tmp_path / "raw/gtFine/train/aachen/aachen_000001_000019_gtFine_labelIds.png"
    Image.fromarray(np.full((32, 64), 255, np.uint8)).save(path)
    lines = prepare_it(spec_of("cityscapes_seq", tmp_path / "raw"), tmp_path)
    told = [line for line in lines if "no pixel of a class" in line]
    assert len(told) == 1 and "1 of 3 label files" in told[0] and str(path) in told[0]


def test_one_file_of_train_ids_is_a_bad_file(tmp_path):
    write_cityscapes_seq(tmp_path / "raw", clips=[("aachen", i, 19) for i in range(8)])
    path = tmp_path / "raw/gtFine/train/aachen/aachen_000003_000019_gtFine_labelIds.png"
    Image.fromarray(label_ids(1, (32, 64), (0, 1, 2, 8, 10, 13))).save(path)
    with pytest.raises(BadFilesError, match="1 bad file:") as caught:
        prepare_it(spec_of("cityscapes_seq", tmp_path / "raw"), tmp_path)
    (bad,) = caught.value.bad
    assert bad.path == str(path) and "labelTrainIds" in bad.found
    lines = prepare_it(spec_of("cityscapes_seq", tmp_path / "raw", skip_bad=True), tmp_path)
    assert any("leaves out 1 of 8 clips" in line for line in lines)
