"""Averages finished runs that differ in their seed, as a Markdown table.

for s in 1 2 3; do python main.py --config=configs/synthetic.py --workdir=runs/s$s --config.seed=$s; done
python -m benchmarks.seeds runs/s1 runs/s2 runs/s3
"""

import argparse
import json
import statistics
from pathlib import Path


def table(reports):
    """Writes one line for each row of the runs: mean ± standard deviation over runs, percent.

    Args:
      reports: contents of the runs' `report.json`.

    Returns:
      Markdown.
    """
    rows = list(dict.fromkeys(row for report in reports for row in report["results"]))

    def cell(values, digits=1):
        values = [v for v in values if v is not None]
        if not values:
            return "-"
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        return f"{statistics.mean(values):.{digits}f} ± {spread:.{digits}f}"

    def share(report, row):
        results = report["results"]
        if not {"source_only", "oracle", row} <= results.keys() or row in ("source_only", "oracle"):
            return None
        low, high = results["source_only"]["miou"], results["oracle"]["miou"]
        return 100 * (results[row]["miou"] - low) / (high - low)

    lines = [
        "| row | mIoU | each run | share of the gap closed | temporal consistency | warped |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        found = [report for report in reports if row in report["results"]]
        results = [report["results"][row] for report in found]
        cells = (
            row,
            cell([r["miou"] for r in results]),
            " ".join(f"{r['miou']:.1f}" for r in results),
            cell([share(report, row) for report in found]),
            cell([r["temporal_consistency"] for r in results]),
            cell([r["temporal_consistency_warped"] for r in results]),
        )
        lines.append("| " + " | ".join(cells) + " |")
    beyond = [report["gap_closed_beyond_bn"] for report in reports]
    if None not in beyond:
        shares = " ".join(f"{100 * value:.1f}" for value in beyond)
        lines += [
            "",
            f"Share of what bn_statistics leaves of the gap that the method closes, each run, percent: {shares}.",
        ]
    return "\n".join(lines)


def main():
    """Prints the table of the working directories given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdirs", nargs="+", type=Path, help="working directories of finished runs")
    reports = []
    for workdir in parser.parse_args().workdirs:
        path = workdir / "report.json"
        if not path.is_file():
            parser.error(f"{path} is not there: expected the working directory of a finished --mode=auto run.")
        reports.append(json.loads(path.read_text()))
    print(table(reports))


if __name__ == "__main__":
    main()
