"""ESPNet's public files, small: what comes out gives PyTorch's class maps, and the way back is bit for bit."""

import jax
import numpy as np
import pytest
import torch
from torch_reference.torch_espnet import TorchESPNet, draw_weights, normalise

import stpl_jax
from configs import base
from input_pipeline.labels import CLASSES
from stpl_jax import checkpoint, source_settings
from stpl_jax.convert.__main__ import main
from stpl_jax.convert.espnet import CAMVID, CAMVID_INPUT
from stpl_jax.train import build_segmenter

SIZE = (32, 64)
FILES = {"cityscapes": (20, False), "camvid": (12, True)}


def drawn(name, **changes):
    outputs, reinforced = FILES[name]
    return draw_weights(TorchESPNet(outputs, 1, 2, (5, 10, 15), reinforced=reinforced, **changes)).eval()


@pytest.mark.parametrize("name", FILES)
def test_class_maps_are_pytorchs_without_void(name, saved, tmp_path, capsys):
    network, out = drawn(name), tmp_path / "out"
    # Void would win everywhere: it has to be left out, not renamed.
    frames = np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3)).astype(np.uint8)
    numbers = CAMVID_INPUT if name == "camvid" else {}
    with torch.no_grad():
        network.classifier.weight[:, -1] = 9 * network.classifier.weight[:, 0]
        scores = network(normalise(frames, **numbers)).permute(0, 2, 3, 1).numpy()
    assert (scores.argmax(-1) == scores.shape[-1] - 1).mean() > 0.1
    state = {f"module.{key}": x for key, x in network.state_dict().items()}
    main(["espnet", str(saved(state)), str(out), f"--config.data.target.size={SIZE}"])
    printed = capsys.readouterr().out
    assert "p=1, q=2, widths (5, 10, 15)" in printed
    assert f"the first level {'with' if name == 'camvid' else 'without'} the image" in printed

    model = stpl_jax.load(out)
    found, expected = model.segment(frames), scores[..., :-1]
    margin = np.diff(np.sort(expected, -1)[..., -2:], axis=-1)[..., 0]
    assert (margin[found != expected.argmax(-1)] < 1e-4 * np.abs(scores).max()).all() and len(np.unique(found)) > 3
    assert model.size == SIZE
    assert model.classes == (CAMVID if name == "camvid" else CLASSES["cityscapes_seq"])
    main(["torch", str(out), str(tmp_path / "back.pth")])
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    drawn(name).load_state_dict(back, strict=True)
    for key, x in network.state_dict().items():
        assert torch.equal(x, back[key]), key


def test_a_run_takes_network_classes_and_size_from_it(saved, tmp_path):
    out = tmp_path / "out"
    main(["espnet", str(saved(drawn("camvid").state_dict())), str(out)])
    assert checkpoint.load_model(out).meta.source == "espnet input.pth"
    config = base.get_config()
    config.init_from, config.from_checkpoint, config.data.target.size = str(out), True, (0, 0)
    config = source_settings.complete(config)
    assert config.model.name == "espnet" and tuple(config.data.target.size) == (360, 480)
    assert config.data.class_names == CAMVID
    assert config.model.espnet.to_dict() == {
        "p": 1,
        "q": 2,
        "widths": (5, 10, 15),
        "reinforced_skip": True,
        **CAMVID_INPUT,
    }
    segmenter = build_segmenter(config)
    stored = checkpoint.load_model(out).variables
    shapes = jax.eval_shape(segmenter.initial, jax.random.key(0))
    assert jax.tree.map(np.shape, stored) == jax.tree.map(np.shape, dict(shapes))


def test_what_is_no_espnet_is_refused(saved, refused):
    state = drawn("cityscapes").state_dict()
    encoder = {k.removeprefix("encoder."): x for k, x in state.items() if k.startswith("encoder.")}
    assert "ESPNet-C, an encoder without a decoder" in refused("espnet", saved(encoder))
    wrong = state | {"up_l3.0.weight": torch.zeros(20, 20, 3, 3)}
    del wrong["conv.act.weight"]
    message = refused("espnet", saved(wrong))
    assert "1 missing, 1 of another shape" in message
    assert "up_l3.0.weight: expected (20, 20, 2, 2) float32, found (20, 20, 3, 3)" in message
    assert "19 names" not in message
    assert "has 2 names, and the file has 19 classes" in refused("espnet", saved(state), "--classes=a,b")
