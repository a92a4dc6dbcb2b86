"""Weights in another form, where a checkpoint belongs, name the converter that reads them."""

import pytest

from input_pipeline.errors import UserError
from stpl_jax import checkpoint
from stpl_jax.weights import check_is_converted


def as_file(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK")
    return tmp_path / name, tmp_path / name


def as_missing_file(tmp_path, name):
    return tmp_path / name, tmp_path / name


def as_folder(tmp_path, name):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / name).write_bytes(b"PK")
    return tmp_path / "weights", tmp_path / "weights" / name


@pytest.mark.parametrize("make", [as_file, as_missing_file, as_folder])
@pytest.mark.parametrize("name", ["model.pth", "Model.PT", "FlowNet2_checkpoint.pth.tar", "epoch.ckpt"])
@pytest.mark.parametrize(
    ("key", "converter"), [("init_from", "accel"), ("pretrain_from", "imagenet"), ("flow.weights", "flownet2")]
)
def test_weights_of_pytorch_name_the_converter(tmp_path, make, name, key, converter):
    given, file = make(tmp_path, name)
    with pytest.raises(UserError) as caught:
        check_is_converted(key, str(given))
    message = str(caught.value)
    assert f"config.{key}={given}: expected a checkpoint" in message
    assert f"stpl_jax.convert {converter}" in message and f"{file} OUTPUT" in message


def test_checkpoints_and_folders_beside_a_file_pass(tmp_path, tiny_variables):
    checkpoint.save_model(tmp_path / "source", tiny_variables, {})
    check_is_converted("init_from", tmp_path / "source")
    check_is_converted("init_from", tmp_path / "nothing_there")
    (tmp_path / "run" / "stpl").mkdir(parents=True)
    (tmp_path / "run" / "adapted.pth").write_bytes(b"PK")
    check_is_converted("init_from", tmp_path / "run")
    plain = tmp_path / "weights"
    plain.write_bytes(b"PK")
    with pytest.raises(UserError, match="found a file"):
        check_is_converted("init_from", plain)
