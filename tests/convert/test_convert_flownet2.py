"""FlowNet2's released container, in and out."""

import jax
import numpy as np
import pytest
import torch
from flax import traverse_util

from stpl_jax import checkpoint
from stpl_jax.convert import flownet2
from stpl_jax.convert.__main__ import main
from stpl_jax.models.flownet2 import FlowNet2, parameter_shapes

# Of docs and papers, not of our own network.
SIZES = {
    "flownetc": 39_175_298,
    "flownets_1": 38_695_322,
    "flownets_d": 45_371_666,
    "flownets_2": 38_695_322,
    "flownetfusion": 581_226,
}


def draw(shape, seed):
    """A tensor that differs along every axis and takes a few kilobytes on disk: its rows overlap in memory."""
    strides = (7, 5, 3, 1)[-len(shape) :]
    generator = torch.Generator().manual_seed(seed)
    count = 1 + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))
    return torch.randn(count, generator=generator).as_strided(shape, strides)


@pytest.fixture(scope="module")
def released():
    """A random state_dict with the shapes of the released one."""
    shapes = flownet2._layout().shapes()
    return {name: draw(shape, seed) for seed, (name, shape) in enumerate(shapes.items())}


def test_names_and_shapes_are_the_public_ones(released):
    assert len(released) == 220
    for network, size in SIZES.items():
        assert sum(x.numel() for name, x in released.items() if name.startswith(f"{network}.")) == size
    # Some by hand: a convolution with and without activation, transposed ones with and without bias.
    assert released["flownetc.conv1.0.weight"].shape == (64, 3, 7, 7)
    assert released["flownetc.conv3_1.0.weight"].shape == (256, 473, 3, 3)
    assert released["flownets_1.conv1.0.weight"].shape == (64, 12, 7, 7)
    assert released["flownets_2.deconv4.0.weight"].shape == (1026, 256, 4, 4)
    assert released["flownets_d.predict_flow6.weight"].shape == (2, 1024, 3, 3)
    assert released["flownetfusion.upsampled_flow1_to_0.bias"].shape == (2,)
    assert "flownets_1.upsampled_flow6_to_5.bias" not in released


def test_flownet2_goes_in_and_out_bit_for_bit(released, saved, tmp_path, capsys):
    content = {"epoch": 7, "state_dict": released, "best_EPE": 3.25}
    file = saved(content, "FlowNet2_checkpoint.pth.tar", _use_new_zipfile_serialization=False)
    main(["flownet2", str(file), str(tmp_path / "out")])
    printed = capsys.readouterr().out
    print(printed)
    assert "162,518,834" in printed and all(f"{size:,}" in printed for size in SIZES.values())

    stored = checkpoint.load_model(tmp_path / "out", network="flownet2")
    assert stored.meta.source == "flownet2 FlowNet2_checkpoint.pth.tar"
    expected = traverse_util.flatten_dict(parameter_shapes(FlowNet2()))
    found = traverse_util.flatten_dict(stored.variables["params"])
    assert {p: (x.shape, x.dtype) for p, x in found.items()} == {p: (x.shape, x.dtype) for p, x in expected.items()}
    np.testing.assert_array_equal(
        found["flownetc", "conv3_1", "kernel"], released["flownetc.conv3_1.0.weight"].numpy().transpose(2, 3, 1, 0)
    )
    back, others, _ = flownet2.to_state_dict(stored)
    assert others == {"epoch": 7, "best_EPE": 3.25}
    assert back.keys() == released.keys()
    for name, x in back.items():
        np.testing.assert_array_equal(x, released[name].numpy(), err_msg=name)


def test_flownet2_that_does_not_fit(released, saved, refused):
    broken = dict(released)
    del broken["flownets_d.inter_conv3.0.bias"]
    broken["flownets_1.upsampled_flow6_to_5.bias"] = torch.ones(2)
    broken["flownetfusion.conv0.0.weight"] = torch.ones(64, 12, 3, 3)
    message = refused("flownet2", saved({"state_dict": broken}))
    assert "expected 220 tensors, found 220; 1 missing, 1 too many, 1 of another shape" in message
    assert "flownets_d.inter_conv3.0.bias: expected (128,), found missing" in message
    assert "flownets_1.upsampled_flow6_to_5.bias: expected missing, found (2,) float32" in message
    assert "flownetfusion.conv0.0.weight: expected (64, 11, 3, 3) float32, found (64, 12, 3, 3) float32" in message


def test_way_back_of_a_flow_checkpoint_is_the_public_container(tmp_path, monkeypatch):
    shapes = {"flownetc": {"conv1": {"kernel": jax.ShapeDtypeStruct((7, 7, 3, 4), np.float32)}}}
    monkeypatch.setattr(flownet2, "KEYS", (("flownetc.conv1.0.weight", ("flownetc", "conv1", "kernel"), "conv"),))
    monkeypatch.setattr(flownet2, "parameter_shapes", lambda network: shapes)
    kernel = np.random.default_rng(0).normal(size=(7, 7, 3, 4)).astype(np.float32)
    variables = {"params": {"flownetc": {"conv1": {"kernel": kernel}}}}
    checkpoint.save_model(tmp_path / "flow", variables, checkpoint.CheckpointMeta(network="flownet2"))
    main(["torch", str(tmp_path / "flow"), str(tmp_path / "back.pth.tar")])
    back = torch.load(tmp_path / "back.pth.tar", weights_only=True)
    assert back["epoch"] == 0 and back["best_EPE"] == float("inf")
    np.testing.assert_array_equal(back["state_dict"]["flownetc.conv1.0.weight"], kernel.transpose(3, 2, 0, 1))
