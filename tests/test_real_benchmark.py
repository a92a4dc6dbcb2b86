"""The benchmark of real video: means, differences and files, from scores made up; and what it asks main.py for."""

import csv
import io
import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import real
from configs import camvid
from stpl_jax.methods import METHODS

ROWS = ("source_only", "bn_statistics", "alpha_bn", "stpl")


def record(miou, seconds=0.5, step=20, rate=1e-4):
    scores = {"miou": miou, "iou": {"sky": miou + 1, "sign": None}, "temporal_consistency": 80.0, "step": step}
    return {"last": scores, "seconds_per_step": seconds, "config": {"optim": {"learning_rate": rate}}}


@pytest.fixture
def runs():
    """Two drives of two seeds, and the one that rates were chosen on."""
    mious = {"0001TP": ((20, 30, 40, 44), (20, 32, 38, 46)), "0016E5": ((30, 20, 36, 35), (30, 22, 36, 33))}
    mious["0006R0"] = ((40, 30, 45, 50), (40, 30, 45, 50))
    return {
        drive: {seed: {r: record(m) for r, m in zip(ROWS, values, strict=True)} for seed, values in enumerate(both, 1)}
        for drive, both in mious.items()
    }


def test_differences_are_taken_on_the_same_drive_and_seed(runs):
    lines = {(line["drive"], line["row"]): line for line in real.summarise(runs, ROWS)}
    stpl = lines["0001TP", "stpl"]
    assert stpl["miou"] == [44, 46]
    assert stpl["over"] == {"source_only": [24, 26], "bn_statistics": [14, 14], "alpha_bn": [4, 8]}
    assert stpl["iou"] == {"sky": 46, "sign": None} and stpl["temporal_consistency"] == 80
    assert stpl["seconds"] == 10


def test_the_drive_that_rates_were_chosen_on_stands_apart(runs):
    text = real.markdown(real.summarise(runs, ROWS), (1, 2), (360, 480), "command")
    line = next(x for x in text.splitlines() if x.startswith("| stpl |"))
    # Means of 44, 35 and of 46, 33; over source 24, 5 and 26, 3; over statistics 14, 15 and 14, 11; over
    # alpha 4, -1 and 8, -3. 20 steps of half a second.
    means = "45.0 ± 1.4 | 34.0 ± 1.4 | 39.5 ± 0.0 | +14.5 ± 0.0 | +13.5 ± 1.4 | +2.0 ± 0.7"
    assert line == f"| stpl | {means} | +3.0 | 50.0 ± 0.0 | 10 |"
    assert "| stpl | 40.5 | - |" in text, "IoU of sky, 45 and 46, 35 + 1 and 34, over the drives that count"
    assert "360×480 (height × width)" in text and "0006R0 (rates chosen on it)" in text


def test_a_row_that_diverged_is_said_to(runs):
    runs["0016E5"][2]["stpl"] = None
    lines = real.summarise(runs, ROWS)
    line = next(x for x in real.markdown(lines, (1, 2), (360, 480), "").splitlines() if x.startswith("| stpl |"))
    assert line.startswith("| stpl | 45.0 ± 1.4 | diverged | diverged | diverged |")
    assert "| stpl | - | - |" in real.markdown(lines, (1, 2), (360, 480), ""), "IoU of a part would say something else"
    found = list(csv.DictReader(io.StringIO(real.comma_separated(lines, (1, 2)))))
    cells = {(r["drive"], r["row"], r["seed"]): r for r in found}
    assert cells["0016E5", "stpl", "2"]["miou"] == "" and cells["0016E5", "stpl", "1"]["over alpha_bn"] == "-1"


@pytest.mark.parametrize("drives", [["0006R0"], ["Seq05VD"]])
def test_one_drive_alone(runs, drives):
    runs = {drives[0]: runs["0006R0"]}
    text = real.markdown(real.summarise(runs, ROWS), (1, 2), (360, 480), "")
    line = next(x for x in text.splitlines() if x.startswith("| stpl |"))
    assert "| 50.0 ± 0.0 |" in line and "+5.0 ± 0.0" in line
    assert "which the means leave out" not in text


def test_rows_are_run_one_by_one_and_once(tmp_path, monkeypatch):
    calls = []

    def run(command, stderr, text):
        calls.append(command)
        flags = dict(flag.removeprefix("--").split("=", 1) for flag in command[2:])
        folder = Path(flags["workdir"]) / flags["config.method"]
        if flags["config.method"] == "stpl":
            return SimpleNamespace(returncode=1, stderr="NonFiniteLoss: stpl, step 3: the loss is not finite")
        folder.mkdir(parents=True)
        (folder / "evaluation.json").write_text(json.dumps(record(30)))
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    arguments = SimpleNamespace(camvid=tmp_path / "camvid", source=tmp_path / "model", workdir=tmp_path / "runs")
    workdir = tmp_path / "runs" / "Seq05VD" / "seed2"
    for _ in range(2):
        found = real.run_rows(workdir, "Seq05VD", 2, ("source_only", "stpl"), arguments, ("--config.x=1",))
        assert found == {"source_only": record(30), "stpl": None}
    assert len(calls) == 3, "source_only was done the second time"
    assert {f"--config.init_from={arguments.source}", "--config.data.target.drive=Seq05VD", "--config.seed=2"} <= {
        *calls[0]
    }
    assert (workdir / "compilation_cache").resolve() == tmp_path / "runs" / "compilation_cache"
    monkeypatch.setattr(subprocess, "run", lambda *a, **b: SimpleNamespace(returncode=1, stderr="out of memory"))
    with pytest.raises(SystemExit, match="out of memory"):
        real.run_rows(workdir, "Seq05VD", 2, ("stpl",), arguments)


