"""ESPNet against PyTorch, layer for layer by small random weights; and every method on it, by its roles alone."""

import copy
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch_reference.torch_espnet import TorchESPNet, draw_weights, normalise

from input_pipeline.errors import UserError
from stpl_jax import parallel
from stpl_jax.convert.espnet import convert
from stpl_jax.convert.torch_files import read_state_dict
from stpl_jax.evaluate import segment_clips
from stpl_jax.forward import extract, frames_first
from stpl_jax.methods import make_method
from stpl_jax.models import make_segmenter, with_frame_statistics
from stpl_jax.models.espnet import ESPNet, as_network
from stpl_jax.models.network import initial_variables
from stpl_jax.optim import parameter_path
from stpl_jax.train_state import create_state, make_train_step

SMALL = dict(p=1, q=2, widths=(5, 11, 17))
OUTPUTS = 7
# Wide enough for the dilation of 16 at an eighth.
SIZE = (40, 144)


@pytest.fixture
def config(tiny_config):
    """The network's smallest, for methods; five classes."""
    tiny_config.model.name = "espnet"
    tiny_config.model.espnet.update(dict(p=1, q=1, widths=(5, 5, 5)))
    tiny_config.methods.hcl.pixels = 8
    return tiny_config


@pytest.fixture(scope="module", params=[False, True], ids=["first level", "with the image"])
def network(request, tmp_path_factory, tiny_settings):
    """PyTorch's network in float64, and ours out of its file, converted."""
    module = draw_weights(TorchESPNet(OUTPUTS, **SMALL, reinforced=request.param))
    path = tmp_path_factory.mktemp("weights") / "espnet.pth"
    torch.save(module.state_dict(), path)
    config = tiny_settings.copy_and_resolve_references()
    converted = convert(read_state_dict(path), None, lambda setting, defaults: config)
    settings = dict(config.model.espnet)
    assert settings["reinforced_skip"] == request.param
    ours = ESPNet(None, jnp.float64, jnp.float64, num_classes=OUTPUTS - 1, **settings)
    return module.double(), as_network(ours), converted.variables


def of_torch(module, frames, train):
    """Features and all scores of frames `[T, B, H, W, 3]`, one frame a pass; and the network after them."""
    module = copy.deepcopy(module).train(train)
    features, scores = [], []
    with torch.no_grad():
        for frame in frames:
            x = normalise(frame, torch.float64)
            scores.append(module(x).permute(0, 2, 3, 1).numpy())
            features.append(copy.deepcopy(module).encode(x)[2].permute(0, 2, 3, 1).numpy())
    return np.stack(features), np.stack(scores), module


def drawn(size, frames=2, clips=2, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (frames, clips, *size, 3)).astype(np.uint8)


def run(network, variables, frames, train, averaged=0):
    @jax.jit
    def both(variables, frames):
        features, stats = network.features(variables, frames, train, averaged)
        return features.main, network.classify(variables["params"], features).main, stats

    variables = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), variables)
    return jax.tree.map(np.asarray, both(variables, frames))


def test_running_averages_give_pytorchs_features_and_scores(x64, network):
    module, ours, variables = network
    frames = drawn(SIZE)
    features, scores, _ = of_torch(module, frames, False)
    found_features, found_scores, stats = run(ours, variables, frames, False)
    assert found_scores.shape == (2, 2, *SIZE, OUTPUTS - 1) and np.abs(scores).max() > 1
    np.testing.assert_allclose(found_features, features, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found_scores, scores[..., :-1], rtol=1e-9, atol=1e-9)
    jax.tree.map(np.testing.assert_array_equal, stats, jax.tree.map(np.float64, variables["batch_stats"]))


