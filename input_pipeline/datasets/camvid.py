"""CamVid: drives through Cambridge, with labels every second and in part 15 times a second (Brostow et al., 2009).

Two layouts are read: the owners' folders (`701_StillsRaw_full` and `LabeledApproved_full`: 720×960, colours of 32
classes), and the copy in the SegNet tutorial (`train/`, `trainannot/`, ...: 360×480, ids of 11 classes and void), where
the frames of a drive lie in several folders. A drive is all of its frames in the order of their numbers, which count at
30 Hz. Each drive is a target of its own: the split `train` is its first half (of an odd number of frames the smaller
part), `val` is the rest.

A clip is a frame and the frames before it in the same drive, however far apart they usually are. At the start of the
drive, and after a gap (more than 1.5 times the median distance), there are none: the earliest frame of the run is
repeated in their place, and the flow between a frame and itself is estimated or read like any other. So every frame
of a half is a clip, and all frames of the second half are scored. The first clip of `val` reads the end of the first
half, as in a video that goes on; no clip of `train` reads a frame of the second half.
"""

import re
import statistics
from pathlib import Path

from input_pipeline.class_maps import ClassMap
from input_pipeline.dataset import ClipFiles, Dataset, flow_folders, flows_of, frame_finder
from input_pipeline.errors import UserError
from input_pipeline.images import IMAGE_SUFFIXES

DRIVES = ("0001TP", "0006R0", "0016E5", "0016E5_dense", "Seq05VD")
_STEM = re.compile(r"(\w+)_f?(\d+)")
_STILLS, _COLOURS, _PARTS = "701_StillsRaw_full", "LabeledApproved_full", ("train", "val", "test")
# The numbers within 0016E5 of the frames that are labelled at 15 Hz: a drive apart, `0016E5_dense`.
_DENSE = range(7959, 8160)
_GAP = 1.5

# Class of the copy, its colour there (RGB), and the owners' classes that it stands for, as the field groups them, with
# the owners' colours. A class's place is its id; void follows.
_GROUPS = {
    "sky": ((128, 128, 128), {"Sky": (128, 128, 128)}),
    "building": (
        (128, 0, 0),
        {
            "Building": (128, 0, 0), "Archway": (192, 0, 128), "Bridge": (0, 128, 64), "Tunnel": (64, 0, 64),
            "Wall": (64, 192, 0),
        },
    ),
    "pole": ((192, 192, 128), {"Column_Pole": (192, 192, 128), "TrafficCone": (0, 0, 64)}),
    "road": (
        (128, 64, 128),
        {"Road": (128, 64, 128), "LaneMkgsDriv": (128, 0, 192), "LaneMkgsNonDriv": (192, 0, 64)},
    ),
    "sidewalk": (
        (60, 40, 222),
        {"Sidewalk": (0, 0, 192), "ParkingBlock": (64, 192, 128), "RoadShoulder": (128, 128, 192)},
    ),
    "tree": ((128, 128, 0), {"Tree": (128, 128, 0), "VegetationMisc": (192, 192, 0)}),
    "sign": (
        (192, 128, 128),
        {"SignSymbol": (192, 128, 128), "Misc_Text": (128, 128, 64), "TrafficLight": (0, 64, 64)},
    ),
    "fence": ((64, 64, 128), {"Fence": (64, 64, 128)}),
    "car": (
        (64, 0, 128),
        {
            "Car": (64, 0, 128), "SUVPickupTruck": (64, 128, 192), "Truck_Bus": (192, 128, 192),
            "Train": (192, 64, 128), "OtherMoving": (128, 64, 64),
        },
    ),
    "pedestrian": (
        (64, 64, 0),
        {
            "Pedestrian": (64, 64, 0), "Child": (192, 128, 64), "CartLuggagePram": (64, 0, 192),
            "Animal": (64, 128, 64),
        },
    ),
    "bicyclist": ((0, 128, 192), {"Bicyclist": (0, 128, 192), "MotorcycleScooter": (192, 0, 192)}),
}  # fmt: skip
_VOID = (0, 0, 0)
_CLASSES = tuple(_GROUPS)


def folders(spec):
    """Returns the folders that have to exist: the owners' two, or those of each part that the copy has."""
    root = Path(spec.raw_dir)
    if (root / _STILLS).is_dir() or (root / _COLOURS).is_dir():
        return [(root / _STILLS, root / _COLOURS)]
    pairs = [(root / part, root / f"{part}annot") for part in _PARTS]
    return [pair for pair in pairs if any(folder.is_dir() for folder in pair)] or pairs[:1]


