"""What the tests of the converters share: a small network's file, and the command in this process."""

import pytest
import torch
from torch_reference.torch_accel import TorchAccel, draw_weights

from stpl_jax.convert.__main__ import main

SMALL = dict(
    blocks=(1, 1, 2, 1),
    widths=(4, 8, 8, 4),
    dilations=(1, 2),
    strides=(1, 2, 1, 1),
    stage_dilations=(1, 1, 2, 4),
    stem_width=8,
    stem_kernel=3,
    stem_pool=False,
)

# What weights do not show. Depth and widths are base.py's: they are read off the file.
CONFIG = """
from configs import base


def get_config():
    config = base.get_config()
    config.model.classifier_dilations = (1, 2)
    config.model.backbone.update(dict(stem_kernel=3, stem_pool=False, remat="none"))
    config.data.target.size = (32, 64)
    return config
"""


@pytest.fixture(scope="session")
def small_network():
    """A function that draws a small network of K classes."""
    return lambda num_classes=15, **changes: draw_weights(
        TorchAccel(num_classes=num_classes, **SMALL | changes), seed=num_classes
    ).eval()


@pytest.fixture(scope="session")
def small_config(tmp_path_factory):
    """The flag that names the small network's configuration."""
    file = tmp_path_factory.mktemp("config") / "small.py"
    file.write_text(CONFIG)
    return f"--config={file}"


@pytest.fixture
def saved(tmp_path):
    """A function that writes a PyTorch file."""

    def save(content, name="input.pth", **options):
        path = tmp_path / name
        torch.save(content, path, **options)
        return path

    return save


@pytest.fixture
def refused(tmp_path, capsys):
    """A function that runs a command which must fail cleanly; returns the message.

    Fails if the exit code is not 1, if there is a stack trace, or if anything is left in the folder.
    """

    def run(command, source, *flags, target="out"):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SystemExit) as end:
            main([command, str(source), str(tmp_path / target), *flags])
        # A text as exit status: Python prints it to the error stream and ends with code 1.
        assert isinstance(end.value.code, str)
        assert "Traceback" not in end.value.code + capsys.readouterr().out
        assert sorted(tmp_path.rglob("*")) == before
        print(end.value.code)
        return end.value.code

    return run