def test_one_of_the_candidates_is_chosen_once(tmp_path, monkeypatch):
    calls, answer = [], {"chosen": "alpha_bn", "agreement": {"source_only": 80.0, "alpha_bn": 90.0}}

    def run(command, stderr, text):
        calls.append(command)
        (workdir / "select.json").write_text(json.dumps(answer))
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    arguments = SimpleNamespace(camvid=tmp_path / "camvid", source=tmp_path / "model", workdir=tmp_path)
    workdir, records = tmp_path, {"source_only": record(30), "stpl": record(50), "blend": None, "alpha_bn": record(31)}
    for row in ("source_only", "alpha_bn", "blend"):
        (workdir / row).mkdir()
        (workdir / row / "evaluation.json").write_text("{}")
        os.utime(workdir / row / "evaluation.json", ns=(0, 0))
    for _ in range(2):
        assert real.choose(workdir, "0001TP", 1, records, arguments, ("--config.x=1",)) == "alpha_bn"
    (command,) = calls
    wanted = {"--mode=select", "--config.method=alpha_bn", "--config.compare_with=('source_only',)", "--config.x=1"}
    assert wanted <= set(command)
    answer["agreement"]["blend"] = 95.0
    real.choose(workdir, "0001TP", 1, records | {"blend": record(33)}, arguments)
    assert len(calls) == 2, "another candidate, another choice"
    os.utime(workdir / "blend" / "evaluation.json", ns=(2**62, 2**62))
    real.choose(workdir, "0001TP", 1, records | {"blend": record(33)}, arguments)
    assert len(calls) == 3, "a candidate was run anew"
    assert real.choose(workdir, "0001TP", 1, {"source_only": record(30), "stpl": record(50)}, arguments) is None
    monkeypatch.setattr(subprocess, "run", lambda *a, **b: SimpleNamespace(returncode=1, stderr="out of memory"))
    with pytest.raises(SystemExit, match="out of memory"):
        real.choose(workdir, "0001TP", 1, records, arguments)


def test_regret_is_taken_among_the_candidates(runs):
    chosen = {"0001TP": {1: "alpha_bn", 2: "source_only"}, "0016E5": {1: "alpha_bn", 2: "alpha_bn"}}
    chosen["0006R0"] = {1: None, 2: None}
    found = real.regrets(runs, chosen)
    # stpl, 44, is no candidate.
    assert [(line["drive"], line["seed"], line["best"], line["regret"]) for line in found] == [
        ("0001TP", 1, "alpha_bn", 0), ("0001TP", 2, "alpha_bn", 18), ("0016E5", 1, "alpha_bn", 0),
        ("0016E5", 2, "alpha_bn", 0),
    ]  # fmt: skip
    text = real.markdown(real.summarise(runs, ROWS), (1, 2), (360, 480), "", found)
    assert "| 0001TP | alpha_bn, source_only | alpha_bn | 30.0 ± 14.1 | 9.0 ± 12.7 | 18.0 |" in text
    assert "regret" not in real.markdown(real.summarise(runs, ROWS), (1, 2), (360, 480), "")


def test_every_row_exists_and_those_that_learn_have_a_rate():
    rows = camvid.get_config().rows
    assert set(real.CANDIDATES) <= set(real.ROWS)
    assert len(set(real.ROWS)) == len(real.ROWS) and set(real.ROWS) <= set(METHODS) | set(rows)
    assert set(camvid.LEARNING_RATES) <= set(real.ROWS)
    still = set(real.ROWS) - set(camvid.LEARNING_RATES)
    assert still == {*real.CONTROLS, "alpha_bn_25", "alpha_bn_75", "blend", "ubna", "cbna"}


def test_a_row_of_another_rate_is_not_taken_for_todays(tmp_path):
    arguments = SimpleNamespace(camvid=tmp_path / "camvid", source=tmp_path / "model", workdir=tmp_path / "runs")
    workdir = tmp_path / "runs" / "Seq05VD" / "seed2"
    (workdir / "stpl").mkdir(parents=True)
    (workdir / "stpl" / "evaluation.json").write_text(json.dumps(record(30, rate=0.7)))
    rate = "--config.rows.stpl.optim.learning_rate=0.7"
    assert real.run_rows(workdir, "Seq05VD", 2, ("stpl",), arguments, (rate,))["stpl"]
    with pytest.raises(SystemExit, match="stpl was done with a learning rate of 0.7, and"):
        real.run_rows(workdir, "Seq05VD", 2, ("stpl",), arguments)


def test_online_rows_are_marked():
    assert [row for row in real.ROWS if real.online(row)] == ["cbna", "tent", "cotta", "sar"]


def test_a_folder_of_other_inputs_is_refused(tmp_path):
    def arguments(source):
        return SimpleNamespace(camvid=tmp_path, source=tmp_path / source, workdir=tmp_path / "runs")

    for _ in range(2):
        real.check_same_inputs(arguments("espnet"), ["--config.steps=2"])
    with pytest.raises(SystemExit, match="source: was .*espnet, is .*other"):
        real.check_same_inputs(arguments("other"), ["--config.steps=2"])
    with pytest.raises(SystemExit, match=r"flags: was \['--config.steps=2'\], is \[\]. Use another --workdir"):
        real.check_same_inputs(arguments("espnet"), [])


@pytest.mark.parametrize(
    "flags, message", [(["--rows", "foo"], "invalid choice"), (["--seeds=0"], "1 or more, found 0")]
)
def test_wrong_arguments_are_refused_at_once(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.setattr("sys.argv", ["real", f"--camvid={tmp_path}", f"--source={tmp_path}", *flags])
    with pytest.raises(SystemExit):
        real.main()
    assert message in capsys.readouterr().err
