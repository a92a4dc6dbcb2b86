"""VAT-VST against a composition in PyTorch: both stages, when they change, and what is left without source data."""

import jax
import numpy as np
import pytest
import torch
from patch_network import patch_network
from torch_reference import torch_patch, torch_video
from two_devices import changed, is_batch_norm, names, states_of_steps
from video_checks import (
    PatchJudge,
    assert_groups_apart,
    assert_tree_close,
    losses_and_gradients,
    single_precision,
)

from stpl_jax.forward import flow_on_grid
from stpl_jax.methods import make_method, vat_vst

SIZES = {"source": (32, 64), "target": (40, 48)}
GROUPS = {"sequence": 1, "sequence_auxiliary": 0}  # which of (auxiliary, main)
SOURCE, TARGET = 0, 1
BOUNDARY = 4  # of ten steps


@pytest.fixture(autouse=True)
def small_discriminators(monkeypatch):
    monkeypatch.setattr(vat_vst, "Discriminator", PatchJudge)


def configure(config, **changes):
    config.method = "vat_vst"
    config.methods.vat_vst.update(dict(stage1_share=BOUNDARY / 10, threshold=0.3, weight=0.5))
    config.methods.vat_vst.discriminator.width = 3
    config.update_from_flattened_dict(changes)
    return config


def batch_of(clips, count=2):
    return {
        "source": clips(count, seed=1, size=SIZES["source"], label=True),
        "target": clips(count, seed=2, size=SIZES["target"], frames=3, pairs=((0, 1), (0, 2))),
    }


def agreed(predictions, threshold):
    """Pixel by pixel: the class that all frames give, if their mean is at least so sure."""
    labels = np.full(predictions[0].shape[:-1], 255)
    for place in np.ndindex(labels.shape):
        classes = {int(p[place].argmax()) for p in predictions}
        mean = sum(p[place] for p in predictions) / len(predictions)
        if len(classes) == 1 and mean.max() >= threshold:
            labels[place] = mean.argmax()
    return labels


def reference(params, stats, batch, flows, first, source_free):
    """Losses of one stage and their gradients; share of labelled pixels, and of those that only the threshold drops."""
    params = torch_patch.trainable(params)
    network = torch_video.Network(params["network"]["segmenter"], stats)
    pairs = {}
    if not source_free:
        frames = batch["source"]["frames"]
        pairs["source"] = (
            network.scores(frames[:, 0], averaged=first),
            network.scores(frames[:, 1], gradient=False, averaged=first),
        )
    frames = batch["target"]["frames"]
    current, *earlier = (network.scores(frames[:, k], gradient=k == 0) for k in range(3))
    pairs["target"] = current, earlier[0]

    predictions = [torch.softmax(current[1], -1).detach()] + [
        torch_video.warp(torch.softmax(scores[1], -1), flow)
        for scores, flow in zip(earlier, flows["target"], strict=True)
    ]
    labels, unsure = (agreed([p.numpy() for p in predictions], threshold) for threshold in (0.3, 0.0))
    if first:
        seen = {
            (group, domain): torch.cat(
                [torch.softmax(torch_video.resize(scores[number], SIZES[domain]), -1) for scores in pair], -1
            )
            for group, number in GROUPS.items()
            for domain, pair in pairs.items()
        }
        adversarial, losses = 0.0, {}
        for group, number in GROUPS.items():
            fooled = torch_video.judge(torch_patch.detached(params[group]), seen[group, "target"], SOURCE)
            adversarial = adversarial + (1.0 if number else 0.2) * fooled
            losses[group] = (
                torch_video.judge(params[group], seen[group, "source"].detach(), SOURCE)
                + torch_video.judge(params[group], seen[group, "target"].detach(), TARGET)
            ) / 2
        fused = network.fused(*pairs["source"], flows["source"][0])
        losses["network"] = torch_video.label_loss(fused, batch["source"]["label"]) + 0.5 * adversarial
    else:
        fused = network.fused(*pairs["target"], flows["target"][0])
        auxiliary, main = (torch_video.cross_entropy(scores, labels) for scores in fused)
        losses = {"network": main + 0.1 * auxiliary}
        losses |= {} if source_free else {group: torch.zeros(()) for group in GROUPS}
    gradients = torch_patch.gradients(sum(losses.values()), params)
    values = {group: np.float64(loss.item()) for group, loss in losses.items()}
    shares = (labels != 255).mean(), (unsure != 255).mean()
    return values, gradients, network.averages, shares


