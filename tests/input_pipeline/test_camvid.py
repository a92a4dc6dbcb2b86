"""CamVid in both layouts: drives, halves, gaps, labels, and what is refused."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from raw_trees import write_camvid

from configs import camvid
from input_pipeline import label_files, labels
from input_pipeline.builders.checks import BadFilesError
from input_pipeline.clips import read_clip
from input_pipeline.datasets import DATASETS
from input_pipeline.domains import domain_spec, open_domain
from input_pipeline.errors import UserError
from input_pipeline.needs import DomainNeeds
from stpl_jax.settings import SettingsError, check

# The drives as the copy has them, in few frames: several folders, `f` or none, PNG and JPEG; 0016E5 with a gap of many
# seconds, one of 1.3 seconds, and its part at 15 Hz, around which the rest goes on.
FRAMES = (
    *(f"train/0001TP_{n:06d}.png" for n in (6690, 6720, 6750)),
    *(f"test/0001TP_{n:06d}.jpg" for n in (6780, 6810)),
    *(f"train/0006R0_f{n:05d}.png" for n in (930, 960, 990, 1020)),
    *(f"train/0016E5_{n:05d}.png" for n in (390, 421, 450, 4350, 7890, 7920, 8190, 8220)),
    *(f"val/0016E5_{n:05d}.png" for n in (7959, 7961, 7963, 8159)),
    *(f"test/Seq05VD_f{n:05d}.png" for n in (0, 30, 69)),
)
# 32 classes of the owners and their colours, as label_colors.txt lists them, by the class they count as.
GROUPS = {
    "sky": {"Sky": "128 128 128"},
    "building": {
        "Archway": "192 0 128", "Bridge": "0 128 64", "Building": "128 0 0", "Tunnel": "64 0 64", "Wall": "64 192 0",
    },
    "pole": {"Column_Pole": "192 192 128", "TrafficCone": "0 0 64"},
    "road": {"LaneMkgsDriv": "128 0 192", "LaneMkgsNonDriv": "192 0 64", "Road": "128 64 128"},
    "sidewalk": {"ParkingBlock": "64 192 128", "RoadShoulder": "128 128 192", "Sidewalk": "0 0 192"},
    "tree": {"Tree": "128 128 0", "VegetationMisc": "192 192 0"},
    "sign": {"Misc_Text": "128 128 64", "SignSymbol": "192 128 128", "TrafficLight": "0 64 64"},
    "fence": {"Fence": "64 64 128"},
    "car": {
        "Car": "64 0 128", "OtherMoving": "128 64 64", "SUVPickupTruck": "64 128 192", "Train": "192 64 128",
        "Truck_Bus": "192 128 192",
    },
    "pedestrian": {
        "Animal": "64 128 64", "CartLuggagePram": "64 0 192", "Child": "192 128 64", "Pedestrian": "64 64 0",
    },
    "bicyclist": {"Bicyclist": "0 128 192", "MotorcycleScooter": "192 0 192"},
    "void": {"Void": "0 0 0"},
}  # fmt: skip


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    root = tmp_path_factory.mktemp("copy")
    write_camvid(root, FRAMES)
    return root


def config_of(root, drive="0001TP"):
    config = camvid.get_config()
    config.data.classes = "cityscapes_seq"
    config.data.target.update(raw_dir=str(root), drive=drive, size=(24, 32))
    return config


def clips(root, drive, domain="val", offsets=(0, 1, 2)):
    """[(number of the frame, number of x_{t-1}, …) of each clip]."""
    spec = domain_spec(config_of(root, drive), domain)
    found = DATASETS["camvid"].list_clips(dataclasses.replace(spec, offsets=offsets, flow_pairs=()))
    for clip in found:
        assert clip.name == clip.label.stem.removesuffix("_L") == clip.frames[0].stem
        assert all(path.is_file() for path in clip.files)
    return [tuple(int(clip.frames[k].stem.rsplit("_")[1].lstrip("f")) for k in offsets) for clip in found]


HALVES = {
    "0001TP": ([(6690, 6690, 6690), (6720, 6690, 6690)], [(6750, 6720, 6690), (6780, 6750, 6720), (6810, 6780, 6750)]),
    "0006R0": ([(930, 930, 930), (960, 930, 930)], [(990, 960, 930), (1020, 990, 960)]),
    "0016E5": (
        [(390, 390, 390), (421, 390, 390), (450, 421, 390), (4350, 4350, 4350)],
        [(7890, 7890, 7890), (7920, 7890, 7890), (8190, 8190, 8190), (8220, 8190, 8190)],
    ),
    "0016E5_dense": ([(7959, 7959, 7959), (7961, 7959, 7959)], [(7963, 7961, 7959), (8159, 8159, 8159)]),
    "Seq05VD": ([(0, 0, 0)], [(30, 0, 0), (69, 30, 0)]),
}


@pytest.mark.parametrize("drive", HALVES)
def test_each_half_of_a_drive_is_all_of_its_frames_in_time_order(copy, drive):
    first, second = HALVES[drive]
    assert clips(copy, drive, "target") == first
    assert clips(copy, drive) == second
    assert max(map(max, first)) < min(clip[0] for clip in second)


def test_a_clip_does_not_reach_over_a_gap(tmp_path):
    write_camvid(tmp_path, [f"train/0006R0_f{n:05d}.png" for n in (0, 30, 60, 90, 135, 181, 211, 241)])
    # 45 is one and a half times the usual distance, 46 is more.
    assert clips(tmp_path, "0006R0", offsets=(0, 1)) == [(135, 90), (181, 181), (211, 181), (241, 211)]


def test_the_owners_layout_has_the_same_clips(tmp_path):
    write_camvid(tmp_path, [name.partition("/")[2].replace(".jpg", ".png") for name in FRAMES], owners=True)
    for drive, halves in HALVES.items():
        assert (clips(tmp_path, drive, "target"), clips(tmp_path, drive)) == halves


def test_the_owners_colours_are_read_as_the_copys_ids(tmp_path):
    rows = [[tuple(map(int, rgb.split())) for rgb in members.values()] for members in GROUPS.values()]
    assert sum(map(len, rows)) == 32
    pixels = np.array([colour for row in rows for colour in row], np.uint8)[None]
    meant = [i for i, row in enumerate(rows) for _ in row]
    Image.fromarray(pixels).save(tmp_path / "label.png")
    assert label_files.read_ids(tmp_path / "label.png", "camvid").tolist() == [meant]
    assert [DATASETS["camvid"].ids[i] for i in range(12)] == list(GROUPS)


def test_unknown_colours_are_named(tmp_path):
    write_camvid(tmp_path, [f"0001TP_{n:06d}.png" for n in (0, 30)], owners=True)
    path = tmp_path / "LabeledApproved_full" / "0001TP_000030_L.png"
    pixels = np.array(Image.open(path))
    pixels[5, 7] = 1, 2, 3
    Image.fromarray(pixels).save(path)
    with pytest.raises(BadFilesError, match=r"0001TP_000030_L.png: .* 0.06% of the pixels .*: \(1, 2, 3\)\. Expected"):
        opened(tmp_path, tmp_path / "run", "val")


def opened(root, workdir, domain, drive="0001TP"):
    return open_domain(config_of(root, drive), workdir, domain, None, lambda line: None)


def test_both_halves_are_prepared_and_read(tmp_path):
    ids = write_camvid(tmp_path, ["train/0001TP_000000.png", "train/0001TP_000030.png", "val/0001TP_000060.jpg"])
    train, val = (opened(tmp_path, tmp_path / "run", domain) for domain in ("target", "val"))
    assert [source[i]["name"].decode() for source in (train, val) for i in range(len(source))] == sorted(ids)
    first = read_clip(train, 0, (0, 1), ((0, 1),), True)
    shown = Image.open(tmp_path / "train" / "0001TP_000000.png").resize((32, 24), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(first["frames"], np.stack([shown, shown]))
    assert not first["flow"].any()
    assert first["label"].shape == (24, 32)
    # Scored at the label's own size, and void nowhere.
    last = read_clip(val, 1, (0, 1, 2), ((0, 1), (1, 2)), True)
    np.testing.assert_array_equal(last["label"], ids["0001TP_000060"])
    np.testing.assert_array_equal(last["frames"][2], first["frames"][0])


def test_void_is_ignored(tmp_path):
    ids = write_camvid(tmp_path, ["train/0001TP_000000.png", "train/0001TP_000030.png"], ids=(3, 8, 10, 11))
    label = read_clip(opened(tmp_path, tmp_path / "run", "val"), 0, (0,), (), True)["label"]
    meant = ids["0001TP_000030"]
    np.testing.assert_array_equal(label, np.where(meant == 11, 255, meant))
    assert (label == 255).any()


def test_classes_of_cityscapes_are_grouped(copy):
    spec = domain_spec(config_of(copy), "val")
    assert spec.classes == "camvid"
    own, city = labels.CLASSES["camvid"], labels.CLASSES["cityscapes_seq"]
    groups = labels.class_groups("cityscapes_seq", "camvid", "camvid")
    assert {name: own[i] for name, i in zip(city, groups, strict=True)} == {
        "road": "road", "sidewalk": "sidewalk", "building": "building", "wall": "building", "fence": "fence",
        "pole": "pole", "light": "sign", "sign": "sign", "vegetation": "tree", "terrain": "tree", "sky": "sky",
        "person": "pedestrian", "rider": "bicyclist", "motorcycle": "bicyclist", "bicycle": "bicyclist", "car": "car",
        "truck": "car", "bus": "car", "train": "car",
    }  # fmt: skip


def test_a_drive_that_is_not_there_is_told_with_those_that_are(tmp_path):
    write_camvid(tmp_path, [name for name in FRAMES if "Seq05VD" not in name and "val/" not in name])
    with pytest.raises(UserError, match="of the drive Seq05VD, found 0001TP, 0006R0, 0016E5. Set config.data"):
        opened(tmp_path, tmp_path / "run", "val", "Seq05VD")
    with pytest.raises(BadFilesError, match=r"train: expected a folder.*\n.*\nraw_dir should hold CamVid"):
        opened(tmp_path / "elsewhere", tmp_path / "run", "val")


def test_a_frame_that_is_there_twice_is_refused(tmp_path):
    write_camvid(tmp_path, ["train/0006R0_f00030.png", "train/0006R0_f00060.png", "test/0006R0_00060.png"])
    with pytest.raises(UserError, match="test/0006R0_00060.png: frame 60 of 0006R0 is there as .*0006R0_f00060.png"):
        opened(tmp_path, tmp_path / "run", "val", "0006R0")


def test_missing_and_wrong_files_are_listed(tmp_path):
    names = [f"train/0001TP_{n:06d}.png" for n in range(0, 180, 30)]
    write_camvid(tmp_path, names)
    (tmp_path / "trainannot" / "0001TP_000090.png").unlink()
    (tmp_path / "train" / "0001TP_000120.png").unlink()
    Image.fromarray(np.full((72, 96), 3, np.uint8)).save(tmp_path / "trainannot" / "0001TP_000150.png")
    with pytest.raises(BadFilesError) as caught:
        opened(tmp_path, tmp_path / "run", "val")
    found = [(fault.path.removeprefix(f"{tmp_path}/"), fault.found) for fault in caught.value.bad]
    assert found == [
        ("train/0001TP_000120.png", "no such file"),
        ("trainannot/0001TP_000090.png", "no such file"),
        ("trainannot/0001TP_000150.png", "72x96"),
    ]


def test_flow_files_are_named_after_the_frames_that_are_read(copy):
    config = config_of(copy, "0016E5")
    config.flow.files, config.data.target.val_flow_dir = "read", str(copy)
    spec = dataclasses.replace(domain_spec(config, "val"), offsets=(0, 1, 2), flow_pairs=((0, 1), (1, 2)))
    found = [[path.name for path in clip.flows.values()] for clip in DATASETS["camvid"].list_clips(spec)]
    assert found[2:] == [
        ["0016E5_008190_008190_int16_x10.npy", "0016E5_008190_008190_int16_x10.npy"],
        ["0016E5_008220_008190_int16_x10.npy", "0016E5_008190_008190_int16_x10.npy"],
    ]


def test_one_drive_is_asked_for(copy):
    config = config_of(copy)
    check(config)
    config.data.target.drive = None
    with pytest.raises(UserError, match="data.target.drive is not set, .* one of 0001TP, 0006R0, 0016E5,"):
        domain_spec(config, "val")
    config.data.target.drive = "0001"
    with pytest.raises(SettingsError, match="config.data.target.drive: expected one of 0001TP, .* found '0001'"):
        check(config)
    config.data.target.update(name="cityscapes_seq", drive="0001TP")
    with pytest.raises(UserError, match="DatasetSpec.drive: expected one of '', found '0001TP'"):
        domain_spec(config, "val")


def test_rows_with_source_data_say_that_there_is_none(copy):
    with pytest.raises(UserError, match="config.data.source.raw_dir is not set"):
        domain_spec(config_of(copy), "source", DomainNeeds(labels=True))
