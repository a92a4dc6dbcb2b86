"""Times FlowNet2 beside the same network in PyTorch, and the correlation beside the plain way to write it.

    python -m benchmarks.flow --size 512 1024 --batch 1 --out flow.json

Random weights, frames of noise. Both networks take turns in one process; times are medians. Memory is measured in a
process for each, during an estimate, after weights are loaded and programs compiled: on a CPU the peak of the resident
memory, on an accelerator the peak that each library's allocator reports. PyTorch runs plain modules, the correlation
shift by shift; the CUDA kernels of the public FlowNet2 code are not part of it. Both are held to float32; --tf32 frees
both of it.
"""

import argparse
import gc
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax

from benchmarks import measure
from benchmarks.measure import MIB
from stpl_jax.convert.flownet2_names import from_torch
from stpl_jax.models.flownet2 import MULTIPLE, FlowNet2
from stpl_jax.ops.correlation import correlation
from tests.torch_reference import torch_flownet2

FULL_SIZE = (512, 1024)


def frames(size, batch):
    """Two batches of random frames, `[B, H, W, 3]` uint8."""
    random = np.random.default_rng(0)
    return tuple(random.integers(0, 256, (batch, *size, 3), dtype=np.uint8) for _ in range(2))


def make_ours(weights, pair, tf32):
    """Returns a function that estimates once and waits for the flow, `[B, H, W, 2]`."""
    network = FlowNet2(precision=lax.Precision.DEFAULT if tf32 else lax.Precision.HIGHEST)
    params, pair = jax.device_put(from_torch(weights)), jax.device_put(pair)
    run = jax.jit(lambda params, a, b: network.apply({"params": params}, a, b)).lower(params, *pair).compile()
    return lambda: jax.block_until_ready(run(params, *pair))


def make_torch(weights, pair, tf32):
    """As `make_ours`, in PyTorch; flow is `[B, 2, H, W]`."""
    device = torch_device()
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    network = torch_flownet2.build({name: torch.from_numpy(array) for name, array in weights.items()}).to(device)
    pair = [torch.from_numpy(x).to(device).permute(0, 3, 1, 2).float() for x in pair]

    def run():
        with torch.inference_mode():
            flow = network(*pair)
        if device == "cuda":
            torch.cuda.synchronize()
        return flow

    return run


MAKERS = {"ours": make_ours, "torch": make_torch}


def torch_device():
    """The device that PyTorch runs on: CUDA where both libraries have it."""
    return "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"


def measure_memory(which, size, batch, tf32):
    """Estimates in this process and returns bytes: `before`, with weights and libraries loaded, and the `peak`."""
    estimate = MAKERS[which](torch_flownet2.draw_state_dict(), frames(size, batch), tf32)
    gc.collect()
    if which == "torch" and torch_device() == "cuda":
        before = torch.cuda.memory_allocated()
        estimate()
        # The first estimate tried algorithms; what it took for that is not what running takes.
        torch.cuda.reset_peak_memory_stats()
        estimate()
        return {"before": before, "peak": torch.cuda.max_memory_allocated()}
    if which == "ours" and jax.default_backend() != "cpu":
        before = jax.local_devices()[0].memory_stats()["bytes_in_use"]
        estimate()
        return {"before": before, "peak": jax.local_devices()[0].memory_stats()["peak_bytes_in_use"]}
    before, peak = measure.resident_memory(estimate)
    return {"before": before, "peak": peak}


def memory_in_own_process(which, options):
    """Runs `measure_memory` in a process of its own."""
    flags = ("--memory-of", which, "--batch", options.batch, "--size", *options.size)
    return measure.answer_of("benchmarks.flow", *flags, *(["--tf32"] if options.tf32 else []))


