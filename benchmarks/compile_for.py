"""Compiles the pmapped train step for a TPU topology, with no TPU attached, and says what the step takes there.

    python -m benchmarks.compile_for --topology=v5e:2x2 --config=configs/viper.py
    python -m benchmarks.compile_for --topology=v5e:2x2 --config=configs/viper.py --remat=narrow --clips=1,4
    python -m benchmarks.compile_for --topology=v6e:16x16 --config=configs/viper.py --config.method=tps --clips=1

It is the step that main.py trains with: the configuration's method, network, optimiser and frame size, the state
donated. For each number of clips on a chip it prints operations, bytes of temporaries, arguments and outputs, bytes
all-reduced, and the time to compile; without --clips it looks for the largest number that fits the chip's memory. From
published figures of the chip follows the share of a step that the all-reduce takes at most. Needs libtpu, see
requirements-tpu-compile.txt. Writes benchmarks/results/compile_<topology>.json; what an earlier call on the same
commit found stays in it.

Operations are those that the compiler counts in one run of the program; the body of a loop counts once.
"""

import functools
import itertools
import json
import re
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags
from ml_collections import config_flags

from benchmarks import measure, performance
from benchmarks.scaling import CHIPS, all_reduced_bytes, largest_fitting, scaling
from benchmarks.tpu_topology import topology_devices
from stpl_jax import parallel
from stpl_jax.methods import make_method
from stpl_jax.models.network import initial_variables
from stpl_jax.rows import row_config
from stpl_jax.train import build_segmenter
from stpl_jax.train_state import create_state, make_train_step

# What a call adds to the JSON, beside the settings that it was found with.
FOUND = ("programs", "largest")


def parse_topology(name):
    """Reads `v5e:2x2`: the kind of chip, a name in `CHIPS`, and how many along each axis.

    Raises:
      ValueError: not of that form, or a chip that is not in the table.
    """
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    if not found or found[1] not in CHIPS:
        raise ValueError(
            f"--topology is a chip ({', '.join(CHIPS)}), a colon and its numbers of chips, v5e:2x2 say; found {name!r}."
        )
    return found[1], tuple(int(side) for side in found[2].split("x"))


def batch_shapes(config, needs):
    """Shapes of the batch that one device gets.

    Args:
      config: a row's configuration.
      needs: of the method, by domain.

    Returns:
      By domain, what `Method.loss` takes: `frames` `[B, T, H, W, 3]`, `flow` `[B, P, H, W, 2]`, `index` `[B]` and, if
      asked for, `label` `[B, H, W]`, as `jax.ShapeDtypeStruct`.
    """
    clips, batch = config.clips_per_device * config.optim.accumulate, {}
    for domain, need in needs.items():
        cropped = need.labels and any(config.data.crop)
        size = tuple(config.data.crop if cropped else config.data[domain].size)
        shapes = {
            "frames": ((len(need.offsets), *size, 3), jnp.uint8),
            "flow": ((len(need.flow_pairs), *size, 2), jnp.int16),
            "index": ((), jnp.int32),
        }
        if need.labels:
            shapes["label"] = (size, jnp.uint8)
        batch[domain] = {k: jax.ShapeDtypeStruct((clips, *shape), dtype) for k, (shape, dtype) in shapes.items()}
    return batch


def lower_step(config, devices):
    """Lowers the train step that `main.py --mode=adapt` runs, for devices that need not be there.

    Args:
      config: a row's configuration.
      devices: of one topology.

    Returns:
      What `jax.pmap(...).lower` returns.
    """
    segmenter = build_segmenter(config)
    method = make_method(config, segmenter)
    optimisers = method.optimisers(config.optim)
    key = jax.random.key(config.seed)
    state = jax.eval_shape(lambda: create_state(method, optimisers, initial_variables(segmenter, key), key))
    step = make_train_step(method, optimisers, config.seed, config.optim.accumulate)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((len(devices), *x.shape), x.dtype), (state, batch_shapes(config, method.needs))
    )
    return parallel.pmap(step, donate_state=True, devices=devices).lower(*shapes)


