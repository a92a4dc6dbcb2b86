"""Real video: a model of Cityscapes on CamVid's drives, every source-free row and control.

    python -m stpl_jax.convert espnet espnet_p_2_q_8.pth weights/espnet
    python -m benchmarks.real --camvid=CAMVID --source=weights/espnet
    python -m benchmarks.real --camvid=CAMVID --source=weights/espnet --drives Seq05VD --rows stpl_plus --seeds=1

docs/real_data.md says where CamVid is from, docs/weights.md the weights. Each drive is a target of its own: adapted on
its first half, scored on its second. Online rows see the second half alone: each frame is predicted, and learnt from
after that. Learning rates are those of configs/camvid.py, which `--tune` chose: the same tries for every row on
`CHOSEN_ON` alone, with a seed that the table does not use. That drive is shown apart.

Each drive and seed is one working directory, `<workdir>/<source>-<size>/<drive>/seed<N>`: a row that is done there is
not run again, and one that was stopped goes on. Then one of `CANDIDATES` is chosen without labels. Writes `real.md`,
`.csv` and `.json` (`--tune`: `real_tuning.md` and `.json`) into `--results`: those of the project for the whole table,
and the working directory for parts of it.
"""

import csv
import io
import json
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks import measure
from configs import camvid
from input_pipeline import run_folder
from input_pipeline.datasets import DATASETS
from input_pipeline.files import read_json, write_atomically
from stpl_jax.methods import METHODS

CONFIG = "configs/camvid.py"
DRIVES = ("0001TP", "0006R0", "0016E5", "0016E5_dense")
CHOSEN_ON, CHOSEN_WITH = "0006R0", 100
RATES = ("1e-5", "1e-4", "1e-3")
CONTROLS = ("source_only", "bn_statistics", "alpha_bn")
# Among these one is chosen without labels.
CANDIDATES = ("source_only", "alpha_bn_25", "alpha_bn", "alpha_bn_75", "bn_statistics", "blend", "stpl_plus")
ROWS = (*CONTROLS, "alpha_bn_25", "alpha_bn_75", "blend", "ubna", "cbna", *camvid.LEARNING_RATES)


def run_rows(workdir, drive, seed, rows, arguments, flags=()):
    """Adapts and scores the rows that are not done on one drive, one call of main.py for each.

    Args:
      workdir: the working directory of this drive and seed.
      drive: name of the drive.
      seed: of adaptation.
      rows: names of rows.
      arguments: of the command line: `camvid`, `source`, `workdir`.
      flags: further flags of main.py.

    Returns:
      row -> content of its `evaluation.json`; None for a row whose loss was no longer finite.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    cache = workdir / run_folder.COMPILATION_CACHE
    if not cache.exists():  # programs are the same for every drive and seed
        shared = arguments.workdir.absolute() / run_folder.COMPILATION_CACHE
        shared.mkdir(exist_ok=True)
        cache.symlink_to(shared)
    for row in rows:
        if run_folder.evaluation(workdir, row).is_file():
            continue
        command = [*_command(workdir, drive, seed, row, (), arguments), *flags]
        result = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        if result.returncode and "NonFiniteLoss" not in result.stderr:
            raise SystemExit(f"{' '.join(command)} failed:\n{result.stderr}")
    found = {row: run_folder.evaluation(workdir, row) for row in rows}
    records = {row: json.loads(path.read_text()) if path.is_file() else None for row, path in found.items()}
    for row, record in records.items():
        _check_rate(workdir, row, record, flags)
    return records


def _command(workdir, drive, seed, row, others, arguments):
    """main.py's command line for a row of one drive and seed, beside other rows."""
    return [
        *(sys.executable, "main.py", f"--config={CONFIG}", f"--workdir={workdir}", f"--config.seed={seed}"),
        *(f"--config.init_from={arguments.source}", f"--config.data.target.raw_dir={arguments.camvid}"),
        *(f"--config.data.target.drive={drive}", f"--config.method={row}", f"--config.compare_with={tuple(others)}"),
        *(f"--config.data.prepared_dir={arguments.workdir / drive / 'data'}", "--config.report.frames=0"),
    ]


