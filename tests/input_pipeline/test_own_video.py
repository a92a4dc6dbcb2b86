"""From a folder of somebody's videos to clips: what is found, what is left out, what is chosen and kept."""

import dataclasses
import gc
import json
import os
import shutil
import weakref

import numpy as np
import pytest
import raw_trees
import video_files
from PIL import Image

from configs import base
from input_pipeline import video_decode
from input_pipeline.clips import open_clips, read_clip
from input_pipeline.datasets import own_video
from input_pipeline.domains import open_domain, with_own_video
from input_pipeline.errors import UserError
from input_pipeline.needs import DomainNeeds
from input_pipeline.own_video import choose, scan
from input_pipeline.own_video.folder import LeftOut, look
from input_pipeline.own_video.ingest import IngestSettings, ingest
from input_pipeline.own_video.manifest import read_manifest
from input_pipeline.prepare import prepare

SIZE = video_files.SIZE
LOSSLESS = dict(codec="ffv1", pixels="bgr0")


def film(seed, count=12, size=SIZE):
    """A random picture that moves to the right by two pixels a frame."""
    wide = raw_trees.frame_pixels(seed, (size[0], size[1] + 2 * count))
    return np.stack([wide[:, 2 * t : 2 * t + size[1]] for t in range(count)])


def write_frames(folder, frames, name="{}.png", first=8, change=lambda image: image):
    folder.mkdir(parents=True)
    for i, frame in enumerate(frames, first):
        change(Image.fromarray(frame)).save(folder / name.format(i))
    return folder


def counts(found):
    """{split: number of clips} of what was kept."""
    return {split: len(clips) for split, clips in read_manifest(found.raw_dir)["clips"].items()}


def silent(line):
    del line


def write_awkward(root, elsewhere):
    """Thirty-odd things as they lie in people's folders; returns {what is usable: (usable frames, shots)}."""
    a, b = root / "cam a", root / "küche"
    a.mkdir(parents=True), b.mkdir()
    write = video_files.write
    # Videos.
    write(a / "plain.mp4", film(1))
    write(a / "turned.mov", film(2), change=lambda stream: stream.set_display_rotation(90))
    write(a / "variable.mkv", film(3), times=[0, 100, 200, 300, 500, 600, 800, 900, 1000, 1100, 1200, 1300])
    write(a / "two shots.MKV", [*film(4), *film(5)], **LOSSLESS)
    write(a / "doubled.mkv", np.repeat(film(6), 2, axis=0), **LOSSLESS)
    write(a / "starts black.mkv", [*np.zeros_like(film(7, 4)), *film(7)], **LOSSLESS)
    video_files.cut(write(elsewhere / "whole.mkv", film(8), codec="mpeg4"), a / "cut off.mkv", 7)
    video_files.spoil(write(elsewhere / "whole.mp4", film(9)), a / "damaged.mp4", [5])
    write(b / "old.avi", film(10), codec="mpeg4")
    write(b / "web.webm", film(11), codec="libvpx")
    # Videos of which nothing is usable.
    write(b / "one frame.mp4", film(12, 1))
    write(b / "black.mp4", np.zeros_like(film(1)))
    write(b / "still.mp4", np.repeat(film(13, 1), 12, axis=0), options={"crf": "5"})
    shutil.copy(a / "plain.mp4", b / "copy of plain.mp4")
    video_files.cut(elsewhere / "whole.mp4", b / "no index.mp4", 7)
    (b / "a text.mp4").write_text("no video")
    (b / "empty.mp4").touch()
    (b / "link.mp4").symlink_to(a / "plain.mp4")
    (b / "link to nothing.mp4").symlink_to("nothing.mp4")
    os.mkfifo(b / "pipe.mp4")
    # Folders of frames.
    write_frames(root / "Bilder über alles", film(14), "Straße {}.PNG")
    write_frames(root / "palette", film(15), "f{}.png", change=lambda image: image.quantize(64))
    write_frames(root / "grey", film(16), "f{}.jpg", change=lambda image: image.convert("L"))
    write_frames(root / "alpha", film(17), "f{}.webp", change=lambda image: image.convert("RGBA"))
    write_frames(root / "sixteen bits", film(18), "f{}.tif", change=sixteen_bits)
    broken = write_frames(root / "a broken one", film(19), "f{}.bmp") / "f12.bmp"
    broken.write_bytes(broken.read_bytes()[:200])
    write_frames(root / "sizes", film(20), "f{}.png")
    for i, frame in enumerate(film(21, 4, (48, 64)), 20):
        Image.fromarray(frame).save(root / "sizes" / f"f{i}.png")
    (root / "links").mkdir()
    for file in write_frames(elsewhere / "frames", film(22), "{}.png").iterdir():
        (root / "links" / file.name).symlink_to(file)
    write_frames(root / "labelled" / "frames", film(23))
    write_frames(root / "labelled" / "labels", film(24), "{}.jpg")
    # All else.
    write_frames(root / "one picture", film(25, 1))
    (root / "an empty folder").mkdir()
    (root / "circle").symlink_to(root)
    (root / "a.link").symlink_to("a.link")
    for name in ("notes.txt", "Thumbs.db", ".hidden.mp4", "cam a/track.gpx"):
        (root / name).write_text("x")
    return {
        "Bilder über alles": (12, 1),
        "a broken one": (11, 2),
        "alpha": (12, 1),
        "cam a/cut off.mkv": (7, 1),
        "cam a/damaged.mp4": (9, 2),
        "cam a/doubled.mkv": (12, 1),
        "cam a/plain.mp4": (12, 1),
        "cam a/starts black.mkv": (12, 1),
        "cam a/turned.mov": (12, 1),
        "cam a/two shots.MKV": (24, 2),
        "cam a/variable.mkv": (12, 1),
        "grey": (12, 1),
        "küche/old.avi": (12, 1),
        "küche/web.webm": (12, 1),
        "labelled/frames": (12, 1),
        "links": (12, 1),
        "palette": (12, 1),
        "sixteen bits": (12, 1),
        "sizes": (16, 2),
    }


