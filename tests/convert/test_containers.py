"""Which network of a file is read: nested containers, wrappers' prefixes, several side by side."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from flax import traverse_util

from stpl_jax import checkpoint
from stpl_jax.convert import ConvertError, flownet2
from stpl_jax.convert.__main__ import main
from stpl_jax.convert.containers import NAMES, state_dict_of

NETWORK = {"conv1.weight": 1, "layer1.0.conv1.weight": 2, "layer4.0.conv1.weight": 3, "layer6.bias": 4}
OTHER = {name: -value for name, value in NETWORK.items()}
DISCRIMINATOR = {"0.weight": 5, "0.bias": 6}


def tensors(tree):
    """Arrays of one number in place of the numbers."""
    return {
        k: tensors(v) if isinstance(v, dict) else np.full(1, v) if isinstance(v, int) else v for k, v in tree.items()
    }


def read(content, key=None, known=NAMES["accel"]):
    found, notes = state_dict_of(tensors(content), known, lambda x: isinstance(x, np.ndarray), "file.pth", key)
    return {name: int(x[0]) for name, x in found.items()}, notes


def before(prefix, network=NETWORK):
    return {prefix + name: value for name, value in network.items()}


@pytest.mark.parametrize(
    "keys",
    ["model", "net", "network", "state_dict", "model_state_dict", "ema", "ema_model", "teacher", "student", "generator"]
    + ["module", "checkpoint.model", "a.b.c.d"],
)
def test_containers_of_any_name_are_opened_and_said(keys):
    content = NETWORK
    for key in reversed(keys.split(".")):
        content = {key: content, "note": "text", "epoch": 3.5}
    assert read(content) == (NETWORK, [f"read: {keys}"])


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "net.", "backbone.", "module._orig_mod.", "_orig_mod.module.model."]
)
def test_prefixes_that_all_names_have_are_taken_off(prefix):
    assert read(before(prefix)) == (NETWORK, [f"prefix {prefix} taken off"])
    assert read({"model": before(prefix)})[1] == ["read: model", f"prefix {prefix} taken off"]
    # Of a network that is not the expected one, too: what is missing is then said by the right names.
    if "backbone" not in prefix:
        assert read(before(prefix, {"encoder.weight": 1}))[0] == {"encoder.weight": 1}


def test_optimisers_and_discriminators_are_no_networks():
    momenta = {"state": {0: {"exp_avg": 1}}, "by_name": NETWORK}
    content = {"G": NETWORK, "D": DISCRIMINATOR, "optimizer": momenta, "optim_states": [momenta], "epoch": 3}
    assert read(content) == (NETWORK, ["read: G"])


def test_lightning_with_tensors_of_its_own_beside_the_network():
    content = {"state_dict": before("model.") | {"criterion.weight": 9}, "hyper_parameters": {"lr": "1"}, "epoch": 1}
    found, notes = read(content)
    assert found == NETWORK
    assert notes == [
        "read: state_dict.model",
        "prefix model. taken off",
        "1 entries without that prefix left out: criterion.weight",
    ]


def test_several_networks_are_listed_and_chosen_by_key():
    content = {"model": NETWORK, "ema": {"shadow": before("module.", OTHER)}, "step": 3.0}
    with pytest.raises(ConvertError) as error:
        read(content)
    assert "file.pth holds 2 networks" in str(error.value)
    assert "--key=model: 4 tensors" in str(error.value) and "--key=ema.shadow: 4 tensors" in str(error.value)
    assert read(content, "model") == (NETWORK, ["read: model"])
    for key in ("ema.shadow", "shadow"):
        assert read(content, key) == (OTHER, ["read: ema.shadow", "prefix module. taken off"])
    with pytest.raises(
        ConvertError, match="--key=teacher is not there. It holds:\n  --key=model.*\n  --key=ema.shadow"
    ):
        read(content, "teacher")
    same = tensors(NETWORK)
    assert state_dict_of({"a": same, "b": same}, NAMES["accel"], lambda x: True, "file.pth")[1] == ["read: a"]


def test_teacher_and_student_in_one_mapping():
    content = {"state_dict": before("student.") | before("teacher.", OTHER)}
    with pytest.raises(ConvertError, match="--key=state_dict.student: 4 tensors\n  --key=state_dict.teacher: 4"):
        read(content)
    assert read(content, "teacher")[0] == OTHER
    assert read(content, "student")[0] == NETWORK
    beside = NETWORK | {"ema": OTHER}
    with pytest.raises(ConvertError, match="--key=.: 4 tensors\n  --key=ema: 4 tensors"):
        read(beside)
    assert read(beside, ".")[0] == NETWORK and read(beside, "ema")[0] == OTHER


def test_names_that_tell_each_network():
    caffe = before("Scale.")
    assert read(caffe, known=NAMES["imagenet"]) == (caffe, [])
    assert read(before("module.", caffe), known=NAMES["imagenet"]) == (caffe, ["prefix module. taken off"])
    assert read(caffe) == (caffe, [])  # the Caffe layout is no DeepLabv2 in a wrapper
    flow = {"flownetc.conv1.0.weight": 1, "flownets_d.conv1.0.weight": 2, "flownetfusion.conv0.0.weight": 3}
    assert read({"state_dict": before("module.", flow)}, known=flownet2.KNOWN)[0] == flow


def test_mappings_that_hold_themselves_end():
    wide = {str(i): None for i in range(50)}
    for name in wide:
        wide[name] = wide
    assert state_dict_of({"a": wide}, NAMES["accel"], lambda x: False, "file.pth") == ({"a": wide}, [])


@pytest.fixture
def nested(saved, small_network):
    """A file with a network under `model`, and its mean under `ema`, wrapped twice."""
    state = small_network().state_dict()
    ema = OrderedDict((f"module._orig_mod.{k}", x + 1 if x.is_floating_point() else x) for k, x in state.items())
    file = saved({"model": state, "ema": ema, "optimizer": {"state": {0: {"momentum": torch.ones(1)}}}, "epoch": 7})
    return file, state


def test_a_nested_network_converts(nested, tmp_path, small_config, refused, capsys):
    file, state = nested
    message = refused("accel", file, small_config)
    assert "holds 2 networks" in message and "--key=model" in message and "--key=ema" in message
    main(["accel", str(file), str(tmp_path / "out"), small_config, "--key=ema"])
    printed = capsys.readouterr().out
    assert "read: ema\nprefix module._orig_mod. taken off" in printed
    flat = traverse_util.flatten_dict(checkpoint.load_model(tmp_path / "out").variables, sep="/")
    np.testing.assert_array_equal(flat["params/backbone/bn1/scale"], state["bn1.weight"].numpy() + 1)
    assert "--key=teacher is not there" in refused("accel", file, small_config, "--key=teacher", target="b")


def test_home_folder_in_paths(saved, small_network, tmp_path, small_config, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    saved({"net": small_network().state_dict()})
    main(["accel", "~/input.pth", "~/weights/source", small_config])
    assert checkpoint.load_model("~/weights/source").path == tmp_path / "weights" / "source" / "checkpoints" / "0"
    main(["torch", "~/weights/source", "~/back.pth"])
    assert (tmp_path / "back.pth").is_file()