def measure_program(lowered, clips):
    """Compiles, and reads from the program what a run of it takes on each chip.

    Args:
      lowered: of `lower_step`.
      clips: on each chip at a time.

    Returns:
      `clips`, `flops`, `flops_per_clip`, bytes of `temporaries`, `arguments`, `outputs`, `code`, of `total` (outputs
      that reuse an argument's memory counted once), `bytes_all_reduced`, and `seconds_to_compile`. Or, where the
      program does not fit the chip's memory, `clips`, `does_not_fit` (the compiler's words), and the seconds.
    """
    start = time.perf_counter()
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        return {
            "clips": clips,
            "does_not_fit": out_of_memory(str(error)),
            "seconds_to_compile": time.perf_counter() - start,
        }
    seconds = time.perf_counter() - start
    memory, flops = program.memory_analysis(), program.cost_analysis()["flops"]
    sizes = {
        "temporaries": memory.temp_size_in_bytes,
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
    }
    return {
        "clips": clips,
        "flops": flops,
        "flops_per_clip": flops / clips,
        **sizes,
        "total": sum(sizes.values()) - memory.alias_size_in_bytes,
        "bytes_all_reduced": all_reduced_bytes(program.as_text()),
        "seconds_to_compile": seconds,
    }


def out_of_memory(message):
    """Finds what matters in the compiler's message: `Used 17.61G of 15.75G hbm`, or else its first line.

    It says so after planning memory; sooner, and in other words, if temporaries alone are too many.
    """
    found = re.search(r"Used [\d.]+\w? of [\d.]+\w? hbm", message)
    if found:
        return found[0]
    found = re.search(r"temporaries \(([\d.]+\w?)\) exceeds available HBM \(([\d.]+\w?)\)", message)
    return f"Temporaries of {found[1]} of {found[2]} hbm" if found else message.splitlines()[0]


def run(config, topology, dtypes, remat, counts, limit, folder, progress):
    """Compiles all that is asked for; writes the JSON after each program, so that none is lost.

    Args:
      config: the run's configuration.
      topology: `v5e:2x2`, say.
      dtypes: of the backbone's arithmetic; none: as configured.
      remat: in place of `model.backbone.remat`; none: as configured.
      counts: clips per chip; none: 1, and so on to the largest that fits.
      limit: largest count that is tried.
      folder: for the JSON.
      progress: called with lines of text.

    Returns:
      The JSON's path.
    """
    kind, sides = parse_topology(topology)
    chip, devices = CHIPS[kind], topology_devices(topology)
    machine = measure.machine()
    content = {
        "machine": machine,
        "topology": topology,
        "chip": devices[0].device_kind,
        "chips": len(devices),
        "published": vars(chip),
        "method": config.method,
        "size": list(config.data.target.size),
        "accumulate": config.optim.accumulate,
        "programs": [],
        "largest": [],
    }
    name = f"compile_{topology.replace(':', '_')}"
    earlier = earlier_results(Path(folder) / f"{name}.json", content)
    progress(f"{topology}: {len(devices)} × {devices[0].device_kind}, {config.method}, frames {content['size']}")
    progress(measure.markdown(performance.COMPILED_HEAD, []))
    for dtype, kept in itertools.product(dtypes or [config.model.dtype], remat or [config.model.backbone.remat]):
        settings = row_config(config, config.method)
        settings.model.dtype, settings.model.backbone.remat = dtype, kept
        setting = {"dtype": dtype, "remat": kept}

        def fits(count, settings=settings, setting=setting):
            settings.clips_per_device = count
            found = setting | measure_program(lower_step(settings, devices), count)
            if "flops" in found:
                # The loop over accumulated batches is counted once; what it all-reduces inside, too, which is little.
                flops = settings.optim.accumulate * found["flops"]
                found["scaling"] = scaling(chip, sides, flops, found["bytes_all_reduced"])
            content["programs"].append(found)
            measure.write(name, with_earlier(content, earlier), folder)
            progress(f"| {' | '.join(performance.compiled_row(content, found))} |")
            return "flops" in found

        if counts:
            for count in counts:
                fits(count)
        else:
            content["largest"].append(setting | {"clips_per_device": largest_fitting(fits, limit), "limit": limit})
    for found in content["largest"]:
        progress(f"{found['dtype']}, remat {found['remat']}: {found['clips_per_device']} clips a chip fit, and no more")
    return measure.write(name, with_earlier(content, earlier), folder)


