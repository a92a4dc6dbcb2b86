"""Sets the tables of docs/performance.md from the benchmarks' JSON files; the text between them is written by hand.

    python -m benchmarks.performance

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`; NAME is one of `TABLES`.
"""

import json
import statistics
from pathlib import Path

from benchmarks import measure
from benchmarks.measure import GIB, MIB, markdown
from input_pipeline.files import write_atomically

PAGE = measure.ROOT / "docs" / "performance.md"


def measured_on(content):
    """Says what a result was measured on."""
    machine = content["machine"]
    versions = ", ".join(
        f"{name} {machine['versions'][name]}" for name in ("jax", "libtpu", "torch") if name in machine["versions"]
    )
    device = "" if machine["device"] == "cpu" else f"{machine['device']}; "
    return f"{device}{machine['cpu']}, {machine['cores']} cores; {versions}; commit {machine['commit'][:7]}"


def each(table):
    """Makes of a table of one file a table of several, one under the other."""
    return lambda contents: "\n\n".join(table(content) for content in contents)


def loss(content):
    """The contrastive loss, streamed beside plain; of loss.json."""
    head = ("pixels", "D", "clips", "plain, ms", "streamed, ms", "time", "plain, MiB", "streamed, MiB", "memory")
    head += ("values differ by", "gradients differ by")
    rows = []
    for row in content["forms"]:
        seconds, size = row["seconds"], row["temporaries"]
        rows.append(
            [
                *(str(row[name]) for name in ("pixels", "dim", "clips")),
                *(f"{1e3 * seconds[name]:.1f}" for name in ("plain", "streamed")),
                f"× {row['time_ratio']:.2f}",
                *(f"{size[name] / MIB:.1f}" for name in ("plain", "streamed")),
                f"× {size['streamed'] / size['plain']:.3f}",
                *(f"{row[f'difference_of_{what}']:.0e}" for what in ("values", "gradients")),
            ]
        )
    parts = [f"{measured_on(content)}.", markdown(head, rows)]
    if "compiled" in content:
        found = content["compiled"]
        parts.append(
            f"Compiled for one {found['chip']} chip, {found['pixels']:,} pixels, D = {found['dim']}: "
            f"{found['temporaries'] / MIB:.0f} MiB of temporaries; the similarities alone would be "
            f"{4 * found['pixels'] ** 2 / GIB:.0f} GiB."
        )
    return "\n\n".join(parts)


def step(content):
    """The train step beside PyTorch's; of step_*.json."""
    rates, peak = content["rates"], content.get("peak_bytes", {})
    rows = [
        [
            name,
            f"{row['clips_per_second']:.2f}",
            f"{1e3 * statistics.median(row['seconds']):.1f}",
            f"{row['tflop_per_second']:.3f}",
            f"{row['share']:.0%}",
            f"{peak[name] / GIB:.2f}" if peak.get(name) else "-",
        ]
        for name, row in content["forms"].items()
    ]
    head = ("form", "clips/s", "ms/step", "TFLOP/s", "of the matmul rate", "peak memory, GiB")
    return "\n\n".join(
        [
            f"{measured_on(content)}. configs/{content['config']}.py, frames {'×'.join(map(str, content['size']))}, "
            f"{content['devices']} devices with {content['clips_per_device']} clips each, "
            f"{content['flop_per_clip'] / 1e9:.2f} GFLOP a clip, ours in {content['dtype']}. Measured rates: products "
            f"{rates['flop'] / 1e12:.3f} TFLOP/s, copies {rates['bytes'] / 1e9:.1f} GB/s.",
            markdown(head, rows),
            "Median of the rounds' ratios of time: "
            + ", ".join(f"{name} {ratio:.2f}" for name, ratio in content["ratios"].items())
            + ".",
            *(f"{name} did not run: {message}" for name, message in content["failed"].items()),
        ]
    )


def roofline(content):
    """Stages of the step, beside what arithmetic and bytes bound on each device; of step_*.json."""
    if "roofline" not in content:
        return f"{measured_on(content)}: stages not measured."
    rows = [
        [
            row["stage"] if row["whole"] or row["stage"] == "step" else f"- {row['stage']}",
            *(f"{1e3 * row[name]:.2f}" for name in ("seconds", "seconds_flop", "seconds_bytes")),
            f"{row['flop'] / 1e9:.3f}",
            f"{row['bytes'] / MIB:.0f}",
        ]
        for row in content["roofline"]
    ]
    whole = sum(row["seconds"] for row in content["roofline"] if row["whole"])
    rows.append(["sum of the stages", f"{1e3 * whole:.2f}", "", "", "", ""])
    head = ("stage", "ms", "ms, by arithmetic", "ms, by bytes", "GFLOP", "MiB")
    return "\n\n".join([f"{measured_on(content)}.", markdown(head, rows)])


