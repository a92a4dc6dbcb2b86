import os
import socket
from pathlib import Path

import numpy as np
import pytest
import raw_trees
import video_files
from PIL import Image

from input_pipeline import frames
from input_pipeline.errors import UserError
from input_pipeline.video_packets import SourceError

SIZE = (33, 65)


def write_folder(folder, names, size=SIZE):
    folder.mkdir(exist_ok=True)
    pixels = [raw_trees.frame_pixels(i, size) for i in range(len(names))]
    for name, frame in zip(names, pixels, strict=True):
        Image.fromarray(frame).save(folder / name)
    return pixels


def test_a_folder_gives_its_pictures_in_natural_order(tmp_path):
    pixels = write_folder(tmp_path / "in", ["10.png", "9.PNG", "11.bmp", "12.tif", "13.webp"])
    (tmp_path / "in" / "._a.png").write_bytes(b"what macOS leaves beside files")
    (tmp_path / "in" / "Thumbs.db").write_bytes(b"what Windows leaves beside files")
    source = frames.open_source(tmp_path / "in")
    assert (source.count, source.size, source.is_video, source.notes) == (5, SIZE, False, ())
    read = list(source)
    assert [(f.name, f.video) for f in read] == [("9", 0), ("10", 0), ("11", 0), ("12", 0), ("13", 0)]
    for i, name in enumerate([1, 0, 2, 3]):
        np.testing.assert_array_equal(read[i].pixels, pixels[name])


def test_sequences_of_a_folder_are_videos_of_their_own_and_said(tmp_path):
    write_folder(tmp_path / "in", [f"a_{n}.png" for n in (1, 2, 5, 6)])
    write_folder(tmp_path / "in", [f"b_{n}.png" for n in (1, 2)], (20, 30))
    source = frames.open_source(tmp_path / "in")
    read = [(f.name, f.video, f.pixels.shape[:2]) for f in source]
    assert read[:4] == [("a_1", 0, SIZE), ("a_2", 0, SIZE), ("a_5", 1, SIZE), ("a_6", 1, SIZE)]
    assert read[4:] == [("b_1", 2, (20, 30)), ("b_2", 2, (20, 30))]
    assert "has 3 videos" in source.notes[0]
    assert "a_5.png starts a new video of 2: a step of 3 from a_2.png, where 1 is usual" in source.notes[1]
    assert "b_1.png starts a new video of 2: another name than a_6.png" in source.notes[2]


def test_many_sequences_are_said_in_few_lines(tmp_path):
    write_folder(tmp_path / "in", [f"{v:03d}_{n}.png" for v in range(40) for n in (1, 2)], (4, 4))
    notes = frames.open_source(tmp_path / "in").notes
    assert "has 40 videos" in notes[0] and len(notes) == 22 and "and 19 more" in notes[-1]
    write_folder(tmp_path / "apart", [f"{v:03d}_000019.png" for v in range(40)], (4, 4))
    (note,) = frames.open_source(tmp_path / "apart").notes
    assert "no two pictures" in note and "each is segmented by itself" in note and "and 30 more" in note


def test_what_is_left_out_of_a_folder_is_said(tmp_path):
    write_folder(tmp_path / "in", ["1.png", "2.png", "poses.gif"])
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    write_folder(tmp_path / "in" / "left", ["1.png"])
    (tmp_path / "in" / "empty").mkdir()
    source = frames.open_source(tmp_path / "in")
    assert any("left out" in note and "notes.txt, poses.gif" in note for note in source.notes)
    assert any("sub-folders" in note and note.endswith(": left") for note in source.notes)
    # Text is no part of the input; a picture is.
    assert source.left_out == ("poses.gif",)


def test_one_picture(tmp_path):
    (pixels,) = write_folder(tmp_path / "in", ["street.png"])
    source = frames.open_source(tmp_path / "in" / "street.png")
    (frame,) = source
    assert (source.count, source.is_video, frame.name) == (1, False, "street")
    np.testing.assert_array_equal(frame.pixels, pixels)