def sixteen_bits(image):
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


@pytest.fixture(scope="module")
def awkward(tmp_path_factory):
    """(folder, expected, stretches, lines) of the awkward folder."""
    folder, elsewhere = tmp_path_factory.mktemp("videos"), tmp_path_factory.mktemp("elsewhere")
    expected = write_awkward(folder, elsewhere)
    return folder, expected, *scan.scan(folder, silent, threads=2)


def test_an_awkward_folder_gives_its_usable_frames_and_shots(awkward):
    _, expected, stretches, lines = awkward
    assert {s.found.name: (len(s.numbers), len(set(s.shots.tolist()))) for s in stretches} == expected, lines


def test_an_awkward_folder_gives_one_list_of_what_is_left_out(awkward):
    folder, _, _, lines = awkward
    text = "\n".join(lines)
    for line in (
        "cam a/doubled.mkv: 12 of 24 frames left out, still: nothing moves since the frame before; the first at 0.1 s",
        "cam a/starts black.mkv: 4 of 16 frames left out, black or of one colour; the first at 0.0 s",
        "a broken one: 1 frame cannot be decoded",
        "sizes: frames of 2 sizes: each change of size counts as a cut",
        "left out: küche/one frame.mp4 has one frame only",
        "left out: one picture has one frame only",
        "left out: küche/black.mp4 has no two usable frames",
        "left out: küche/still.mp4 has no two usable frames",
        "left out: küche/copy of plain.mp4 has no two usable frames",
        "küche/copy of plain.mp4: 12 of 12 frames left out, the same as frames before (cam a/plain.mp4); the first at",
        "left out, the same file as cam a/plain.mp4: küche/link.mp4",
        "left out, a link to nothing: küche/link to nothing.mp4",
        "left out, no ordinary file: küche/pipe.mp4",
        "left out, labels: labelled/labels",
        "left out, hidden: .hidden.mp4",
        "left out, neither a video nor an image: Thumbs.db, a.link, cam a/track.gpx, notes.txt",
        "left out, the same folder as .: circle",
    ):
        assert line in text, text
    for name in ("no index.mp4", "a text.mp4", "empty.mp4"):
        assert f"left out: {folder}/küche/{name}: cannot be read as a video" in text
    assert "f12.bmp: cannot be decoded" in text


def test_clips_never_straddle_a_cut_a_gap_or_what_is_held_out(awkward):
    _, _, stretches, _ = awkward
    chosen = choose.choose(stretches)
    for clip in chosen.train + chosen.val:
        stretch = stretches[clip.stretch]
        places = [stretch.numbers.tolist().index(number) for number in clip.numbers]
        assert len(set(stretch.shots[places].tolist())) == 1
        steps = -np.diff(stretch.times[places])
        assert (steps > 0).all() and (steps <= 0.2 + 1e-9).all()
    for i, stretch in enumerate(stretches):
        at = dict(zip(stretch.numbers.tolist(), stretch.times, strict=True))
        train, val = (
            [at[n] for c in clips if c.stretch == i for n in c.numbers] for clips in (chosen.train, chosen.val)
        )
        if val:
            assert train and min(val) - max(train) > 0.1 + 1e-9, stretch.found.name
    # Each is there, but for what is shorter than a clip once a part is held out.
    assert {clip.stretch for clip in chosen.train} == set(range(len(stretches)))
    assert len({clip.stretch for clip in chosen.val}) >= len(stretches) - 2


