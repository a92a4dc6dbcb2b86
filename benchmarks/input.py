"""Clips per second and core: a prepared set through Grain, preparing, and a PyTorch DataLoader on raw frames.

    python -m benchmarks.input --workers=2

Writes made-up clips in Cityscapes-Seq's layout (1024×2048 PNG of about the real ones' size) and prepares them at
512×1024. Then these take turns, each with the same number of workers:

- `prepared`: `input_pipeline.loader` on the prepared set, as training reads it (threads, flow stored in the set);
- `preparing`: what preparing does to a clip's raw files: decode, resize, flow, encode. It is done once for each set;
- `DataLoader`: PyTorch's, on the raw files, as the field's code reads them in every epoch (`benchmarks.field_loader`).

A clip is two frames, with flow where the row says so, and no label. Clips per second go by the wall clock; clips per
second and core by processor seconds, so that other work on the machine changes them little. Files come from the page
cache: disks are not measured.
"""

import contextlib
import functools
import importlib.metadata
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

from benchmarks import field_loader, measure, performance, raw_frames
from input_pipeline import clips as clips_lib
from input_pipeline import loader, prepare
from input_pipeline.builders import base
from input_pipeline.datasets.cityscapes_seq import list_clips
from input_pipeline.ordered_map import ordered_map
from input_pipeline.spec import DatasetSpec

RAW_SIZE, SIZE = (1024, 2048), (512, 1024)
TARGET = 3.0
# A prepared clip is read so much faster that a turn of as many clips would be too short to time.
PREPARED_TIMES = 5
# Beside those that `measure.machine` tells.
LIBRARIES = ("grain", "tensorflow-datasets", "array_record", "opencv-python-headless", "pillow")
RATES = (10, 20, 40, 80, 160, 320, 640)
PREPARED, LOADER = "prepared", "DataLoader"
RATIOS = {"with flow": ("flow in the set", "flow in .npy"), "no flow": ("no flow", "no flow")}


def cores_needed(rate, rate_per_core):
    """Returns the whole number of cores that bring `rate` clips per second at `rate_per_core` each."""
    if not (rate > 0 and rate_per_core > 0):
        raise ValueError(f"Rates above 0 are expected, found {rate} clips/s at {rate_per_core} clips/s and core.")
    return math.ceil(rate / rate_per_core)


def make_spec(folder, size, **changes):
    """Returns the `DatasetSpec` of the raw files in `folder`; DIS estimates flow unless `changes` say otherwise."""
    spec = dict(name="cityscapes_seq", raw_dir=str(folder / "raw"), split="train", classes="viper", size=size)
    spec |= dict(label_size=size, offsets=(0, 1), flow_pairs=((0, 1),), flow_source="dis")
    return DatasetSpec(**spec | changes)


def time_prepared(source, workers, count, flow_pairs):
    """Times `count` clips of a prepared set through the loader; see `field_loader.timed`."""
    ahead = field_loader.lead_in_of(workers)
    stream = loader.train_batches(
        source,
        batch_size=1,
        seed=0,
        offsets=(0, 1),
        flow_pairs=flow_pairs,
        label=False,
        num_threads=workers,
        prefetch=ahead,
    )
    with contextlib.closing(stream):
        return field_loader.timed(stream, ahead, count)


def time_preparing(spec, raw_size, workers, count):
    """Times what preparing does to `count` clips, but for the checks beforehand and the writing of records."""
    endless = itertools.cycle(list_clips(spec))
    examples = ordered_map(lambda clip: base.make_example(clip, spec, raw_size), endless, max(1, workers))
    with contextlib.closing(examples):
        return field_loader.timed(examples, field_loader.lead_in_of(workers), count)


class FieldLoader:
    """`benchmarks.field_loader` as a process; a context.

    Args:
      clips: list of dicts, as `raw_frames.write_raw` returns it.
      size: (height, width) that frames are resized to.
      workers: worker processes.
      count: clips read in a turn.
    """

    def __init__(self, clips, size, workers, count):
        self._first = json.dumps({"clips": clips, "size": size, "workers": workers, "count": count})

    def __enter__(self):
        command = [sys.executable, "-m", "benchmarks.field_loader"]
        root = Path(__file__).parents[1]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, cwd=root
        )
        print(self._first, file=self._process.stdin)
        return self

    def __exit__(self, *error):
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()

    def turn(self):
        """Times one turn: dict of `seconds` and `cpu_seconds` for a clip."""
        # A process that has ended is noticed below.
        with contextlib.suppress(BrokenPipeError):
            print("", file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"benchmarks.field_loader ended ({self._process.wait()}); its error is printed above.")
        return json.loads(line)


def check_same(source, clips, size):
    """Checks that both sides read the same frames and flow: the first clip, bit by bit.

    Raises:
      ValueError: they differ.
    """
    ours = clips_lib.read_clip(source, 0, (0, 1), ((0, 1),), False)
    theirs = field_loader.RawClips(clips, size)[[clip["name"] for clip in clips].index(ours["name"])]
    frames = [frame[..., ::-1].astype(np.float32) - field_loader.MEAN for frame in ours["frames"]]
    flow = ours["flow"][0].astype(np.float32) / field_loader.FLOW_UNITS_PER_PIXEL
    same = all(np.array_equal(a.transpose(2, 0, 1), b.numpy()) for a, b in zip(frames, theirs["frames"], strict=True))
    if not same or not np.array_equal(flow, theirs["flow"].numpy()):
        raise ValueError(f"{source.path} and the raw files give different frames or flow for {ours['name']}.")


