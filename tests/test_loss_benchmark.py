"""The benchmark of the loss runs, on sizes that take no time, and says what it measured."""

import importlib.util
import json
import sys

import numpy as np
import pytest

from benchmarks import loss


def test_differences_are_relative_to_the_largest():
    assert loss.largest_difference(np.array([1.0, -3.0]), np.array([1.0, -4.0])) == 0.25


def run(monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["loss", *flags])
    loss.main()


def test_table_and_json(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loss, "CASES", (loss.Case(100, 8, clips=2, rounds=2), loss.Case(300, 8, clips=1, rounds=1)))
    run(monkeypatch, "--block=64", f"--out={tmp_path}")
    content = json.loads((tmp_path / "loss.json").read_text())
    small, large = content["forms"]
    assert (small["pixels"], small["clips"], large["pixels"], large["block"]) == (100, 2, 300, 64)
    for row in (small, large):
        assert set(row["seconds"]) == set(row["temporaries"]) == {"plain", "streamed"}
        assert 0 < row["difference_of_values"] < 1e-5 and 0 < row["difference_of_gradients"] < 1e-5
    assert large["temporaries"]["streamed"] < large["temporaries"]["plain"]
    assert content["machine"]["cores"] >= 1
    printed = capsys.readouterr().out
    cells = [line.split(" | ") for line in printed.splitlines() if line.startswith("| ")]
    assert len(cells) == 4 and len({len(row) for row in cells}) <= 2
    assert str(tmp_path / "loss.json") in printed


def test_a_topology_needs_its_compiler(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="requirements-tpu-compile.txt"):
        run(monkeypatch, "--topology=v5e:2x2", f"--out={tmp_path}")
    assert not list(tmp_path.iterdir())
