"""The fault campaign: how it judges ends of runs, damages files and watches processes."""

import json
import random
import signal
import types

import pytest

from benchmarks.faults import __main__ as campaign
from benchmarks.faults import commands, damages, kills, outcome, product, results
from benchmarks.faults.outcome import Outcome, Result, classify

TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 1, in f\nKeyError: 3\n'


@pytest.mark.parametrize(
    ("code", "output", "differing", "named", "kind"),
    [
        (0, "report written\n", (), True, "right"),
        (0, "stpl/checkpoints/6 is damaged; taking 4\n", ("stpl/model",), True, "told"),
        (0, "report written\n", ("stpl/model",), False, "silently wrong"),
        (3, "30 of 31 frames\n", (), True, "right"),
        (3, "30 of 31 frames\n", ("film",), True, "told"),
        (1, "devices\nUserError: a.json: empty. Delete it.\n", (), True, "refused"),
        (1, "UserError: something is wrong\n", (), False, "not named"),
        (2, "usage: main.py\n", (), True, "refused"),
        (1, f"devices\n{TRACEBACK}", (), True, "stack trace"),
        (0, f"Exception in thread Thread-1:\n{TRACEBACK}report written\n", (), True, "stack trace"),
        (-11, "devices\n", (), True, "crashed"),
        (None, "devices\n", (), True, "hung"),
    ],
)
def test_an_end_is_called_what_it_is(code, output, differing, named, kind):
    assert classify(Result(code, output), differing, named).kind == kind


def test_the_detail_is_the_error():
    output = "devices\nBadFilesError: viper: 2 bad files:\n  a.png\n  b.png\n"
    assert classify(Result(1, output)) == Outcome("refused", "BadFilesError: viper: 2 bad files:")
    assert classify(Result(1, TRACEBACK)).detail == "KeyError: 3"
    assert classify(Result(1, "")).detail == ""


@pytest.mark.parametrize(
    ("code", "number", "outlived", "met", "kind"),
    [
        (-9, signal.SIGKILL, False, True, "right"),
        (-9, signal.SIGKILL, True, True, "left over"),
        (143, signal.SIGTERM, False, True, "right"),
        (130, signal.SIGINT, False, True, "right"),
        (-15, signal.SIGTERM, False, True, "crashed"),  # without a word
        (0, signal.SIGTERM, False, False, "right"),  # done before
        (0, signal.SIGTERM, False, True, "silently wrong"),  # ignored
        (1, signal.SIGTERM, False, True, "silently wrong"),  # for another reason
        (None, signal.SIGTERM, False, True, "hung"),
    ],
)
def test_the_end_after_a_signal(code, number, outlived, met, kind):
    assert kills.judge(Result(code, "stopped\n"), number, outlived, met).kind == kind


def test_phases_last_from_line_to_line():
    lines = [(1.0, "devices: cpu"), (4.0, "viper/train: checking"), (5.0, "source_only  step 1/6  loss 3")]
    lines += [(7.0, "stpl  step 1/6  loss"), (9.0, "stpl  step 6/6  loss"), (9.5, "stpl  mIoU 7 at the last step, 6")]
    lines += [(12.0, "report")]
    expected = [("world", 3.0), ("preparation", 1.0), ("pretraining", 2.0), ("adaptation", 2.0), ("evaluation", 0.5)]
    assert list(kills.durations(lines).items()) == [*expected, ("report", 2.5)]
    with pytest.raises(ValueError, match="begins the phase evaluation"):
        kills.durations([line for line in lines if "6/6" not in line[1]])


def test_what_a_run_says_beyond_the_usual():
    usual = "devices: 1\nstpl  goes on from step 4\n"
    output = "devices: 2\nwarning: stpl/checkpoints/4 is damaged\nstpl  goes on from step 2\n"
    assert outcome.new_lines(output, usual) == "warning: stpl/checkpoints/4 is damaged"


@pytest.mark.parametrize("how", damages.DAMAGES)
def test_damages(tmp_path, how):
    path, content = tmp_path / "file", bytes(range(100))
    path.write_bytes(content)
    damages.damage(path, how, random.Random(0))
    if how == "deleted":
        assert not path.exists()
        return
    found = path.read_bytes()
    if how == "one bit flipped":
        assert len(found) == 100
        assert sum(bin(a ^ b).count("1") for a, b in zip(content, found, strict=True)) == 1
    else:
        expected = {"emptied": b"", "cut in half": content[:50]}
        assert found == expected.get(how, found) and found != content


