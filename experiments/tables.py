"""The paper's Tables 1-5 on the embedded benchmark: every row on every seed, beside the paper's figures.

Tables 6 to 9 are not in the paper. 6: every source-free row, and by how much `stpl_plus` is above it on the same seed.
7: STPL in bfloat16 beside float32. 8 and 9: mIoU against the share of the target's statistics, nothing trained, on both
versions of the generated worlds.

    python -m experiments.tables --table=3 --seeds=3
    python -m experiments.tables --table=3 --seeds=3 --first-seed=100 --results=runs/development

Each seed is a world of its own and one working directory, `<workdir>/<config>/seed<N>`, which tables share: a row that
is done there is not run again, and one that was stopped goes on. Writes `table<N>.md`, `.csv` and `.json`.
"""

import csv
import io
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks import measure
from input_pipeline import run_folder
from input_pipeline.files import write_atomically

OURS = "stpl_plus"
REFERENCES = ("source_only", "bn_statistics", "alpha_bn", "oracle")


@dataclass(frozen=True)
class Row:
    """A row: its name in `config.rows` or of a method, what the paper calls it, and the paper's figure (or None)."""

    name: str
    label: str
    paper: float | None = None


@dataclass(frozen=True)
class Table:
    """A table: configuration, rows, what the paper's figure is (a key of the scores), the row to compare with all."""

    title: str
    config: str
    rows: tuple[Row, ...]
    score: str = "miou"
    compared: str = OURS


def _comparison(source, fda, pixmatch, rda, ur, hcl, da_vsn, vat_vst, tps, starred, stpl, oracle):
    return (
        Row("source_only", "Source-only", source),
        *CONTROLS,
        Row("fda", "FDA (image, UDA)", fda),
        Row("pixmatch", "PixMatch (image, UDA)", pixmatch),
        Row("rda", "RDA (image, UDA)", rda),
        Row("ur", "UR (image, SFDA)", ur),
        Row("hcl", "HCL (image, SFDA)", hcl),
        Row("da_vsn", "DA-VSN (video, UDA)", da_vsn),
        Row("vat_vst", "VAT-VST (video, UDA)", vat_vst),
        Row("tps", "TPS (video, UDA)", tps),
        Row("da_vsn_free", "DA-VSN* (video, SFDA)", starred[0]),
        Row("vat_vst_free", "VAT-VST* (video, SFDA)", starred[1]),
        Row("tps_free", "TPS* (video, SFDA)", starred[2]),
        Row("tps_free_as_published", "TPS* with its public code's faults", starred[2]),
        Row("stpl", "STPL (video, SFDA)", stpl),
        Row(OURS, "STPL+, ours (video, SFDA)"),
        Row("oracle", "Oracle", oracle),
    )


SOURCE = Row("source_only", "Source-only", 37.1)
# Nothing is trained: the video's statistics, and half of them with half of the source model's.
CONTROLS = (Row("bn_statistics", "Batch statistics alone (control)"), Row("alpha_bn", "α-BN, α = 0.5 (control)"))
ORACLE = Row("oracle", "Oracle", 69.9)
SHARES = (
    Row("source_only", "Source-only"),
    Row("alpha_bn_25", "α-BN, α = 0.25"),
    Row("alpha_bn", "α-BN, α = 0.5"),
    Row("alpha_bn_75", "α-BN, α = 0.75"),
    Row("bn_statistics", "Batch statistics alone"),
    Row("blend", "Blend, its share chosen without labels"),
    Row("oracle", "Oracle"),
)
OBJECTIVES = (
    Row("self_training", "Vanilla self-training", 45.4),
    Row("duplicate", "Duplicate CL", 45.7),
    Row("temporal", "Temporal-only CL", 47.4),
    Row("spatial", "Spatial-only CL", 51.1),
    Row("naive", "Naïve T+S CL", 51.4),
)

