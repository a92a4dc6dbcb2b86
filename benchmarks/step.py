"""Times STPL's train step beside the same step in PyTorch: clips per second, TFLOP/s, peak memory, and a roofline.

    python -m benchmarks.step
    python -m benchmarks.step --full --rounds=3

With a GPU: configs/viper.py, ResNet-101 on 512×1024, ours in bfloat16. Without one: configs/synthetic.py on the CPU, in
float32. Ours is the train step as training runs it: `make_train_step` under pmap, the state donated. PyTorch runs two
forms, see benchmarks/torch_step.py: plain, and best, some variants of it. All start from the same weights, see the same
clips and take turns in one process: medians of seconds, ratios by rounds. A GPU machine needs JAX, Flax, Optax, einops,
ml_collections and PyTorch, and none of the libraries that read data.

TFLOP are those of the convolutions and products that the step needs, as PyTorch counts them; recomputation does not
count. The share is of the fastest matrix product measured in this run, in the type that ours computes in. Memory is
measured in a process for each form after its first steps: on a GPU the peak that the library's allocator reports, on a
CPU the peak of the resident memory above that of the libraries, with what compiling left behind.
"""

import argparse
import gc
import json
import os
import re
import statistics
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import torch

from benchmarks import measure, performance, step_stages
from benchmarks.step_forms import NUM_CLASSES, OURS, build, first_state, measure_memory, needed_flop
from benchmarks.torch_step import FORMS
from configs import synthetic, viper
from stpl_jax import parallel
from stpl_jax.models.resnet import REMAT

# Which forms of PyTorch's step compete: not every CPU is fast in bfloat16; on a GPU one large batch may not pay.
COMPETE = {"gpu": ("plain", "best", "best, frame by frame"), "cpu": ("plain", "best", "best, float32")}
# Sides of the matrices and numbers of values that a device's rates are measured on, and how many are launched at once:
# a GPU starts from a resting clock, and one product takes it hardly longer than the launch.
RATES = {"gpu": (8192, 2**28, 20), "cpu": (2048, 2**25, 1)}


def memory_in_own_process(name):
    """Runs `measure_memory` in a process of its own with this one's flags; None, and a line of text, where it fails."""
    try:
        return measure.answer_of("benchmarks.step", *sys.argv[1:], "--memory-of", name)
    except RuntimeError as error:
        print(f"memory of {name}: {error}", flush=True)


def build_running(names, *arguments):
    """Builds forms and lets each make a step.

    Args:
      names: of the forms.
      *arguments: what `build` takes beside a name.

    Returns:
      name -> form, of those that run; name -> message, of PyTorch's that do not (its compiler wants tools that not
      every machine has): one that fails must not cost the others' figures.
    """
    forms, failed = {}, {}
    for name in names:
        try:
            form = build(name, *arguments)
            form.run(1)
        except Exception as error:  # noqa: BLE001 - a compiler's own, of many kinds
            if name == OURS:
                raise
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            print(f"{name} does not run: {failed[name]}", flush=True)
        else:
            forms[name] = form
    return forms, failed


def compare(forms, clips, flop, rate, steps, rounds):
    """Lets forms take turns.

    Args:
      forms: name -> `Ours` or `Theirs`.
      clips: clips in a step.
      flop: operations that one clip needs.
      rate: operations that the device does in a second.
      steps: steps in each round.
      rounds: rounds that are timed, after one that is not.

    Returns:
      name -> `seconds` (a step's, by rounds), `clips_per_second`, `tflop_per_second`, `share` of the rate,
      `loss`; and ratios of time, median over rounds: `plain / ours`, and `best / ours` of the fastest form beyond
      plain. A ratio without its forms is left out.
    """
    runs = {name: (lambda form=form: form.run(steps)) for name, form in forms.items()}
    seconds = {name: [s / steps for s in values] for name, values in measure.alternate(runs, rounds).items()}
    rows = {}
    for name, values in seconds.items():
        speed = clips / statistics.median(values)
        rows[name] = {
            "seconds": values,
            "clips_per_second": speed,
            "tflop_per_second": speed * flop / 1e12,
            "share": speed * flop / rate,
            "loss": forms[name].loss,
        }

    def ratio(name):
        return statistics.median(a / b for a, b in zip(seconds[name], seconds[OURS], strict=True))

    best = min(
        (name for name in rows if name.startswith("best")), key=lambda n: -rows[n]["clips_per_second"], default=None
    )
    ratios = {"plain / ours": ratio("plain")} if "plain" in rows and OURS in rows else {}
    return rows, ratios | ({"best / ours": ratio(best)} if best and OURS in rows else {})


