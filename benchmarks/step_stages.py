"""The train step in stages, each compiled alone and timed, beside what its arithmetic and its bytes take at least.

Stages are the step's own functions, on all devices at once as the step is. Compiled alone, they cannot share work or
overlap, so their sum may differ from the step. A backward pass counts with the forward pass that it needs.
"""

import statistics

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from benchmarks import measure
from benchmarks.program_cost import products_flop, program_bytes
from stpl_jax import parallel
from stpl_jax.forward import extract, flow_on_grid, frames_first
from stpl_jax.losses.contrastive import pixel_contrast
from stpl_jax.models.network import PerClassifier

# Stages that make up the step; the others are parts of one of them.
WHOLE = ("augmentation", "backbone, forward and backward", "pseudo-labels", "fusion to loss, both ways", "optimiser")


def stages(method, optimisers, state, data):
    """Takes the step apart.

    Args:
      method: an `STPL` whose objective is `stpl`.
      optimisers: its optimisers, by group.
      state: a `TrainState` of one device.
      data: one device's clips: `frames`, `flow`, `index`.

    Returns:
      name -> (function, its arguments), in the step's order.
    """
    segmenter, norm, network = method.segmenter, method.config.batch_norm, state.params["network"]
    backbone, stats, key = network["segmenter"], state.batch_stats, jax.random.key(0)

    def augment(data):
        return method.augment(data, key).astype(segmenter.dtype)

    def forward(params, stats, groups):
        return extract(segmenter, params, stats, groups, norm, method.num_frames)[0].main

    def forward_and_backward(params, stats, groups, cotangent):
        features, pull = jax.vjp(lambda p: forward(p, stats, groups), params)
        return features, pull(cotangent)[0]

    def pseudo_labels(params, clean, flow):
        flows = flow_on_grid(flow, clean.shape[2:4], method.config.flow.scale)
        return *method.pseudo_labels(params, PerClassifier(clean), flow[:, 0]), flows

    def head(network, features, flows, index, labels, mask):
        def loss(parts, features):
            views = features[: method.num_frames], features[method.num_frames :]
            fused = (method.fuse(parts, view, flows) for view in views)
            return method.contrast(parts, *fused, index, labels, mask)

        return jax.grad(loss, (0, 1))({name: network[name] for name in ("fusion", "projection")}, features)

    def contrast(queries, keys, labels, mask):
        settings = method.settings.contrast

        def one_clip(queries, keys, labels, mask):
            sides = queries, keys, labels, labels, mask, mask
            return pixel_contrast(*sides, segmenter.num_classes, settings.temperature, settings.block)[0]

        def loss(queries, keys):
            return jax.vmap(one_clip)(queries, keys, labels, mask).mean()

        return jax.grad(loss, (0, 1))(queries, keys)

    def optimise(gradients, opt_state, params):
        updates, opt_state = optimisers["network"].update(gradients, opt_state, params)
        params = optax.apply_updates(params, updates)
        return params, opt_state, optax.tree.norm(params)

    clean = frames_first(data["frames"]).astype(segmenter.dtype)
    groups = jnp.concatenate([clean, jax.jit(augment)(data)])
    features = jax.jit(forward)(backbone, stats, groups)
    index, labels, mask, flows = jax.jit(pseudo_labels)(backbone, features[: method.num_frames], data["flow"])
    dim = network["projection"]["conv2"]["bias"].shape[0]
    queries, keys = (_unit_vectors(k, (*index.shape, dim)) for k in jax.random.split(key))
    gradients = jax.tree.map(jnp.zeros_like, network)
    return {
        "augmentation": (augment, (data,)),
        "backbone, forward, clean frames": (forward, (backbone, stats, clean)),
        "backbone, forward": (forward, (backbone, stats, groups)),
        "backbone, forward and backward": (forward_and_backward, (backbone, stats, groups, features)),
        "pseudo-labels": (pseudo_labels, (backbone, features[: method.num_frames], data["flow"])),
        "fusion to loss, both ways": (head, (network, features, flows, index, labels, mask)),
        "contrastive loss, both ways": (contrast, (queries, keys, labels, mask)),
        "optimiser": (optimise, (gradients, state.opt_state["network"], network)),
    }


