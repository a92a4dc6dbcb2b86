"""TPS against a composition in PyTorch: the loss, its gradient, its pseudo-labels, without source, with faults."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from patch_network import patch_network
from torch_reference import torch_patch, torch_video
from two_devices import changed, is_batch_norm, names, states_of_steps
from video_checks import (
    assert_tree_close,
    losses_and_gradients,
    single_precision,
)

from stpl_jax.forward import flow_on_grid
from stpl_jax.methods import make_method, tps
from stpl_jax.models.accel import normalise_images
from stpl_jax.ops import published_tps
from stpl_jax.ops.augment import AugmentSettings
from stpl_jax.ops.histogram import match_histograms
from stpl_jax.ops.zoom import zoom
from stpl_jax.train_state import TrainState

SIZES = {"source": (32, 64), "target": (40, 48)}
GRID = (10, 12)
CLIPS = 4
KEY = jax.random.key(21)
WEIGHT = 0.7


def dimmed(key, frames, settings):
    """Stands in for `photometric`, which is tested apart: a draw for the clip, and a colour cast."""
    assert settings == AugmentSettings(grey_probability=0.2)
    low, high = jax.random.uniform(key, (2,), jnp.float32).astype(frames.dtype)
    return frames * (0.2 + 0.5 * low) + 80 * high * (frames / 255) ** 2


@pytest.fixture(autouse=True)
def simple_colours(monkeypatch):
    monkeypatch.setattr(tps, "photometric", dimmed)


def configure(config, **changes):
    config.method = "tps"
    config.methods.tps.target_weight = WEIGHT
    config.update_from_flattened_dict(changes)
    return config


def batch_of(clips, count=CLIPS):
    batch = {
        "source": clips(count, seed=1, size=SIZES["source"], label=True),
        "target": clips(count, seed=2, size=SIZES["target"], frames=3, pairs=((0, 1), (1, 2))),
    }
    batch["target"]["index"] += 5
    return batch


def draws_of(method, data):
    draws = [jax.jit(method.draw)(jax.random.fold_in(KEY, i)) for i in data["index"].tolist()]
    return [{name: np.asarray(x) if name != "photometric" else x for name, x in draw.items()} for draw in draws]


def on_grid(flow, size):
    """By our own function, tested apart."""
    return np.asarray(flow_on_grid(jnp.asarray(flow), [side // 4 for side in size], "align_corners"))


def pseudo_labels(network, data, draws, published):
    """(auxiliary, main) labels of x_t, from the clip before, mirrored where drawn, as published or right."""
    frames, flow = data["frames"][:, 1:3].copy(), data["flow"][:, 1].copy()
    sign = np.array([1 if published else -1, 1], np.int16)
    for b, draw in enumerate(draws):
        if draw["flip"]:
            frames[b], flow[b] = frames[b, :, :, ::-1], flow[b, :, ::-1] * sign
    current, earlier = (network.scores(frames[:, k], gradient=False) for k in (0, 1))
    to_t = on_grid(data["flow"][:, 0], SIZES["target"])
    labels = []

    def turned_back(maps):
        return torch.stack([m.flip(1) if draw["flip"] else m for m, draw in zip(maps, draws, strict=True)])

    for scores in network.fused(current, earlier, on_grid(flow, SIZES["target"])):
        shares = torch.softmax(scores.detach(), -1)
        if published:
            labels.append(turned_back(torch_video.warp(shares, to_t).argmax(-1)).numpy())
        else:
            labels.append(torch_video.warp(turned_back(shares), to_t).argmax(-1).numpy())
    return labels


def published_bytes(frames):
    """What torchvision's ToPILImage makes of floating point frames, value by value."""
    values = (np.float32(255) * np.asarray(frames, np.float32)).ravel()
    return np.reshape([int(value) % 256 for value in values], frames.shape)


def scaled_back(scores, draws):
    """Scores of the scaled clips on the clips' own grid, and where they exist."""
    h, w = GRID
    rows, columns = np.indices(GRID).astype(np.float64)
    positions = []
    for draw in draws:
        factor = np.float64(np.float32(1) / draw["scale"])
        y, x = (a * (n - 1) for a, n in zip(draw["anchor"].astype(np.float64), GRID, strict=True))
        positions.append(np.stack([x + (columns - x) / factor, y + (rows - y) / factor], -1))
    positions = np.stack(positions)
    seen = ((positions > -1e-3) & (positions < np.array([w, h]) - 1 + 1e-3)).all(-1)
    return torch_video.sample(scores, positions, "reflection"), seen


