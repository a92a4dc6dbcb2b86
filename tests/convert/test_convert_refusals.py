"""Files that must not be converted: one clear message with both sides, exit code 1, and nothing left behind."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from stpl_jax import checkpoint
from stpl_jax.checkpoint import CheckpointError, CheckpointMeta
from stpl_jax.convert.__main__ import main

ROOT = Path(__file__).parents[2]


class Code:
    """Pickles as a call that makes a file: what a hostile checkpoint does."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def state(small_network):
    """A good state_dict, to be broken."""
    return dict(small_network().state_dict())


@pytest.mark.parametrize("container", ["zip", "legacy", "pickle", "pickle of today"])
def test_code_in_a_pickle_is_named_and_not_run(saved, tmp_path, state, refused, small_config, container):
    trap = tmp_path / "trap"
    content = state | {"hook": Code(trap)}
    if container.startswith("pickle"):
        file = tmp_path / "input.pth"
        file.write_bytes(pickle.dumps({"hook": Code(trap)}, protocol=2 if container == "pickle" else None))
    else:
        file = saved(content, _use_new_zipfile_serialization=container == "zip")
    message = refused("accel", file, small_config)
    assert str(file) in message and "state_dict" in message and "code" in message
    assert container == "pickle of today" or "mkdir" in message
    assert "weights_only" not in message  # torch's own text advises to switch the protection off
    assert not trap.exists()


def test_a_whole_module_is_refused(saved, small_network, refused, small_config):
    message = refused("accel", saved(small_network()), small_config)
    assert "TorchAccel" in message and "torch.save(model.state_dict()" in message


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_truncated_files(saved, state, refused, small_config, legacy, share):
    file = saved(state, _use_new_zipfile_serialization=not legacy)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    message = refused("accel", file, small_config)
    assert str(file) in message and ("truncated" in message or "damaged" in message)


def test_a_byte_that_a_download_changed(saved, state, refused, small_config):
    file = saved(state)
    whole = bytearray(file.read_bytes())
    where = whole.find(state["layer6.conv2d_list.0.weight"].numpy().tobytes())
    assert where > 0
    whole[where + 5] ^= 1
    file.write_bytes(whole)
    assert "checksum" in refused("accel", file, small_config)


@pytest.mark.parametrize("content", [b"not a checkpoint", bytes(range(256)) * 40, b"PK\x05\x06" + bytes(18)])
def test_files_of_another_kind(tmp_path, refused, small_config, content):
    (tmp_path / "input.pth").write_bytes(content)
    message = refused("accel", tmp_path / "input.pth", small_config)
    assert "input.pth" in message and ("not a PyTorch file" in message or "not a state_dict" in message)


def test_a_numpy_archive_and_a_folder_and_nothing(tmp_path, refused, small_config):
    np.savez(tmp_path / "input.npz", a=np.ones(3))
    assert "not a PyTorch file" in refused("accel", tmp_path / "input.npz", small_config)
    assert "no such file" in refused("accel", tmp_path, small_config)
    assert "no such file" in refused("accel", tmp_path / "nothing.pth", small_config)


@pytest.mark.parametrize(
    "content, expected",
    [
        ([1, 2], "list [1, 2]"),
        ({}, "empty mapping"),
        (
            {"conv1.weight": torch.ones(1), "model": {"a": 1}},
            "'model': expected a tensor and its name, found a mapping",
        ),
        ({"model": {"conv1.weight": torch.ones(1)}, "epoch": 3}, "layer1.0.conv1.weight: expected (64, 1, 1, 1)"),
        ({"state_dict": {}}, "empty mapping"),
        ({0: torch.ones(1)}, "0: expected a tensor and its name"),
        ({"conv1.weight": torch.ones(1).to_sparse()}, "sparse"),
    ],
)
def test_checkpoints_without_a_state_dict(saved, refused, small_config, content, expected):
    assert expected in refused("accel", saved(content), small_config)


def test_missing_extra_and_wrong_tensors_are_listed_together(saved, state, refused, small_config):
    count = sum(not name.endswith("num_batches_tracked") for name in state)
    del state["layer2.0.bn2.running_mean"]
    del state["layer6.conv2d_list.1.bias"]
    state["layer3.2.conv1.bias"] = torch.ones(8)
    state["bn1.weight"] = torch.ones(9)
    state["layer4.0.conv2.weight"] = state["layer4.0.conv2.weight"][:, :, :1]
    state["layer1.0.bn1.bias"] = torch.ones(4, dtype=torch.int64)
    state["layer1.0.conv1.weight"][0, 0] = torch.nan
    message = refused("accel", saved(state), small_config)
    assert f"expected {count} tensors, found {count - 1}; 2 missing, 1 too many, 3 of another shape or type" in message
    for line in (
        "layer2.0.bn2.running_mean: expected (8,), found missing",
        "layer6.conv2d_list.1.bias: expected (15,), found missing",
        "layer3.2.conv1.bias: expected missing, found (8,) float32",
        "bn1.weight: expected (8,) float32, found (9,) float32",
        "layer4.0.conv2.weight: expected (4, 4, 3, 3) float32, found (4, 4, 1, 3) float32",
        "layer1.0.bn1.bias: expected (4,) float32, found (4,) int64",
        "layer1.0.conv1.weight: expected finite numbers, found NaN or infinity in 1 of 32",
    ):
        assert line in message, line


def test_a_missing_block_in_the_middle_is_found_missing(saved, small_network, refused, small_config):
    state = small_network(blocks=(1, 3, 2, 1)).state_dict()
    without = {name: x for name, x in state.items() if not name.startswith("layer2.1.")}
    message = refused("accel", saved(without), small_config)
    assert "15 missing" in message and "layer2.1.conv1.weight: expected (8, 32, 1, 1), found missing" in message