def choose(workdir, drive, seed, records, arguments, flags=()):
    """Chooses among the candidates that are there, without labels, by `main.py --mode=select`.

    Args:
      workdir, drive, seed, arguments, flags: as `run_rows` takes them.
      records: row -> content of `evaluation.json`, or None.

    Returns:
      Name of the row that is chosen; None where there is nothing to choose from.
    """
    rows = [row for row in CANDIDATES if records.get(row)]
    if len(rows) < 2:
        return None
    path = workdir / run_folder.SELECTION
    found = read_json(path, "Remove it.")
    scored = max(run_folder.evaluation(workdir, row).stat().st_mtime_ns for row in rows)
    if found is None or set(found["agreement"]) != set(rows) or path.stat().st_mtime_ns < scored:
        *others, last = rows
        command = [*_command(workdir, drive, seed, last, others, arguments), "--mode=select", *flags]
        result = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        if result.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{result.stderr}")
        found = read_json(path, "Remove it.")
    return found["chosen"]


def check_same_inputs(arguments, flags):
    """Raises `SystemExit` where rows in the working directory are of another model, other frames or other settings."""
    now = {name: str(getattr(arguments, name).absolute()) for name in ("camvid", "source")} | {"flags": list(flags)}
    path = arguments.workdir / "inputs.json"
    before = read_json(path, "Use another --workdir.") or now
    if before != now:
        changed = "; ".join(f"{name}: was {before[name]}, is {now[name]}" for name in now if before[name] != now[name])
        raise SystemExit(f"{arguments.workdir} was begun with other inputs: {changed}. Use another --workdir.")
    write_atomically(path, json.dumps(now, indent=1))


def _check_rate(workdir, row, record, flags):
    """Raises `SystemExit` where a row was done with another rate than it has today."""
    key = "methods.cotta.learning_rate" if row == "cotta" else "optim.learning_rate"
    given = [flag.partition("=")[2] for flag in flags if flag.startswith(f"--config.rows.{row}.{key}=")]
    if record and row in camvid.LEARNING_RATES:
        wanted, done = float((given or [camvid.LEARNING_RATES[row]])[-1]), record["config"]
        for part in key.split("."):
            done = done[part]
        if done != wanted:
            raise SystemExit(
                f"{workdir / row} was done with a learning rate of {done:g}, and {wanted:g} is asked for: remove it, "
                "or use another --workdir."
            )


def summarise(runs, rows):
    """Averages each row over the seeds of each drive.

    Args:
      runs: drive -> seed -> row -> content of `evaluation.json`, or None.
      rows: names of rows.

    Returns:
      List of dicts, one a drive and row: `drive`, `row`, `miou`, one number a seed (None: diverged), `over` control ->
      differences to it on the same seed; means over seeds: `iou` class -> number, `temporal_consistency`, `seconds` of
      training (None: nothing was trained before scoring).
    """
    lines = []
    for drive, seeds in runs.items():
        for row in rows:
            found = [by_row[row] for by_row in seeds.values()]
            scores = [record["last"] for record in found if record]
            lines.append(
                {
                    "drive": drive,
                    "row": row,
                    "miou": [record and record["last"]["miou"] for record in found],
                    "over": {control: _differences(seeds.values(), row, control) for control in CONTROLS},
                    "iou": {
                        name: _mean(s["iou"][name] for s in scores) for name in (scores[0]["iou"] if scores else ())
                    },
                    "temporal_consistency": _mean(s["temporal_consistency"] for s in scores),
                    "seconds": _mean((r.get("seconds_per_step") or 0) * r["last"]["step"] or None for r in found if r),
                }
            )
    return lines


def regrets(runs, chosen):
    """Compares the rows that were chosen without labels with the best candidates.

    Args:
      runs: as `summarise` takes them.
      chosen: drive -> seed -> row, of `choose`.

    Returns:
      List of dicts, one a drive and seed: `drive`, `seed`, `chosen` and `best` (rows), `miou`, `regret`.
    """
    found = []
    for drive, seeds in runs.items():
        for seed, records in seeds.items():
            row, there = chosen[drive][seed], {r: records[r]["last"]["miou"] for r in CANDIDATES if records.get(r)}
            if row:
                best = max(there, key=there.get)
                regret = there[best] - there[row]
                found.append(dict(drive=drive, seed=seed, chosen=row, miou=there[row], best=best, regret=regret))
    return found


def regret_table(found):
    """Sets what `regrets` found as Markdown, a line for each drive."""
    lines = []
    for drive in dict.fromkeys(line["drive"] for line in found):
        here = [line for line in found if line["drive"] == drive]
        rows = (", ".join(dict.fromkeys(line[key] for line in here)) for key in ("chosen", "best"))
        each = [line["regret"] for line in here]
        lines.append((drive, *rows, _cell([line["miou"] for line in here]), _cell(each), f"{max(each):.1f}"))
    head = ("drive", "chosen", "best", "mIoU of the chosen", "regret", "worst regret")
    text = (
        f"One of {', '.join(CANDIDATES)}, chosen without labels by `--mode=select`; regret: the best of their mIoU on "
        "the same seed, less its own:"
    )
    return f"{text}\n\n{measure.markdown(head, lines)}"