def reference(params, stats, batch, draws, source_free, clean, published):
    params = torch_patch.trainable(params)
    network, data = torch_video.Network(params["network"]["segmenter"], stats), batch["target"]
    supervised = 0.0
    if not source_free:
        source = batch["source"]
        matched = np.stack(
            [jax.jit(match_histograms)(f, r) for f, r in zip(source["frames"], data["frames"][:, 0], strict=True)]
        )
        current, earlier = network.scores(matched[:, 0]), network.scores(matched[:, 1], gradient=False)
        fused = network.fused(current, earlier, on_grid(source["flow"][:, 0], SIZES["source"]))
        supervised = torch_video.label_loss(fused, source["label"])
    labels = pseudo_labels(network, data, draws, published)

    frames, flows = [], []
    for b, draw in enumerate(draws):
        clip = published_bytes(data["frames"][b, :2]) if published else data["frames"][b, :2]
        clip = dimmed(draw["photometric"], jnp.asarray(clip, float), AugmentSettings(grey_probability=0.2))
        clip = clip / 255 if published else clip
        frames.append([jax.jit(zoom)(frame, draw["scale"], draw["anchor"]) for frame in clip])
        flow = jax.jit(zoom)(jnp.asarray(data["flow"][b, 0], float), draw["scale"], draw["anchor"])
        flows.append(np.asarray(flow) * draw["scale"])
    frames = np.asarray(frames)
    current = network.scores(frames[:, 0], averaged=not clean)
    earlier = network.scores(frames[:, 1], gradient=False, averaged=not clean)
    fused = network.fused(current, earlier, on_grid(np.stack(flows), SIZES["target"]))
    terms = []
    for scores, classes in zip(fused, labels, strict=True):
        back, seen = scaled_back(scores, draws)
        terms.append(torch_video.cross_entropy(back, np.where(seen, classes, 255)))
    loss = supervised + WEIGHT * (terms[1] + 0.1 * terms[0])
    return loss.item(), torch_patch.gradients(loss, params), network.averages, (labels, seen)


@pytest.fixture(scope="module")
def scene(clips, drawn_variables, to_float64):
    with jax.enable_x64(True):
        return batch_of(clips), to_float64(drawn_variables(patch_network(), seed=8))


def check(config, scene, source_free=False):
    batch, variables = scene
    method, stats = make_method(config, patch_network()), variables["batch_stats"]
    batch = {domain: batch[domain] for domain in method.needs}
    params, _ = method.init(KEY, variables)
    ((losses, gradients, aux),) = losses_and_gradients(method, params, stats, batch, KEY)
    draws = draws_of(method, batch["target"])
    published = config.methods.tps.as_published
    clean = config.batch_norm.average_over == "clean" and not published
    expected, by_group, averages, (labels, seen) = reference(
        jax.tree.map(np.asarray, params), stats, batch, draws, source_free, clean, published
    )
    np.testing.assert_allclose(losses["network"], expected, rtol=1e-6)
    assert_tree_close(gradients["network"], by_group, rtol=1e-5, atol=2e-8)
    assert_tree_close(aux.batch_stats, averages, atol=1e-5)
    return draws, labels, seen, aux


def test_loss_and_gradient(x64, tiny_config, scene):
    draws, labels, seen, aux = check(configure(tiny_config), scene)
    assert len({bool(draw["flip"]) for draw in draws}) == 2
    assert min(draw["scale"] for draw in draws) < 0.95 and max(draw["scale"] for draw in draws) > 1.05
    assert 0.6 < seen.mean() < 1 and all(len(set(np.ravel(classes))) >= 3 for classes in labels)
    assert (labels[0] != labels[1]).any(), "the classifiers' labels do not differ: the test does not tell them apart"
    assert aux.metrics.keys() == {"supervised", "target"}


def test_without_source_the_target_term_is_left(x64, tiny_config, scene):
    # And the augmented frames stay out of the running averages, if asked to.
    config = configure(tiny_config, **{"source_free": True, "batch_norm.average_over": "clean"})
    needs = make_method(config, patch_network()).needs
    assert list(needs) == ["target"] and not needs["target"].labels
    *_, aux = check(config, scene, source_free=True)
    assert set(aux.metrics) == {"target"}


def test_as_published(x64, tiny_config, scene):
    # The network of this test takes 0-255 as they are: its bytes are 255 · level modulo 256, which is -level.
    changes = {"source_free": True, "batch_norm.average_over": "clean", "methods.tps.as_published": True}
    draws, labels, _, aux = check(configure(tiny_config, **changes), scene, source_free=True)
    batch, variables = scene
    network = torch_video.Network(torch_patch.trainable(variables["params"]), variables["batch_stats"])
    upright = pseudo_labels(network, batch["target"], draws, published=False)
    mirrored = np.array([draw["flip"] for draw in draws])
    different = (labels[1] != upright[1]).any((1, 2))
    assert different[mirrored].all() and not different[~mirrored].any()


