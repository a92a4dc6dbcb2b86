"""Trains, adapts, evaluates and applies video segmentation models.

python main.py --config=configs/synthetic.py --workdir=runs/synthetic
"""

import contextlib

from absl import app, flags
from ml_collections import config_flags

from input_pipeline.errors import UserError
from input_pipeline.files import expand
from stpl_jax import command_line, process_setup

MODES = ("auto", "flow", "pretrain", "adapt", "evaluate", "analyse", "select", "choose_frames", "predict")
FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "Settings, a file in configs/.", lock_config=True)
flags.DEFINE_string("workdir", None, "Folder of the run: data, checkpoints, logs, report.")
flags.DEFINE_enum(
    "mode",
    "auto",
    MODES,
    "auto does what is missing of pretrain, adapt, evaluate and report; flow writes flow files; select chooses a row "
    "without labels; choose_frames writes held-out frames that are worth labelling.",
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
    """Runs a mode."""
    with command_line.told_in_one_line():
        if len(argv) > 1:
            raise UserError(f"Unexpected arguments: {argv[1:]}. Flags look like --mode=adapt.")
        run(FLAGS.config, expand(FLAGS.workdir))


def run(config, workdir):
    """Sets up devices and hands over."""
    process_setup.before_imports(config)
    # Imported here: processes that this one starts for rendering and decoding read this file and need neither.
    from stpl_jax import modes, processes, settings
    from stpl_jax.run_lock import run_lock

    config = settings.expand_paths(config)
    settings.check(config)
    for flag, mode in (("input", "predict"), ("output", "predict"), ("row", "predict"), ("checkpoints", "analyse")):
        if FLAGS[flag].present and FLAGS.mode != mode:
            raise UserError(f"--{flag} belongs to --mode={mode}; --mode={FLAGS.mode} does not use it. Leave it out.")
    if FLAGS.mode == "predict" and not (FLAGS.input and FLAGS.output):
        raise UserError("--mode=predict needs --input=VIDEO_OR_FOLDER and --output=DIR.")
    place = (FLAGS.coordinator, FLAGS.processes, FLAGS.process_id, FLAGS.distributed)
    waiting = [process_setup.devices(config, workdir, *place)]

    def progress(line):
        # All processes know the same; one tells: first which model is meant, as the mode says it, then on what it runs.
        if processes.is_first():
            print(line, *waiting, sep="\n")
            waiting.clear()

    with contextlib.ExitStack() as stack:
        if FLAGS.mode != "predict":  # which writes elsewhere
            processes.from_first(lambda: stack.enter_context(run_lock(workdir, progress)))
            config = modes.with_inputs(config, workdir, progress)
        if FLAGS.mode == "analyse":
            modes.analyse(config, workdir, FLAGS.checkpoints, progress)
        elif FLAGS.mode == "predict":
            modes.predict(config, workdir, FLAGS.row, expand(FLAGS.input), expand(FLAGS.output), progress)
        else:
            getattr(modes, FLAGS.mode)(config, workdir, progress)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=command_line.parse)