def _unit_vectors(key, shape):
    x = jax.random.normal(key, shape, jnp.float32)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def roofline(parts, rates, rounds):
    """Compiles and times stages.

    Args:
      parts: what `stages` returns.
      rates: `flop` and `bytes` that one device does and moves in a second.
      rounds: how many times each is timed; they take turns.

    Returns:
      A dict for each stage: `stage`, `whole` (not part of another stage), `seconds` (median), `flop`, `bytes`,
      `seconds_flop` and `seconds_bytes` (the least that either would take).
    """
    compiled, runs = {}, {}
    for name, (function, args) in parts.items():
        args = parallel.replicate(args)
        compiled[name] = parallel.pmap(function).lower(*args).compile()
        runs[name] = lambda run=compiled[name], args=args: jax.block_until_ready(run(*args))
    seconds = measure.alternate(runs, rounds)
    return [
        {"stage": name, "whole": name in WHOLE, "seconds": statistics.median(seconds[name])}
        | bounds(products_flop(jax.make_jaxpr(function)(*args)), program_bytes(compiled[name].as_text()), rates)
        for name, (function, args) in parts.items()
    ]


def whole_step(ours, seconds, rates):
    """The row of the table for our whole step, as it runs on one of the devices: its `seconds` were measured before."""
    args = ours.state, ours.batches[0]
    program = ours.step.lower(*args).compile().as_text()
    row = {"stage": "step", "whole": False, "seconds": seconds}
    return row | bounds(products_flop(jax.make_jaxpr(ours.step)(*args)), program_bytes(program), rates)


def bounds(flop, moved, rates):
    """Returns operations and bytes, and the seconds that either takes at the device's rates."""
    return {
        "flop": flop,
        "bytes": moved,
        "seconds_flop": flop / rates["flop"],
        "seconds_bytes": moved / rates["bytes"],
    }


def device_rates(device, dtype, rounds, side, count, repeats):
    """Measures how fast all devices together multiply matrices and copy memory; JAX and PyTorch try, the faster counts.

    Args:
      device: PyTorch's name of the device.
      dtype: of the matrices, by name: `float32` or `bfloat16`.
      rounds: how many times each is timed; the best time counts, since a rate is what the device can do.
      side: of the square matrices.
      count: numbers, float32, that are copied.
      repeats: products or copies that are launched before one is waited for, so that launching takes no share.

    Returns:
      `flop`, operations per second, and `bytes`, read and written per second.
    """
    random = np.random.default_rng(0)
    matrix = random.standard_normal((side, side), np.float32)
    values = random.standard_normal(count, np.float32)
    devices = jax.local_device_count()

    def repeated(function, wait):
        def run():
            for _ in range(repeats):
                out = function()
            wait(out)

        return run

    def ours(function, x, kind):
        x = parallel.replicate(jnp.asarray(x, kind))
        run = parallel.pmap(function)
        return repeated(lambda: run(x), jax.block_until_ready)

    def theirs(function, x, kind):
        x = torch.from_numpy(x).to(device, getattr(torch, kind))
        return repeated(lambda: function(x), lambda _: x.is_cuda and torch.cuda.synchronize())

    target = torch.empty(count, device=device)
    seconds = measure.alternate(
        {
            "product, jax": ours(lambda x: x @ x, matrix, dtype),
            "product, torch": theirs(lambda x: x @ x, matrix, dtype),
            "copy, jax": ours(lambda x: -x, values, "float32"),
            "copy, torch": theirs(target.copy_, values, "float32"),
        },
        rounds,
    )
    best = {name: min(times) for name, times in seconds.items()}
    flop, moved = repeats * 2 * side**3, repeats * 8 * count
    return {
        "flop": max(devices * flop / best["product, jax"], flop / best["product, torch"]),
        "bytes": max(devices * moved / best["copy, jax"], moved / best["copy, torch"]),
    }