def test_published_bytes_by_hand():
    # Blue of 0, 104, 105 and 255: 255 times -104.00699, -0.00699, 0.99301 and 150.99301 is -26521.8, -1.8, 253.2 and
    # 38503.2; without what is behind the point, and modulo 256: 103, 255, 253, 103.
    rgb = np.zeros((4, 3), np.uint8)
    rgb[:, 2] = 0, 104, 105, 255
    found = jax.jit(lambda rgb: published_tps.wrapped_bytes(normalise_images(rgb)))(rgb)
    np.testing.assert_array_equal(found[:, 0], [103, 255, 253, 103])
    # Green and red of 0: -29750.5 and -31283.1 are -29750 + 117 · 256 and -31283 + 123 · 256.
    np.testing.assert_array_equal(found[0], [103, 202, 205])
    levels = np.random.default_rng(3).integers(0, 256, (5, 7, 3), np.uint8)
    mean = np.array([104.00698793, 116.66876762, 122.67891434], np.float32)
    expected = published_bytes(levels[..., ::-1].astype(np.float32) - mean)
    np.testing.assert_array_equal(jax.jit(published_tps.wrapped_bytes)(normalise_images(levels)), expected)


@pytest.mark.parametrize(("published", "low", "high"), [(True, 0.447, 0.449), (False, 0.55, 1)])
def test_where_the_running_variance_settles(tiny_config, clips, drawn_variables, published, low, high):
    # Frames that are all the same: .1 · (.9² + .9³) / (1 - .9⁴) = .4475 of their variance is left as published.
    config = configure(tiny_config, **{"source_free": True, "methods.tps.as_published": published})
    network, data = single_precision(), dict(batch_of(clips)["target"])
    data["frames"] = data["frames"][:, :1].repeat(3, 1)
    variables, method = drawn_variables(network), make_method(config, network)
    params, _ = method.init(KEY, variables)

    @jax.jit
    def step(stats, step):
        state = TrainState(step, params, stats, {}, None)
        return method.loss(params, state, {"target": data}, jax.random.fold_in(KEY, step))[1].batch_stats

    stats = variables["batch_stats"]
    for i in range(40):
        stats = step(stats, np.int32(i))
    patches = np.asarray(data["frames"][:, 0], np.float64).reshape(CLIPS, 10, 4, 12, 4, 3)
    variance = patches.transpose(0, 1, 3, 2, 4, 5).reshape(-1, 48).var(0, ddof=1)
    ratio = np.mean(stats["norm"]["var"] / variance)
    assert low < ratio < high


def test_mirroring_the_clip_before_does_not_move_its_labels(x64, tiny_config, scene):
    batch, variables = scene
    data = dict(batch["target"])
    # The small network looks at 4×4 patches: let each be the same seen from the left and from the right.
    data["frames"] = data["frames"][:, :, :, ::4].repeat(4, 3)
    method = make_method(configure(tiny_config), patch_network())

    @jax.jit
    def labels(flip):
        return method.pseudo_labels(variables["params"], variables["batch_stats"], data, {"flip": flip})[0]

    upright, mirrored = (labels(np.full(CLIPS, flip)) for flip in (False, True))
    for ours, theirs in zip(jax.tree.leaves(upright), jax.tree.leaves(mirrored), strict=True):
        assert ours.dtype == np.int32 and len(set(np.ravel(ours))) >= 3
        np.testing.assert_array_equal(ours, theirs)


def test_two_steps_on_two_devices(tiny_config, clips, drawn_variables):
    config, variables = configure(tiny_config), drawn_variables(single_precision())
    method = make_method(config, single_precision())
    states, metrics = states_of_steps(method, config.optim, variables, [batch_of(clips)] * 2)
    trained = {name for name in names(states[0].params) if not is_batch_norm(name)}
    assert changed(states[0].params, states[-1].params) == trained
    assert {"supervised", "target"} < metrics[-1].keys()


def test_wrong_settings(tiny_config):
    config = configure(tiny_config, **{"methods.tps.scale": (1.2, 0.8)})
    with pytest.raises(
        ValueError, match=r"methods.tps.scale is \(smallest, largest\), from 0.5 on; found \(1.2, 0.8\)"
    ):
        make_method(config, single_precision())
