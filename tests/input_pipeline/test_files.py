"""Files written whole, and read with errors that name them."""

import errno
import os
from pathlib import Path

import pytest

from input_pipeline import files
from input_pipeline.errors import UserError, capped


def test_a_file_appears_whole_and_replaces_the_old_one(tmp_path):
    path = tmp_path / "new" / "a.json"
    files.write_atomically(path, "grüße")
    assert path.read_text(encoding="utf-8") == "grüße"
    files.write_atomically(path, b"\x00\x01")
    assert path.read_bytes() == b"\x00\x01"
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_files_are_as_readable_as_any_other(tmp_path):
    files.write_atomically(tmp_path / "ours", "x")
    (tmp_path / "plain").write_text("x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_what_was_there_survives_a_write_that_fails(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text("old")

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        files.write_atomically(path, "new")
    assert caught.value.filename == str(path)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file/a.json"):
        files.write_atomically(tmp_path / "file" / "a.json", "x")


@pytest.mark.parametrize(
    "content, found",
    [(b"", "an empty file"), (b'{"a": 1', "break early"), (b"\xff\xfe{", "break early"), (b"[1]", "found list")],
)
def test_damaged_json_names_file_and_remedy(tmp_path, content, found):
    path = tmp_path / "evaluation.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=found) as caught:
        files.read_json(path, "Delete it.")
    assert str(path) in str(caught.value) and str(caught.value).endswith("Delete it.")


def test_json_that_is_whole_or_not_there(tmp_path):
    assert files.read_json(tmp_path / "none.json", "") is None
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert files.read_json(tmp_path / "a.json", "", keys=("a",)) == {"a": 1}
    with pytest.raises(UserError, match="b, c is missing"):
        files.read_json(tmp_path / "a.json", "", keys=("a", "b", "c"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lines_of_text_in_any_unicode_form(tmp_path, encoding):
    path = tmp_path / "list.txt"
    path.write_bytes("straße_1\r\n\n  b \n".encode(encoding))
    assert files.read_text_lines(path, "list") == ["straße_1", "b"]


@pytest.mark.parametrize("content", [b"\xff\x00\x12", "ab".encode("utf-16-le")])
def test_lines_of_no_text_are_refused(tmp_path, content):
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(UserError, match="list.txt .* UTF-8"):
        files.read_text_lines(tmp_path / "list.txt", "data.source.list")


def test_paths_that_people_give(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert files.expand("~/a") == tmp_path / "a" == files.expand("a") == files.expand(Path("a"))
    assert files.expand("") == "" and files.expand(None) is None
    with pytest.raises(UserError, match="~nobody-of-that-name/a: there is no user"):
        files.expand("~nobody-of-that-name/a")


def test_long_lists_end_in_a_count():
    assert capped(["a", "b"], 2) == ["a", "b"]
    assert capped(["a", "b", "c", "d"], 2) == ["a", "b", "  ... and 2 more"]
