"""The optical flow estimators by name: what runs on the devices, beside what runs on the host.

A further one is an entry: of `ESTIMATORS` here, or, where it can run on the host while sets are prepared, of
`optical_flow.ESTIMATORS`.
"""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from input_pipeline import optical_flow
from input_pipeline.errors import UserError
from input_pipeline.ordered_map import ordered_map
from stpl_jax import checkpoint, parallel
from stpl_jax.models.flownet2 import FlowNet2, estimate_flow, parameter_shapes


class FlowError(UserError):
    """Flow cannot be estimated; the message is for the user."""


@dataclasses.dataclass(frozen=True)
class DeviceEstimator:
    """An optical flow network.

    Attributes:
      function: (params, frames, earlier) -> flow: `[B, H, W, 3]` uint8 RGB twice to `[B, H, W, 2]` float32 (u, v),
        pixels, as `optical_flow.dis_flow` defines them; traced, run on every device.
      load: weights (`config.flow.weights`, None where it is not set) -> its parameters, and the text that tells these
        weights from others in the record beside flow files.
      weights_from: how to get the weights, sentences; empty where it needs none.
      smallest_side: of the frames that it takes, pixels.
    """

    function: Callable
    load: Callable
    weights_from: str = ""
    smallest_side: int = 1


def _load_flownet2(weights):
    stored = checkpoint.load_model(weights, template={"params": parameter_shapes(FlowNet2())}, network="flownet2")
    return stored.variables["params"], stored.meta.sha256 or stored.meta.source


# A view of both: what is added to either is there.
ESTIMATORS = collections.ChainMap(
    {
        "flownet2": DeviceEstimator(
            functools.partial(estimate_flow, FlowNet2()),
            _load_flownet2,
            "Convert the released FlowNet2 checkpoint once, `python -m stpl_jax.convert flownet2 FILE OUTPUT`, and set "
            "--config.flow.weights=OUTPUT.",
        )
    },
    optical_flow.ESTIMATORS,
)


@dataclasses.dataclass(frozen=True)
class Loaded:
    """An estimator that is ready to run.

    Attributes:
      entry: of `ESTIMATORS`.
      params: its parameters; None on the host.
      weights: what tells these from others, for the record; None on the host.
    """

    entry: DeviceEstimator | optical_flow.HostEstimator
    params: Any = dataclasses.field(default=None, repr=False)
    weights: str | None = None

    def of_pair(self):
        """Returns a function like `optical_flow.dis_flow`: two `[H, W, 3]` uint8 RGB frames to flow `[H, W, 2]`."""
        if isinstance(self.entry, optical_flow.HostEstimator):
            return self.entry.function
        run = jax.jit(lambda params, frame, earlier: self.entry.function(params, frame[None], earlier[None])[0])
        return functools.partial(run, jax.device_put(self.params))

    def of_pairs(self, jobs, read, per_device, threads):
        """Estimates the flow of many pairs of frames of one size: threads read, and transfers run ahead.

        Args:
          jobs: list of anything.
          read: job to (frame, earlier), `[H, W, 3]` uint8 RGB each.
          per_device: pairs on each device at a time.
          threads: that read, and on the host estimate.

        Yields:
          (job, `[H, W, 2]` float32), in the order of jobs.
        """
        if isinstance(self.entry, optical_flow.HostEstimator):
            yield from ordered_map(lambda job: (job, self.entry.function(*read(job))), jobs, threads)
            return
        count = per_device * jax.local_device_count()
        step = parallel.pmap(self.entry.function)
        params = parallel.replicate(self.params)

        def batches():
            pairs = zip(jobs, ordered_map(read, jobs, threads), strict=True)
            while group := list(itertools.islice(pairs, count)):
                # The last batch is filled up with its last pair: one shape, one compilation.
                filled = group + [group[-1]] * (count - len(group))
                frames, earlier = (np.stack([images[k] for _, images in filled]) for k in (0, 1))
                yield [job for job, _ in group], parallel.split_over_devices((frames, earlier))

        def fetch(group, flow):
            shards = np.concatenate([np.asarray(shard.data) for shard in flow.addressable_shards])
            yield from zip(group, shards.reshape(-1, *shards.shape[2:]), strict=False)

        # Results are fetched one batch late.
        waiting = None
        for group, (frames, earlier) in parallel.prefetch(batches()):
            ahead = group, step(params, frames, earlier)
            if waiting:
                yield from fetch(*waiting)
            waiting = ahead
        if waiting:
            yield from fetch(*waiting)


def load(settings):
    """Loads the estimator of a run.

    Args:
      settings: `config.flow`.

    Returns:
      A `Loaded`.

    Raises:
      FlowError: it needs weights, and none are given.
      CheckpointError: there are none, or another network's.
    """
    entry = ESTIMATORS[settings.estimator]
    if isinstance(entry, optical_flow.HostEstimator):
        return Loaded(entry)
    if entry.weights_from and not settings.weights:
        raise FlowError(f"config.flow.estimator={settings.estimator} needs the network's weights. {entry.weights_from}")
    try:
        return Loaded(entry, *entry.load(settings.weights))
    except checkpoint.CheckpointError as error:
        message = f"config.flow.weights={settings.weights}: {error}\n{entry.weights_from}"
        raise checkpoint.CheckpointError(message) from error
