"""Tables over seeds: averages against numbers worked out by hand, and the three files' form."""

import csv
import io
import subprocess

import numpy as np
import pytest

from configs import synthetic
from experiments import tables, tune
from stpl_jax.methods import METHODS


def evaluation(miou, consistency=90.0, seconds=0.5):
    last = {"miou": miou, "temporal_consistency": consistency, "temporal_consistency_warped": consistency + 1}
    last["iou"] = {"road": miou + 1, "bus": None}
    return {"last": last, "best_on_validation": {"miou": miou + 2}, "seconds_per_step": seconds}


@pytest.fixture
def runs():
    """Two seeds: the gaps from source_only to oracle are 20 and 40 points wide."""
    mious = {1: (30, 40, 42, 45, 50), 2: (20, 30, 44, 50, 60)}
    names = ("source_only", "bn_statistics", "alpha_bn", "stpl", "oracle")
    return {s: {n: evaluation(m) for n, m in zip(names, values, strict=True)} for s, values in mious.items()}


ROWS = (
    tables.Row("source_only", "Source-only", 37.1),
    tables.Row("stpl", "STPL", 52.5),
    tables.Row("oracle", "Oracle"),
)


def test_averages_differences_and_shares(runs):
    source, stpl, oracle = tables.summarise(ROWS, runs)
    assert stpl["miou"] == {"mean": 47.5, "std": pytest.approx(np.sqrt(12.5)), "each": [45, 50]}
    assert stpl["over_source"]["each"] == [15, 30]
    assert stpl["over_control"]["each"] == [5, 20]
    assert stpl["over_blend"]["each"] == [3, 6]
    assert stpl["gap_closed"]["each"] == [75.0, 75.0]
    assert stpl["gap_closed"]["std"] == 0
    assert (source["gap_closed"]["mean"], oracle["gap_closed"]["mean"]) == (0, 100)
    assert stpl["best_on_validation"]["mean"] == 49.5
    assert stpl["iou"]["road"]["mean"] == 48.5
    assert stpl["iou"]["bus"] == {"mean": None, "std": None, "each": [None, None]}


def test_the_files_say_the_same(runs):
    lines = tables.summarise(ROWS, runs)
    text = tables.markdown(3, lines, (1, 2), "python -m experiments.tables --table=3")
    over = "+22.5 ± 10.6 | +12.5 ± 10.6 | +4.5 ± 2.1"
    assert f"| STPL | 52.5 | 47.5 ± 3.5 | 45.0 50.0 | 49.5 ± 3.5 | {over} | 75.0 ± 0.0 |" in text
    assert "| Oracle | - |" in text
    found = {(r["row"], r["score"]): r for r in csv.DictReader(io.StringIO(tables.comma_separated(lines)))}
    assert float(found["stpl", "miou"]["mean"]) == 47.5
    assert found["stpl", "iou/road"]["each"] == "46 51"


def test_temporal_consistency_that_was_not_measured_is_a_dash(runs):
    for rows in runs.values():
        rows["stpl"]["last"] |= {"temporal_consistency": None, "temporal_consistency_warped": None}
    lines = tables.summarise(ROWS, runs)
    assert lines[1]["temporal_consistency"] == {"mean": None, "std": None, "each": [None, None]}
    line = next(x for x in tables.markdown(3, lines, (1, 2), "").splitlines() if x.startswith("| STPL |"))
    assert "| 75.0 ± 0.0 | - | - |" in line
    assert list(csv.DictReader(io.StringIO(tables.comma_separated(lines))))


def test_our_row_is_compared_seed_by_seed(runs):
    for seed, miou in ((1, 47), (2, 49)):
        runs[seed][tables.OURS] = evaluation(miou)
    rows = (*ROWS, tables.Row(tables.OURS, "Ours"))
    source, stpl, _, ours = lines = tables.summarise(rows, runs)
    assert source["compared_above"]["each"] == [17, 29]
    assert stpl["compared_above"] == {"mean": 0.5, "std": pytest.approx(np.sqrt(4.5)), "each": [2, -1]}
    assert ours["compared_above"]["each"] == [0, 0]
    text = tables.markdown(6, lines, (1, 2), "")
    assert "| Ours: above it |" in text and "| +0.5 ± 2.1, positive in 1 of 2 |" in text
    assert "above it" not in tables.markdown(6, tables.summarise(ROWS, runs), (1, 2), "")
    assert tables.summarise(ROWS, runs)[1]["compared_above"]["each"] == [None, None], "only beside our own row"
    assert tables.summarise(rows, runs, "stpl")[0]["compared_above"]["each"] == [15, 30]


def test_tries_name_the_rate_with_the_best_mean():
    scores = {"1e-4": {100: {"ur": 30.0, "fda": 31.0}, 101: {"ur": 34.0, "fda": 33.0}}}
    scores["1e-2"] = {100: {"ur": 33.0, "fda": None}, 101: {"ur": 33.0, "fda": 40.0}}
    text, chosen = tune.table(scores, ("1e-4", "1e-2"))
    assert chosen == {"ur": "1e-2", "fda": "1e-4"}, "a rate that diverged once is never chosen"
    assert "| ur | 30.0 34.0 | 33.0 33.0 | 1e-2 |" in text
    assert "| fda | 31.0 33.0 | diverged 40.0 | 1e-4 |" in text


def test_a_missing_row_runs_main_once_with_all_rows(runs, tmp_path, monkeypatch):
    calls = []

    def run(command, check):
        assert check
        calls.append(command)
        for row in runs[1]:
            (tmp_path / row).mkdir(exist_ok=True)
            (tmp_path / row / "evaluation.json").write_text("{}")

    monkeypatch.setattr(subprocess, "run", run)
    rows = ("source_only", "bn_statistics", "stpl", "oracle")
    for _ in range(2):
        assert set(tables.run_seed("configs/synthetic.py", tmp_path, 5, rows)) == set(rows)
    (command,) = calls
    assert "--config.seed=5" in command
    assert "--config.method=stpl" in command
    assert "--config.compare_with=('source_only', 'bn_statistics', 'oracle')" in command


@pytest.mark.parametrize("number", tables.TABLES)
def test_every_row_exists_and_the_references_are_there(number):
    names = [row.name for row in tables.TABLES[number].rows]
    assert set(tables.REFERENCES) <= set(names)
    assert len(set(names)) == len(names)
    assert set(names) <= set(METHODS) | set(synthetic.get_config().rows)
