"""The forms of the train step that benchmarks/step.py compares, all with the same weights and clips."""

import itertools

import jax
import numpy as np
import torch

from benchmarks import measure
from benchmarks.torch_network import load_weights
from benchmarks.torch_step import FORMS, TorchStep
from stpl_jax import parallel
from stpl_jax.methods import make_method
from stpl_jax.models import make_segmenter
from stpl_jax.models.network import initial_variables
from stpl_jax.train_state import create_state, make_train_step

OURS = "ours"
# Of both configurations. Not read from the data sets, whose libraries a machine for benchmarks need not have.
NUM_CLASSES = 15
# Sets of clips on the device that steps take in turn.
BATCHES = 2


def make_clips(config, count, seed=0):
    """Makes clips up, `frames`, `flow` and `index` as the loader gives them: patches that drift, under noise."""
    random = np.random.default_rng(seed)
    height, width = config.data.target.size
    patch, frames = height // 16, config.num_frames
    coarse = random.uniform(0, 255, (count, height // patch + 1, width // patch + 2, 3))
    scene = coarse.repeat(patch, 1)[:, :height].repeat(patch, 2)
    clips = np.stack([scene[:, :, 2 * t : 2 * t + width] for t in range(frames)], 1)
    noise = random.normal(0, 12, (count, 1, height, width, 3))
    return {
        "frames": np.clip(clips + noise, 0, 255).astype(np.uint8),
        "flow": random.integers(-60, 60, (count, frames - 1, height, width, 2)).astype(np.int16),
        "index": np.arange(count, dtype=np.int32),
    }


class Ours:
    """Our train step on all devices; `run` makes steps and waits for the last, `loss` is the last step's."""

    def __init__(self, config, state, batches):
        segmenter = make_segmenter(config.model, NUM_CLASSES)
        self.method = make_method(config, segmenter)
        self.optimisers = self.method.optimisers(config.optim)
        step = make_train_step(self.method, self.optimisers, config.seed)
        self.step = parallel.pmap(step, donate_state=True)
        self.state = parallel.replicate(state)
        self.batches = [{"target": parallel.split_over_devices(batch)} for batch in batches]
        self.order = itertools.cycle(self.batches)

    def run(self, steps):
        # As in training, whatever the step needs is on the devices before.
        with jax.transfer_guard("disallow"):
            for _ in range(steps):
                self.state, self.metrics = self.step(self.state, next(self.order))
            jax.block_until_ready(self.state)

    @property
    def loss(self):
        return float(parallel.unreplicate(self.metrics)["loss/network"])


class Theirs:
    """A form of PyTorch's step; as `Ours`."""

    def __init__(self, config, state, batches, form, device, compile_mode):
        classes = NUM_CLASSES
        self.step = TorchStep(config, classes, form, device, compile_mode=compile_mode)
        load_weights(self.step.network, state.params["network"], state.batch_stats)
        self.batches = [
            {name: torch.from_numpy(batch[name]).to(device) for name in ("frames", "flow")} for batch in batches
        ]
        self.order = itertools.cycle(self.batches)

    def run(self, steps):
        for _ in range(steps):
            self.last = self.step(next(self.order))
        if self.last.is_cuda:
            torch.cuda.synchronize()

    @property
    def loss(self):
        return float(self.last)


def first_state(config):
    """Draws the state that all start from, as numpy arrays."""
    segmenter = make_segmenter(config.model, NUM_CLASSES)
    method = make_method(config, segmenter)
    optimisers, key = method.optimisers(config.optim), jax.random.key(config.seed)
    state = jax.jit(lambda: create_state(method, optimisers, initial_variables(segmenter, key), key))()
    return jax.tree.map(np.asarray, state)


def build(name, config, state, device, compile_mode):
    """Builds the form of that name, `ours` or one of `FORMS`, from `first_state`'s, with its clips on the device."""
    count = config.clips_per_device * jax.local_device_count()
    batches = [make_clips(config, count, seed) for seed in range(BATCHES)]
    if name == OURS:
        return Ours(config, state, batches)
    return Theirs(config, state, batches, FORMS[name], device, compile_mode)


def needed_flop(config, num_classes):
    """Operations of the convolutions and products in a step on one clip, forward and backward; nothing is computed."""
    step = TorchStep(config, num_classes, FORMS["plain"], "meta")
    clips = make_clips(config, 1)
    return step.count_flop({name: torch.from_numpy(clips[name]).to("meta") for name in ("frames", "flow")})


def measure_memory(name, config, device, compile_mode):
    """Runs steps of one form in this process; returns the peak of its memory in bytes."""
    # The libraries' memory does not count, the programs' does.
    libraries, _ = measure.resident_memory(lambda: None) if device == "cpu" else (0, 0)
    form = build(name, config, first_state(config), device, compile_mode)
    form.run(2)
    if device == "cpu":
        return measure.resident_memory(lambda: form.run(2))[1] - libraries
    if name == OURS:
        # The program comes out of the cache, so that trying algorithms did not take memory.
        return jax.local_devices()[0].memory_stats()["peak_bytes_in_use"]
    torch.cuda.reset_peak_memory_stats()
    form.run(2)
    return torch.cuda.max_memory_allocated()
