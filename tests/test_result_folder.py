import json
from fractions import Fraction
from pathlib import Path

import pytest

from input_pipeline.errors import UserError
from input_pipeline.frames import FrameSource
from input_pipeline.video_packets import SourceError
from stpl_jax import result_folder

VIDEO = FrameSource(Path("/data/v.mp4"), (4, 4), None, Fraction(10))


def folder_of(*names):
    return FrameSource(Path("/data/in"), (4, 4), len(names), None, tuple((0, Path(f"/data/in/{n}.jpg")) for n in names))


def write_results(output, frames, names, complete=True):
    lines = []
    result_folder.prepare(output, frames, {"model": "m"}, lines.append)
    for folder in ("classes", "overlays"):
        (output / folder).mkdir(exist_ok=True)
        for name in names:
            (output / folder / f"{name}.png").write_text(str(frames.path))
    if complete:
        if frames.is_video:
            (output / "overlay.mp4").write_text(str(frames.path))
        result_folder.write_manifest(output, frames, {"model": "m"}, names, True)
    return lines


def files(output):
    return sorted(str(path.relative_to(output)) for path in output.rglob("*") if path.is_file())


def test_what_an_earlier_run_left_is_removed_and_said(tmp_path):
    assert write_results(tmp_path, VIDEO, ["000000", "000001", "000002"]) == []
    lines = write_results(tmp_path, folder_of("a", "000001"), ["a", "000001"])
    assert lines == ["predict  removed the 7 results of an earlier predict, of /data/v.mp4"]
    expected = [f"{folder}/{name}.png" for folder in ("classes", "overlays") for name in ("000001", "a")]
    assert files(tmp_path) == [*expected, "predict.json"]
    known = json.loads((tmp_path / "predict.json").read_text())
    assert known == {"model": "m", "input": "/data/in", "video": False, "complete": True, "names": ["a", "000001"]}


@pytest.mark.parametrize("frames", [VIDEO, folder_of("000000", "000001")])
def test_what_a_killed_run_left_is_removed(tmp_path, frames):
    write_results(tmp_path, frames, ["000000", "000001"], complete=False)
    unfinished = [tmp_path / ".overlay.x1.partial.mp4", tmp_path / "classes" / ".000002.x2.partial.png"]
    for path in unfinished:
        path.touch()
    (line,) = write_results(tmp_path, folder_of("b"), ["b"])
    assert "removed the 4 results" in line
    assert files(tmp_path) == ["classes/b.png", "overlays/b.png", "predict.json"]


def test_files_of_others_stay_and_are_named(tmp_path):
    write_results(tmp_path, folder_of("a"), ["a"])
    # A video that somebody made of the overlays is no result of ours.
    others = ["classes/mine.png", "overlay.mp4", "overlays/readme.txt", "readme.txt"]
    for name in others:
        (tmp_path / name).write_text("mine")
    lines = write_results(tmp_path, folder_of("b"), ["b"])
    assert "left alone" in lines[1] and all(name in lines[1] for name in others[:3])
    assert files(tmp_path) == sorted([*others, "classes/b.png", "overlays/b.png", "predict.json"])
    assert all((tmp_path / name).read_text() == "mine" for name in others)


@pytest.mark.parametrize(
    ("there", "frames"),
    [("classes/a.png", folder_of("a")), ("overlay.mp4", VIDEO), ("overlays/000007.png", VIDEO)],
)
def test_files_of_others_are_never_overwritten(tmp_path, there, frames):
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / there).write_text("mine")
    with pytest.raises(UserError, match=f"predict did not write(.|\n)*{there}"):
        write_results(tmp_path, frames, ["a"])
    assert files(tmp_path) == [there] and (tmp_path / there).read_text() == "mine"


def test_a_manifest_reaches_no_other_file(tmp_path):
    output = tmp_path / "out"
    write_results(output, folder_of("a"), ["a"])
    (tmp_path / "precious.png").write_text("mine")
    for names in (["../../precious", str(tmp_path / "precious"), 7, None, ""], 7, "ab"):
        manifest = {"input": "x", "video": True, "complete": False, "names": names}
        (output / "predict.json").write_text(json.dumps(manifest))
        result_folder.prepare(output, folder_of("b"), {}, lambda line: None)
    assert (tmp_path / "precious.png").is_file()
    for content in ('{"input": ', '{"other": 1}', "[]", ""):
        (output / "predict.json").write_text(content)
        with pytest.raises(UserError, match="predict.json: expected.*Remove it, or give another --output"):
            result_folder.prepare(output, folder_of("b"), {}, lambda line: None)


def test_results_never_replace_their_input(tmp_path):
    for place in ("classes", "overlays", "overlay.mp4", "overlays/a.png", "classes/deeper/v.mp4"):
        frames = FrameSource(tmp_path / place, (4, 4), None, Fraction(10))
        with pytest.raises(SourceError, match=f"{place} would be overwritten by its own results"):
            result_folder.prepare(tmp_path, frames, {}, lambda line: None)
    (tmp_path / "link").symlink_to(tmp_path)
    frames = FrameSource(tmp_path / "link" / "classes", (4, 4), 1, None)
    with pytest.raises(SourceError, match="would be overwritten"):
        result_folder.prepare(tmp_path, frames, {}, lambda line: None)
    assert files(tmp_path) == []


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is a file, and predict writes a folder"):
        result_folder.prepare(tmp_path / "file", VIDEO, {}, lambda line: None)
    (tmp_path / "classes").touch()
    with pytest.raises(UserError, match="classes is a file"):
        result_folder.prepare(tmp_path, VIDEO, {}, lambda line: None)
