"""Version 2 of the generated worlds: one drive at another place, and what each setting of a place changes."""

import dataclasses
import hashlib

import cv2
import numpy as np
import pytest

from input_pipeline.errors import UserError
from input_pipeline.flow_files import read_flow
from input_pipeline.world import generate
from input_pipeline.world.generate import WorldSpec, write_worlds
from input_pipeline.world.places import Place
from input_pipeline.world.scenes import sample_scene
from input_pipeline.world.shapes import WORLD_CLASSES
from input_pipeline.world.street import render

SPEC = WorldSpec(
    seed=100,
    size=(64, 128),
    source_clips=3,
    target_train_clips=3,
    target_val_clips=3,
    video_frames=3,
    workers=1,
    version="2",
)


def silent(line):
    del line


def files(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def first_world(tmp_path_factory):
    return write_worlds(dataclasses.replace(SPEC, version="1"), tmp_path_factory.mktemp("first"), progress=silent)


@pytest.fixture(scope="module")
def drive_world(tmp_path_factory):
    return write_worlds(SPEC, tmp_path_factory.mktemp("drive"), progress=silent)


# Start of the SHA-256 of what is in files of `SPEC`'s world: pixels as they decode, or flow.
PINNED_DRIVE = {
    "cityscapes_seq/gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png": "291e6f9cafd6",
    "cityscapes_seq/gtFine/val/lindau/lindau_000000_000019_gtFine_labelIds.png": "fbeee18c2f7f",
    "cityscapes_seq/leftImg8bit_sequence/train/aachen/aachen_000000_000019_leftImg8bit.png": "9610bd4531f2",
    "flow/cityscapes_seq/train/aachen_000000_000019_000017_int16_x10.npy": "c54864dcd0dc",
}


def digest(path):
    content = read_flow(path) if path.suffix == ".npy" else cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    return hashlib.sha256(np.ascontiguousarray(content).tobytes()).hexdigest()[:12]


@pytest.mark.parametrize("name", PINNED_DRIVE)
def test_generated_drives_stay_what_they_were(name, drive_world):
    assert digest(drive_world["source"].parent / name) == PINNED_DRIVE[name]


def test_a_drive_elsewhere_has_the_same_source(first_world, drive_world):
    assert files(first_world["source"]) == files(drive_world["source"])
    assert files(first_world["source_flow"]) == files(drive_world["source_flow"])
    assert not set(files(first_world["target"]).values()) & set(files(drive_world["target"]).values())


def test_a_drive_has_one_place_and_one_camera():
    drives = list(generate._target_drives(SPEC))
    scenes = [generate._drive_scene(SPEC, drive) for drive in drives]
    looks = [generate._drive_look(SPEC, drive) for drive in drives]
    assert len({(scene.horizon, scene.focal) for scene in scenes}) == 1
    assert len({(look.quality, look.noise, look.haze, look.colours.tobytes()) for look in looks}) == 1
    assert len({look.balance for look in looks}) == len(looks), "white balance varies from scene to scene"
    others = [generate._drive_scene(dataclasses.replace(SPEC, seed=seed), drives[0]).horizon for seed in range(5)]
    assert len(set(others)) == 5


def streets(**place):
    for seed in range(8):
        yield sample_scene(np.random.default_rng(seed), (64, 128), 0.44 * 64, 128.0, 3, 2, Place(**place))


def shares(**place):
    """Share of the pixels of each class in streets of a place, `[len(WORLD_CLASSES)]`."""
    classes = np.stack([render(scene, 2).classes for scene in streets(**place)])
    return np.bincount(classes.ravel(), minlength=len(WORLD_CLASSES)) / classes.size


@pytest.mark.parametrize(
    ("place", "more", "less"),
    [
        (dict(setback=20.0), "terrain", "building"),
        (dict(storeys=0.3), "sky", "building"),
        (dict(green=6.0), "vegetation", "building"),
        (dict(people=5.0), "person", "sky"),
        (dict(furniture=5.0), "pole", "building"),
        (dict(heavy=8.0), "bus", "car"),
        (dict(lanes=1.0), "road", "sidewalk"),
    ],
)
def test_contents_of_a_place(place, more, less):
    here, there = shares(), shares(**place)
    more, less = WORLD_CLASSES.index(more), WORLD_CLASSES.index(less)
    assert there[more] > here[more] and there[less] < here[less]


def test_walls_of_an_open_place_have_gaps():
    def gaps(**place):
        materials = np.concatenate([row.materials for scene in streets(**place) for row in scene.rows])
        return np.mean(materials == 0)

    assert gaps(open=8.0) > gaps() + 0.2


def test_a_version_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match="version is '3'; expected one of '1', '2'"):
        dataclasses.replace(SPEC, version="3")
