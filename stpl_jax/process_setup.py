"""What a process of `main.py` sets up before its work: output, XLA, the devices."""

import os
import sys

from absl import logging

from input_pipeline import run_folder


def before_imports(config):
    """Sets what the libraries read when they are imported, and lets a person see the program's own lines alone."""
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {config.cpu_xla_flags}".strip()
    # Progress shows at once in a log file, too; names of files need not be text.
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    # Orbax and Grain tell at length what they do, and log the traceback of what they raise; our own lines are printed.
    logging.set_verbosity(logging.FATAL)
    printed = sys.excepthook

    def hook(kind, error, trace):
        # TensorStore prints this for each of its writes that fails after the first: it tells an event loop that has
        # ended. The first failure is raised, and told by us.
        if not (kind is RuntimeError and str(error) == "Event loop is closed"):
            printed(kind, error, trace)

    sys.excepthook = hook


def devices(config, workdir, coordinator, count, index, detect):
    """Sets up JAX, and joins the other processes where there are several; before anything else asks for a device.

    Args:
      config: the run's configuration.
      workdir: the run's folder.
      coordinator, count, index, detect: as `processes.start` takes them.

    Returns:
      One line: which devices, and in how many processes.
    """
    import jax

    from stpl_jax import processes

    # Accelerators, where there are any, are used all the same.
    jax.config.update("jax_num_cpu_devices", config.cpu_devices)
    if config.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", str(workdir / run_folder.COMPILATION_CACHE))
    processes.start(coordinator, count, index, detect)
    several = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"devices: {jax.devices()}{several}"