def test_long_lists_are_cut_with_a_count(saved, refused, small_config):
    message = refused("accel", saved({f"encoder.{i}": torch.ones(2) for i in range(500)}), small_config)
    assert "500 too many" in message and "and 488 more" in message and len(message.splitlines()) < 30


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_numbers_that_are_not_finite(saved, state, refused, small_config, value):
    state["layer3.0.bn3.running_var"][3] = value
    message = refused("accel", saved(state), small_config)
    assert "layer3.0.bn3.running_var" in message and "in 1 of 32" in message


def test_the_other_sub_command_is_named(saved, state, refused, small_config):
    assert "sub-command accel" in refused("deeplab", saved(state), small_config)
    del state["sf_layer.weight"]
    message = refused("accel", saved(state), small_config)
    assert "sf_layer.weight: expected (15, 30, 1, 1), found missing" in message and "sub-command deeplab" in message


@pytest.mark.parametrize(
    "classes, expected",
    [
        ("synthia_seq", "has 12 names, and the file has 15 classes"),
        ("road,sky", "has 2 names, and the file has 15 classes"),
        (",".join(["road"] * 15), "different names"),
        ("viper,", "has 2 names"),
    ],
)
def test_classes_that_do_not_fit(saved, state, refused, small_config, classes, expected):
    assert expected in refused("accel", saved(state), small_config, f"--classes={classes}")


def test_torchvisions_resnet_is_refused_with_the_reason(saved, state, refused, small_config):
    backbone = {k: x for k, x in state.items() if k[:6] not in ("layer5", "layer6", "sf_lay")}
    backbone |= {"fc.weight": torch.ones(1000, 16), "fc.bias": torch.ones(1000)}
    message = refused("imagenet", saved(backbone), small_config, "--classes=viper")
    assert "torchvision" in message and "3×3" in message and "RGB" in message and "Scale.conv1" in message
    message = refused("imagenet", saved({"encoder.weight": torch.ones(2)}), small_config, "--classes=viper")
    assert "encoder.weight" in message and "Scale.conv1.weight" in message
    assert "sub-command deeplab" in refused("imagenet", saved(state), small_config, "--classes=viper")
    half = {f"Scale.{k}": x for k, x in backbone.items() if not k.startswith("layer4.0.conv1")}
    message = refused("imagenet", saved(half), small_config, "--classes=viper")
    assert "layer4.0.conv1.weight: expected (4, 32, 1, 1), found missing" in message


def test_output_folder_that_is_in_use(saved, state, tmp_path, refused, small_config):
    file = saved(state)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    assert "already" in refused("accel", file, small_config, target="full")
    assert "already" in refused("accel", file, small_config, target="full/mine.txt")
    assert (tmp_path / "full" / "mine.txt").read_text() == "keep"
    (tmp_path / "empty").mkdir()
    main(["accel", str(file), str(tmp_path / "empty"), small_config])
    checkpoint.load_model(tmp_path / "empty")


@pytest.mark.parametrize("command, target", [("accel", "out"), ("torch", "out.pth")])
def test_a_disk_that_fills_up_leaves_nothing(
    saved, state, tmp_path, refused, small_config, monkeypatch, command, target
):
    source = saved(state)
    if command == "torch":
        main(["accel", str(source), str(tmp_path / "source"), small_config])
        source, small_config = tmp_path / "source", "--prefix="

    def fail(where, *rest, **options):
        # Something is there already when it happens.
        (where / "part").write_text("x") if isinstance(where, Path) else rest[0].write(b"x")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_model", fail)
    monkeypatch.setattr(torch, "save", fail)
    assert "No space left" in refused(command, source, small_config, target=target)


def test_without_pytorch_the_message_says_what_to_install(saved, state, refused, small_config, monkeypatch):
    file = saved(state)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "pip install -r requirements-convert.txt" in refused("accel", file, small_config)


def test_flow_and_segmentation_checkpoints_are_not_mixed_up(tmp_path, tiny_segmenter, tiny_variables):
    flow = {"params": {"flownetc": {"conv1": {"kernel": np.ones((1, 1, 1, 1), np.float32)}}}}
    checkpoint.save_model(tmp_path / "flow", flow, CheckpointMeta(network="flownet2"))
    with pytest.raises(CheckpointError, match="holds the optical flow network flownet2, and a segmentation"):
        checkpoint.load_model(tmp_path / "flow", template=tiny_variables)
    assert checkpoint.load_model(tmp_path / "flow", network="flownet2").meta == CheckpointMeta(network="flownet2")
    checkpoint.save_model(tmp_path / "model", tiny_variables, CheckpointMeta())
    with pytest.raises(CheckpointError, match="holds a segmentation network, and the optical flow network flownet2 is"):
        checkpoint.load_model(tmp_path / "model", network="flownet2")


def test_command_line_as_it_is_typed(saved, state, tmp_path, small_config):
    """In processes of their own: exit codes, streams, help."""

    def run(*arguments):
        command = [sys.executable, "-m", "stpl_jax.convert", *map(str, arguments)]
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)

    good = run("accel", saved(state), tmp_path / "new" / "out", small_config)
    assert good.returncode == 0 and "written" in good.stdout, good.stderr
    assert checkpoint.load_model(tmp_path / "new" / "out").meta.label_setting == "viper"
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["out"]
    bad = run("accel", saved(state | {"more": torch.ones(1)}), tmp_path / "bad", small_config)
    assert bad.returncode == 1 and "more: expected missing" in bad.stderr and "Traceback" not in bad.stderr
    assert not (tmp_path / "bad").exists() and not bad.stdout.count("written")
    mistyped = run("accel", "a.pth", "b", "--clases=viper")
    assert mistyped.returncode == 2 and "--clases" in mistyped.stderr
