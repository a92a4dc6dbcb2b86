"""Command line of the converters.

    python -m stpl_jax.convert accel|deeplab|imagenet|flownet2 INPUT.pth OUTPUT_DIR
    python -m stpl_jax.convert torch CHECKPOINT OUTPUT.pth

What weights do not show (strides, dilations, frame size, how flow is scaled) is taken from a configuration, which is
given as main.py takes it: --config=FILE, --config.flow.scale=public.
"""

import argparse
import ast
import contextlib
import os
import runpy
import shutil
import sys
import tempfile
from pathlib import Path

from input_pipeline.errors import UserError
from input_pipeline.files import expand
from stpl_jax import checkpoint
from stpl_jax.convert import ConvertError, containers, flow, segmentation
from stpl_jax.convert.torch_files import check_new_file, read_state_dict, write_file

_OVERRIDE = "--config."


def main(argv=None):
    """Converts; ends the process with code 1 and one message where it cannot."""
    parser = _parser()
    arguments, further = parser.parse_known_args(argv)
    overrides = [text for text in further if text.startswith(_OVERRIDE) and hasattr(arguments, "config")]
    if len(overrides) < len(further):
        parser.error(f"unrecognised arguments: {' '.join(text for text in further if text not in overrides)}")
    try:
        arguments.run(arguments, overrides)
    except (UserError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m stpl_jax.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="FORMAT")

    def add(name, run, text, source="INPUT.pth", target="OUTPUT_DIR", **options):
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.add_argument("source", metavar=source, type=expand)
        command.add_argument("target", metavar=target, type=expand)
        if name in containers.NAMES:
            command.add_argument("--key", metavar="NAME", help="which network, where the file holds several")
            command.set_defaults(known=containers.NAMES[name])
        for option, settings in options.items():
            command.add_argument(f"--{option}", **settings)
        command.set_defaults(run=run)

    every = dict(action="store_true", help="list every tensor in the table, not every block")
    names = f"label setting ({', '.join(segmentation.CLASSES)}), or names with commas between them"
    numbers = ", ".join(f"{len(classes)} {setting}" for setting, classes in segmentation.CLASSES.items())
    common = dict(
        every=every,
        config=dict(metavar="FILE", help="where to take what weights do not show; default: that of the label setting"),
    )
    classes = dict(metavar="NAMES", help=f"{names}; default: by their number, {numbers}")
    seed = dict(type=int, default=0, help="of what is drawn at random; default 0")
    add("accel", _accel, "ACCEL DeepLabv2 of DA-VSN and TPS", classes=classes, **common)
    add(
        "deeplab",
        _deeplab,
        "DeepLabv2 of ADVENT and AdaptSegNet; the score fusion starts as [I | 0]",
        classes=classes,
        branches=dict(type=int, help="convolutions that the original code sums (AdaptSegNet's: 2); default: all"),
        single_level=dict(action="store_true", help="one classifier in the file; the auxiliary one is drawn"),
        seed=seed,
        **common,
    )
    add(
        "imagenet",
        _imagenet,
        "ResNet in the Caffe layout (Scale.conv1 ...); classifiers are drawn, the score fusion starts as [I | 0]",
        classes=dict(metavar="NAMES", required=True, help=names),
        seed=seed,
        **common,
    )
    add("flownet2", _flownet2, "FlowNet2 as released", every=every)
    add(
        "torch",
        _torch,
        "the way back: one of our checkpoints as a state_dict",
        source="CHECKPOINT",
        target="OUTPUT.pth",
        row=dict(help="with a working directory, which row of its table; default the method that it adapted with"),
        prefix=dict(default="", help="put before every name, for example module."),
    )
    return parser


def _accel(arguments, overrides):
    def convert(state_dict):
        return segmentation.convert_accel(
            state_dict, arguments.classes, _config_maker(arguments.config, overrides), arguments.every
        )

    _to_orbax(arguments, convert)


def _deeplab(arguments, overrides):
    def convert(state_dict):
        return segmentation.convert_deeplab(
            state_dict,
            arguments.classes,
            _config_maker(arguments.config, overrides),
            arguments.every,
            arguments.branches,
            arguments.single_level,
            arguments.seed,
        )

    _to_orbax(arguments, convert)


def _imagenet(arguments, overrides):
    def convert(state_dict):
        return segmentation.convert_imagenet(
            state_dict, arguments.classes, _config_maker(arguments.config, overrides), arguments.every, arguments.seed
        )

    _to_orbax(arguments, convert)


def _flownet2(arguments, overrides):
    del overrides
    _to_orbax(arguments, lambda state_dict: flow.convert_flownet2(state_dict, arguments.every))


def _to_orbax(arguments, convert):
    with _new_folder(arguments.target) as folder:
        state_dict = read_state_dict(arguments.source, arguments.known, arguments.key)
        print("\n".join([f"{arguments.source}: {len(state_dict.arrays)} tensors", *state_dict.notes]))
        converted = convert(state_dict)
        print("\n".join(converted.lines))
        checkpoint.save_model(folder(), converted.variables, converted.meta)
    print(f"written: {arguments.target}")


def _torch(arguments, overrides):
    del overrides
    check_new_file(arguments.target)
    stored = checkpoint.load_model(arguments.source, arguments.row, network=None, tell=print)
    print(f"reads {stored.description}")
    if stored.meta.get("network") == "flownet2":
        arrays, others, lines = flow.to_state_dict(stored)
    else:
        (arrays, lines), others = segmentation.to_state_dict(stored), None
    write_file(arguments.target, {f"{arguments.prefix}{name}": x for name, x in arrays.items()}, others)
    print("\n".join([*lines, f"written: {arguments.target}, {len(arrays)} tensors"]))


def _config_maker(file, overrides):
    """Returns a function from the label setting (or None) to a configuration with the overrides."""

    def make(setting):
        if file is None:
            make_defaults = segmentation.CONFIGS.get(setting, segmentation.CONFIGS["viper"])
        else:
            make_defaults = runpy.run_path(file).get("get_config")
            if make_defaults is None:
                raise ConvertError(f"--config={file}: expected a file with get_config(), as those in configs/.")
        config = make_defaults().lock()
        for text in overrides:
            name, separator, value = text.removeprefix(_OVERRIDE).partition("=")
            if not separator:
                raise ConvertError(f"{text}: expected {_OVERRIDE}KEY=VALUE.")
            with contextlib.suppress(ValueError, SyntaxError):  # else it is a string
                value = ast.literal_eval(value)
            try:
                config.update_from_flattened_dict({name: value})
            except (KeyError, TypeError, ValueError) as error:
                raise ConvertError(f"{text}: {error}") from None
        return config

    return make


@contextlib.contextmanager
def _new_folder(path):
    """Makes a folder appear whole or not at all.

    Yields a function that makes a folder beside it, to write to; this one takes its place where the block ends well.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConvertError(f"{path} is there already and not an empty folder: give another name, or remove it.")
    made = []

    def make():
        path.parent.mkdir(parents=True, exist_ok=True)
        made.append(Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.")))
        made[0].chmod(0o755)  # temporary folders are made for their owner alone
        return made[0]

    try:
        yield make
        os.replace(made[0], path)
    finally:
        for folder in made:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