TABLES = {
    1: Table(
        "VIPER → Cityscapes-Seq, mIoU",
        "configs/synthetic.py",
        _comparison(37.1, 44.4, 46.7, 44.4, 45.0, 41.5, 47.8, 48.7, 48.9, (45.3, 43.6, 27.8), 52.5, 69.9),
    ),
    2: Table(
        "SYNTHIA-Seq → Cityscapes-Seq, mIoU",
        "configs/synthetic_synthia.py",
        _comparison(38.3, 45.2, 51.0, 45.1, 41.9, 48.6, 49.5, 47.1, 53.8, (49.0, 49.0, 22.1), 51.8, 72.7),
    ),
    3: Table(
        "Objective functions, mIoU",
        "configs/synthetic.py",
        (
            SOURCE,
            *CONTROLS,
            *OBJECTIVES,
            Row("stpl", "STPL", 52.5),
            ORACLE,
        ),
    ),
    4: Table(
        "Fusion operations, mIoU",
        "configs/synthetic.py",
        (
            SOURCE,
            *CONTROLS,
            Row("stpl_add", "Element-wise addition", 51.4),
            Row("stpl_conv1x1", "1×1 convolution layer", 51.8),
            Row("stpl_concat", "Concatenation", 52.3),
            Row("stpl", "STAM", 52.5),
            ORACLE,
        ),
    ),
    5: Table(
        "Temporal consistency",
        "configs/synthetic.py",
        (
            Row("source_only", "Source-only", 72.93),
            *CONTROLS,
            Row("temporal", "Temporal-only CL", 75.84),
            Row("spatial", "Spatial-only CL", 77.68),
            Row("naive", "Naïve T+S CL", 80.91),
            Row("stpl", "STPL", 82.14),
            Row("oracle", "Oracle"),
        ),
        score="temporal_consistency",
    ),
    6: Table(
        "Source-free rows, mIoU",
        "configs/synthetic.py",
        (
            SOURCE,
            *CONTROLS,
            *OBJECTIVES,
            Row("stpl_add", "STPL, element-wise addition", 51.4),
            Row("stpl_conv1x1", "STPL, 1×1 convolution layer", 51.8),
            Row("stpl_concat", "STPL, concatenation", 52.3),
            Row("stpl_literal", "STPL to the letter"),
            Row("stpl_running", "STPL with the source's statistics"),
            Row("stpl", "STPL", 52.5),
            Row("ur", "UR", 45.0),
            Row("hcl", "HCL", 41.5),
            Row("da_vsn_free", "DA-VSN*", 45.3),
            Row("vat_vst_free", "VAT-VST*", 43.6),
            Row("tps_free", "TPS*", 27.8),
            Row("tps_free_as_published", "TPS* with its public code's faults", 27.8),
            Row(OURS, "STPL+, ours"),
            ORACLE,
        ),
    ),
    7: Table(
        "Precision, mIoU",
        "configs/synthetic.py",
        (
            Row("source_only", "Source-only"),
            *CONTROLS,
            Row("stpl", "STPL, float32"),
            Row("stpl_bfloat16", "STPL, bfloat16"),
            Row("oracle", "Oracle"),
        ),
        compared="stpl_bfloat16",
    ),
    8: Table("Share of the target's statistics, mIoU: worlds of version 1", "configs/synthetic.py", SHARES),
    9: Table("Share of the target's statistics, mIoU: worlds of version 2", "configs/synthetic_drive.py", SHARES),
}


def run_seed(config, workdir, seed, rows, flags=()):
    """Trains and scores the rows that are not done on one seed.

    Args:
      config: configuration file.
      workdir: the seed's working directory.
      seed: of the world and of training.
      rows: names of rows, with those of `REFERENCES`.
      flags: further flags of main.py.

    Returns:
      row -> content of its `evaluation.json`.
    """
    # The last row named is the one that the run's own report compares with source_only.
    *others, method = [row for row in rows if row != "oracle"]
    command = [sys.executable, "main.py", f"--config={config}", f"--workdir={workdir}", f"--config.seed={seed}"]
    command += [f"--config.method={method}", f"--config.compare_with={(*others, 'oracle')}", *flags]
    if any(not run_folder.evaluation(workdir, row).is_file() for row in rows):
        subprocess.run(command, check=True)
    return {row: json.loads(run_folder.evaluation(workdir, row).read_text()) for row in rows}


def summarise(rows, runs, compared=OURS):
    """Averages the rows over seeds.

    Args:
      rows: `Row`s.
      runs: seed -> row -> content of `evaluation.json`.
      compared: name of the row to compare with all.

    Returns:
      List of dicts, one a row: `row`, `label`, `paper`, and for each score `mean`, `std` and `each` over seeds: `miou`,
      `temporal_consistency`, `temporal_consistency_warped`, `best_on_validation`, `over_source`, `over_control`,
      `over_blend`, `gap_closed` (percent), `seconds_per_step`, `iou` (class -> the same); `compared_above`: by
      how much the row `compared` is above this one, if it is there.
    """
    lines, there = [], any(row.name == compared for row in rows)
    for row in rows:
        last = [runs[seed][row.name]["last"] for seed in runs]
        references = [{name: runs[seed][name]["last"]["miou"] for name in REFERENCES} for seed in runs]
        own = [scores["miou"] for scores in last]
        closed = [
            100 * (miou - r["source_only"]) / (r["oracle"] - r["source_only"])
            for miou, r in zip(own, references, strict=True)
        ]
        gains = [runs[s][compared]["last"]["miou"] - m if there else None for s, m in zip(runs, own, strict=True)]
        lines.append(
            {
                "row": row.name,
                "label": row.label,
                "paper": row.paper,
                "miou": _spread(own),
                "best_on_validation": _spread([runs[s][row.name]["best_on_validation"]["miou"] for s in runs]),
                "over_source": _spread([m - r["source_only"] for m, r in zip(own, references, strict=True)]),
                "over_control": _spread([m - r["bn_statistics"] for m, r in zip(own, references, strict=True)]),
                "over_blend": _spread([m - r["alpha_bn"] for m, r in zip(own, references, strict=True)]),
                "gap_closed": _spread(closed),
                "temporal_consistency": _spread([scores["temporal_consistency"] for scores in last]),
                "temporal_consistency_warped": _spread([scores["temporal_consistency_warped"] for scores in last]),
                "seconds_per_step": _spread([runs[s][row.name].get("seconds_per_step") for s in runs]),
                "compared_above": _spread(gains),
                "iou": {name: _spread([scores["iou"][name] for scores in last]) for name in last[0]["iou"]},
            }
        )
    return lines