def test_a_file_is_named_by_its_path_or_its_checkpoint(tmp_path):
    file = tmp_path / "stpl/checkpoints/6/model/d/abc"
    for told, named in (
        (f"{file}: damaged", True),
        (f"{tmp_path}/stpl/checkpoints/6 is damaged", True),
        (f"{tmp_path}/stpl/checkpoints/64 is damaged", False),
        (f"{tmp_path}/stpl is done", False),
        (f"{tmp_path}/stpl/checkpoints has no whole one:\n  6: model/d/abc is cut", True),
        (f"{tmp_path}/stpl/checkpoints has no whole one:\n  6: model/d/xyz is cut", False),
        ("something is damaged", False),
    ):
        assert damages.is_named(file, tmp_path, told) == named, told


def test_kinds_of_files_and_what_reads_them(tmp_path):
    files = [
        "config.json",
        "stpl/checkpoints/4/model/d/0123456789abcdef",
        "stpl/checkpoints/6/model/d/fedcba9876543210",
    ]
    files += [
        "world/viper/train/img/001/001_00010.jpg",
        "compilation_cache/jit_a-cache",
        "compilation_cache/jit_b-cache",
    ]
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    bench = types.SimpleNamespace(reference=tmp_path, random=lambda name: random.Random(name))
    names = list(damages.cases(bench, 1000))
    # Four kinds, one of which predictions do not read.
    assert len(names) == 4 * 5 * 4 - 5 and "resume, stpl/checkpoints/N/model/d/HASH emptied" in names
    assert list(damages.cases(bench, 7)) == list(damages.cases(bench, 7)) and len(damages.cases(bench, 7)) == 7


def test_results_that_differ():
    assert results.differing({"a": 1, "b": [2], "c": 3}, {"a": 1, "b": [3], "d": 4}) == ["b", "c", "d"]


def test_a_campaign_counts_and_says_how_to_repeat(tmp_path):
    def broken():
        raise RuntimeError("of the campaign")

    lines = []
    cases = {"one": lambda: Outcome("right"), "it's two": lambda: Outcome("silently wrong", "differ: x"), "3": broken}
    outcomes = {"flips": campaign.run_cases(cases, lines.append)}
    assert [line.split(": ")[1].split("  ")[0] for line in lines] == ["right", "silently wrong", "stack trace"]
    (case, found, command), (broken_case, *_) = campaign.failures(outcomes, tmp_path, 3)
    assert (case, found.detail, broken_case) == ("flips: it's two", "differ: x", "flips: 3")
    assert command.startswith(f"python -m benchmarks.faults --workdir={tmp_path} --seed=3 '--case=flips: it'")
    head, _, line = outcome.table(outcomes).splitlines()
    counts = dict(zip(head.split(" | ")[1:], line.split(" | ")[1:], strict=True))
    assert counts["cases"] == "3" and counts["right"] == counts["silently wrong"] == counts["stack trace"] == "1"


# It leaves a process behind, unless it is told to end before.
LEAVING = """
import subprocess, sys, time
print("devices: none", flush=True)
if sys.argv[1] == "leave":
    print(subprocess.Popen(["sleep", "600"]).pid, flush=True)
else:
    time.sleep(600)
"""


def test_processes_are_watched(tmp_path, monkeypatch):
    (tmp_path / "main.py").write_text(LEAVING)
    monkeypatch.setattr(product, "ROOT", tmp_path)
    monkeypatch.setattr(product, "_SECONDS_TO_FOLLOW", 0.5)
    started = product.Started("stay")
    assert started.wait_for(kills.PHASES["world"].begins, 60)
    assert not started.wait_for(kills.PHASES["report"].begins, 0.1)
    assert started.send(signal.SIGTERM)
    assert started.end(60) == (Result(-signal.SIGTERM, "devices: none"), False)
    assert not started.send(signal.SIGTERM)
    result, outlived = product.Started("leave").end(60)
    assert result.code == 0 and outlived


def test_a_wrong_command_line_is_run_and_judged(tmp_path):
    run = tmp_path / "run"
    bench = types.SimpleNamespace(workdir=tmp_path, run=run, reference=tmp_path / "reference")
    bench.forks = product.Forks(tmp_path / "output.txt", imported=())
    bench.video, bench.restore, bench.clear = (lambda: run), (lambda names: None), (lambda: None)
    bench.flags = lambda: ("--config=benchmarks/faults/config.py", f"--workdir={run}", "--mode=auto")
    bench.random = lambda name: random.Random(name)
    cases = commands.cases(bench)
    assert len(cases) > 90 and len(commands.cases(bench, 5)) == 5
    found = cases["no such flag"]()
    assert found.kind == "refused" and "workdirs" in found.detail
    assert json.dumps(list(cases)) and not run.exists()
