"""Masks that a folder of frames comes with are kept as their frames are, and nothing near them is trained on."""

import json

import numpy as np
import pytest
import video_files
from PIL import Image

from input_pipeline import own_labels
from input_pipeline.errors import UserError
from input_pipeline.own_video.ingest import IngestSettings, ingest
from input_pipeline.own_video.manifest import read_manifest

SIZE = video_files.SIZE  # 64×96
ROAD, TREE = 7, 3


def write(root, labelled, count=60):
    """A camera's folder: frames/0.png ..., masks of some, and classes of its own."""
    (root / "frames").mkdir(parents=True), (root / "labels").mkdir()
    for i, frame in enumerate(video_files.street(count)):
        Image.fromarray(frame).save(root / "frames" / f"{i}.png")
    for number in labelled:
        mask = np.full(SIZE, 255, np.uint8)
        mask[:32, : 48 + number], mask[32:] = TREE, ROAD
        Image.fromarray(mask).save(root / "labels" / f"{number}.png")
    entries = [{"id": ROAD, "name": "road"}, {"id": TREE, "name": "baum"}]
    (root / "classes.json").write_text(json.dumps(entries))
    return root


def test_masks_are_held_out_cut_and_named_like_their_clips(tmp_path):
    write(tmp_path / "cam", (10, 25))
    lines = []
    found = ingest(tmp_path, tmp_path / "run" / "own_video", IngestSettings(SIZE, max_clips=200), lines.append)
    assert any("2 of 2 masks belong to held-out clips" in line for line in lines)
    clips = read_manifest(found.raw_dir)["clips"]
    numbers = {split: [int(c["frames"][0][-10:-4]) for c in clips[split]] for split in clips}
    assert {10, 25} <= set(numbers["val"])
    trained = {int(name[-10:-4]) for clip in clips["train"] for name in clip["frames"]}
    for number in (10, 25):  # the clip is number - 2 to number; a neighbour is a step away
        assert not trained & set(range(number - 3, number + 2)), trained
    assert trained & set(range(13, 21))

    own = own_labels.read_classes(found.raw_dir / "classes.json")
    assert own.classes == ("baum", "road")
    names = {number: clip["name"] for number, clip in zip(numbers["val"], clips["val"], strict=True)}
    masks = own_labels.find_masks(found.raw_dir)
    assert set(masks) == {names[10], names[25]}
    for number in (10, 25):
        mask = own_labels.read_mask(masks[names[number]], own, found.size)
        expected = np.full(SIZE, 255, np.uint8)
        expected[:32, : 48 + number], expected[32:] = 0, 1
        np.testing.assert_array_equal(mask, expected)


def test_another_size_cuts_masks_as_frames(tmp_path):
    write(tmp_path / "cam", (20,))
    settings = IngestSettings((32, 32), fit=False)
    found = ingest(tmp_path, tmp_path / "run" / "own_video", settings, lambda line: None)
    (file,) = own_labels.find_masks(found.raw_dir).values()
    mask = own_labels.read_mask(file, own_labels.read_classes(found.raw_dir / "classes.json"))
    # The middle 64×64 of 64×96, halved: columns 16 to 79, of which those below 68 are trees above.
    assert mask.shape == (32, 32) and (mask[16:] == 1).all()
    assert (mask[:16, :26] == 0).all() and (mask[:16, 26:] == 255).all()


def test_a_changed_mask_makes_the_frames_anew(tmp_path):
    root, lines = write(tmp_path / "cam", (20,)), []
    ingest(tmp_path, tmp_path / "run" / "own_video", IngestSettings(SIZE), lines.append)
    Image.fromarray(np.full(SIZE, ROAD, np.uint8)).save(root / "labels" / "20.png")
    found = ingest(tmp_path, tmp_path / "run" / "own_video", IngestSettings(SIZE), lines.append)
    assert any("are made anew" in line for line in lines)
    (file,) = own_labels.find_masks(found.raw_dir).values()
    assert (np.asarray(Image.open(file)) == 1).all()


def test_a_mask_of_no_frame(tmp_path):
    root = write(tmp_path / "cam", (20,))
    (root / "labels" / "20.png").rename(root / "labels" / "x.png")
    with pytest.raises(UserError, match=r"labels: masks are named like their frames, and no frame is called x.png"):
        ingest(tmp_path, tmp_path / "run" / "own_video", IngestSettings(SIZE), lambda line: None)


def refused(root, run, match):
    """Ingests what has to be an error before any frame is scanned."""
    lines = []
    with pytest.raises(UserError, match=match):
        ingest(root, run, IngestSettings(SIZE), lines.append)
    assert not lines and not run.exists()


def test_a_mask_of_another_size_than_its_frame(tmp_path):
    root = write(tmp_path / "cam", (20, 30))
    Image.fromarray(np.full((32, 48), ROAD, np.uint8)).save(root / "labels" / "30.png")
    run = tmp_path / "run" / "own_video"
    refused(tmp_path, run, "30.png: expected a mask of 64x96 pixels, as its frame has, found 32x48")
    Image.fromarray(np.full(SIZE[::-1], ROAD, np.uint8)).save(root / "labels" / "30.png")
    refused(tmp_path, run, "expected a mask of 64x96 pixels, as its frame has, found 96x64")
    # A picture that is stored lying is labelled as it is seen.
    frame = Image.open(root / "frames" / "30.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    frame.transpose(Image.Transpose.ROTATE_90).save(root / "frames" / "30.png", exif=turned)
    refused(tmp_path, run, "expected a mask of 64x96 pixels, as its frame has, found 96x64")


def test_bad_labels_are_said_before_the_scan(tmp_path):
    root, run = write(tmp_path / "cam", (20, 30)), tmp_path / "run" / "own_video"
    Image.fromarray(np.full(SIZE, 99, np.uint8)).save(root / "labels" / "30.png")
    refused(tmp_path, run, r"30.png: ids that .*classes.json does not name: 99 \(6144 pixels\)")
    (root / "classes.json").unlink()
    refused(tmp_path, run, "classes.json: no such file")
    (root / "labels" / "20.txt").write_text("0 0.5 0.5 1 1")
    refused(tmp_path, run, "masks are PNG files, named like their frames; found 20.txt")


def test_labels_of_another_form_are_left_out(tmp_path):
    root, lines = write(tmp_path / "cam", ()), []
    (root / "labels" / "20.txt").write_text("0 0.5 0.5 1 1")
    (root / "classes.json").unlink()
    found = ingest(tmp_path, tmp_path / "run" / "own_video", IngestSettings(SIZE), lines.append)
    assert "own_video: left out, labels: cam/labels" in lines and not own_labels.find_masks(found.raw_dir)
    assert not any("masks belong" in line for line in lines)


def test_a_fully_labelled_sequence_leaves_something_to_adapt_on(tmp_path):
    write(tmp_path / "cam", range(60))
    lines = []
    found = ingest(tmp_path, tmp_path / "run" / "own_video", IngestSettings(SIZE), lines.append)
    clips = read_manifest(found.raw_dir)["clips"]
    numbers = {split: {int(n[-10:-4]) for c in clips[split] for n in c["frames"]} for split in clips}
    assert len(clips["train"]) > 5 and not numbers["train"] & numbers["val"]
    early = {int(clip["frames"][0][-10:-4]) for clip in clips["val"]} & set(range(40))
    assert len(early) > 2 and max(early) - min(early) > 20
    masks = own_labels.find_masks(found.raw_dir)
    assert set(masks) == {clip["name"] for clip in clips["val"]}
    assert any(f"{len(masks)} of 60 masks belong to held-out clips" in line for line in lines)
