"""DA-VSN against a composition in PyTorch: losses, gradients of every group, and what happens without source data."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
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
from stpl_jax.methods import da_vsn, make_method
from stpl_jax.methods.da_vsn import weight_similarity
from stpl_jax.optim import parameter_path

SIZES = {"source": (32, 64), "target": (40, 48)}
GROUPS = {
    "spatio_temporal": ("main", "earlier", "spatial"),
    "spatio_temporal_auxiliary": ("auxiliary", "earlier", "spatial_auxiliary"),
    "spatial": ("main", "current", "spatio_temporal"),
    "spatial_auxiliary": ("auxiliary", "current", "spatio_temporal_auxiliary"),
}
SOURCE, TARGET = 0, 1
TIGHT = {"rtol": 1e-8, "atol": 1e-12}  # the splat rounds flow to whole pixels, and gradients are small


@pytest.fixture(autouse=True)
def small_discriminators(monkeypatch):
    monkeypatch.setattr(da_vsn, "Discriminator", PatchJudge)


def configure(config, **changes):
    config.method = "da_vsn"
    config.methods.da_vsn.discriminator.width = 3
    config.update_from_flattened_dict(changes)
    return config


def batch_of(clips, count=2, domains=("source", "target")):
    return {
        domain: clips(count, seed=number, size=SIZES[domain], label=domain == "source")
        for number, domain in enumerate(domains, 1)
    }


def entropy(p):
    return -(p * torch.log(p)).sum(-1) / np.log(p.shape[-1])


def splat(maps, flow):
    """Writes pixel after pixel of the earlier frame, columns from left to right, where the flow's negative leads."""
    out, reached = np.zeros_like(maps), np.zeros(maps.shape[:-1], bool)
    clips, h, w, _ = maps.shape
    for b in range(clips):
        for column in range(w):
            for row in range(h):
                to = round(row - float(flow[b, row, column, 1])), round(column - float(flow[b, row, column, 0]))
                if 0 <= to[0] < h and 0 <= to[1] < w:
                    out[b, *to], reached[b, *to] = maps[b, row, column], True
    return torch.tensor(out), torch.tensor(reached)


def intra_domain(current, earlier, flow, propagation):
    total, shares = 0.0, []
    for now, before in zip(current, earlier, strict=True):
        p, q = torch.softmax(now, -1), torch.softmax(before, -1).detach()
        maps = torch.cat([q, entropy(q)[..., None]], -1)
        if propagation == "splat":
            maps, reached = splat(maps.numpy(), flow)
        else:
            maps, reached = torch_video.warp(maps, flow), torch.ones(maps.shape[:-1], dtype=bool)
        weight = reached & (maps[..., -1] < entropy(p).detach())
        total = total + (weight[..., None] * (p - maps[..., :-1]).abs()).mean()
        shares.append((float(reached.double().mean()), float(weight.double().mean())))
    return total, shares


def cosine(a, b):
    a, b = a.reshape(-1), b.reshape(-1)
    return (a @ b) / (a.norm() * b.norm())


