"""RDA: losses and gradients of network, discriminators and attacker against PyTorch, in float64."""

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

from stpl_jax.methods import make_method
from stpl_jax.rows import row_config

SOURCE, TARGET = (32, 40), (32, 64)
KEY = jax.random.key(9)
# Weights at which no term is lost among the others.
ADVERSARIAL, CONSISTENCY, CONTENT = {"main": 0.3, "auxiliary": 0.2}, {"main": 1.5, "auxiliary": 0.7}, 2e-3


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def rda_config(small_config):
    small_config.method = "rda"
    small_config.methods.rda.update({"adversarial": ADVERSARIAL, "consistency": CONSISTENCY, "content_weight": CONTENT})
    small_config.methods.rda.discriminator.width = 3
    return small_config


@pytest.fixture
def batch(clips):
    target = clips(2, seed=2, size=TARGET)
    target["index"] += 3
    return {"source": clips(2, seed=1, label=True, size=SOURCE), "target": target}


def discriminator(layers, scores, size):
    p = torch.softmax(torch_video.resize(scores, size), -1).permute(0, 3, 1, 2).contiguous()
    x = -p * torch.log2(p) / np.log2(p.shape[1])
    for number in range(1, 6):
        layer = layers[f"conv{number}"]
        x = F.conv2d(x, layer["kernel"].permute(3, 2, 0, 1), layer["bias"], stride=2, padding=1)
        x = F.leaky_relu(x, 0.2) if number < 5 else x
    return x


def says(layers, scores, size, domain):
    answers = discriminator(layers, scores, size)
    return F.binary_cross_entropy_with_logits(answers, torch.full_like(answers, domain))


def rings(size):
    """The 32 bands as masks `[32, H, W]`: rings of a grid of frequencies from -1 to 1, the outermost closed."""
    rows, columns = (np.abs(np.fft.fftfreq(n)) * 2 for n in size)
    largest = np.maximum(rows[:, None], columns[None])
    bounds = np.arange(33) / 32
    bounds[-1] = 1.1
    return torch.as_tensor(
        np.stack([(largest >= low) & (largest < high) for low, high in zip(bounds, bounds[1:], strict=False)])
    ).double()


def attack(gate, source, target):
    """Attacked frames and the amplitude moved in bands 2 to 15; gradients reach the gate's parameters."""
    frames = torch.as_tensor(target["frames"]).double().movedim(-1, 2)  # [B, T, 3, H, W]
    style = torch_video.resize(torch.as_tensor(source["frames"][:, 0]).double(), TARGET).movedim(-1, 1)[:, None]
    spectrum = torch.fft.fft2(frames)
    amplitude, style, masks = spectrum.abs(), torch.fft.fft2(style).abs(), rings(TARGET)
    assert (masks.sum(0) == 1).all()

    levels = (amplitude[:, 0, None] * masks[:, None]).mean((-2, -1))  # [B, 32, 3]
    hidden = F.relu(torch.log1p(levels).flatten(1) @ gate["mix"]["kernel"] + gate["mix"]["bias"])
    logits = hidden[..., None] * gate["score_kernel"] + gate["score_bias"]
    noise = [jax.random.gumbel(jax.random.fold_in(KEY, i), (96, 2), jnp.float64) for i in target["index"].tolist()]
    samples = torch.softmax(logits + torch.as_tensor(np.stack(noise)), -1)[..., 1]
    hard = torch.zeros_like(samples)
    hard.scatter_(1, torch.topk(samples, 9).indices, 1.0)
    chosen = (hard - samples.detach() + samples).reshape(-1, 1, 32, 3, 1, 1)

    bands = amplitude[:, :, None] * masks[:, None]  # [B, T, 32, 3, H, W]
    attacked = (1 - chosen) * bands + chosen * style[:, :, None] * masks[:, None]
    images = torch.fft.ifft2(torch.polar(attacked.sum(2), spectrum.angle()))
    assert images.imag.abs().max() < 1e-9
    moved_amplitude = chosen * (style[:, :, None] * masks[:, None] - bands).abs()
    return images.real.movedim(2, -1), moved_amplitude[:, 0, 2:16].mean()