def earlier_results(path, content):
    """Reads what an earlier call found on the same commit, with the same versions and the same settings.

    Each takes minutes to compile, so that a call for another number of clips must not forget them.

    Args:
      path: of the JSON, which need not be there.
      content: of this call.

    Returns:
      Lists by name, `programs` and `largest`, as the JSON holds them.
    """
    if not path.is_file():
        return {name: [] for name in FOUND}
    found = json.loads(path.read_text())
    # By way of JSON, which knows no tuples.
    same = all(found.get(key) == json.loads(json.dumps(value)) for key, value in content.items() if key not in FOUND)
    return {name: found[name] if same else [] for name in FOUND}


def with_earlier(content, earlier):
    """Puts results behind those of an earlier call, in place of those with the same type, remat and clips."""

    def setting(result):
        return result["dtype"], result["remat"], result.get("clips")

    lists = {}
    for name in FOUND:
        new = {setting(result) for result in content[name]}
        lists[name] = [result for result in earlier[name] if setting(result) not in new] + content[name]
    return content | lists


def define_flags():
    """Returns the program's flags, absl's `FlagValues`; `--config.KEY=VALUE` sets any key of the configuration."""
    # Not absl's own set: main.py, which a test may have imported, too, has a flag --config there.
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", "configs/viper.py", "Settings, a file in configs/.", flag_values=values, lock_config=True
    )
    chips = ", ".join(CHIPS)
    flags.DEFINE_string("topology", None, f"Chip ({chips}) and how many along each axis: v5e:2x2.", values)
    flags.DEFINE_list(
        "clips", [], "Clips on each chip, commas between; default 1, 2, 4 … to the most that fit.", values
    )
    flags.DEFINE_integer("limit", 32, "Most clips on a chip to try.", lower_bound=1, flag_values=values)
    flags.DEFINE_list("dtype", [], "Of the backbone's arithmetic, commas between; default config.model.dtype.", values)
    flags.DEFINE_list(
        "remat", [], "As --dtype, in place of config.model.backbone.remat: none, convolutions, narrow.", values
    )
    flags.DEFINE_string("out", str(measure.RESULTS), "Folder for the JSON.", values)
    flags.DEFINE_boolean("help", False, "Prints this.", values)
    return values


def main(argv):
    """Reads the flags, compiles, prints, writes."""
    values = define_flags()
    try:
        rest = values(argv)[1:]
        counts = [int(count) for count in values.clips]
    except (flags.Error, ValueError) as error:
        sys.exit(f"{error}\n--help lists all flags.")
    if values.help:
        return print(f"{__doc__}\n{values.get_help()}")
    if rest or not values.topology:
        sys.exit(f"--topology is missing (v5e:2x2, say), or there is more than flags: {rest}. --help lists all flags.")
    # Nothing runs on a device, and a real one may be busy.
    jax.config.update("jax_platforms", "cpu")
    tell = functools.partial(print, flush=True)  # at once: the next line may take minutes
    try:
        path = run(values.config, values.topology, values.dtype, values.remat, counts, values.limit, values.out, tell)
    except ValueError as error:
        sys.exit(str(error))
    print(path)


if __name__ == "__main__":
    main(sys.argv)
