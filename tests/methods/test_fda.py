"""FDA: the whole loss and its gradient against PyTorch and numpy's FFT, in float64."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from loss_checks import close, losses_and_gradients
from patch_network import patch_network
from torch_reference import torch_patch, torch_video
from two_devices import changed, states_of_steps

from stpl_jax.methods import make_method

SOURCE, TARGET = (24, 40), (16, 32)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def fda_config(small_config):
    small_config.method = "fda"
    # Windows of 24 rows reach from -2 to 2; the term is not lost among the labels' loss.
    small_config.methods.fda.update({"beta": 0.09, "entropy_weight": 0.5})
    return small_config


@pytest.fixture
def batch(clips):
    return {
        "source": clips(2, seed=1, label=True, size=SOURCE),
        "target": clips(2, seed=2, size=TARGET),
    }


def restyled(source, target, beta):
    """The publication's `low_freq_mutate_np`, frame by frame and channel by channel, around numpy's FFT."""
    out = np.empty(source["frames"].shape)
    height, width = out.shape[2:4]
    reach = int(np.floor(min(height, width) * beta))
    assert reach == 2
    rows, columns = (slice(n // 2 - reach, n // 2 + reach + 1) for n in (height, width))
    for b, t, c in np.ndindex(*out.shape[:2], 3):
        style = torch.as_tensor(target["frames"][b, 0, None, :, :, c, None]).double()
        style = torch_video.resize(style, (height, width))[0, ..., 0].numpy()
        spectrum = np.fft.fftshift(np.fft.fft2(source["frames"][b, t, :, :, c]))
        amplitude = np.abs(spectrum)
        amplitude[rows, columns] = np.abs(np.fft.fftshift(np.fft.fft2(style)))[rows, columns]
        mixed = np.fft.ifft2(np.fft.ifftshift(amplitude * np.exp(1j * np.angle(spectrum))))
        assert np.abs(mixed.imag).max() < 1e-10
        out[b, t, :, :, c] = mixed.real
    return torch.as_tensor(out)


def expected(variables, batch, settings):
    params = torch_patch.trainable(variables["params"])
    network = torch_video.Network(params, variables["batch_stats"])
    source, target = batch["source"], batch["target"]
    plain = network.clip_scores(source["frames"], source["flow"], averaged=False)
    scores = network.clip_scores(restyled(source, target, settings.beta), source["flow"])
    supervised = torch_video.label_loss(scores, source["label"])
    assert abs(supervised - torch_video.label_loss(plain, source["label"])) > 1e-3, "the swap changes nothing"
    _, main = network.clip_scores(target["frames"], target["flow"])
    p = torch.softmax(main, -1)
    entropy = -(p * torch.log(p)).sum(-1) / np.log(5)
    penalty = ((entropy**2 + 1e-8) ** settings.entropy_power).mean()
    loss = supervised + settings.entropy_weight * penalty
    return loss, torch_patch.gradients(loss, params), network.averages


def test_loss_gradient_and_running_averages(x64, fda_config, drawn_variables, to_float64, batch):
    network = patch_network()
    variables = drawn_variables(network)
    method = make_method(fda_config, network)
    params, stats = to_float64(({"network": {"segmenter": variables["params"]}}, variables["batch_stats"]))
    losses, gradients, aux = losses_and_gradients(method, params, stats, batch, None)
    want, want_gradients, want_stats = expected(variables, batch, fda_config.methods.fda)
    assert list(losses) == ["network"]
    np.testing.assert_allclose(losses["network"], want.item(), rtol=1e-6)
    assert float(aux.metrics["entropy"]) > 0.05, "no entropy: the term shows nothing"
    close(gradients["network"]["segmenter"], want_gradients)
    close(aux.batch_stats, want_stats, rtol=1e-9)


def test_two_steps_on_two_devices(fda_config, drawn_variables, clips):
    network = patch_network(dtype=jnp.float32, param_dtype=jnp.float32)
    batch = {"source": clips(2, seed=1, label=True, size=SOURCE), "target": clips(2, seed=2, size=TARGET)}
    (before, _, after), (_, metrics) = states_of_steps(
        make_method(fda_config, network), fda_config.optim, drawn_variables(network), [batch, batch]
    )
    layers = {name.split("/")[2] for name in changed(before.params, after.params)}
    assert {"first", "second", "layer5", "layer6", "sf_layer"} <= layers
    assert changed(before.batch_stats, after.batch_stats) == {"norm/mean", "norm/var"}
    assert set(metrics) == {"loss/network", "state_norm", "supervised", "entropy"}


def test_source_free_is_an_error(fda_config, small_segmenter):
    fda_config.source_free = True
    with pytest.raises(ValueError, match="method=fda .* without source data .* Set source_free=False"):
        make_method(fda_config, small_segmenter)
