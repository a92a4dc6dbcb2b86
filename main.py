"""Trains, adapts, evaluates and applies video segmentation models.

python main.py --config=configs/synthetic.py --workdir=runs/synthetic
"""

import contextlib
import os
import re
import sys
import traceback
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from input_pipeline import run_folder
from input_pipeline.errors import UserError
from input_pipeline.files import expand
from stpl_jax.stopping import StopAtOnce, Stopped

MODES = ("auto", "flow", "pretrain", "adapt", "evaluate", "analyse", "predict")
FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "Settings, a file in configs/.", lock_config=True)
flags.DEFINE_string("workdir", None, "Folder of the run: data, checkpoints, logs, report.")
flags.DEFINE_enum(
    "mode", "auto", MODES, "auto does what is missing of pretrain, adapt, evaluate and report; flow writes flow files."
)
flags.DEFINE_string("input", None, "predict: a video file or a folder of frames.")
flags.DEFINE_string("output", None, "predict: folder for class maps and overlays.")
flags.DEFINE_list(
    "checkpoints", [], "analyse: rows, checkpoints or NAME=CHECKPOINT, with commas between; default every row."
)
flags.DEFINE_bool("distributed", False, "One of several processes; the TPU slice, Slurm or Open MPI tells which.")
flags.DEFINE_string("coordinator", None, "One of several processes, told by hand: HOST:PORT of the first.")
flags.DEFINE_integer("processes", None, "With --coordinator: how many processes.")
flags.DEFINE_integer("process_id", None, "With --coordinator: number of this process, from 0.")
flags.DEFINE_string("row", None, "predict: which row of the run's table to apply; default the adapted one.")


def main(argv):
    """Runs a mode. What a person can mend, and being told to stop, end it with one line and without a traceback."""
    try:
        with StopAtOnce() as stop:
            if len(argv) > 1:
                raise UserError(f"Unexpected arguments: {argv[1:]}. Flags look like --mode=adapt.")
            run(FLAGS.config, expand(FLAGS.workdir))
            stop.check()
    except Stopped as stopped:
        _tell(stopped.message, by_all=False)
        if not FLAGS.coordinator and not FLAGS.distributed:
            # Everything is closed by now. Threads in which a library is still at work can crash an interpreter that
            # shuts down around them.
            sys.stdout.flush()
            os._exit(stopped.code)
        raise
    except (UserError, OSError) as error:
        _tell(f"{type(error).__name__}: {error}")
        sys.exit(getattr(error, "exit_code", 1))


def run(config, workdir):
    """Sets up devices and hands over."""
    # Progress shows at once in a log file, too; names of files need not be text.
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {config.cpu_xla_flags}".strip()
    # Orbax and Grain tell at length what they do, and log the traceback of what they raise; our own lines are printed.
    logging.set_verbosity(logging.FATAL)
    # Imported here: processes that this one starts for rendering and decoding read this file and need neither.
    import jax

    from stpl_jax import modes, processes, settings
    from stpl_jax.run_lock import run_lock

    _leave_out_closed_loops()
    config = settings.expand_paths(config)
    settings.check(config)
    for flag, mode in (("input", "predict"), ("output", "predict"), ("row", "predict"), ("checkpoints", "analyse")):
        if FLAGS[flag].present and FLAGS.mode != mode:
            raise UserError(f"--{flag} belongs to --mode={mode}; --mode={FLAGS.mode} does not use it. Leave it out.")
    if FLAGS.mode == "predict" and not (FLAGS.input and FLAGS.output):
        raise UserError("--mode=predict needs --input=VIDEO_OR_FOLDER and --output=DIR.")
    # Before anything asks for a device. Accelerators, where there are any, are used all the same.
    jax.config.update("jax_num_cpu_devices", config.cpu_devices)
    if config.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", str(workdir / run_folder.COMPILATION_CACHE))
    processes.start(FLAGS.coordinator, FLAGS.processes, FLAGS.process_id, FLAGS.distributed)
    several = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    waiting = [f"devices: {jax.devices()}{several}"]

    def progress(line):
        # All processes know the same; one tells: first which model is meant, as the mode says it, then on what it runs.
        if processes.is_first():
            print(line, *waiting, sep="\n")
            waiting.clear()

    with contextlib.ExitStack() as stack:
        if FLAGS.mode != "predict":  # which writes elsewhere
            processes.from_first(lambda: stack.enter_context(run_lock(workdir, progress)))
        if FLAGS.mode == "analyse":
            modes.analyse(config, workdir, FLAGS.checkpoints, progress)
        elif FLAGS.mode == "predict":
            modes.predict(config, workdir, FLAGS.row, expand(FLAGS.input), expand(FLAGS.output), progress)
        else:
            getattr(modes, FLAGS.mode)(config, workdir, progress)


def _tell(line, by_all=True):
    """Prints the last line; of several processes, each says which it is, or the first one tells for all."""
    jax = sys.modules.get("jax")
    several = jax is not None and (FLAGS.coordinator or FLAGS.distributed) and jax.process_count() > 1
    if by_all or not several or jax.process_index() == 0:
        print((f"process {jax.process_index()}: " if several else "") + line, file=sys.stderr, flush=True)


def _leave_out_closed_loops():
    """Leaves out what TensorStore prints for each of its writes that fails after the first: it tells an event loop that
    has ended. The first failure is raised, and told by us."""
    printed = sys.excepthook

    def hook(kind, error, trace):
        if not (kind is RuntimeError and str(error) == "Event loop is closed"):
            printed(kind, error, trace)

    sys.excepthook = hook


def parse(argv):
    """Reads the command line and the configuration file; a mistake in either ends with one line."""
    try:
        return app.parse_flags_with_usage(argv)
    except Exception as error:  # a configuration file is a program: anything can go wrong in it
        text = " ".join(str(error).replace("\\n", " ").replace("\\'", "'").split())
        key = re.search(r"'(\w+)'", text)
        given = [a for a in argv if a.startswith("--config.") and key and key[1] in a.partition("=")[0].split(".")]
        frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).is_file()]
        frames = [f for f in frames if "site-packages" not in f.filename and f.filename != __file__]
        at = [f"{f.filename}, line {f.lineno}" for f in frames][-1:] or [a for a in argv if a.startswith("--config=")]
        sys.exit(": ".join([type(error).__name__, *(given or at)[:1], text]))


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=parse)