def test_kept_frames_are_prepared_as_a_set_without_labels(tmp_path):
    frames, workdir = film(1, 20), tmp_path / "my videos" / "run"
    workdir.mkdir(parents=True)
    video_files.write(tmp_path / "v.mkv", frames, **LOSSLESS).rename(tmp_path / "my videos" / "straße.mkv")
    config = base.get_config()
    config.data.target.update(name="own_video", raw_dir=str(tmp_path / "my videos"), size=(32, 192))
    told = []
    config = with_own_video(config, workdir, progress=told.append)
    assert told[0] == "own_video: straße.mkv: 20 frames, 2.0 s, 10 frames/s, 64x96, 20 usable, 0 cuts or gaps"
    assert config.data.target.raw_dir == str(workdir / "own_video") and config.data.target.size == SIZE
    again = with_own_video(config, workdir).data.target
    assert (again.raw_dir, tuple(again.size)) == (config.data.target.raw_dir, SIZE)
    train = open_domain(config, workdir, "target", DomainNeeds(), silent)
    assert len(train) == 12 and train[0]["name"].decode() == "000_straße.mkv_000002"
    clip = read_clip(train, 3, (0, 1), ((0, 1),), False)
    np.testing.assert_array_equal(clip["frames"], frames[[5, 4]])
    # What moves to the left by two pixels was two pixels further right before: 20 tenths of a pixel.
    np.testing.assert_allclose(np.median(clip["flow"][0], (0, 1)), [20, 0], atol=3)
    scored = dataclasses.replace(train.spec, split="val", offsets=(0, 1, 2), flow_pairs=((0, 1), (1, 2)))
    val = open_clips(prepare(scored, workdir / "data", silent))
    assert [val[i]["name"].decode() for i in range(len(val))] == [f"000_straße.mkv_0000{n}" for n in (18, 19)]
    np.testing.assert_array_equal(read_clip(val, 1, (0, 1, 2), (), False)["frames"], frames[[19, 18, 17]])
    shown = [np.asarray(Image.open(file)) for file in sorted((workdir / "own_video" / "film").iterdir())]
    np.testing.assert_array_equal(shown, frames[16:])
    with pytest.raises(UserError, match=r"of train have 3 frames, .*Set --config.data.target.offsets=\(0, 1, 2, 3\)"):
        open_domain(config, workdir, "target", DomainNeeds((0, 1, 2, 3), ((0, 1),)), silent)
    flow = dataclasses.replace(train.spec, flow_source="precomputed", flow_dir=str(tmp_path / "flow"))
    assert own_video.list_clips(flow)[0].flows == {
        (0, 1): tmp_path / "flow" / "000_straße.mkv_000002_000001_int16_x10.npy"
    }


def test_a_folder_has_to_be_named(tmp_path):
    config = base.get_config()
    assert with_own_video(config, tmp_path) is config
    config.data.target.name = "own_video"
    with pytest.raises(UserError, match="raw_dir is not set: it names a folder of your own videos"):
        with_own_video(config, tmp_path)


def test_kept_frames_are_used_again_until_something_changes(tmp_path):
    folder, into, told = tmp_path / "videos", tmp_path / "run" / "own_video", []
    write_frames(folder / "a", film(1, 16))
    first = ingest(folder, into, IngestSettings(SIZE), told.append)
    before = counts(first)
    stamp = (into / "manifest.json").stat().st_mtime_ns

    def again(**settings):
        told.clear()
        found = ingest(folder, into, IngestSettings(SIZE, **settings), told.append)
        nonlocal stamp
        last, stamp = stamp, (into / "manifest.json").stat().st_mtime_ns
        return found, stamp == last

    assert again() == (first, True) and told == [f"own_video: the frames kept in {into} are used"]
    video_files.write(folder / "new.mkv", film(2, 16), **LOSSLESS)
    found, same = again()
    assert not same and "(0 changed, 1 added, 0 removed)" in told[0] and told[1] == "  added  new.mkv"
    assert counts(found)["train"] > before["train"]
    assert not again(max_clips=4)[1] and "with other settings" in told[0]
    next((into / "frames").rglob("*.png")).unlink()
    assert not again(max_clips=4)[1] and "1 of them are not as they were written" in told[0]
    shutil.rmtree(folder)
    assert again(max_clips=4)[1] and told[0].endswith("is gone")
    (into / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="manifest.json: expected JSON"):
        again()
    (into / "manifest.json").unlink()
    with pytest.raises(UserError, match="expected a folder of kept frames or nothing, found other files"):
        again()


