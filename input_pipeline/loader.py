"""Batches of clips: seed → shuffle → repeat → decode and augment → shard → batch, on Grain.

The stream of clips is a function of the seed alone. Position p of the stream has a fixed clip, mirrored and cropped in
a fixed way, whatever the number of threads, workers or processes. A global batch is n·B positions in a row, and process
i of n takes the i-th B of them. So the devices, which share a process's clips out in the same way, get the same clips
whether they belong to one process or to many, and a position is all that has to be saved.
"""

import functools
import itertools

import cv2
import grain
import numpy as np
from absl import flags

from input_pipeline import clips
from input_pipeline.errors import UserError
from input_pipeline.workers import serve_parent, without_interrupts


class _Clips:
    """Random access to decoded clips, as Grain wants its sources."""

    def __init__(self, source, offsets, flow_pairs, label):
        self._source, self._wanted = source, (tuple(offsets), tuple(flow_pairs), bool(label))

    def __len__(self):
        return len(self._source)

    def __getitem__(self, i):
        return clips.read_clip(self._source, int(i), *self._wanted)


def mirror(clip):
    """Mirrors a clip left to right; its flow is mirrored and u changes sign.

    Args:
      clip: dict as `read_clip` returns it.

    Returns:
      A new dict of the same form.
    """
    flow = _flip(clip["flow"])
    np.negative(flow[..., 0], out=flow[..., 0])
    mirrored = {**clip, "frames": _flip(clip["frames"]), "flow": flow}
    if "label" in clip:
        mirrored["label"] = cv2.flip(clip["label"], 1)
    return mirrored


def _flip(images):
    # OpenCV flips in vector registers; a numpy view with a negative stride costs ten times that when it is copied.
    flipped = np.empty_like(images)
    for image, out in zip(images, flipped, strict=True):
        cv2.flip(image, 1, dst=out)
    return flipped


def crop_clip(clip, top, left, size):
    """Cuts one window out of a clip's frames, flow and label. Flow values stay as they are: they are in pixels.

    Args:
      clip: dict as `read_clip` returns it; a label has the frames' size.
      top: first row.
      left: first column.
      size: (height, width) of the window.

    Returns:
      A new dict of the same form.
    """
    rows, columns = slice(top, top + size[0]), slice(left, left + size[1])
    cut = {**clip, "frames": clip["frames"][:, rows, columns], "flow": clip["flow"][:, rows, columns]}
    if "label" in clip:
        cut["label"] = clip["label"][rows, columns]
    return cut


def _augment(clip, rng, *, flip, crop):
    # All numbers are drawn whether used or not, so that switching the flip on leaves the crops as they were.
    flipped = rng.random() < 0.5
    place = rng.random(2)
    if flip and flipped:
        clip = mirror(clip)
    if crop is not None:
        height, width = clip["frames"].shape[1:3]
        top, left = (int(u * (n + 1)) for u, n in zip(place, (height - crop[0], width - crop[1]), strict=True))
        clip = crop_clip(clip, top, left, crop)
    return clip


def _stack(batch):
    stacked = {key: np.stack([clip[key] for clip in batch]) for key in batch[0] if key != "name"}
    return {**stacked, "name": [clip["name"] for clip in batch]}


def train_batches(
    source,
    *,
    batch_size,
    seed,
    offsets,
    flow_pairs,
    label,
    num_threads,
    prefetch,
    flip=False,
    crop=None,
    num_workers=0,
    shard=(0, 1),
    state=None,
):
    """Iterates over training batches, endlessly, reshuffled each epoch.

    Args:
      source: `ClipSource`.
      batch_size: clips in a batch of this process, B.
      seed: seed of order, mirroring and cropping, 0 to 2**32 - 1.
      offsets: frame offsets, newest first, T of them.
      flow_pairs: pairs (a, b), P of them.
      label: whether labels are wanted.
      num_threads: threads that read and decode (in each worker); 0 reads in the caller's thread.
      prefetch: clips that are read ahead (in each worker); 0 reads none ahead.
      flip: mirrors half the clips, chosen at random.
      crop: (h, w) of a random window, or None.
      num_workers: worker processes; 0 uses threads only. OpenCV decodes without the GIL, so threads mostly suffice.
      shard: (index, count) of this process.
      state: position to go on from, as an earlier iterator returned it; None starts anew. The number of threads,
        workers and processes may differ from then.

    Returns:
      An iterator over (batch, state); `close()` ends its threads and workers. `state` is a dict that JSON can hold;
      passed back, it continues with the batch after this one. batch is a dict of `frames` `[B, T, H, W, 3]` uint8 RGB,
      `flow` `[B, P, H, W, 2]` int16 (ten times the value in pixels), `label` `[B, H, W]` uint8 (only where asked),
      `index` `[B]` int32 and `name`, a list of B str.

    Raises:
      UserError: the set does not hold what is asked for, a number makes no sense, `state` is another stream's, or a
        worker was ended from outside.
    """
    source.check(offsets, flow_pairs, label)
    _check_numbers(source, batch_size, shard, num_threads)
    check_crop(source.spec, crop, label)
    for key, number in (("prefetch", prefetch), ("num_workers", num_workers)):
        if number < 0:
            raise UserError(f"{key}: expected 0 or more, found {number}.")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed: expected 0 to 2**32 - 1, found {seed}.")
    stream = {"seed": int(seed), "clips": len(source)}
    position = _position(state, stream)
    index, count = shard
    data = grain.MapDataset.source(_Clips(source, offsets, flow_pairs, label)).seed(seed).shuffle().repeat()
    # Augmenting before sharding ties the random numbers to the position in the whole stream.
    data = data.random_map(functools.partial(_augment, flip=flip, crop=None if crop is None else tuple(crop)))
    data = _share(data[position:], batch_size, index, count).to_iter_dataset(_read_options(num_threads, prefetch))
    if num_workers:
        if not flags.FLAGS.is_parsed():
            # Grain hands its flags to the workers; where no absl app has parsed them, their defaults do.
            flags.FLAGS.mark_as_parsed()
        processes = grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=max(1, prefetch))
        data = data.mp_prefetch(processes, worker_init_fn=serve_parent)
    # Batching comes after the workers: their number then cannot change which clips meet in a batch.
    batches = data.batch(batch_size, batch_fn=_stack)
    return _with_state(batches, stream, position, batch_size * count, starts_processes=num_workers > 0)