def parse_options():
    """Reads the command line."""
    parser = measure.parser(__doc__)
    parser.add_argument("--full", action="store_true", help="configs/viper.py also without a GPU: minutes a step")
    parser.add_argument("--clips", type=int, help="clips per device; default the configuration's")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds")
    parser.add_argument("--steps", type=int, default=5, help="steps of each form in a round")
    parser.add_argument("--block", type=int, help="methods.stpl.contrast.block; default the configuration's")
    parser.add_argument("--remat", choices=REMAT, default="none", help="what ours computes again for the backward pass")
    parser.add_argument("--forms", nargs="+", choices=FORMS, help="forms in PyTorch; default what suits the device")
    parser.add_argument("--compile-mode", default="default", help="of torch.compile, for the best forms")
    parser.add_argument("--no-memory", action="store_true", help="leave memory out, which compiles every form again")
    parser.add_argument("--no-roofline", action="store_true", help="leave the stages out")
    parser.add_argument("--memory-of", choices=[OURS, *FORMS], help=argparse.SUPPRESS)
    return parser, parser.parse_args()


def set_up(options, parser):
    """Chooses device and configuration, before JAX asks for a device; returns the kind of device and the settings."""
    kind = "gpu" if torch.cuda.is_available() and os.environ.get("JAX_PLATFORMS") != "cpu" else "cpu"
    full = options.full or kind == "gpu"
    config = (viper if full else synthetic).get_config()
    config.method = "stpl"
    config.clips_per_device = options.clips or config.clips_per_device
    config.methods.stpl.contrast.block = options.block or config.methods.stpl.contrast.block
    config.model.backbone.remat = options.remat
    if kind == "gpu":
        config.model.dtype = "bfloat16"
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch wants memory, too
        torch.backends.cudnn.benchmark = True  # as the field's code has it; in all forms
        cache = Path(tempfile.gettempdir()) / "stpl_jax_compilation_cache"
        jax.config.update("jax_compilation_cache_dir", str(cache))
    else:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {config.cpu_xla_flags}"
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", config.cpu_devices)
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    if jax.default_backend() != kind:
        parser.error(
            f"PyTorch finds a GPU and JAX runs on {jax.default_backend()}: install jax[cuda], or set JAX_PLATFORMS=cpu."
        )
    if kind == "gpu" and jax.local_device_count() > 1:
        parser.error(f"One GPU is compared, found {jax.local_device_count()}: set CUDA_VISIBLE_DEVICES=0.")
    return kind, full, config


def take_apart(ours, seconds, rates, rounds):
    """Measures the stages of our step; the rates are those of all devices. Returns the table's rows, the step last."""
    one_device = {name: value / jax.local_device_count() for name, value in rates.items()}
    data = jax.tree.map(lambda x: jax.device_put(np.asarray(x.addressable_data(0))[0]), ours.batches[0]["target"])
    state = jax.device_put(parallel.unreplicate(ours.state))
    stages = step_stages.stages(ours.method, ours.optimisers, state, data)
    rows = step_stages.roofline(stages, one_device, rounds)
    return [*rows, step_stages.whole_step(ours, seconds, one_device)]


def main():
    """Measures, prints tables, writes JSON."""
    parser, options = parse_options()
    kind, full, config = set_up(options, parser)
    device = "cuda" if kind == "gpu" else "cpu"
    if options.memory_of:
        print(json.dumps(measure_memory(options.memory_of, config, device, options.compile_mode)))
        return

    names = [OURS, *(options.forms or COMPETE[kind])]
    flop = needed_flop(config, NUM_CLASSES)
    rates = step_stages.device_rates(device, config.model.dtype, options.rounds, *RATES[kind])
    content = {
        "machine": measure.machine(),
        "gpu": "measured" if kind == "gpu" else "not measured",
        "config": "viper" if full else "synthetic",
        "size": list(config.data.target.size),
        "clips_per_device": config.clips_per_device,
        "devices": jax.local_device_count(),
        "dtype": config.model.dtype,
        "remat": options.remat,
        "block": config.methods.stpl.contrast.block,
        "steps_per_round": options.steps,
        "compile_mode": options.compile_mode,
        "torch_threads": torch.get_num_threads(),
        "flop_per_clip": flop,
        "rates": rates,
    }
    print(f"{content['devices']} × {performance.measured_on(content)}", flush=True)
    state = first_state(config)
    forms, failed = build_running(names, config, state, device, options.compile_mode)
    clips = config.clips_per_device * jax.local_device_count()
    rows, ratios = compare(forms, clips, flop, rates["flop"], options.steps, options.rounds)
    content |= {"forms": rows, "ratios": ratios, "failed": failed}
    print(performance.step(content), flush=True)
    if kind == "cpu":
        print("GPU: not measured, none was found.")
    slug = re.sub(r"\W+", "_", content["machine"]["device"].lower())
    file = f"step_{slug}" + ("_full" if full and kind == "cpu" else "")
    # After each part: those that follow compile again, minutes at full size, and the comparison is what counts.
    path = measure.write(file, content, options.out)

    ours = forms.pop(OURS)
    forms.clear()
    gc.collect()
    if kind == "gpu":
        torch.cuda.empty_cache()
    if not options.no_memory:
        content["peak_bytes"] = {name: memory_in_own_process(name) for name in rows}
        print(performance.step(content), flush=True)
        measure.write(file, content, options.out)
    if not options.no_roofline:
        content["roofline"] = take_apart(ours, statistics.median(rows[OURS]["seconds"]), rates, options.rounds)
        print(performance.roofline(content))
        measure.write(file, content, options.out)
    print(f"\n{path}")


if __name__ == "__main__":
    main()
