"""Command line of the converters.

    python -m stpl_jax.convert accel|deeplab|imagenet|espnet|flownet2 INPUT.pth OUTPUT_DIR
    python -m stpl_jax.convert torch CHECKPOINT OUTPUT.pth

What weights do not show (strides, dilations, frame size, how flow is scaled) is taken from a configuration, which is
given as main.py takes it: --config=FILE, --config.flow.scale=public.
"""

import argparse
import ast
import contextlib
import runpy
import sys

from input_pipeline.errors import UserError
from input_pipeline.files import expand
from input_pipeline.whole_folder import whole_folder
from stpl_jax import checkpoint
from stpl_jax.convert import ConvertError, containers, espnet, flownet2, segmentation
from stpl_jax.convert.torch_files import check_new_file, read_state_dict, write_file

_OVERRIDE = "--config."
# Optical flow networks: a module by the sub-command, which is what `CheckpointMeta.network` says, too.
_FLOW_NETWORKS = {"flownet2": flownet2}


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

    def add(name, convert, text, known=None, source="INPUT.pth", target="OUTPUT_DIR", **options):
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.add_argument("source", metavar=source, type=expand)
        command.add_argument("target", metavar=target, type=expand)
        if known:
            command.add_argument("--key", metavar="NAME", help="which network, where the file holds several")
        for option, settings in options.items():
            command.add_argument(f"--{option}", **settings)
        command.set_defaults(run=_to_orbax if known else _torch, convert=convert, known=known)

    every = dict(action="store_true", help="list every tensor in the table, not every block")
    names = f"label setting ({', '.join(segmentation.CLASSES)}), or names with commas between them"
    numbers = ", ".join(f"{len(classes)} {setting}" for setting, classes in segmentation.CLASSES.items())
    common = dict(
        every=every,
        config=dict(metavar="FILE", help="where to take what weights do not show; default: that of the label setting"),
    )
    classes = dict(metavar="NAMES", help=f"{names}; default: by their number, {numbers}")
    seed = dict(type=int, default=0, help="of what is drawn at random; default 0")
    add(
        "accel",
        lambda state_dict, make_config, a: segmentation.convert_accel(state_dict, a.classes, make_config, a.every),
        "ACCEL DeepLabv2 of DA-VSN and TPS",
        containers.NAMES["accel"],
        classes=classes,
        **common,
    )
    add(
        "deeplab",
        lambda state_dict, make_config, a: segmentation.convert_deeplab(
            state_dict, a.classes, make_config, a.every, a.branches, a.single_level, a.seed
        ),
        "DeepLabv2 of ADVENT and AdaptSegNet; the score fusion starts as [I | 0]",
        containers.NAMES["deeplab"],
        classes=classes,
        branches=dict(type=int, help="convolutions that the original code sums (AdaptSegNet's: 2); default: all"),
        single_level=dict(action="store_true", help="one classifier in the file; the auxiliary one is drawn"),
        seed=seed,
        **common,
    )
    add(
        "imagenet",
        lambda state_dict, make_config, a: segmentation.convert_imagenet(
            state_dict, a.classes, make_config, a.every, a.seed
        ),
        "ResNet in the Caffe layout (Scale.conv1 ...); classifiers are drawn, the score fusion starts as [I | 0]",
        containers.NAMES["imagenet"],
        classes=dict(metavar="NAMES", required=True, help=names),
        seed=seed,
        **common,
    )
    add(
        "espnet",
        lambda state_dict, make_config, a: espnet.convert(state_dict, a.classes, make_config, a.every),
        "ESPNet, whose last output means void",
        espnet.KNOWN,
        classes=dict(metavar="NAMES", help=f"{names}, without void; default: Cityscapes' for 19, CamVid's for 11"),
        **common,
    )
    for name, network in _FLOW_NETWORKS.items():
        text, known = network.TITLE, network.KNOWN
        add(name, lambda state_dict, _, a, n=network: n.convert(state_dict, a.every), text, known, every=every)
    add(
        "torch",
        None,
        "the way back: one of our checkpoints as a state_dict",
        source="CHECKPOINT",
        target="OUTPUT.pth",
        row=dict(help="with a working directory, which row of its table; default the method that it adapted with"),
        prefix=dict(default="", help="put before every name, for example module."),
    )
    return parser


def _to_orbax(arguments, overrides):
    target = arguments.target
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConvertError(f"{target} is there already and not an empty folder: give another name, or remove it.")
    state_dict = read_state_dict(arguments.source, arguments.known, arguments.key)
    print("\n".join([f"{arguments.source}: {len(state_dict.arrays)} tensors", *state_dict.notes]))
    make_config = _config_maker(getattr(arguments, "config", None), overrides)
    converted = arguments.convert(state_dict, make_config, arguments)
    print("\n".join(converted.lines))
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(target) as folder:
        checkpoint.save_model(folder, converted.variables, converted.meta)
    print(f"written: {target}")


def _torch(arguments, overrides):
    del overrides
    check_new_file(arguments.target)
    stored = checkpoint.load_model(arguments.source, arguments.row, network=None, tell=print)
    print(f"reads {stored.description}")
    network = (stored.meta.config or {}).get("model", {}).get("name")
    network = (_FLOW_NETWORKS | {"espnet": espnet}).get(network or stored.meta.network, segmentation)
    arrays, others, lines = network.to_state_dict(stored)
    write_file(arguments.target, {f"{arguments.prefix}{name}": x for name, x in arrays.items()}, others)
    print("\n".join([*lines, f"written: {arguments.target}, {len(arrays)} tensors"]))


def _config_maker(file, overrides):
    """Returns a function from the label setting (or None), and defaults without a file, to the configuration."""

    def make(setting, make_defaults=None):
        if file is None:
            make_defaults = make_defaults or segmentation.CONFIGS.get(setting, segmentation.CONFIGS["viper"])
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


if __name__ == "__main__":
    main()