def reference(params, stats, batch, flows, weight=0.001, source_free=False, propagation="splat"):
    """Losses by group and their gradients, each group's loss with everything else cut off."""
    params = torch_patch.trainable(params)
    network = torch_video.Network(params["network"]["segmenter"], stats)
    pairs, sources = {}, None
    if not source_free:
        frames = batch["source"]["frames"]
        current, earlier = network.scores(frames[:, 0]), network.scores(frames[:, 1], gradient=False)
        sources = torch_video.label_loss(network.fused(current, earlier, flows["source"]), batch["source"]["label"])
        pairs["source"] = current, earlier
    frames = batch["target"]["frames"]
    current, earlier = network.scores(frames[:, 0]), network.scores(frames[:, 1], gradient=False)
    pairs["target"] = current, earlier
    consistency, shares = intra_domain(current, earlier, flows["target"], propagation)
    losses = {"network": weight * consistency}
    if not source_free:
        seen = {}
        for group, (classifier, second, _) in GROUPS.items():
            number = ("auxiliary", "main").index(classifier)
            for domain, (now, before) in pairs.items():
                other = (before if second == "earlier" else now)[number]
                scores = torch_video.resize(torch.cat([now[number], other], -1), SIZES[domain])
                seen[group, domain] = torch.softmax(scores, -1)
        cross = 0.0
        for group, (classifier, _, other) in GROUPS.items():
            fixed = torch_patch.detached(params[group])
            factor = 1.0 if classifier == "main" else 0.2
            cross = cross + factor * torch_video.judge(fixed, seen[group, "target"], SOURCE)
            told = [
                torch_video.judge(params[group], seen[group, domain].detach(), label)
                for domain, label in (("source", SOURCE), ("target", TARGET))
            ]
            similar = [
                cosine(params[group][layer][kind], params[other][layer][kind].detach()) + 1
                for layer in params[group]
                for kind in ("kernel", "bias")
            ]
            losses[group] = sum(told) / 2 + weight * sum(similar) / len(similar)
        losses["network"] = sources + weight * (consistency + cross)
    gradients = torch_patch.gradients(sum(losses.values()), params)
    values = {group: loss.item() for group, loss in losses.items()}
    return values, gradients, network.averages, shares


@pytest.fixture(scope="module")
def scene(clips, drawn_variables, to_float64):
    """Clips of two domains and a network's variables, in float64."""
    with jax.enable_x64(True):
        return batch_of(clips), to_float64(drawn_variables(patch_network(), seed=8))


