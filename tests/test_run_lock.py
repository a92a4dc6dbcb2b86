"""Who may work in a run's folder."""

import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from stpl_jax import run_lock as module
from stpl_jax.run_lock import RunLocked, run_lock

HOLD = """
import sys, time
from stpl_jax.run_lock import run_lock
with run_lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def hold(workdir):
    """A process that holds the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(workdir)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_one_run_after_another(tmp_path):
    lines = []
    for _ in range(2):
        with run_lock(tmp_path / "new", lines.append):
            found = json.loads((tmp_path / "new" / "lock").read_text())
            assert (found["host"], found["process"]) == (socket.gethostname(), os.getpid())
    assert lines == [] and (tmp_path / "new" / "lock").read_text() == ""


def test_a_second_run_is_told_who_is_there_and_a_killed_one_is_no_obstacle(tmp_path):
    process = hold(tmp_path)
    try:
        with pytest.raises(RunLocked, match=f"process {process.pid} on {socket.gethostname()}.*--workdir"):
            run_lock(tmp_path).__enter__()
    finally:
        process.kill()
        process.wait()
    lines = []
    with run_lock(tmp_path, lines.append):
        pass
    assert len(lines) == 1 and f"process {process.pid}" in lines[0] and "taken over" in lines[0]


def leave(tmp_path, host="elsewhere", process=7):
    path = tmp_path / "lock"
    path.write_text(json.dumps({"host": host, "process": process, "since": "2020-01-01 00:00:00"}))
    return path


def test_another_hosts_lock_is_watched_for_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_WATCH_SECONDS", 2.0)
    path, ended = leave(tmp_path), threading.Event()

    def live():
        while not ended.wait(0.05):
            os.utime(path)

    thread = threading.Thread(target=live)
    thread.start()
    try:
        with pytest.raises(RunLocked, match="process 7 on elsewhere.*delete .*lock"):
            run_lock(tmp_path, lambda line: None).__enter__()
    finally:
        ended.set()
        thread.join()
    assert json.loads(path.read_text())["host"] == "elsewhere"


def test_another_hosts_lock_without_signs_of_life_is_stale(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_WATCH_SECONDS", 0.2)
    leave(tmp_path)
    lines = []
    with run_lock(tmp_path, lines.append):
        pass
    assert "watching" in lines[0] and "taken over" in lines[1]
    path = leave(tmp_path)
    os.utime(path, (time.time() - 90_000,) * 2)
    monkeypatch.setattr(module, "_WATCH_SECONDS", 1e9)
    with run_lock(tmp_path, lines.append):
        pass
    assert len(lines) == 3 and "taken over" in lines[2]


def test_file_systems_without_locks_fall_back_on_the_process(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_flock", lambda handle: None)
    leave(tmp_path, socket.gethostname(), os.getppid())
    with pytest.raises(RunLocked, match="in use by process"):
        run_lock(tmp_path).__enter__()
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    leave(tmp_path, socket.gethostname(), process.pid)
    with run_lock(tmp_path, lambda line: None):
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": 1}', "\0" * 9])
def test_a_lock_without_a_name_is_nobodys(tmp_path, content):
    (tmp_path / "lock").write_text(content)
    with run_lock(tmp_path):
        pass


def test_a_holder_shows_that_it_lives(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BEAT_SECONDS", 0.02)
    with run_lock(tmp_path):
        os.utime(tmp_path / "lock", (0, 0))
        deadline = time.monotonic() + 30
        while (tmp_path / "lock").stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        run_lock(tmp_path / "file" / "run").__enter__()
