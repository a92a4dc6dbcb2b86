"""The label tables against the owners' published ones, typed here anew: names of ids, and what becomes of each id."""

import dataclasses
import itertools

import pytest

from input_pipeline import labels
from input_pipeline.datasets import DATASETS

# classes.csv of Playing for Benchmarks.
VIPER = (
    "unlabeled", "ambiguous", "sky", "road", "sidewalk", "railtrack", "terrain", "tree", "vegetation", "building",
    "infrastructure", "fence", "billboard", "trafficlight", "trafficsign", "mobilebarrier", "firehydrant", "chair",
    "trash", "trashcan", "person", "animal", "bicycle", "motorcycle", "car", "van", "bus", "truck", "trailer", "train",
    "plane", "boat",
)  # fmt: skip
# The README of the SYNTHIA video sequences.
SYNTHIA = (
    "void", "sky", "building", "road", "sidewalk", "fence", "vegetation", "pole", "car", "traffic sign", "pedestrian",
    "bicycle", "lanemarking", "reserved", "reserved", "traffic light",
)  # fmt: skip
# helpers/labels.py of the Cityscapes scripts: name, train id (255 where it has none); the ids count up from 0.
CITYSCAPES = [
    ("unlabeled", 255), ("ego vehicle", 255), ("rectification border", 255), ("out of roi", 255), ("static", 255),
    ("dynamic", 255), ("ground", 255), ("road", 0), ("sidewalk", 1), ("parking", 255), ("rail track", 255),
    ("building", 2), ("wall", 3), ("fence", 4), ("guard rail", 255), ("bridge", 255), ("tunnel", 255), ("pole", 5),
    ("polegroup", 255), ("traffic light", 6), ("traffic sign", 7), ("vegetation", 8), ("terrain", 9), ("sky", 10),
    ("person", 11), ("rider", 12), ("car", 13), ("truck", 14), ("bus", 15), ("caravan", 255), ("trailer", 255),
    ("train", 16), ("motorcycle", 17), ("bicycle", 18),
]  # fmt: skip
# Scripts/test_segmentation_camvid.py of the SegNet tutorial: names of the ids of its copy, and their colours.
CAMVID = {
    "sky": 0x808080, "building": 0x800000, "pole": 0xC0C080, "road": 0x804080, "sidewalk": 0x3C28DE, "tree": 0x808000,
    "sign": 0xC08080, "fence": 0x404080, "car": 0x400080, "pedestrian": 0x404000, "bicyclist": 0x0080C0,
}  # fmt: skip
NAMES = {
    "viper": dict(enumerate(VIPER)),
    "synthia_seq": dict(enumerate(SYNTHIA)),
    "cityscapes_seq": {i: name for i, (name, _) in enumerate(CITYSCAPES)} | {255: "license plate"},
    "camvid": dict(enumerate((*CAMVID, "void"))),
}
# What each id becomes: the class tables of the public DA-VSN code, as (train id, class, ids).
VIPER_TO_VIPER = [
    (0, "road", 3), (1, "sidewalk", 4), (2, "building", 9), (3, "fence", 11), (4, "light", 13), (5, "sign", 14),
    (6, "vegetation", 7, 8), (7, "terrain", 6), (8, "sky", 2), (9, "person", 20), (10, "car", 24), (11, "truck", 27),
    (12, "bus", 26), (13, "motorcycle", 23), (14, "bicycle", 22),
]  # fmt: skip
CITYSCAPES_TO_VIPER = [
    (0, "road", 7), (1, "sidewalk", 8), (2, "building", 11), (3, "fence", 13), (4, "light", 19), (5, "sign", 20),
    (6, "vegetation", 21), (7, "terrain", 22), (8, "sky", 23), (9, "person", 24, 25), (10, "car", 26),
    (11, "truck", 27), (12, "bus", 28), (13, "motorcycle", 32), (14, "bicycle", 33),
]  # fmt: skip
SYNTHIA_TO_SYNTHIA = [
    (0, "road", 3), (1, "sidewalk", 4), (2, "building", 2), (3, "fence", 5), (4, "pole", 7), (5, "light", 15),
    (6, "sign", 9), (7, "vegetation", 6), (8, "sky", 1), (9, "person", 10), (10, "rider", 11), (11, "car", 8),
]  # fmt: skip
CITYSCAPES_TO_SYNTHIA = [
    (0, "road", 7), (1, "sidewalk", 8), (2, "building", 11), (3, "fence", 13), (4, "pole", 17), (5, "light", 19),
    (6, "sign", 20), (7, "vegetation", 21), (8, "sky", 23), (9, "person", 24), (10, "rider", 25), (11, "car", 26),
]  # fmt: skip
TABLES = {
    ("viper", "viper"): VIPER_TO_VIPER,
    ("synthia_seq", "synthia_seq"): SYNTHIA_TO_SYNTHIA,
    ("cityscapes_seq", "viper"): CITYSCAPES_TO_VIPER,
    ("cityscapes_seq", "synthia_seq"): CITYSCAPES_TO_SYNTHIA,
    ("cityscapes_seq", "cityscapes_seq"): [
        (train_id, name.removeprefix("traffic "), i) for i, (name, train_id) in enumerate(CITYSCAPES) if train_id < 255
    ],
    ("camvid", "camvid"): [(i, name, i) for i, name in enumerate(CAMVID)],
}
# The colours that the owners of Cityscapes publish.
COLOURS = {
    "road": 0x804080, "sidewalk": 0xF423E8, "building": 0x464646, "wall": 0x66669C, "fence": 0xBE9999, "pole": 0x999999,
    "light": 0xFAAA1E, "sign": 0xDCDC00, "vegetation": 0x6B8E23, "terrain": 0x98FB98, "sky": 0x4682B4,
    "person": 0xDC143C, "rider": 0xFF0000, "car": 0x00008E, "truck": 0x000046, "bus": 0x003C64, "train": 0x005064,
    "motorcycle": 0x0000E6, "bicycle": 0x770B20,
}  # fmt: skip
NOT_SCORED = {"viper": (), "synthia_seq": ("fence",), "cityscapes_seq": (), "camvid": ()}