def expected(values, stats, batch):
    """Losses and gradients, one backward pass for each of the three."""
    values = torch_patch.trainable(values)
    judges, gate = values["discriminator"], values["attacker"]
    network = torch_video.Network(values["network"]["segmenter"], stats)
    fixed_network = torch_video.Network(torch_patch.detached(network.params), stats)
    fixed_judges = torch_patch.detached(judges)
    source, target = batch["source"], batch["target"]
    images, content = attack(gate, source, target)
    names = ("auxiliary", "main")

    on_source = network.clip_scores(source["frames"], source["flow"])
    on_target = network.clip_scores(target["frames"], target["flow"])

    def on_attacked(network, images):
        """What the network is to lower on attacked clips, and the gate to raise."""
        scores = network.clip_scores(images, target["flow"], averaged=False)
        total = 0
        for name, attacked, clean in zip(names, scores, on_target, strict=True):
            difference = F.l1_loss(torch.softmax(attacked, -1), torch.softmax(clean, -1).detach())
            total = total + CONSISTENCY[name] * difference
            total = total + ADVERSARIAL[name] * says(fixed_judges[name], attacked, TARGET, 0.0)
        return total

    attacked = on_attacked(network, images.detach())
    aligned = sum(
        ADVERSARIAL[n] * says(fixed_judges[n], scores, TARGET, 0.0) for n, scores in zip(names, on_target, strict=True)
    )
    losses = {
        "network": torch_video.label_loss(on_source, source["label"]) + aligned + attacked,
        "discriminator": sum(
            says(judges[n], of_source.detach(), SOURCE, 0.0) / 2 + says(judges[n], of_target.detach(), TARGET, 1.0) / 2
            for n, of_source, of_target in zip(names, on_source, on_target, strict=True)
        ),
        "attacker": CONTENT * content - on_attacked(fixed_network, images),
    }
    assert attacked > 0.02 and CONTENT * content > 1e-3
    gradients = {group: torch_patch.gradients(losses[group], values[group]) for group in losses}
    return losses, gradients, network.averages


def test_losses_gradients_and_running_averages(x64, rda_config, drawn_variables, to_float64, batch):
    network = patch_network()
    method = make_method(rda_config, network)
    rda_config.batch_norm.average_over = "clean"
    params, _ = jax.jit(method.init)(jax.random.key(2), to_float64(drawn_variables(network)))
    stats = to_float64(drawn_variables(network)["batch_stats"])
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float64")}
    losses, gradients, aux = losses_and_gradients(method, params, stats, batch, KEY)
    want, want_gradients, want_stats = expected(params, stats, batch)
    assert losses.keys() == want.keys()
    for group, loss in losses.items():
        np.testing.assert_allclose(loss, want[group].item(), rtol=1e-6, err_msg=group)
        assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(want_gradients[group])) > 1e-4, group
        close(gradients[group], want_gradients[group])
    close(aux.batch_stats, want_stats, rtol=1e-6)


def test_two_steps_on_two_devices_move_all_three(rda_config, drawn_variables, batch):
    network = patch_network(dtype=jnp.float32, param_dtype=jnp.float32)
    (before, _, after), (_, metrics) = states_of_steps(
        make_method(rda_config, network), rda_config.optim, drawn_variables(network), [batch, batch]
    )
    assert set(before.params) == {"network", "discriminator", "attacker"}
    for group, parameters in before.params.items():
        names = changed(parameters, after.params[group])
        assert len(names) > 0.7 * len(jax.tree.leaves(parameters)), group
    assert {"loss/network", "loss/discriminator", "loss/attacker"} < set(metrics)


@pytest.mark.parametrize("profile", ["paper", "own"])
def test_the_networks_gradient_is_clipped_at_one_in_every_profile(profile, rda_config, small_segmenter):
    rda_config.optim.update({"profile": profile, "weight_decay": 0.0, "clip_norm": 0.0})
    config = row_config(rda_config, "rda")
    network = make_method(config, small_segmenter).optimisers(config.optim)["network"]
    params = {"segmenter": {"layer6": {"kernel": jnp.zeros(4, jnp.float32)}}}
    steep = jax.tree.map(lambda x: x + 30.0, params)
    update, _ = network.update(steep, network.init(params), params)
    # A gradient of norm 60 becomes one of norm 1; layer6 is a classifier, at ten times the published rate.
    expected = {"paper": -0.01 * 30 / 60, "own": -10 * 2.5e-4 * 30 / 60}[profile]
    np.testing.assert_allclose(update["segmenter"]["layer6"]["kernel"], expected, rtol=1e-6)
    assert config.optim.clip_norm == 0.0, "the run's own settings were changed"


def test_wrong_settings(rda_config, small_segmenter):
    rda_config.source_free = True
    with pytest.raises(ValueError, match="method=rda .* without source data. Set source_free=False"):
        make_method(rda_config, small_segmenter)
    rda_config.source_free = False
    rda_config.methods.rda.share = 1.5
    with pytest.raises(ValueError, match="methods.rda.share .* found 1.5"):
        make_method(rda_config, small_segmenter)
