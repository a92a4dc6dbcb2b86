"""Trains, adapts, evaluates and applies video segmentation models.

python main.py --config=configs/synthetic.py --workdir=runs/synthetic
"""

import os
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from input_pipeline.errors import UserError
from input_pipeline.files import expand

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
    """Sets up devices and hands over."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}. Flags look like --mode=adapt.")
    config, workdir = FLAGS.config, expand(FLAGS.workdir)
    sys.stdout.reconfigure(line_buffering=True)  # progress shows at once in a log file, too
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {config.cpu_xla_flags}".strip()
    # Orbax and Grain tell at length what they do; our own lines are printed.
    logging.set_verbosity(logging.WARNING)
    # Imported here: processes that this one starts for rendering and decoding read this file and need neither.
    import jax

    from input_pipeline import run_folder
    from stpl_jax import modes, processes

    # Before anything asks for a device. Accelerators, where there are any, are used all the same.
    jax.config.update("jax_num_cpu_devices", config.cpu_devices)
    if config.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", str(workdir / run_folder.COMPILATION_CACHE))

    if FLAGS.mode == "predict" and not (FLAGS.input and FLAGS.output):
        raise app.UsageError("--mode=predict needs --input=VIDEO_OR_FOLDER and --output=DIR.")
    who = ""
    try:
        processes.start(FLAGS.coordinator, FLAGS.processes, FLAGS.process_id, FLAGS.distributed)
        who = f"process {jax.process_index()}: " if jax.process_count() > 1 else ""
        # All processes know the same; one tells.
        progress = print if processes.is_first() else lambda line: None
        progress(f"devices: {jax.devices()}" + (f" in {jax.process_count()} processes" if who else ""))
        if FLAGS.mode == "analyse":
            modes.analyse(config, workdir, FLAGS.checkpoints, progress)
        elif FLAGS.mode == "predict":
            modes.predict(config, workdir, FLAGS.row, FLAGS.input, FLAGS.output, progress)
        else:
            getattr(modes, FLAGS.mode)(config, workdir, progress)
    except (UserError, OSError) as error:
        # The message says what to do; a traceback of our own functions would hide it.
        print(f"{who}{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