def _differences(seeds, row, control):
    pairs = [(by_row[row], by_row.get(control)) for by_row in seeds]
    return [a["last"]["miou"] - b["last"]["miou"] if a and b else None for a, b in pairs]


def _mean(values):
    found = [value for value in values if value is not None]
    return statistics.mean(found) if found else None


def _cell(values, sign=""):
    """Mean and standard deviation of numbers; `diverged` where one is missing."""
    if None in values:
        return "diverged"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.1f}{spread}"


def markdown(lines, seeds, size, command, choices=()):
    """Sets the lines of `summarise`, and of `regrets`, as Markdown: mIoU by drive, differences, IoU by class."""
    rows, drives = (list(dict.fromkeys(line[key] for line in lines)) for key in ("row", "drive"))
    by_drive = {(line["drive"], line["row"]): line for line in lines}
    counted = [drive for drive in drives if drive != CHOSEN_ON]
    apart = [drive for drive in drives if drive == CHOSEN_ON]

    def over_drives(row, of):
        """One mean a seed over the drives that nothing was chosen on."""
        each = [of(by_drive[drive, row]) for drive in counted or drives]
        return [None if None in values else statistics.mean(values) for values in zip(*each, strict=True)]

    def line_of(row):
        lowest = [min(values) if None not in values else None for d in counted or drives
                  for values in [by_drive[d, row]["over"]["source_only"]]]  # fmt: skip
        seconds = _mean(by_drive[drive, row]["seconds"] for drive in counted or drives)
        return (
            f"{row} (online)" if online(row) else row,
            *(_cell(by_drive[drive, row]["miou"]) for drive in counted),
            _cell(over_drives(row, lambda line: line["miou"])),
            *(_cell(over_drives(row, lambda line, c=control: line["over"][c]), "+") for control in CONTROLS),
            "diverged" if None in lowest else f"{min(lowest):+.1f}",
            *(_cell(by_drive[drive, row]["miou"]) for drive in apart),
            "-" if seconds is None else f"{seconds:.0f}",
        )

    head = ("row", *counted, "mean", *(f"over {control}" for control in CONTROLS), "worst over source_only")
    head += (*(f"{drive} (rates chosen on it)" for drive in apart), "seconds")
    classes = list(next(line["iou"] for line in lines if line["iou"]))

    def by_class(row):
        cells = [by_drive[drive, row] for drive in counted or drives]
        if any(None in cell["miou"] for cell in cells):
            return (row, *["-"] * len(classes))
        means = [_mean(cell["iou"].get(name) for cell in cells) for name in classes]
        return (row, *("-" if mean is None else f"{mean:.1f}" for mean in means))

    text = [
        "# Real video: Cityscapes to CamVid",
        "mIoU of CamVid's 11 classes on the second half of each drive, adapted on the first (online rows: on the "
        f"second itself, each frame after it was predicted), at {size[0]}×{size[1]} (height × width); percent, mean ± "
        f"standard deviation over seeds {', '.join(map(str, seeds))}; last step. "
        + (f"Learning rates were chosen on {CHOSEN_ON} alone, which the means leave out. " if apart and counted else "")
        + "Differences are taken on the same drive and seed; the worst is that of all drives and seeds. Seconds: of "
        "training before scoring, without compilation, mean over drives.",
        measure.markdown(head, [line_of(row) for row in rows]),
        *([regret_table(choices)] if choices else []),
        f"IoU of each class, mean over {', '.join(counted or drives)}:",
        measure.markdown(("row", *classes), [by_class(row) for row in rows]),
        f"    {command}",
    ]
    return "\n\n".join(text) + "\n"


def comma_separated(lines, seeds):
    """Sets the lines as CSV: one for each drive, row and seed, IoU by class as means over seeds."""
    out = io.StringIO()
    classes = list(next(line["iou"] for line in lines if line["iou"]))
    writer = csv.writer(out)
    writer.writerow(["drive", "row", "seed", "miou", *(f"over {control}" for control in CONTROLS), *classes])
    for line in lines:
        for i, seed in enumerate(seeds):
            over = [line["over"][control][i] for control in CONTROLS]
            writer.writerow([line["drive"], line["row"], seed, line["miou"][i], *over, *map(line["iou"].get, classes)])
    return out.getvalue()


def online(row):
    """Whether a row adapts while it is scored."""
    return getattr(METHODS.get(row), "online", False)


