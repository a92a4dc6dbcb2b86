"""Wrong command lines: each is to end with an error that names what is wrong, before long work."""

import dataclasses
import functools
import os
import shutil
from pathlib import Path

from benchmarks.faults.outcome import HUNG, RIGHT, WRONG, Outcome, classify

# The run has its data and compiled programs: what is accepted trains six steps of each row.
_SECONDS = 240

# Settings that make no sense; the error is to name the last part of the key.
_VALUES = Path(__file__).with_name("wrong_settings.txt").read_text().split()


@dataclasses.dataclass(frozen=True)
class Line:
    """A command line.

    Attributes:
      flags: what is given; `{folder}` is a folder with files that are not what they seem.
      names: what the error is to hold.
      fresh: in an empty folder, instead of one with data.
    """

    flags: tuple[str, ...]
    names: str
    fresh: bool = False


_VIPER = "--config=configs/viper.py"
_LINES = {
    "raw_dir is not set": Line((_VIPER,), "raw_dir", True),
    "raw_dir is not there": Line((_VIPER, "--config.data.source.raw_dir={folder}/nothing"), "{folder}/nothing", True),
    "raw_dir is a file": Line((_VIPER, "--config.data.source.raw_dir={folder}/text.mp4"), "{folder}/text.mp4", True),
    "raw_dir is empty": Line((_VIPER, "--config.data.source.raw_dir={folder}/empty"), "{folder}/empty", True),
    "a list that is not there": Line(("--config.data.source.list={folder}/nothing.txt",), "{folder}/nothing.txt", True),
    "a list in UTF-16": Line(("--config.data.source.list={folder}/list_utf16.txt",), "list_utf16.txt", True),
    "a list of other clips": Line(("--config.data.source.list={folder}/list.txt",), "list.txt", True),
    "no such mode": Line(("--mode=foo",), "mode"),
    "no such flag": Line(("--workdirs=x",), "workdirs"),
    "a stray argument": Line(("adapt",), "adapt"),
    "no such configuration": Line(("--config={folder}/nothing.py",), "{folder}/nothing.py"),
    "a configuration that is no Python": Line(("--config={folder}/text.mp4",), "text.mp4"),
    "a configuration without get_config": Line(("--config={folder}/empty.py",), "get_config"),
    "a working directory that is a file": Line(("--workdir={folder}/text.mp4",), "{folder}/text.mp4"),
    "a working directory nobody can write": Line(("--workdir=/proc/nothing",), "/proc/nothing"),
    "adapt without a source model": Line(("--mode=adapt",), "init_from", True),
    "evaluate nothing": Line(("--mode=evaluate",), "checkpoint", True),
    "analyse nothing": Line(("--mode=analyse",), "checkpoint", True),
    "analyse what is not there": Line(("--mode=analyse", "--checkpoints={folder}/nothing"), "{folder}/nothing"),
    "predict without input": Line(("--mode=predict", "--output={folder}/out"), "input"),
    "predict from nothing": Line(("--mode=predict", "--input={folder}/nothing", "--output={folder}/out"), "nothing"),
    "predict from no frames": Line(("--mode=predict", "--input={folder}/empty", "--output={folder}/out"), "empty"),
    "predict from text": Line(("--mode=predict", "--input={folder}/text.mp4", "--output={folder}/out"), "text.mp4"),
    "predict from a pipe": Line(("--mode=predict", "--input={folder}/pipe.mp4", "--output={folder}/out"), "pipe.mp4"),
    "predict into a file": Line(("--mode=predict", "--input={video}", "--output={folder}/text.mp4"), "text.mp4"),
    "predict where nobody can write": Line(("--mode=predict", "--input={video}", "--output=/proc/out"), "/proc/out"),
    "predict by no row": Line(("--mode=predict", "--input={video}", "--output={folder}/out", "--row=foo"), "foo"),
    "predict by a row that is not there, and weights": Line(
        ("--mode=predict", "--input={video}", "--output={folder}/out", "--row=oracle", "--config.init_from={run}"),
        "oracle",
    ),
    "half of a coordinator": Line(("--coordinator=localhost:1234",), "process_id"),
}


def cases(bench, count=None):
    """Returns name -> function that returns an `Outcome`: all, or `count` of them at random."""
    lines = {setting: Line((f"--config.{setting}",), _key(setting)) for setting in _VALUES} | _LINES
    found = {name: functools.partial(_wrong, bench, name, line) for name, line in lines.items()}
    found["~ is the home folder"] = functools.partial(_home, bench)
    chosen = sorted(bench.random("commands").sample(sorted(found), count)) if count and count < len(found) else found
    return {name: found[name] for name in chosen}


def _key(setting):
    return setting.partition("=")[0].rpartition(".")[2]


def make_folder(folder):
    """Writes files that are not what they seem."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "empty").mkdir(parents=True)
    (folder / "empty.py").write_text("")
    (folder / "text.mp4").write_text("This is no film, and no Python either.\n")
    (folder / "weights.pth").write_bytes(b"PK\x03\x04 as torch.save begins")
    (folder / "list.txt").write_text("999_99990\n")
    (folder / "list_utf16.txt").write_text("999_99990\n", encoding="utf-16")
    os.mkfifo(folder / "pipe.mp4")


def _wrong(bench, name, line):
    folder = bench.workdir / "strange"
    make_folder(folder)
    # Without a row that was begun, which would be a reason to refuse any other setting.
    bench.clear() if line.fresh else bench.restore(() if "--mode=predict" in line.flags else ("source_only", "stpl"))
    places = {"folder": folder, "run": bench.reference, "video": bench.video()}
    # Braces of settings are none of ours.
    flags = {_name(flag): flag for flag in (*bench.flags(), *(_filled(flag, places) for flag in line.flags))}
    result = bench.forks.run(*flags.values(), timeout=_SECONDS)
    told = _filled(line.names, places) in result.output
    outcome = classify(result, ("ran to its end",), told)
    if result.code == 0:
        return Outcome(WRONG, f"ran to its end: {result.last_line}")
    return Outcome(HUNG, "ran on") if result.code is None else outcome


def _name(flag):
    return flag.partition("=")[0]


def _filled(text, places):
    for name, place in places.items():
        text = text.replace(f"{{{name}}}", str(place))
    return text


def _home(bench):
    """`~` in a flag: the run is found there, and nothing is written to a folder of that name."""
    bench.restore()
    flags = list(bench.flags("--input=~/video", "--output=~/out", mode="predict"))
    flags[1] = "--workdir=~/run"
    home = bench.workdir / "home"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    (home / "run").symlink_to(bench.run)
    (home / "video").symlink_to(bench.video())
    result = bench.forks.run(*flags, timeout=_SECONDS, home=home)
    there = (home / "out").is_dir()
    outcome = classify(result, () if there else ("no output in the home folder",), named=False)
    return outcome if outcome.kind != RIGHT else Outcome(RIGHT, "")
