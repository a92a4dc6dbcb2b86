"""Which weights a run starts from, as a person names them."""

from input_pipeline import run_folder
from input_pipeline.errors import UserError
from input_pipeline.files import expand
from stpl_jax import checkpoint

# Endings of files that hold weights in other forms, and which converter reads them.
_FOREIGN = (".pth", ".pt", ".tar", ".ckpt", ".bin", ".pkl", ".pickle", ".safetensors", ".caffemodel", ".npz", ".h5")
_CONVERTERS = {"init_from": "accel", "pretrain_from": "imagenet", "flow.weights": "flownet2"}


def own_source_model(workdir):
    """Returns the newest checkpoint of the source model that was trained in a run's folder, as text.

    Raises:
      CheckpointError: there is none; the message says how to get one.
    """
    own = run_folder.checkpoints(workdir, "source_only")
    try:
        return str(checkpoint.find_checkpoint(own))
    except checkpoint.CheckpointError:
        raise checkpoint.CheckpointError(
            f"Adapting needs a source model, and neither config.init_from nor {own} has one. Either train it here, "
            "with the source data: --mode=pretrain --config.data.source.raw_dir=FOLDER; or name one that is trained: "
            "--config.init_from=CHECKPOINT."
        ) from None


def check_is_converted(key, path):
    """Checks that a setting does not name weights in another form, a file of PyTorch say, where a checkpoint belongs.

    Args:
      key: the setting: `init_from`, `pretrain_from` or `flow.weights`.
      path: its value, a file, or a folder that may hold such files.

    Raises:
      UserError: says how to convert it.
    """
    path = expand(path)
    if path.is_dir():
        inside = list(path.iterdir())
        foreign = next((file for file in sorted(inside) if file.suffix.lower() in _FOREIGN), None)
        if foreign is None or any(file.is_dir() for file in inside):
            return
        found = f"a folder with {foreign.name}"
    elif path.is_file() or path.suffix.lower() in _FOREIGN:
        foreign, found = path, "a file" if path.is_file() else "no such file"
    else:
        return
    raise UserError(
        f"config.{key}={path}: expected a checkpoint, which is a folder, found {found}. Weights of PyTorch are "
        f"converted once, `python -m stpl_jax.convert {_CONVERTERS[key]} {foreign} OUTPUT`; then set "
        f"--config.{key}=OUTPUT. docs/weights.md names the converters of other files."
    )