def _share(data, batch_size, index, count):
    """Leaves of each `count * batch_size` elements in a row the `index`-th `batch_size`."""
    if count == 1:
        return data
    place = functools.partial(_place, data, batch_size, index, count)
    return grain.MapDataset.range(len(data) // count).map(place)


def _place(data, batch_size, index, count, i):
    batch, within = divmod(i, batch_size)
    return data[(batch * count + index) * batch_size + within]


def _with_state(data, stream, position, step, starts_processes):
    # Processes are started by the iterator, or with the first batch.
    iterator = without_interrupts(iter, data) if starts_processes else iter(data)
    try:
        first = (without_interrupts(next, iterator),) if starts_processes else ()
        for batch in itertools.chain(first, iterator):
            position += step
            yield batch, {**stream, "position": position}
    except RuntimeError as error:
        if "terminated unexpectedly" not in str(error):  # Grain's words
            raise
        raise UserError(
            "A decoding process was ended from outside, as happens where memory runs out. Start again; fewer "
            "processes, or none, need less of it: --config.data.workers=0."
        ) from error
    finally:
        iterator.close()


def _position(state, stream):
    if state is None:
        return 0
    found = {key: state.get(key) for key in stream}
    if found != stream or state.get("position", -1) < 0:
        raise UserError(f"Data position {state} does not belong to this stream ({stream}): other seed or other data.")
    return state["position"]


def _read_options(num_threads, prefetch):
    return grain.ReadOptions(
        num_threads=num_threads, prefetch_buffer_size=max(prefetch, num_threads) if prefetch else 0
    )


def _check_numbers(source, batch_size, shard, num_threads):
    index, count = shard
    if batch_size < 1:
        raise UserError(f"batch_size: expected 1 or more, found {batch_size}.")
    if not 0 <= index < count:
        raise UserError(f"shard: expected (index, count) with 0 <= index < count, found {shard}.")
    if num_threads < 0:
        raise UserError(f"num_threads: expected 0 or more, found {num_threads}.")
    if len(source) == 0:
        raise UserError(f"{source.path}: the set holds no clips.")


def check_crop(spec, crop, label):
    """Checks that a window can be cut out of a set's clips.

    Args:
      spec: `DatasetSpec`.
      crop: (height, width) of the window, or None.
      label: whether labels are wanted.

    Raises:
      UserError: it is larger than the frames, or labels have another size than these.
    """
    if crop is None:
        return
    size, label_size = spec.size, spec.label_size
    if not (0 < crop[0] <= size[0] and 0 < crop[1] <= size[1]):
        raise UserError(f"crop: expected a window within the frames' {size}, found {tuple(crop)}.")
    if label and label_size != size:
        raise UserError(
            f"crop: labels have to be prepared at the frames' size {size} to be cropped with them, found label_size="
            f"{label_size}. Set DatasetSpec.label_size and prepare the set again."
        )


def eval_batches(source, *, batch_size, offsets, flow_pairs, num_threads, shard=(0, 1), label=True, masks=None):
    """Iterates once over all clips, or those that have masks, in order.

    Process i of n takes the clips i, i + n, …; every process gets the same number of batches, filled up by repeating
    the set's last clip.

    Args:
      source: `ClipSource`.
      batch_size: clips in a batch of this process, B.
      offsets: frame offsets, newest first, T of them.
      flow_pairs: pairs (a, b), P of them.
      num_threads: threads that read and decode; 0 reads in the caller's thread.
      shard: (index, count) of this process.
      label: whether the set's labels are wanted.
      masks: {index of a clip: `[HL, WL]` uint8}, labels that the set does not hold; None for all clips.

    Returns:
      An iterator over batches as in `train_batches`, with `label` `[B, HL, WL]` and `valid` `[B]` bool, False where a
      clip only fills up the batch. `close()` ends its threads.

    Raises:
      UserError: the set does not hold what is asked for, or a number makes no sense.
    """
    source.check(offsets, flow_pairs, label)
    _check_numbers(source, batch_size, shard, num_threads)
    index, count = shard
    chosen = range(len(source)) if masks is None else sorted(masks)
    total = len(chosen)
    batches = -(-total // (batch_size * count))
    decoded = _Clips(source, offsets, flow_pairs, label)

    def read(position):
        i = chosen[min(position, total - 1)]
        label = {} if masks is None else {"label": masks[i]}
        return {**decoded[i], **label, "valid": np.bool_(position < total)}

    data = grain.MapDataset.range(batches * batch_size * count)[index::count].map(read)
    data = data.to_iter_dataset(_read_options(num_threads, 2 * num_threads)).batch(batch_size, batch_fn=_stack)
    return _closing(data)


def _closing(data):
    iterator = iter(data)
    try:
        yield from iterator
    finally:
        iterator.close()
