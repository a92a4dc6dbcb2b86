"""What benchmarks share: turns, the machine's description, JSON."""

import json
import os
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import measure


def test_functions_take_turns_after_a_first_call_each():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in ("a", "b")}
    seconds = measure.alternate(functions, 3)
    assert calls == ["a", "b"] * 4
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


def test_seconds_are_those_of_each_function(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def takes(seconds):
        now[0] += seconds

    seconds = measure.alternate({"quick": lambda: takes(1), "slow": lambda: takes(5)}, 2)
    assert seconds == {"quick": [1, 1], "slow": [5, 5]}


def test_no_rounds_are_refused():
    with pytest.raises(ValueError, match="found 0"):
        measure.alternate({}, 0)


def test_machine():
    found = measure.machine()
    assert found["device"] == jax.devices()[0].device_kind
    assert 1 <= found["cores"] <= os.cpu_count()
    assert found["cpu"]
    assert found["versions"]["jax"] == jax.__version__
    assert found["versions"]["numpy"] == np.__version__


def git(folder, *arguments):
    identity = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.org")
    return subprocess.run(
        ("git", "-C", str(folder), *identity, *arguments), check=True, capture_output=True, text=True
    ).stdout.strip()


def test_commit_says_when_the_code_differs_from_it(tmp_path):
    git(tmp_path, "init", "-q")
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    (tmp_path / "code.py").write_text("1\n")
    (results / "loss.json").write_text("{}\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    head = git(tmp_path, "rev-parse", "HEAD")
    (results / "loss.json").write_text('{"new": 1}\n')
    assert measure.commit(tmp_path) == head
    (tmp_path / "code.py").write_text("2\n")
    assert measure.commit(tmp_path) == head + "+changes"


def test_no_checkout(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert measure.commit(tmp_path) == "unknown"


def test_results_name_their_machine(tmp_path):
    path = measure.write("speed", {"ratio": 0.5}, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "speed.json"
    content = json.loads(path.read_text())
    assert content["ratio"] == 0.5
    assert content["machine"] == json.loads(json.dumps(measure.machine()))
    # A result of another machine keeps that one's name.
    path = measure.write("speed", {"ratio": 0.5, "machine": {"device": "a TPU"}}, tmp_path)
    assert json.loads(path.read_text()) == {"ratio": 0.5, "machine": {"device": "a TPU"}}


def test_peak_memory_counts_what_a_function_gives_back(tmp_path, monkeypatch):
    # In a process of its own: one that has run other tests may hold as much free memory, and its peak stays.
    lines = ("import numpy as np", "from benchmarks import measure")
    call = "print([*measure.resident_memory(lambda: np.ones(2**26, np.uint8).sum())])"
    (tmp_path / "growing.py").write_text("\n".join((*lines, call)))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), str(Path(measure.__file__).parents[1]))))
    before, peak = measure.answer_of("growing")
    assert 0.8 * 2**26 < peak - before < 1.5 * 2**26


def test_a_module_answers_by_its_last_line(tmp_path, monkeypatch):
    (tmp_path / "answering.py").write_text("import sys\nprint('first')\nprint([int(sys.argv[1])])\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert measure.answer_of("answering", 3) == [3]
    with pytest.raises(RuntimeError, match="ValueError: .*'three'"):
        measure.answer_of("answering", "three")