def run(config, scene, key=3):
    batch, variables = scene
    method = make_method(config, patch_network())
    batch = {domain: batch[domain] for domain in method.needs}
    params, _ = method.init(jax.random.key(key), variables)
    (found,) = losses_and_gradients(method, params, variables["batch_stats"], batch, jax.random.key(0))
    flows = {
        # By our own function, tested apart: it rounds to float32.
        domain: np.asarray(flow_on_grid(data["flow"][:, 0], [side // 4 for side in SIZES[domain]], "align_corners"))
        for domain, data in batch.items()
    }
    return jax.tree.map(np.asarray, params), batch, flows, found


def check(config, scene, tolerance=None, **options):
    params, batch, flows, (losses, gradients, aux) = run(config, scene)
    expected, by_group, averages, shares = reference(params, scene[1]["batch_stats"], batch, flows, **options)
    assert losses.keys() == expected.keys() == params.keys()
    assert_tree_close(losses, {group: np.float64(value) for group, value in expected.items()})
    assert_groups_apart(gradients)
    assert_tree_close({group: gradients[group][group] for group in gradients}, by_group, **(tolerance or {}))
    assert_tree_close(aux.batch_stats, averages)
    return losses, gradients, shares


def test_losses_and_gradients(x64, tiny_config, scene):
    # As heavy as the supervised term, so that an error in any term shows.
    _, gradients, shares = check(configure(tiny_config, **{"methods.da_vsn.weight": 0.5}), scene, weight=0.5)
    for reached, counted in shares:  # there are holes, and pixels on both sides of the comparison
        assert reached < 0.95 and 0.1 < counted < reached - 0.1
    assert np.abs(gradients["network"]["network"]["segmenter"]["sf_layer"]["kernel"]).max() > 1e-3


def test_without_source_the_intra_domain_term_is_left(x64, tiny_config, scene):
    config = configure(tiny_config, source_free=True)
    method = make_method(config, patch_network())
    assert list(method.needs) == ["target"] and not method.needs["target"].labels
    losses, gradients, _ = check(config, scene, TIGHT, source_free=True)
    assert list(losses) == ["network"]
    # PyTorch skips a parameter that gets no gradient: here it must not be decayed either.
    network = gradients["network"]["network"]
    assert not network["segmenter"]["sf_layer"]["kernel"].any()
    optimiser = method.optimisers(config.optim)["network"]
    update, _ = optimiser.update(network, optimiser.init(network), jax.tree.map(np.ones_like, network))
    still = {parameter_path(path) for path, leaf in jax.tree_util.tree_leaves_with_path(update) if not leaf.any()}
    assert still == {"segmenter/sf_layer/kernel", "segmenter/norm/scale", "segmenter/norm/bias"}


def test_warping_instead_of_splatting(x64, tiny_config, scene):
    config = configure(tiny_config, **{"source_free": True, "methods.da_vsn.propagation": "warp"})
    _, _, shares = check(config, scene, source_free=True, propagation="warp")
    assert all(reached == 1 for reached, _ in shares)


def test_weights_pushed_apart(x64):
    random = np.random.default_rng(0)
    one, other = ({"a": {"w": random.normal(size=(3, 4)), "b": random.normal(size=5)}} for _ in range(2))
    expected = np.mean([cosine(*(torch.tensor(t["a"][k]) for t in (one, other))) for k in ("w", "b")]) + 1
    value, gradient = jax.jit(jax.value_and_grad(weight_similarity))(one, other)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    assert np.sum(gradient["a"]["w"] * one["a"]["w"]) == pytest.approx(0, abs=1e-12)  # only the direction counts
    zero = jax.tree.map(np.zeros_like, one)
    value, gradient = jax.jit(jax.value_and_grad(weight_similarity))(zero, other)
    assert value == 1 and all((leaf == 0).all() for leaf in jax.tree.leaves(gradient))


def test_gradients_are_clipped_network_by_network(tiny_config):
    config = configure(tiny_config)
    config.optim.update({"weight_decay": 0.0, "clip_norm": 0.0, "learning_rate": 0.5})
    optimisers = make_method(config, single_precision()).optimisers(config.optim)
    assert set(optimisers) == {"network", *GROUPS}
    assert config.optim.clip_norm == 0.0, "the run's own settings were changed"
    params = {"segmenter": {"layer6": {"kernel": jnp.zeros(4)}}}
    steep = jax.tree.map(lambda x: x + 30.0, params)
    update, _ = optimisers["network"].update(steep, optimisers["network"].init(params), params)
    assert float(optax.tree.norm(update)) == pytest.approx(0.5, rel=1e-6)
    # Adam divides the clipping out again, but for what it has seen before: second moments of 0.25 each.
    state = optimisers["spatial"].init(params)
    _, state = optimisers["spatial"].update(steep, state, params)
    moments = [leaf for leaf in jax.tree.leaves(state) if jnp.shape(leaf) == (4,)]
    np.testing.assert_allclose(sorted(float(m[0]) for m in moments), sorted([0.1 * 0.5, 0.01 * 0.25]), rtol=1e-5)


def test_a_norm_of_zero_clips_nothing(tiny_config):
    config = configure(tiny_config, **{"methods.da_vsn.clip_norm": 0.0})
    config.optim.update({"weight_decay": 0.0, "clip_norm": 1.0, "learning_rate": 0.5})
    optimisers = make_method(config, single_precision()).optimisers(config.optim)
    params = {"segmenter": {"layer6": {"kernel": jnp.zeros(4)}}}
    steep = jax.tree.map(lambda x: x + 30.0, params)
    # SGD moves by rate · gradient; Adam's first step is its rate, 1e-4, whatever the gradient.
    for group, expected in {"network": -0.5 * 30, "spatial": -1e-4, "spatio_temporal": -1e-4}.items():
        update, _ = optimisers[group].update(steep, optimisers[group].init(params), params)
        np.testing.assert_allclose(update["segmenter"]["layer6"]["kernel"], expected, rtol=1e-5, err_msg=group)


def test_two_steps_on_two_devices(tiny_config, clips, drawn_variables):
    config, variables = configure(tiny_config), drawn_variables(single_precision())
    method = make_method(config, single_precision())
    states, metrics = states_of_steps(method, config.optim, variables, [batch_of(clips)] * 2)
    assert states[0].params.keys() == {"network", *GROUPS}
    trained = {name for name in names(states[0].params) if not is_batch_norm(name)}
    assert changed(states[0].params, states[-1].params) == trained
    assert {"supervised", "intra_domain", "cross_domain"} < metrics[-1].keys()


def test_wrong_settings(tiny_config):
    config = configure(tiny_config, **{"methods.da_vsn.propagation": "throw"})
    with pytest.raises(ValueError, match="methods.da_vsn.propagation is one of .*splat.*found 'throw'"):
        make_method(config, single_precision())