def differing(name):
    """What of a data set is not as it was published."""
    dataset, found = DATASETS[name], []
    if dict(dataset.ids) != NAMES[name]:
        found.append("names of ids")
    for setting in dataset.settings:
        table = {i: (train_id, label) for train_id, label, *ids in TABLES[name, setting] for i in ids}
        classes = DATASETS[setting].classes
        read = labels.train_id_table(name, setting)
        if {i: (int(t), classes[t]) for i, t in enumerate(read) if t != 255} != table:
            found.append(f"train ids of {setting}")
    scored = [label not in NOT_SCORED[name] for label in dataset.classes]
    if labels.evaluated_classes(name).tolist() != scored:
        found.append("scored classes")
    painted = labels.colour_table(dataset.classes, name)[: len(dataset.classes)].tolist()
    colours = CAMVID if name == "camvid" else COLOURS
    if painted != [list(colours[label].to_bytes(3)) for label in dataset.classes]:
        found.append("colours")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_tables_are_those_of_the_owners(name):
    assert set(DATASETS[name].settings) == {setting for owner, setting in TABLES if owner == name}
    assert not differing(name)


def swapped(table, a, b):
    return {**table, a: table[b], b: table[a]}


@pytest.mark.parametrize("name", NAMES)
def test_swapping_any_two_classes_is_noticed(name, monkeypatch):
    dataset = DATASETS[name]
    for a, b in itertools.combinations([i for i in dataset.ids if dataset.ids[i] != "reserved"], 2):
        monkeypatch.setitem(DATASETS, name, dataclasses.replace(dataset, ids=swapped(dataset.ids, a, b)))
        assert "names of ids" in differing(name), (a, b)
    for a, b in itertools.combinations(range(len(dataset.classes)), 2):
        classes = list(dataset.classes)
        classes[a], classes[b] = classes[b], classes[a]
        monkeypatch.setitem(DATASETS, name, dataclasses.replace(dataset, classes=tuple(classes)))
        assert f"train ids of {name}" in differing(name), (classes[a], classes[b])
    for setting, names in dataset.settings.items():
        for a, b in itertools.combinations(names, 2):
            if names[a] != names[b]:
                settings = {**dataset.settings, setting: swapped(names, a, b)}
                monkeypatch.setitem(DATASETS, name, dataclasses.replace(dataset, settings=settings))
                assert f"train ids of {setting}" in differing(name), (a, b)