COMPILED_HEAD = ("chips", "type", "remat", "clips a chip", "TFLOP/clip", "temporaries, GiB", "all in all, GiB")
COMPILED_HEAD += ("all-reduced, MiB", "all-reduce, ms", "of a step", "compiled in, s")


def compiled_row(content, found):
    """One program as cells below `COMPILED_HEAD`; `content` is that of compile_*.json, `found` one of its programs."""
    cells = [f"{content['topology']} ({content['chips']})", found["dtype"], found["remat"], str(found["clips"])]
    if "does_not_fit" in found:
        cells += ["", found["does_not_fit"], "", "", "", ""]
    else:
        links = found["scaling"]["corner_links"]
        cells += [
            f"{found['flops_per_clip'] / 1e12:.2f}",
            *(f"{found[name] / GIB:.2f}" for name in ("temporaries", "total")),
            f"{found['bytes_all_reduced'] / MIB:.0f}",
            f"{1e3 * links['all_reduce_seconds']:.2f}",
            f"{links['share_of_step']:.2%}",
        ]
    return [*cells, f"{found['seconds_to_compile']:.0f}"]


def compiled(contents):
    """What a step takes on chips that are not there; of compile_*.json."""
    # Few chips first, and the older kind.
    contents = sorted(contents, key=lambda content: (content["chips"], content["topology"]))
    rows = [compiled_row(content, found) for content in contents for found in content["programs"]]
    machines = dict.fromkeys(measured_on(content) for content in contents)
    return "\n\n".join([*(f"{machine}." for machine in machines), markdown(COMPILED_HEAD, rows)])


def reading(content):
    """Clips per second of the input pipeline; of input.json."""
    rows = [
        [
            name,
            *(f"{row[key]:.1f}" for key in ("clips_per_second", "clips_per_second_and_core", "cpu_ms_per_clip")),
        ]
        for name, row in content["rows"].items()
    ]
    cores = [[name, *map(str, needed.values())] for name, needed in content["cores_needed"].items()]
    rates = list(next(iter(content["cores_needed"].values())))
    ratios = "; ".join(
        f"{kind}: {ratio['seconds']:.1f} by wall clock, {ratio['cpu_seconds']:.1f} by processor time"
        for kind, ratio in content["ratios"].items()
    )
    return "\n\n".join(
        [
            f"{measured_on(content)}; {content['settings']['workers']} workers each.",
            markdown(("from", "clips/s", "clips/s and core", "processor ms/clip"), rows),
            f"Prepared by DataLoader, {ratios}. Cores that feed so many clips a second:",
            markdown(("from", *(f"{rate} clips/s" for rate in rates)), cores),
        ]
    )


def precision(content):
    """STPL in two types; of table7.json."""
    rows = [
        [
            row["label"],
            f"{row['miou']['mean']:.1f} ± {row['miou']['std']:.1f}",
            " ".join(f"{value:.2f}" for value in row["miou"]["each"]),
        ]
        for row in content["rows"]
        if row["row"].startswith("stpl")
    ]
    seeds = ", ".join(map(str, content["seeds"]))
    return markdown(("row", "mIoU", f"seeds {seeds}"), rows)


TABLES = {
    "loss": (each(loss), "loss.json"),
    "step": (each(step), "step_*.json"),
    "roofline": (each(roofline), "step_*.json"),
    "compiled": (compiled, "compile_*.json"),
    "input": (each(reading), "input.json"),
    "precision": (each(precision), "table7.json"),
}


def tables(folder):
    """Makes all tables.

    Args:
      folder: of the JSON files.

    Returns:
      name -> Markdown.

    Raises:
      FileNotFoundError: a file is not there; names the file.
    """
    found = {}
    for name, (function, pattern) in TABLES.items():
        contents = [json.loads(path.read_text()) for path in sorted(Path(folder).glob(pattern))]
        if not contents:
            raise FileNotFoundError(f"{folder} has no {pattern}: run the benchmark that writes it.")
        found[name] = function(contents)
    return found


def fill(page, found):
    """Puts tables in place of those that a page has.

    Args:
      page: Markdown with markers.
      found: name -> table.

    Returns:
      The page.

    Raises:
      ValueError: a table has no place, or two.
    """
    for name, table in found.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if page.count(start) != 1 or page.count(end) != 1:
            raise ValueError(
                f"The page has {start} and {end} {page.count(start)} and {page.count(end)} times, not once."
            )
        before, _, rest = page.partition(start)
        page = f"{before}{start}\n\n{table}\n\n{end}{rest.partition(end)[2]}"
    return page


def main():
    """Writes the page anew."""
    write_atomically(PAGE, fill(PAGE.read_text(), tables(measure.RESULTS)))
    print(PAGE)


if __name__ == "__main__":
    main()