def test_kept_frames_stay_once_rows_adapt_on_them(tmp_path):
    folder, into, lines = tmp_path / "videos", tmp_path / "run" / "own_video", []
    folder.mkdir()
    video_files.write(folder / "a.mkv", film(1, 30), **LOSSLESS)
    settings = IngestSettings((32, 48), length=3)
    first = ingest(folder, into, settings, lines.append)
    before = {path.name: path.read_bytes() for path in into.rglob("*.png")}
    # Clips that are longer than they have to be serve as well.
    assert ingest(folder, into, dataclasses.replace(settings, length=2), lines.append) == first
    (tmp_path / "run" / "stpl_plus" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match=r"max_clips was 1000, is 5\), and stpl_plus adapt.*another --workdir"):
        ingest(folder, into, dataclasses.replace(settings, max_clips=5), lines.append)
    video_files.write(folder / "b.mkv", film(2, 30), **LOSSLESS)
    assert ingest(folder, into, settings, lines.append) == first
    assert "WARNING" in lines[-1] and "1 added" in lines[-1]
    assert before == {path.name: path.read_bytes() for path in into.rglob("*.png")}


def test_the_same_folder_gives_the_same_clips(tmp_path):
    write_frames(tmp_path / "videos" / "a", film(1, 16))
    for name in ("one", "two"):
        ingest(tmp_path / "videos", tmp_path / name, IngestSettings(SIZE, max_clips=5), silent)
    assert read_manifest(tmp_path / "one") == read_manifest(tmp_path / "two")
    assert len(read_manifest(tmp_path / "one")["clips"]["train"]) == 5


@pytest.mark.parametrize("what", ["nothing", "a file", "an empty folder", "bad things", "the run's own folder"])
def test_without_anything_usable_all_is_said_at_once(tmp_path, what):
    folder, match = tmp_path / "videos", "nothing usable is in this folder"
    if what == "nothing":
        match = "expected a folder of videos and frames, found nothing of that name"
    elif what == "a file":
        folder.touch()
        match = "expected a folder of videos and frames, found a file"
    else:
        folder.mkdir()
    if what == "bad things":
        (folder / "a.mp4").write_text("no video")
        (folder / "b.txt").touch()
        write_frames(folder / "c", film(1, 1))
        match = r"nothing usable(.|\n)*left out: .*a.mp4: cannot be read(.|\n)*left out: c has one(.|\n)*image: b.txt"
    if what == "the run's own folder":
        match = "is the run's own folder"
    with pytest.raises(UserError, match=match):
        scan.scan(folder, silent, run_folder=folder if "own" in what else None)


def test_what_is_too_short_is_said_with_what_there_is(tmp_path):
    write_frames(tmp_path / "a", film(1, 5))
    with pytest.raises(UserError, match=r"too short(.|\n)*  a: 5 frames, .*longest run without a cut or gap has 5"):
        choose.choose(scan.scan(tmp_path, silent)[0])


def test_folders_that_cannot_be_listed_and_the_run_are_left_out(tmp_path, monkeypatch):
    for name in ("locked", "run", "a"):
        write_frames(tmp_path / name, film(1, 2))
    listdir = os.listdir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refuse)
    left_out = LeftOut()
    assert [one.name for one in look(tmp_path, left_out, tmp_path / "run")] == ["a"]
    assert left_out.lines() == [
        "left out, not readable (Permission denied): locked",
        "left out, the run's own folder: run",
    ]
    with pytest.raises(UserError, match="cannot be read"):
        look(tmp_path / "locked", left_out)


def test_hours_of_video_keep_a_few_frames_alive(tmp_path, monkeypatch):
    """Frames that are decoded are let go: at most two of them live, however many there are."""
    alive, most = weakref.WeakSet(), []
    wide = raw_trees.frame_pixels(0, (64, 96 + 200))

    class Pixels(np.ndarray):
        """An array that weak references can be made to."""

        __hash__ = object.__hash__

    def decode(path, losses):
        del path, losses
        for i in range(200):
            pixels = np.ascontiguousarray(wide[:, i : i + 96]).view(Pixels)
            alive.add(pixels)
            most.append(len(alive))
            yield video_decode.Shown(i, pixels, 0, i, 1)
            del pixels

    (tmp_path / "a.mp4").touch()
    monkeypatch.setattr(video_decode, "decode", decode)
    monkeypatch.setattr(video_decode, "look_at", lambda path: video_decode.Found((64, 96), 200, 10, ()))
    gc.collect()
    kept = ingest(tmp_path, tmp_path / "run" / "own_video", IngestSettings((32, 48), max_clips=20), silent)
    assert len(most) >= 380 and max(most) <= 3
    files = json.loads((kept.raw_dir / "manifest.json").read_text())["frames"]
    assert counts(kept) == {"train": 20, "val": 4} and len(files) <= 2 * 20 + 3 * 4 + 40