def test_each_group_has_its_statistics_and_moves_the_averages_in_the_decoder_too(x64, network):
    module, ours, variables = network
    frames = drawn(SIZE, seed=1)
    _, scores, after = of_torch(module, frames, True)
    _, found, stats = run(ours, variables, frames, True, 2)
    np.testing.assert_allclose(found, scores[..., :-1], rtol=1e-8, atol=1e-8)
    state = after.state_dict()
    for name, place in (
        ("encoder.level1.bn", ("encoder", "level1", "bn")),
        ("encoder.level2.0.bn.bn", ("encoder", "level2_block0", "bn")),
        ("encoder.level3_0.bn", ("encoder", "level3_0", "bn")),
        ("encoder.b3.bn", ("encoder", "b3", "bn")),
        ("br", ("decoder", "br")),
        ("combine_l2_l3.1.bn.bn", ("decoder", "combine_l2_l3_1", "bn")),
        ("up_l2.1.bn", ("decoder", "up_l2_1", "bn")),
        ("conv.bn", ("decoder", "conv", "bn")),
    ):
        layer = functools.reduce(dict.__getitem__, place, stats)
        np.testing.assert_allclose(layer["mean"], state[f"{name}.running_mean"].numpy(), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(layer["var"], state[f"{name}.running_var"].numpy(), rtol=1e-9)


def test_inference_blends_each_frames_statistics_with_the_running_ones(x64, network):
    module, ours, variables = network
    frames, share = drawn(SIZE, 1, 1, seed=2), 0.3

    def blended(layer, inputs, _):
        (x,) = inputs
        mean = (1 - share) * layer.running_mean + share * x.mean((0, 2, 3))
        var = (1 - share) * layer.running_var + share * x.var((0, 2, 3), unbiased=False)
        return functional.batch_norm(x, mean, var, layer.weight, layer.bias, False, 0, layer.eps)

    module = copy.deepcopy(module)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_hook(blended)
    _, scores, _ = of_torch(module, frames, False)
    _, found, _ = run(with_frame_statistics(ours, share), variables, frames, False)
    np.testing.assert_allclose(found, scores[..., :-1], rtol=1e-8, atol=1e-8)


def test_sizes_that_are_no_multiples_of_eight(x64, network):
    module, ours, variables = network
    # Each level is rounded up, so that these fit in PyTorch as they are: 20×72, 10×36, 5×18.
    frames = drawn((39, 143), 1, 1)
    _, scores, _ = of_torch(module, frames, False)
    _, found, _ = run(ours, variables, frames, False)
    np.testing.assert_allclose(found, scores[..., :-1], rtol=1e-9, atol=1e-9)
    # 21×31, 11×16, 6×8: the second level's map, doubled from 6 rows, has one too many.
    shape = ours.feature_shapes(variables, (41, 61))
    assert jax.eval_shape(ours.classify, variables["params"], shape).main.shape == (1, 1, 42, 62, OUTPUTS - 1)


def test_input_by_hand():
    normalised = make_segmenter(espnet_model(), 4).normalise(jnp.asarray([[10, 20, 200]], jnp.uint8), jnp.float32)
    # Blue first: (200 - 72.3923111) / 45.3192215 / 255 and so on.
    np.testing.assert_allclose(normalised, [[0.0110421, -0.0053453, -0.0055142]], rtol=1e-4)


def espnet_model(**settings):
    usual = dict(
        p=2,
        q=8,
        widths=[16, 64, 128],
        reinforced_skip=False,
        mean=[72.3923111, 82.90893555, 73.15840149],
        deviation=[45.3192215, 46.15289307, 44.91483307],
    )
    return {"name": "espnet", "dtype": "float32", "espnet": usual | settings}


def test_full_size_counts_and_shapes():
    segmenter = make_segmenter(espnet_model(), 19)
    variables = jax.eval_shape(lambda: initial_variables(segmenter, jax.random.key(0)))
    # What the public file of Cityscapes holds.
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == 364_569
    assert sum(x.size for x in jax.tree.leaves(variables["batch_stats"])) == 3_772
    features = segmenter.feature_shapes(variables, (512, 1024))
    assert features.main.shape == (1, 1, 64, 128, 256) and features.scored.shape == (1, 1, 256, 512, 20)
    assert features.auxiliary is None and segmenter.fusion is None
    assert jax.eval_shape(segmenter.classify, variables["params"], features).main.shape == (1, 1, 512, 1024, 19)


def test_every_parameter_is_in_its_group(config):
    segmenter = make_segmenter(config.model, 5)
    params = jax.eval_shape(segmenter.initial, jax.random.key(0))["params"]
    for path in paths_of(params):
        groups = {name for name, expression in segmenter.groups.items() if re.search(expression, path)}
        assert ("backbone" in groups) == path.startswith("encoder/"), path
        assert ("main_classifier" in groups) == (not path.startswith("encoder/")), path
        assert ("normalisation" in groups) == path.endswith(("/scale", "/bias")), path


def test_random_weights_are_pytorchs_default(config):
    torch.manual_seed(0)
    settings = config.model.espnet.to_dict() | dict(widths=(16, 64, 128))
    with config.unlocked():
        config.model.espnet.update(settings)
    params = initial_variables(make_segmenter(config.model, 19), jax.random.key(0))["params"]
    module = TorchESPNet(20, 1, 1)
    for found, expected in (
        (params["encoder"]["level3_0"]["c1"]["kernel"], module.encoder.level3_0.c1.conv.weight),
        (params["encoder"]["level2_block0"]["d16"]["kernel"], module.encoder.level2[0].d16.conv.weight),
        (params["decoder"]["encoder_classifier"]["kernel"], module.encoder.classifier.conv.weight),
        (params["decoder"]["up_l2_0"]["kernel"], module.up_l2[0].weight),
        (params["classifier"]["kernel"], module.classifier.weight),
    ):
        expected = expected.detach().numpy()
        assert found.size == expected.size
        np.testing.assert_allclose(np.abs(found).max(), np.abs(expected).max(), rtol=0.02)
        np.testing.assert_allclose(found.std(), expected.std(), rtol=0.05)
    assert (params["encoder"]["b1"]["slope"] == module.encoder.b1.act.weight[0].item()).all()


def test_too_few_classes_for_the_decoder_are_named(config):
    with pytest.raises(UserError, match="espnet: expected 4 classes or more.* found 3"):
        make_segmenter(config.model, 3)


def paths_of(tree):
    return [parameter_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


OPTIMISED = ("stpl", "stpl_plus")
OTHERS = (
    "self_training",
    "ur",
    "hcl",
    "da_vsn_free",
    "tps_free",
    "spatial",
    "temporal",
    "fda",
    "pixmatch",
    "source_only",
)


@pytest.mark.parametrize("row", OTHERS)
def test_other_methods_can_be_traced(row, config, clips):
    config.method, config.source_free = row.removesuffix("_free"), row.endswith("_free")
    segmenter = make_segmenter(config.model, 5)
    method = make_method(config, segmenter)
    variables = jax.eval_shape(segmenter.initial, jax.random.key(0))
    state = jax.eval_shape(lambda v: create_state(method, {}, v, jax.random.key(0)), variables)
    batch = {
        domain: clips(
            2, frames=len(needs.offsets), pairs=needs.flow_pairs, label=needs.labels, size=(32, 64), num_classes=5
        )
        for domain, needs in method.needs.items()
    }
    losses, aux = jax.eval_shape(method.loss, state.params, state, batch, jax.random.key(1))
    assert losses["network"].shape == ()
    assert jax.tree.structure(aux.batch_stats) == jax.tree.structure(state.batch_stats)


@pytest.mark.parametrize("row", [*OPTIMISED, "bn_statistics", "alpha_bn"])
def test_a_step_of(row, config, clips, drawn_variables):
    config.method = row
    segmenter = make_segmenter(config.model, 5)
    method = make_method(config, segmenter)
    optimisers = method.optimisers(config.optim)
    variables = drawn_variables(segmenter)
    before = jax.tree.map(np.asarray, create_state(method, optimisers, variables, jax.random.key(0)))
    step = parallel.pmap(make_train_step(method, optimisers, 0), donate_state=True)
    needs = method.needs["target"]
    batch = clips(
        jax.local_device_count(), frames=len(needs.offsets), pairs=needs.flow_pairs, size=(32, 64), num_classes=5
    )
    state, metrics = step(parallel.replicate(before), {"target": parallel.split_over_devices(batch)})
    state, metrics = parallel.unreplicate((state, metrics))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(metrics))
    leaves = (jax.tree.leaves(s.params["network"]) for s in (before, state))
    pairs = zip(paths_of(before.params["network"]), *leaves, strict=True)
    moved = {path for path, old, new in pairs if not np.array_equal(old, new)}
    encoder = {f"segmenter/encoder/{path}" for path in paths_of(variables["params"]["encoder"])}
    trained = {path for path in encoder if not path.endswith(("/scale", "/bias"))} if row in OPTIMISED else set()
    assert {path for path in moved if path.startswith("segmenter/")} == trained
    # The decoder's statistics are the target's, too.
    for part, name in (("encoder", "b3"), ("decoder", "conv")):
        old, new = (stats[part][name]["bn"]["var"] for stats in (before.batch_stats, state.batch_stats))
        assert (old != new).any() and np.isfinite(new).all()


def test_evaluation_scores_each_frame_by_itself(config, clips, drawn_variables):
    segmenter = make_segmenter(config.model, 5)
    variables = drawn_variables(segmenter)
    batch = clips(1, frames=2, size=(32, 64))
    (scores,) = jax.jit(functools.partial(segment_clips, segmenter, flow_scale="align_corners"))(
        variables, batch["frames"], batch["flow"]
    )
    config.batch_norm.mode = "running"
    features, _ = extract(
        segmenter, variables["params"], variables["batch_stats"], frames_first(batch["frames"]), config.batch_norm
    )
    expected = segmenter.classify(variables["params"], features).main[0]
    assert scores.shape == (1, 32, 64, 5)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)
