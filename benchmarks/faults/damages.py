"""Damaged files of a finished run: deleted, emptied, cut, a bit flipped, other bytes; then the run is used."""

import functools
import re
import shutil

from benchmarks.faults import results
from benchmarks.faults.bench import TIMEOUT
from benchmarks.faults.outcome import RIGHT, Outcome, classify, new_lines
from input_pipeline import run_folder

DAMAGES = ("deleted", "emptied", "cut in half", "one bit flipped", "replaced")
ACTIONS = ("repeat", "evaluate", "predict", "resume")


def cases(bench, count):
    """Returns name -> function that returns an `Outcome`.

    Every kind of file, every damage and every action is met about equally often: a kind is what files with other
    numbers and digests in their names share.

    Args:
      bench: `Bench`.
      count: of cases.
    """
    kinds = sorted(_by_kind(bench.reference))
    every = [(k, damage, action) for k in kinds for damage in DAMAGES for action in ACTIONS if _reads(action, k)]
    chosen = sorted(bench.random("damages").sample(every, min(count, len(every))))
    names = {f"{action}, {kind} {damage}": (kind, damage, action) for kind, damage, action in chosen}
    return {name: functools.partial(_damaged, bench, name, *what) for name, what in names.items()}


def _reads(action, kind):
    return action != "predict" or kind.startswith((run_folder.CONFIG, "stpl/", run_folder.COMPILATION_CACHE))


def flips(bench, count):
    """As `cases`: single bits in the newest checkpoint, then a prediction or a resumed run."""
    found = {}
    for i in range(count):
        action = ("predict", "resume")[i % 2]
        name = f"{action}, bit {i + 1}"
        found[name] = functools.partial(_damaged, bench, name, None, "one bit flipped", action)
    return found


def damage(path, how, draw):
    """Damages a file.

    Args:
      path: of the file.
      how: one of `DAMAGES`.
      draw: `random.Random`.
    """
    content = path.read_bytes()
    if how == "deleted":
        path.unlink()
    elif how == "emptied":
        path.write_bytes(b"")
    elif how == "cut in half":
        path.write_bytes(content[: len(content) // 2])
    elif how == "one bit flipped" and content:
        place = draw.randrange(len(content))
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :])
    elif how == "replaced":
        path.write_bytes(draw.randbytes(max(64, min(len(content), 4096))))


def is_named(path, run, output):
    """Whether an output names a file of a run, the checkpoint or prepared set that it is in, or its place in one."""

    def occurs(name):
        return re.search(rf"{re.escape(str(name))}(?![\w-])", output)

    parts = path.relative_to(run).parts
    folders = [run.joinpath(*parts[:n]) for n in range(2, len(parts))]
    whole = any(map(occurs, (path, *folders[1:])))
    return bool(whole or (any(map(occurs, folders)) and occurs("/".join(parts[-2:]))))


def _by_kind(run):
    """Returns kind -> paths relative to the run of its files."""
    found = {}
    for path in sorted(run.rglob("*")):
        if path.is_file():
            relative = str(path.relative_to(run))
            kind = re.sub(r"\d+", "N", re.sub(r"[0-9a-f]{8,}", "HASH", relative))
            # Generated videos hold the same kinds of files in many folders, and programs have many names.
            kind = re.sub(r"(?<=/)[a-z]+(/[a-z]+)_N_N", "CITY", kind)
            kind = re.sub(rf"^{run_folder.COMPILATION_CACHE}/.*", f"{run_folder.COMPILATION_CACHE}/PROGRAM", kind)
            found.setdefault(kind, []).append(relative)
    return found


def _begin(bench, action):
    bench.restore_halfway() if action == "resume" else bench.restore()


def _do(bench, action):
    """Returns (`Result`, what came out)."""
    output = bench.workdir / "predicted"
    flags = {"predict": (f"--input={bench.video()}", f"--output={output}")}.get(action, ())
    shutil.rmtree(output, ignore_errors=True)
    mode = action if action in ("evaluate", "predict") else "auto"
    result = bench.forks.run(*bench.flags(*flags, mode=mode), timeout=TIMEOUT)
    if action == "predict":
        return result, results.of_prediction(output)
    return result, results.of_training(bench.run) if action == "resume" else results.of_scores(bench.run)


def _undisturbed(bench, action):
    def done():
        _begin(bench, action)
        result, found = _do(bench, action)
        if result.code or (action == "resume" and results.differing(bench.trained(), found)):
            raise RuntimeError(f"{action} of an undamaged run fails: {result.output}")
        return result.output, found

    return bench.expected(f"damages/{action}", done)


def _damaged(bench, name, kind, how, action):
    draw, (usual, expected) = bench.random(name), _undisturbed(bench, action)
    _begin(bench, action)
    if kind is None:
        steps = sorted((bench.run / "stpl" / run_folder.CHECKPOINTS).glob("[0-9]*"), key=lambda p: int(p.name))
        files = [path for path in sorted(steps[-1].rglob("*")) if path.is_file() and path.stat().st_size]
        (path,) = draw.choices(files, [file.stat().st_size for file in files])
    else:
        files = [bench.run / name for name in _by_kind(bench.reference)[kind] if (bench.run / name).is_file()]
        if not files:
            return Outcome(RIGHT, "the file is not there yet")
        path = draw.choice(files)
    damage(path, how, draw)
    result, found = _do(bench, action)
    named = is_named(path, bench.run, new_lines(result.output, usual))
    outcome = classify(result, results.differing(expected, found), named)
    return Outcome(outcome.kind, f"{path.relative_to(bench.run)}: {outcome.detail}")