@pytest.fixture(scope="module")
def scene(clips, drawn_variables, to_float64):
    with jax.enable_x64(True):
        return batch_of(clips), to_float64(drawn_variables(patch_network(), seed=8))


def check(config, scene, steps, source_free=False):
    batch, variables = scene
    method = make_method(config, patch_network())
    batch = {domain: batch[domain] for domain in method.needs}
    params, _ = method.init(jax.random.key(3), variables)
    stats = variables["batch_stats"]
    found = losses_and_gradients(method, params, stats, batch, jax.random.key(0), steps)
    flows = {
        # By our own function, tested apart: it rounds to float32.
        domain: np.asarray(flow_on_grid(data["flow"], [side // 4 for side in SIZES[domain]], "align_corners"))
        for domain, data in batch.items()
    }
    flows = {domain: flow.swapaxes(0, 1) for domain, flow in flows.items()}
    params = jax.tree.map(np.asarray, params)
    for step, (losses, gradients, aux) in zip(steps, found, strict=True):
        first = step < BOUNDARY and not source_free
        expected, by_group, averages, shares = reference(params, stats, batch, flows, first, source_free)
        assert_tree_close(losses, expected)
        assert_tree_close({group: gradients[group][group] for group in gradients}, by_group)
        assert_tree_close(aux.batch_stats, averages)
        np.testing.assert_allclose(aux.metrics["labelled"], shares[0], rtol=1e-6)
    assert 0.1 < shares[0] < shares[1] < 0.9  # frames disagree here, and the threshold is missed there
    return found


def test_losses_and_gradients(x64, tiny_config, scene):
    (_, gradients, aux), (_, later_gradients, later_aux) = check(
        configure(tiny_config), scene, steps=(BOUNDARY - 1, BOUNDARY)
    )
    assert (aux.metrics["stage"], later_aux.metrics["stage"]) == (1, 2)
    assert_groups_apart(gradients)
    for loss, by_group in later_gradients.items():
        for group, gradient in by_group.items():
            assert any(leaf.any() for leaf in jax.tree.leaves(gradient)) == (loss == group == "network")


def test_without_source_stage_two_is_left(x64, tiny_config, scene):
    config = configure(tiny_config, source_free=True)
    method = make_method(config, patch_network())
    assert list(method.needs) == ["target"] and not method.needs["target"].labels
    assert set(method.optimisers(config.optim)) == {"network"}
    ((losses, _, aux),) = check(config, scene, steps=(0,), source_free=True)
    assert list(losses) == ["network"] and set(aux.metrics) == {"labelled"}


def test_two_steps_on_two_devices_one_of_each_stage(tiny_config, clips, drawn_variables):
    # A run that stops early has its stages where the schedule has them, not where it stops.
    config = configure(tiny_config, **{"optim.steps": 1, "optim.decay_steps": 4, "methods.vat_vst.stage1_share": 0.25})
    variables = drawn_variables(single_precision())
    method = make_method(config, single_precision())
    states, metrics = states_of_steps(method, config.optim, variables, [batch_of(clips)] * 2)
    assert [float(step["stage"]) for step in metrics] == [1, 2]
    assert metrics[0]["loss/sequence"] > 0 and metrics[1]["loss/sequence"] == 0
    assert states[0].params.keys() == {"network", *GROUPS}
    trained = {name for name in names(states[0].params) if not is_batch_norm(name)}
    assert changed(states[0].params, states[-1].params) == trained


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"methods.vat_vst.window": 1}, "methods.vat_vst.window is 2 frames or more, found 1"),
        ({"methods.vat_vst.stage1_share": 1.5}, r"stage1_share is a share, in 0..1; found 1.5"),
    ],
)
def test_wrong_settings(tiny_config, changes, message):
    with pytest.raises(ValueError, match=message):
        make_method(configure(tiny_config, **changes), single_precision())