def copying_correlation(a, b, reach=10, stride=2):
    """The plain way: b shifted 441 times, stacked, multiplied."""
    pad, (_, h, w, _) = reach * stride, a.shape
    padded = jnp.pad(b, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    shifts = range(0, 2 * pad + 1, stride)
    shifted = jnp.stack([padded[:, y : y + h, x : x + w] for y in shifts for x in shifts], 3)
    return jnp.einsum("byxc,byxkc->byxk", a, shifted, precision=lax.Precision.HIGHEST) / a.shape[-1]


def benchmark_correlation(size, batch, rounds):
    """Times the correlation of the features of frames of `size`; name -> seconds, and MiB as XLA's compiler says."""
    random, device = np.random.default_rng(1), torch_device()
    maps = [random.normal(size=(batch, size[0] // 8, size[1] // 8, 256)).astype(np.float32) for _ in range(2)]
    arrays = [jax.device_put(x) for x in maps]
    tensors = [torch.from_numpy(x).permute(0, 3, 1, 2).contiguous().to(device) for x in maps]
    results, functions = {}, {}
    for name, function in (("ours", correlation), ("copied 441 times", copying_correlation)):
        compiled = jax.jit(function).lower(*arrays).compile()
        memory = compiled.memory_analysis()
        results[name] = {"temporaries": memory.temp_size_in_bytes, "result": memory.output_size_in_bytes}
        functions[name] = lambda run=compiled: jax.block_until_ready(run(*arrays))

    def shift_by_shift():
        with torch.inference_mode():
            out = torch_flownet2.correlate(*tensors)
        if device == "cuda":
            torch.cuda.synchronize()
        return out

    functions["torch, shift by shift"] = shift_by_shift
    difference = np.abs(np.asarray(functions["ours"]()) - shift_by_shift().permute(0, 2, 3, 1).cpu().numpy()).max()
    for name, seconds in measure.medians(functions, rounds).items():
        results.setdefault(name, {})["seconds"] = seconds
    return results, float(difference)


def main():
    """Measures, prints tables, writes JSON."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch wants memory, too
    parser = measure.parser(__doc__, None)
    parser.add_argument("--size", type=int, nargs=2, help="height and width; default 192 256 on a CPU, else 512 1024")
    parser.add_argument("--batch", type=int, default=1, help="pairs at once")
    parser.add_argument("--rounds", type=int, default=5, help="timed estimates of each")
    parser.add_argument("--tf32", action="store_true", help="let matrix units round float32 inputs, in both")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--memory-of", choices=MAKERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.size = tuple(options.size or ((192, 256) if jax.default_backend() == "cpu" else FULL_SIZE))
    if any(side % MULTIPLE for side in options.size):
        parser.error(f"--size: multiples of {MULTIPLE} are expected, found {options.size}")
    if options.memory_of:
        print(json.dumps(measure_memory(options.memory_of, options.size, options.batch, options.tf32)))
        return

    device = f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores; torch on {torch_device()}"
    if torch_device() == "cuda":
        device += f" ({torch.cuda.get_device_name()})"
    height, width = options.size
    print(f"{device}\njax {jax.__version__}, torch {torch.__version__}, {height}x{width}, batch {options.batch}\n")
    memory = {name: memory_in_own_process(name, options) for name in MAKERS}
    weights, pair = torch_flownet2.draw_state_dict(), frames(options.size, options.batch)
    estimates = {name: make(weights, pair, options.tf32) for name, make in MAKERS.items()}
    flows = np.asarray(estimates["ours"]()), estimates["torch"]().permute(0, 2, 3, 1).cpu().numpy()
    difference = float(np.abs(flows[0] - flows[1]).max())
    seconds = measure.medians(estimates, options.rounds)
    print(f"FlowNet2, largest flow {np.abs(flows[1]).max():.1f} px, largest difference {difference:.1e} px")
    rows = [
        [name, f"{options.batch / s:.3f}", f"{1e3 * s:.1f}", *(f"{size / MIB:.0f}" for size in memory[name].values())]
        for name, s in seconds.items()
    ]
    print(measure.markdown(("", "pairs/s", "ms/batch", "MiB before", "MiB peak"), rows))
    del estimates, weights
    gc.collect()

    compared, error = benchmark_correlation(options.size, options.batch, options.rounds)
    print(f"\ncorrelation of {height // 8}x{width // 8}x256, largest difference {error:.1e}")
    rows = [
        [name, f"{1e3 * row['seconds']:.1f}"]
        + [f"{row[key] / MIB:.1f}" if key in row else "-" for key in ("temporaries", "result")]
        for name, row in compared.items()
    ]
    print(measure.markdown(("", "ms", "MiB temporary", "MiB result"), rows))
    if options.out:
        result = {
            **{name: getattr(options, name) for name in ("size", "batch", "rounds", "tf32")},
            "flownet2": {
                name: {"seconds": seconds[name], "pairs_per_second": options.batch / seconds[name]} | memory[name]
                for name in MAKERS
            },
            "largest_difference_px": difference,
            "correlation": compared,
        }
        print(measure.write(options.out.stem, result, options.out.parent))


if __name__ == "__main__":
    main()