def tune(arguments, flags):
    """Tries every rate for every row that learns on `CHOSEN_ON` and writes which was best."""
    scores = {}
    for rate in RATES:
        rates = [
            f"--config.rows.{row}.{'methods.cotta' if row == 'cotta' else 'optim'}.learning_rate={rate}"
            for row in camvid.LEARNING_RATES
        ]
        workdir = arguments.workdir / CHOSEN_ON / f"rate{rate}"
        found = run_rows(workdir, CHOSEN_ON, CHOSEN_WITH, list(camvid.LEARNING_RATES), arguments, (*rates, *flags))
        scores[rate] = {row: record and record["last"]["miou"] for row, record in found.items()}
    chosen = {row: max(RATES, key=lambda rate, row=row: scores[rate][row] or -1) for row in camvid.LEARNING_RATES}

    def cells(row):
        return ("diverged" if (miou := scores[rate][row]) is None else f"{miou:.1f}" for rate in RATES)

    table = measure.markdown(
        ("row", *RATES, "chosen"), [(row, *cells(row), chosen[row]) for row in camvid.LEARNING_RATES]
    )
    command = " ".join(["python -m benchmarks.real", *sys.argv[1:]])
    head = f"mIoU on the second half of {CHOSEN_ON}, seed {CHOSEN_WITH}, for each learning rate"
    write_atomically(arguments.results / "real_tuning.md", f"{head}\n\n{table}\n\n    {command}\n")
    content = {"command": command, "scores": scores, "chosen": chosen}
    write_atomically(arguments.results / "real_tuning.json", json.dumps(content, indent=1))
    print(table)


def main():
    """Runs what is missing and writes the table."""
    parser = measure.parser(__doc__, None)
    parser.add_argument(
        "--camvid", type=Path, required=True, help="CamVid, as its owners or the SegNet tutorial ship it"
    )
    parser.add_argument("--source", type=Path, required=True, help="checkpoint of a model of Cityscapes' classes")
    known = (*dict.fromkeys((*METHODS, *camvid.get_config().rows)),)
    parser.add_argument("--drives", nargs="+", choices=DATASETS["camvid"].drives, default=DRIVES)
    parser.add_argument("--rows", nargs="+", choices=known, metavar="ROW", default=ROWS, help="the controls are added")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 1 on")
    parser.add_argument("--size", type=int, nargs=2, default=(360, 480), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--tune", action="store_true", help="choose learning rates instead")
    parser.add_argument("--workdir", type=Path, default=Path("runs/real"))
    parser.add_argument("--results", type=Path, help="folder for results")
    arguments, flags = parser.parse_known_args()
    unknown = [flag for flag in flags if not flag.startswith("--config.")]
    if unknown:
        parser.error(f"unrecognised arguments: {' '.join(unknown)}")
    if arguments.seeds < 1:
        parser.error(f"--seeds: expected 1 or more, found {arguments.seeds}")
    flags.append(f"--config.data.target.size={tuple(arguments.size)}")
    part = flags[:-1] or (arguments.drives, arguments.rows, arguments.seeds) != (DRIVES, ROWS, 3)
    arguments.results = arguments.results or (arguments.workdir if part else measure.RESULTS)
    arguments.workdir = arguments.workdir / f"{arguments.source.name}-{arguments.size[0]}x{arguments.size[1]}"
    check_same_inputs(arguments, flags)
    if arguments.tune:
        tune(arguments, flags)
        return
    rows, seeds = tuple(dict.fromkeys((*CONTROLS, *arguments.rows))), range(1, arguments.seeds + 1)
    runs, chosen = ({drive: {} for drive in arguments.drives} for _ in range(2))
    for seed in seeds:  # a seed for all drives, and then the next: what is there is a table early on
        for drive in arguments.drives:
            workdir = arguments.workdir / drive / f"seed{seed}"
            runs[drive][seed] = run_rows(workdir, drive, seed, rows, arguments, flags)
            chosen[drive][seed] = choose(workdir, drive, seed, runs[drive][seed], arguments, flags)
    lines, choices = summarise(runs, rows), regrets(runs, chosen)
    command = " ".join(["python -m benchmarks.real", *sys.argv[1:]])
    text = markdown(lines, seeds, arguments.size, command, choices)
    content = {"command": command, "seeds": list(seeds), "size": list(arguments.size), "lines": lines}
    content["choices"] = choices
    measure.write("real", content, arguments.results)
    write_atomically(arguments.results / "real.csv", comma_separated(lines, seeds))
    write_atomically(arguments.results / "real.md", text)
    print(text)


if __name__ == "__main__":
    main()