def take_turns(contenders, rounds):
    """Has each contender time itself in each round, one after the other.

    Args:
      contenders: {name: function that returns a dict of `seconds` and `cpu_seconds` for a clip}.
      rounds: number of rounds.

    Returns:
      {name: list of the dicts, one a round}.
    """
    turns = {name: [] for name in contenders}

    def turn(name):
        turns[name].append(contenders[name]())

    measure.alternate({name: functools.partial(turn, name) for name in contenders}, rounds)
    # A turn to warm up may have come first.
    return {name: values[-rounds:] for name, values in turns.items()}


def summarise(turns):
    """Turns times into rates.

    Args:
      turns: what `take_turns` returns.

    Returns:
      {name: dict of `clips_per_second`, `clips_per_second_and_core` and `cpu_ms_per_clip`}, medians over the rounds.
    """
    rows = {}
    for name, values in turns.items():
        cpu = statistics.median(value["cpu_seconds"] for value in values)
        rows[name] = {
            "clips_per_second": 1 / statistics.median(value["seconds"] for value in values),
            "clips_per_second_and_core": 1 / cpu,
            "cpu_ms_per_clip": 1e3 * cpu,
        }
    return rows


def ratios_of(turns):
    """Compares the prepared set with the DataLoader: for wall-clock and processor time, the median ratio of a round."""
    ratios = {}
    for kind, (ours, theirs) in RATIOS.items():
        pairs = list(zip(turns[f"{LOADER}, {theirs}"], turns[f"{PREPARED}, {ours}"], strict=True))
        ratios[kind] = {key: statistics.median(b[key] / a[key] for b, a in pairs) for key in ("seconds", "cpu_seconds")}
    return ratios


def run(folder, *, workers, clips, count, rounds, raw_size, size):
    """Writes the clips, prepares them and measures.

    Args:
      folder: empty folder.
      workers: threads or processes of each contender.
      clips: number of clips written.
      count: clips read in a turn, and five times that many prepared ones.
      rounds: turns of each contender.
      raw_size: (height, width) of the raw frames.
      size: (height, width) of the prepared frames.

    Returns:
      dict of settings, `rows`, `ratios`, `cores_needed`, and sizes in bytes.
    """
    # One thread for each worker: OpenCV would share a clip's work out over all cores.
    cv2.setNumThreads(1)
    raw = raw_frames.write_raw(folder / "raw", folder / "flow", clips, raw_size, size)
    spec = make_spec(folder, size)
    source = clips_lib.open_clips(prepare.prepare(spec, folder / "prepared", lambda line: None, max(1, workers)))
    check_same(source, raw, size)
    without = make_spec(folder, size, flow_pairs=())
    from_files = make_spec(folder, size, flow_source="precomputed", flow_dir=str(folder / "flow"))
    with (
        FieldLoader(raw, size, workers, count) as with_flow,
        FieldLoader([{**clip, "flow": None} for clip in raw], size, workers, count) as no_flow,
    ):
        contenders = {
            f"{PREPARED}, flow in the set": lambda: time_prepared(source, workers, PREPARED_TIMES * count, ((0, 1),)),
            f"{PREPARED}, no flow": lambda: time_prepared(source, workers, PREPARED_TIMES * count, ()),
            "preparing, flow by DIS": lambda: time_preparing(spec, raw_size, workers, count),
            "preparing, flow in .npy": lambda: time_preparing(from_files, raw_size, workers, count),
            "preparing, no flow": lambda: time_preparing(without, raw_size, workers, count),
            f"{LOADER}, flow in .npy": with_flow.turn,
            f"{LOADER}, no flow": no_flow.turn,
        }
        turns = take_turns(contenders, rounds)
    rows = summarise(turns)
    sizes = [os.path.getsize(path) for clip in raw for path in clip["frames"]]
    prepared_files = [path for path in source.path.iterdir() if "array_record" in path.name]
    return {
        "settings": {
            "workers": workers,
            "clips": clips,
            "clips_in_a_turn": count,
            "rounds": rounds,
            "raw_size": raw_size,
            "size": size,
        },
        "bytes": {
            "raw_frame": statistics.mean(sizes),
            "prepared_clip": sum(path.stat().st_size for path in prepared_files) / clips,
        },
        "rows": rows,
        "ratios": ratios_of(turns),
        "target_ratio": TARGET,
        "cores_needed": {
            name: {str(rate): cores_needed(rate, row["clips_per_second_and_core"]) for rate in RATES}
            for name, row in rows.items()
            if name.startswith((PREPARED, LOADER))
        },
    }


def main():
    """Measures, prints tables, writes JSON."""
    parser = measure.parser(__doc__)
    parser.add_argument("--workers", type=int, help="threads or processes of each; default: as many as cores")
    parser.add_argument("--clips", type=int, default=24, help="clips written")
    parser.add_argument("--count", type=int, default=48, help="clips read in a turn; five times that if prepared")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workdir", type=Path, help="where a temporary folder of 0.3 GB may be made")
    options = parser.parse_args()
    machine = measure.machine()
    machine["versions"] |= {name: importlib.metadata.version(name) for name in LIBRARIES}
    if options.workers is None:
        options.workers = machine["cores"]
    if min(options.workers, options.clips, options.count, options.rounds) < 1:
        parser.error("--workers, --clips, --count and --rounds have to be 1 or more")
    if options.workdir:
        options.workdir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.workdir) as folder:
        settings = {key: getattr(options, key) for key in ("workers", "clips", "count", "rounds")}
        result = run(Path(folder), **settings, raw_size=RAW_SIZE, size=SIZE)
    content = {"machine": machine, **result}
    print(performance.reading(content))
    print(measure.write("input", content, options.out))


if __name__ == "__main__":
    main()