def list_clips(spec):
    """Lists the frames of a half of a drive, in the order of time.

    Raises:
      UserError: the drive is not there, and names those that are; or a frame is there twice.
    """
    drives = _frames(spec)
    if drives and spec.drive not in drives:
        raise UserError(
            f"{spec.raw_dir}: expected frames of the drive {spec.drive}, found {', '.join(sorted(drives))}. Set "
            "config.data.*.drive to one of these, or get the frames of the other."
        )
    found = drives.get(spec.drive, {})
    numbers = sorted(found)
    steps = [later - earlier for earlier, later in zip(numbers, numbers[1:], strict=False)]
    most = _GAP * statistics.median(steps or [0])
    half, video = len(numbers) // 2, spec.drive.removesuffix("_dense")
    clips, start = [], 0  # of the run of frames without a gap
    for i, number in enumerate(numbers):
        if i and steps[i - 1] > most:
            start = i
        if (i < half) != (spec.split == "train"):
            continue
        before = {k: numbers[max(i - k, start)] for k in spec.offsets}
        name, _, label = found[number]
        frames = {k: found[n][1] for k, n in before.items()}
        clips.append(ClipFiles(name, label, frames, flows_of(spec, CAMVID, video, before, flow_folders(spec))))
    return clips


def _frames(spec):
    """{drive: {number: (name, image file, label file)}} of all frames of which there is either."""
    find, drives = frame_finder(".png"), {}
    for images, annotations in folders(spec):
        ending = "_L.png" if annotations.name == _COLOURS else ".png"
        stems = {path.stem for path in images.glob("*") if path.suffix.lower() in IMAGE_SUFFIXES}
        stems |= {path.name.removesuffix(ending) for path in annotations.glob(f"*{ending}")}
        for stem in sorted(stems):
            if match := _STEM.fullmatch(stem):
                number = int(match[2])
                drive = "0016E5_dense" if match[1] == "0016E5" and number in _DENSE else match[1]
                frame = (stem, find(images, stem), annotations / f"{stem}{ending}")
                other = drives.setdefault(drive, {}).setdefault(number, frame)
                if other is not frame:
                    raise UserError(f"{frame[1]}: frame {number} of {drive} is there as {other[1]}, too. Remove one.")
    return drives


CAMVID = Dataset(
    name="camvid",
    folders=folders,
    expected=(
        "CamVid as its owners ship it, 701_StillsRaw_full/DRIVE_FFFFF.png and LabeledApproved_full/DRIVE_FFFFF_L.png, "
        "or as the SegNet tutorial does, PART/DRIVE_FFFFF.png (or .jpg) and PARTannot/DRIVE_FFFFF.png for the parts "
        "train, val and test; raw_dir is the folder that holds these"
    ),
    list_clips=list_clips,
    flow_name=lambda video, current, earlier: f"{video}_{current:06d}_{earlier:06d}_int16_x10.npy",
    drives=DRIVES,
    labels="DRIVE_FFFFF.png (the copy) or DRIVE_FFFFF_L.png (the owners)",
    label_files=(
        "one 8-bit channel of the ids 0 to 11, as in the copy's folders PARTannot, or the 32 colours of the owners' "
        "LabeledApproved_full"
    ),
    id_of_colour={
        colour: i for i, (_, members) in enumerate(_GROUPS.values()) for colour in members.values()
    } | {_VOID: len(_GROUPS)},
    ids=dict(enumerate((*_CLASSES, "void"))),
    ids_name="the ids of CamVid's copy",
    classes=_CLASSES,
    colours={name: colour for name, (colour, _) in _GROUPS.items()},
    settings={"camvid": {name: name for name in _CLASSES}},
    class_maps={
        "cityscapes_seq": ClassMap(
            {
                "road": "road", "sidewalk": "sidewalk", "building": "building", "wall": "building", "fence": "fence",
                "pole": "pole", "light": "sign", "sign": "sign", "vegetation": "tree", "terrain": "tree", "sky": "sky",
                "person": "pedestrian", "rider": "bicyclist", "car": "car", "truck": "car", "bus": "car",
                "train": "car", "motorcycle": "bicyclist", "bicycle": "bicyclist",
            }
        ),
    },
)  # fmt: skip
