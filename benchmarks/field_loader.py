"""A PyTorch DataLoader that reads raw frames the way the field's code does, in a process of its own.

Clip by clip: PIL decodes and resizes (bicubic), numpy makes blue-green-red planes of float32 without the mean; flow
comes from `.npy` files. This is what the public code of DA-VSN and TPS does, written anew. `benchmarks.input` starts it
as a process: workers are then forked from a process that holds nothing but torch and PIL, as in that code.

The first line of standard input is JSON: `clips` (list of {name, frames, flow}: text, paths of x_t, x_{t-1}, …, and a
path or null), `size`, `workers`, `count`. Each further line has `count` clips read, and is answered by a line of JSON
with `seconds` and `cpu_seconds` for a clip.
"""

import itertools
import json
import multiprocessing
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils import data

MEAN = np.array([104.00698793, 116.66876762, 122.67891434], np.float32)  # blue, green, red
FLOW_UNITS_PER_PIXEL = 10


class RawClips(data.Dataset):
    """Clips straight from their owner's files.

    Args:
      clips: list of dicts: `name`, `frames` (paths, newest first), `flow` (path of an int16 `.npy`, or None).
      size: (height, width) that frames are resized to.
    """

    def __init__(self, clips, size):
        self._clips, self._size = clips, tuple(size)

    def __len__(self):
        return len(self._clips)

    def __getitem__(self, i):
        """Returns a dict: `name`, `frames` (list of `[3, H, W]` float32), with flow also `flow` `[H, W, 2]` float32."""
        clip = self._clips[i]
        item = {"name": clip["name"], "frames": [self._read_frame(path) for path in clip["frames"]]}
        if clip["flow"]:
            item["flow"] = torch.from_numpy(np.load(clip["flow"]).astype(np.float32) / FLOW_UNITS_PER_PIXEL)
        return item

    def _read_frame(self, path):
        with Image.open(path) as file:
            image = file.convert("RGB").resize(self._size[::-1], Image.Resampling.BICUBIC)
        pixels = np.asarray(image, np.float32)[:, :, ::-1] - MEAN
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def make_loader(clips, size, workers, count):
    """Returns a DataLoader: batches of one clip, shuffled, `count` clips in a pass; workers outlive a pass."""
    clips = RawClips(clips, size)
    sampler = data.RandomSampler(clips, num_samples=count)
    return data.DataLoader(clips, sampler=sampler, num_workers=workers, persistent_workers=workers > 0)


def cpu_seconds():
    """Returns the processor time of this process, its threads and its living multiprocessing children, in seconds."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        # Behind the name in brackets: state is field 3, time in user and in system mode are 14 and 15, in ticks.
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def timed(stream, lead_in, count):
    """Times a stream of clips once it runs steadily.

    Args:
      stream: iterator over single clips.
      lead_in: clips taken before the clock starts, as many as may be under way at once.
      count: clips timed.

    Returns:
      dict of `seconds` and `cpu_seconds` for a clip, means over the `count` clips.

    Raises:
      ValueError: the stream ends before.
    """
    for _ in itertools.islice(stream, lead_in):
        continue
    started, cpu = time.perf_counter(), cpu_seconds()
    taken = sum(1 for _ in itertools.islice(stream, count))
    seconds, cpu = time.perf_counter() - started, cpu_seconds() - cpu
    if taken != count:
        raise ValueError(f"The stream ended after {lead_in} + {taken} clips, {count} were to be timed.")
    return {"seconds": seconds / count, "cpu_seconds": cpu / count}


def lead_in_of(workers):
    """Returns the clips that a DataLoader has under way at once: it keeps two ahead for each worker."""
    return 2 * workers


def serve(lines, answer):
    """Answers every line after the first with the time that `count` clips take.

    Args:
      lines: iterator over lines, see above.
      answer: called with each answer, a line of JSON.
    """
    asked = json.loads(next(lines))
    torch.set_num_threads(1)
    lead_in = lead_in_of(asked["workers"])
    loader = make_loader(asked["clips"], asked["size"], asked["workers"], lead_in + asked["count"])
    for _ in lines:
        answer(json.dumps(timed(iter(loader), lead_in, asked["count"])))


def main():
    """Serves standard input until it is closed."""
    serve(iter(sys.stdin), lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
