"""PixMatch: the whole loss and its gradient against PyTorch's own crops, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from loss_checks import close, losses_and_gradients
from patch_network import patch_network
from torch.nn import functional as F
from torch_reference import torch_patch, torch_video
from two_devices import changed, states_of_steps

from stpl_jax.methods import make_method, pixmatch
from stpl_jax.ops.additive_jitter import AdditiveSettings
from stpl_jax.ops.geometry import sample_box
from stpl_jax.train_state import TrainState

SOURCE, TARGET, CROP = (24, 40), (20, 40), (16, 16)
KEY = jax.random.key(5)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def pixmatch_config(small_config):
    small_config.method = "pixmatch"
    small_config.methods.pixmatch.weight = 0.7  # not lost among the labels' loss
    return small_config


@pytest.fixture
def batch(clips):
    target = clips(2, seed=2, size=TARGET)
    target["index"] += 3
    return {"source": clips(2, seed=1, label=True, size=SOURCE), "target": target}


def dimmed(key, frames, settings):
    """Stands in for `additive_photometric`, which is tested apart: one draw for the clip."""
    assert settings == AdditiveSettings() and frames.shape[1:3] == CROP
    gain = jax.random.uniform(key, (), jnp.float32, 0.3, 0.9).astype(frames.dtype)
    return frames * gain + 20 * (frames / 255) ** 2


def perturbed(target, labels):
    """Each clip: PyTorch's resizing of a slice, and one gain."""
    frames, flows, crops = [], [], []
    for b, index in enumerate(target["index"].tolist()):
        box_key, colour_key = jax.random.split(jax.random.fold_in(KEY, index))
        top, left, height, width = (int(x) for x in sample_box(box_key, TARGET, CROP, (0.2, 1.0), (3 / 4, 4 / 3)))
        assert (height, width) != TARGET
        rows, columns = slice(top, top + height), slice(left, left + width)

        def resized(x, rows=rows, columns=columns):
            x = torch.as_tensor(np.asarray(x, np.float64))[..., rows, columns, :].movedim(-1, 1)
            return F.interpolate(x, size=CROP, mode="bilinear", align_corners=False).movedim(1, -1)

        gain = float(jax.random.uniform(colour_key, (), jnp.float32, 0.3, 0.9))
        frame = resized(target["frames"][b])
        frames.append(frame * gain + 20 * (frame / 255) ** 2)
        flows.append(resized(target["flow"][b]) * torch.tensor([CROP[1] / width, CROP[0] / height]).double())
        pair = torch.stack([y[b, rows, columns] for y in labels])[:, None].double()
        crops.append(F.interpolate(pair, size=CROP, mode="nearest-exact")[:, 0].long())
    return torch.stack(frames), torch.stack(flows).numpy(), torch.stack(crops, 1)


def expected(variables, batch, weight):
    params = torch_patch.trainable(variables["params"])
    network = torch_video.Network(params, variables["batch_stats"])
    source, target = batch["source"], batch["target"]
    loss = torch_video.label_loss(network.clip_scores(source["frames"], source["flow"]), source["label"])

    scores = network.clip_scores(target["frames"], target["flow"])
    auxiliary, main = (torch.softmax(torch_video.resize(s.detach(), TARGET), -1) for s in scores)
    labels = main.argmax(-1), ((main + auxiliary) / 2).argmax(-1)
    assert (labels[0] != labels[1]).any() and all(len(torch.unique(y)) > 2 for y in labels)
    frames, flow, (on_main, on_auxiliary) = perturbed(target, labels)
    scores = network.clip_scores(frames, flow, averaged=False)
    auxiliary, main = (torch_video.resize(s, CROP) for s in scores)
    consistency = torch_video.cross_entropy(main, on_main) + 0.1 * torch_video.cross_entropy(auxiliary, on_auxiliary)
    total = loss + weight * consistency
    return total, torch_patch.gradients(total, params), network.averages


def test_loss_gradient_and_running_averages(x64, pixmatch_config, drawn_variables, to_float64, batch, monkeypatch):
    monkeypatch.setattr(pixmatch, "additive_photometric", dimmed)
    pixmatch_config.batch_norm.average_over = "clean"
    network = patch_network()
    variables = drawn_variables(network)
    method = make_method(pixmatch_config, network)
    params, stats = to_float64(({"network": {"segmenter": variables["params"]}}, variables["batch_stats"]))
    losses, gradients, aux = losses_and_gradients(method, params, stats, batch, KEY)
    want, want_gradients, want_stats = expected(variables, batch, 0.7)
    np.testing.assert_allclose(losses["network"], want.item(), rtol=1e-6)
    close(gradients["network"]["segmenter"], want_gradients)
    close(aux.batch_stats, want_stats, rtol=1e-6)


def test_magnifies_as_published(pixmatch_config):
    # 512×512 of 640×1280: heights from the whole one, 512/640, to a fifth of the area at a stretch of 4/3,
    # 512 / sqrt(0.2 · 640 · 1280 · 3/4) = 1.461; widths from 4/3 of the height. At 64 high a pixel is 3 %.
    crop = pixmatch_config.methods.pixmatch.crop
    keys = jax.random.split(jax.random.key(3), 3000)
    for size, side, tolerance in (((512, 1024), 410, 0.02), ((64, 128), 51, 0.04)):
        assert pixmatch.crop_size(size, crop) == (side, side)
        settings = size, (side, side), tuple(crop.scale), tuple(crop.ratio)
        boxes = jax.jit(jax.vmap(lambda key, settings=settings: sample_box(key, *settings)))(keys)
        for sides, smallest in ((boxes.height, 0.8), (boxes.width, 0.6)):
            magnification = side / np.asarray(sides)
            assert magnification.min() == pytest.approx(smallest, rel=tolerance)
            assert magnification.max() == pytest.approx(1.461, rel=tolerance)


def test_odd_sizes(pixmatch_config, small_segmenter, small_variables, clips):
    batch = {"source": clips(1, label=True), "target": clips(1, size=(34, 68))}  # a crop of 27×27
    method = make_method(pixmatch_config, small_segmenter)
    params = {"network": {"segmenter": small_variables["params"]}}
    state = TrainState(0, params, small_variables["batch_stats"], {}, None)
    losses, aux = jax.jit(method.loss)(params, state, batch, KEY)
    assert np.isfinite(losses["network"]) and aux.metrics["consistency"] > 0


def test_two_steps_on_two_devices(pixmatch_config, drawn_variables, batch):
    network = patch_network(dtype=jnp.float32, param_dtype=jnp.float32)
    (before, _, after), (_, metrics) = states_of_steps(
        make_method(pixmatch_config, network), pixmatch_config.optim, drawn_variables(network), [batch, batch]
    )
    layers = {name.split("/")[2] for name in changed(before.params, after.params)}
    assert {"first", "second", "layer5", "layer6", "sf_layer"} <= layers
    assert set(metrics) == {"loss/network", "state_norm", "supervised", "consistency"}


def test_source_free_is_an_error(pixmatch_config, small_segmenter):
    pixmatch_config.source_free = True
    with pytest.raises(ValueError, match="method=pixmatch without source data .* method=self_training"):
        make_method(pixmatch_config, small_segmenter)