def test_inputs_that_are_not_there_or_empty(tmp_path):
    (tmp_path / "folder" / "sub").mkdir(parents=True)
    (tmp_path / "folder" / "a.gif").write_bytes(b"GIF89a")
    write_folder(tmp_path / "folder" / "sub", ["1.png"])
    (tmp_path / "none.mp4").touch()
    (tmp_path / "text.mp4").write_text("This is not a video. " * 100)
    (tmp_path / "text.png").write_text("This is not a picture. " * 100)
    whole = video_files.write(tmp_path / "whole.mp4", video_files.street(4)).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: whole.index(b"moov")])
    (tmp_path / "link.mp4").symlink_to("gone.mp4")
    (tmp_path / "loop").symlink_to("loop")
    expected = {
        "missing.mp4": "no such file or folder",
        "missing*.png": "Patterns are not read: name the folder",
        "folder": "no images in this folder.*sub-folders have: sub; name one",
        "none.mp4": "the file is empty",
        "text.mp4": "cannot be read as a video",
        "cut.mp4": "cut off before its index was written",
        "text.png": "cannot be decoded",
        "link.mp4": "a link to gone.mp4, which is not there",
        "loop": "cannot be read",
    }
    for name, words in expected.items():
        with pytest.raises(SourceError, match=f"{name.replace('*', '.')}.*{words}"):
            frames.open_source(tmp_path / name)
    for address in ("http://host/v.mp4", "rtsp://host/stream", Path("https://host/v.mp4"), f"{tmp_path}/http:/v.mp4"):
        with pytest.raises(SourceError, match="is an address.*save it as a video file"):
            frames.open_source(address)
    with pytest.raises(SourceError, match="zero|null"):
        frames.open_source("a\0b")


def test_inputs_that_can_be_read_once_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    os.mkfifo("pipe.mp4")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        for name, kind in (("pipe.mp4", "a named pipe"), ("/dev/zero", "a device"), ("socket", "a socket")):
            with pytest.raises(SourceError, match=f"{name} is {kind}. The input is read more than once"):
                frames.open_source(name)
    # And among pictures.
    write_folder(tmp_path / "in", ["1.png"])
    os.mkfifo("in/2.png")
    (tmp_path / "in" / "3.png").symlink_to("gone.png")
    with pytest.raises(
        SourceError, match="2.png: no ordinary file(.|\n)*3.png: a link to gone.png, which is not there"
    ):
        frames.open_source("in")


def test_inputs_that_may_not_be_read(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "in").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", refuse)
        with pytest.raises(SourceError, match=r"in: the folder cannot be read \(Permission denied\)"):
            frames.open_source(tmp_path / "in")
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", refuse)
        with pytest.raises(SourceError, match=r"in'?: cannot be read \(Permission denied\)"):
            frames.open_source(tmp_path / "in")


def test_all_broken_pictures_of_a_folder_are_named_at_once(tmp_path):
    folder = tmp_path / "in"
    write_folder(folder, ["1.png", "2.png", "3.jpg", "4.png"])
    whole = (folder / "2.png").read_bytes()
    (folder / "2.png").write_bytes(whole[: len(whole) // 2])
    (folder / "3.jpg").write_bytes(b"no JPEG")
    with pytest.raises(SourceError) as error:
        frames.open_source(folder)
    assert [line.partition(":")[0] for line in str(error.value).splitlines()] == [f"{folder}/2.png", f"{folder}/3.jpg"]


def test_pictures_of_another_size_or_the_same_name_are_errors(tmp_path):
    write_folder(tmp_path / "sizes", ["1.png", "2.png"])
    Image.fromarray(raw_trees.frame_pixels(0, (30, 65))).save(tmp_path / "sizes" / "3.png")
    with pytest.raises(SourceError, match="3.png has 30x65 pixels.*the first frame has 33x65"):
        frames.open_source(tmp_path / "sizes")
    write_folder(tmp_path / "names", ["a.png", "a.jpg"])
    with pytest.raises(UserError, match="a.jpg and a.png would give one result file"):
        frames.open_source(tmp_path / "names")


def test_a_picture_that_changes_its_size_while_it_is_read(tmp_path):
    write_folder(tmp_path / "in", ["1.png", "2.png"])
    read = iter(frames.open_source(tmp_path / "in"))
    next(read)
    Image.fromarray(raw_trees.frame_pixels(0, (30, 65))).save(tmp_path / "in" / "2.png")
    with pytest.raises(SourceError, match="2.png has 30x65"):
        next(read)


def test_a_video_can_be_read_twice(tmp_path):
    path = video_files.write(tmp_path / "a:b 100%.mp4", video_files.street(5))
    source = frames.open_source(path)
    assert (source.is_video, source.count, source.size, source.rate) == (True, 5, video_files.SIZE, 10240)
    for _ in range(2):
        assert [(f.name, f.video, f.start) for f in source] == [(f"{i:06d}", 0, i * 1024) for i in range(5)]