def _spread(values):
    found = [value for value in values if value is not None]
    if not found:
        return {"mean": None, "std": None, "each": values}
    deviation = statistics.stdev(found) if len(found) > 1 else 0.0
    return {"mean": statistics.mean(found), "std": deviation, "each": values}


def markdown(number, lines, seeds, command):
    """Sets a table as Markdown: one line a row, then IoU by class."""

    table = TABLES[number]
    compared = next((line["label"] for line in lines if line["row"] == table.compared), None)

    def cell(spread, digits=1, sign=""):
        if spread["mean"] is None:
            return "-"
        return f"{spread['mean']:{sign}.{digits}f} ± {spread['std']:.{digits}f}"

    def above(line):
        gains = line["compared_above"]["each"]
        if line["row"] == table.compared or None in gains:
            return "-"
        return (
            f"{cell(line['compared_above'], sign='+')}, positive in {sum(gain > 0 for gain in gains)} of {len(gains)}"
        )

    score = ("temporal_consistency", "temporal consistency") if table.score != "miou" else ("miou", "mIoU")
    head = ("row", f"paper, {score[1]}", "mIoU", "each seed", "best on validation", "to source-only")
    head += (
        "to batch statistics",
        "to α-BN",
        "gap closed, %",
        "temporal consistency",
        "warped",
        "s/step",
        *([f"{compared}: above it"] if compared else []),
    )
    body = [
        (
            line["label"],
            "-" if line["paper"] is None else f"{line['paper']:g}",
            cell(line["miou"]),
            " ".join(f"{value:.1f}" for value in line["miou"]["each"]),
            cell(line["best_on_validation"]),
            cell(line["over_source"], sign="+"),
            cell(line["over_control"], sign="+"),
            cell(line["over_blend"], sign="+"),
            cell(line["gap_closed"]),
            cell(line["temporal_consistency"]),
            cell(line["temporal_consistency_warped"]),
            "-" if line["seconds_per_step"]["mean"] is None else f"{line['seconds_per_step']['mean']:.3f}",
            *([above(line)] if compared else []),
        )
        for line in lines
    ]
    classes = list(lines[0]["iou"])
    by_class = [(line["label"], *(_short(line["iou"][name]["mean"]) for name in classes)) for line in lines]
    parts = [
        f"# Table {number}: {table.title}",
        f"The embedded benchmark, seeds {', '.join(map(str, seeds))}, last step, percent, mean ± standard deviation "
        "over seeds. The paper's column is of the real sets: only orderings and signs can be compared with it.",
        measure.markdown(head, body),
        "IoU of each class, mean over seeds:",
        measure.markdown(("row", *classes), by_class),
        f"    {command}",
    ]
    return "\n\n".join(parts) + "\n"


def _short(value):
    return "-" if value is None else f"{value:.1f}"


def comma_separated(lines):
    """Sets the averages as CSV: one line for each row and score, IoU by class included."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["row", "score", "mean", "std", "each"])
    for line in lines:
        scores = {name: value for name, value in line.items() if isinstance(value, dict) and "mean" in value}
        scores |= {f"iou/{name}": value for name, value in line["iou"].items()}
        for name, value in scores.items():
            writer.writerow([line["row"], name, value["mean"], value["std"], " ".join(map(str, value["each"]))])
    return out.getvalue()


def main():
    """Runs what is missing and writes the tables."""
    parser = measure.parser(__doc__, None)
    parser.add_argument("--table", type=int, choices=TABLES, action="append", required=True, help="may be repeated")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from --first-seed on")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--config", type=Path, help="in place of the table's own")
    parser.add_argument("--workdir", type=Path, default=Path("runs/tables"))
    parser.add_argument("--results", type=Path, default=measure.RESULTS)
    arguments, flags = parser.parse_known_args()
    unknown = [flag for flag in flags if not flag.startswith("--config.")]
    if unknown:
        parser.error(f"unrecognised arguments: {' '.join(unknown)}")
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    for number in arguments.table:
        table = TABLES[number]
        config = arguments.config or Path(table.config)
        names = [row.name for row in table.rows]
        runs = {
            seed: run_seed(config, arguments.workdir / config.stem / f"seed{seed}", seed, names, flags)
            for seed in seeds
        }
        lines = summarise(table.rows, runs, table.compared)
        command = " ".join(["python -m experiments.tables", *sys.argv[1:]])
        text = markdown(number, lines, seeds, command)
        content = {"table": number, "seeds": list(seeds), "command": command, "rows": lines}
        write_atomically(arguments.results / f"table{number}.md", text)
        write_atomically(arguments.results / f"table{number}.csv", comma_separated(lines))
        write_atomically(arguments.results / f"table{number}.json", json.dumps(content, indent=1))
        print(text)


if __name__ == "__main__":
    main()
