"""The segmentation network: sizes at full scale, and each of its steps against plain numpy."""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from input_pipeline.errors import UserError
from stpl_jax.models import make_segmenter, with_frame_statistics
from stpl_jax.models.accel import DilatedClassifier, accel_module, as_network, normalise_images
from stpl_jax.models.network import PerClassifier, initial_variables

CLASSES = 5  # of tiny_segmenter


def count(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def full_size():
    segmenter = make_segmenter(base.get_config().model, 15)
    return segmenter, jax.eval_shape(lambda: initial_variables(segmenter, jax.random.key(0)))


def test_full_size_counts(full_size):
    _, variables = full_size
    assert count(variables["params"]) == 44_159_610
    assert count(variables["batch_stats"]) == 105_344


def test_full_size_shapes(full_size):
    segmenter, variables = full_size
    frames = jax.ShapeDtypeStruct((2, 1, 512, 1024, 3), jnp.uint8)
    features, _ = jax.eval_shape(segmenter.features, variables, frames)
    assert features.auxiliary.shape == (2, 1, 65, 129, 1024)
    assert features.main.shape == (2, 1, 65, 129, 2048)
    assert segmenter.channels(variables) == PerClassifier(2048, 1024)
    scores = jax.eval_shape(segmenter.classify, variables["params"], features)
    assert scores.auxiliary.shape == scores.main.shape == (2, 1, 65, 129, 15)


def test_twelve_classes(full_size):
    _, fifteen = full_size
    segmenter = make_segmenter(base.get_config().model, 12)
    twelve = jax.eval_shape(lambda: initial_variables(segmenter, jax.random.key(0)))
    # Three classes fewer: four 3×3 convolutions with bias, on 1024 and on 2048 channels, and score fusion.
    fewer = 3 * 4 * (9 * 1024 + 1) + 3 * 4 * (9 * 2048 + 1) + 2 * 15 * 15 - 2 * 12 * 12
    assert count(fifteen["params"]) - count(twelve["params"]) == fewer
    assert twelve["params"]["sf_layer"]["kernel"].shape == (1, 1, 24, 12)


def test_parameter_names_are_the_public_checkpoints(full_size):
    _, variables = full_size
    names = set(variables["params"]["backbone"])
    expected = {"conv1", "bn1"} | {f"layer{s + 1}_{b}" for s, n in enumerate((3, 4, 23, 3)) for b in range(n)}
    assert names == expected
    assert set(variables["params"]) == {"backbone", "layer5", "layer6", "sf_layer"}
    first = variables["params"]["backbone"]["layer3_0"]
    assert set(first) == {"conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "downsample_0", "downsample_1"}


def test_normalise_images_takes_the_mean_off_in_bgr():
    rgb = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3)).astype(np.uint8)
    out = np.asarray(normalise_images(jnp.asarray(rgb)))
    for where in np.ndindex(2, 4, 5):
        red, green, blue = rgb[where].astype(float)
        expected = [blue - 104.00698793, green - 116.66876762, red - 122.67891434]
        np.testing.assert_allclose(out[where], expected, rtol=1e-5, atol=1e-4)


def test_normalise_images_in_half_precision_rounds_once():
    # The mean itself is 122.5 in bfloat16: taken off before rounding, a pixel of 123 is 0.32 and not 0.5.
    out = normalise_images(jnp.asarray([[123, 117, 104]], jnp.uint8), jnp.bfloat16)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float32), [[-0.00698793, 0.33123238, 0.32108566]], rtol=5e-3)


def test_classifier_is_the_sum_of_dilated_convolutions(x64):
    random = np.random.default_rng(0)
    x = random.normal(size=(2, 5, 6, 3))
    module = DilatedClassifier(2, (1, 2, 4, 5), jnp.float64)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.asarray(x))
    variables = jax.tree.map(lambda s: random.normal(size=s.shape), shapes)
    assert set(variables["params"]) == {f"conv2d_list_{i}" for i in range(4)}
    expected = np.zeros((2, 5, 6, 2))
    for i, dilation in enumerate((1, 2, 4, 5)):
        layer = variables["params"][f"conv2d_list_{i}"]
        for b, row, column in np.ndindex(2, 5, 6):
            expected[b, row, column] += layer["bias"]
            for a, c in np.ndindex(3, 3):
                y, z = row + dilation * (a - 1), column + dilation * (c - 1)
                if 0 <= y < 5 and 0 <= z < 6:
                    expected[b, row, column] += x[b, y, z] @ layer["kernel"][a, c]
    np.testing.assert_allclose(jax.jit(module.apply)(variables, jnp.asarray(x)), expected, rtol=1e-12, atol=1e-12)


def test_score_fusion_starts_as_the_current_frame(tiny_segmenter):
    random = np.random.default_rng(0)
    current, warped = (jnp.asarray(random.normal(size=(2, 3, 4, CLASSES)), jnp.float32) for _ in range(2))

    @jax.jit
    def fused():
        variables = initial_variables(tiny_segmenter, jax.random.key(0))
        return tiny_segmenter.fusion(variables["params"], current, warped)

    np.testing.assert_array_equal(fused(), current)


def test_score_fusion_order(tiny_segmenter, tiny_variables):
    random = np.random.default_rng(0)
    current, warped = (random.normal(size=(2, 3, 4, CLASSES)).astype(np.float32) for _ in range(2))
    weights = random.normal(size=(2 * CLASSES, CLASSES)).astype(np.float32)
    params = tiny_variables["params"] | {"sf_layer": {"kernel": jnp.asarray(weights[None, None])}}
    out = tiny_segmenter.fusion(params, jnp.asarray(current), jnp.asarray(warped))
    expected = current @ weights[:CLASSES] + warped @ weights[CLASSES:]
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


def test_groups_together_are_groups_one_after_another(x64, tiny_settings, tiny_variables, clips, to_float64):
    module = accel_module(tiny_settings.model, CLASSES).clone(dtype=jnp.float64, param_dtype=jnp.float64)
    segmenter = as_network(module)
    variables = to_float64(tiny_variables)
    frames = np.moveaxis(clips(2, frames=3, size=(16, 32))["frames"], 1, 0)  # [3, 2, 16, 32, 3]

    @partial(jax.jit, static_argnums=2)
    def features(variables, frames, averaged):
        return segmenter.features(variables, frames, True, averaged)

    together, updated = features(variables, frames, 3)
    stats = variables["batch_stats"]
    for g in range(3):
        alone, after = features({"params": variables["params"], "batch_stats": stats}, frames[g : g + 1], 1)
        stats = after
        jax.tree.map(lambda a, b, g=g: np.testing.assert_allclose(a[g], b[0], rtol=1e-9, atol=1e-9), together, alone)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9), updated, stats)


def test_running_averages_are_used_and_left_alone(tiny_segmenter, tiny_variables, clips):
    frames = np.moveaxis(clips(1)["frames"], 1, 0)
    run = jax.jit(tiny_segmenter.features)
    features, updated = run(tiny_variables, frames)
    jax.tree.map(np.testing.assert_array_equal, updated, tiny_variables["batch_stats"])
    alone, _ = run(tiny_variables, frames[1:])
    np.testing.assert_allclose(features.main[1], alone.main[0], rtol=1e-5, atol=1e-5)
    moved = jax.tree.map(lambda x: x + np.float32(0.5), tiny_variables["batch_stats"])
    other, _ = run(tiny_variables | {"batch_stats": moved}, frames)
    assert np.abs(np.asarray(other.main - features.main)).max() > 1e-3


def test_inference_by_each_frames_own_statistics(x64, tiny_settings, tiny_variables, clips, to_float64):
    module = accel_module(tiny_settings.model, CLASSES).clone(dtype=jnp.float64, param_dtype=jnp.float64)
    network, variables = as_network(module), to_float64(tiny_variables)
    frames = np.moveaxis(clips(2, frames=2, size=(16, 32))["frames"], 1, 0)  # [2, 2, 16, 32, 3]
    own = with_frame_statistics(network, 1.0)
    assert own is with_frame_statistics(network, 1.0) and with_frame_statistics(network, 0.0) is network
    features, stats = jax.jit(own.features)(variables, frames)
    jax.tree.map(np.testing.assert_array_equal, stats, variables["batch_stats"])

    alone = jax.jit(lambda v, x: network.features(v, x, True, 0)[0])
    for t, b in np.ndindex(2, 2):
        expected = alone(variables, frames[t : t + 1, b : b + 1])
        np.testing.assert_allclose(features.main[t, b], expected.main[0, 0], rtol=1e-9, atol=1e-9)
    # Between: the first layer's statistics are a blend, and features neither end's.
    half, _ = jax.jit(with_frame_statistics(network, 0.5).features)(variables, frames)
    ends = [features.main, jax.jit(network.features)(variables, frames)[0].main]
    assert all(np.abs(half.main - end).max() > 1e-3 for end in ends)


def test_a_network_that_cannot_blend_says_so(tiny_segmenter):
    bare = dataclasses.replace(tiny_segmenter, blends_statistics=False)
    assert dataclasses.replace(bare, frame_statistics=1.0).frame_statistics == 1
    with pytest.raises(UserError, match="share of 0.1, needs a network .*blends_statistics"):
        dataclasses.replace(bare, frame_statistics=0.1)
    with pytest.raises(UserError, match="needs a network with running"):
        dataclasses.replace(bare, frame_statistics=1.0, running_statistics=False)


def test_classifiers_take_their_own_features(tiny_segmenter, tiny_variables):
    random = np.random.default_rng(0)
    maps = [jnp.asarray(random.normal(size=(2, 1, 4, 6, 16)), jnp.float32) for _ in range(2)]
    params = tiny_variables["params"]
    scores = tiny_segmenter.classify(params, PerClassifier(main=maps[1], auxiliary=maps[0]))
    for name, x, found in (("layer5", maps[0], scores.auxiliary), ("layer6", maps[1], scores.main)):
        layer = DilatedClassifier(CLASSES, (1, 2), jnp.float32)
        for g in range(2):
            np.testing.assert_allclose(
                found[g], layer.apply({"params": tiny_variables["params"][name]}, x[g]), rtol=1e-5, atol=1e-5
            )
    alone = tiny_segmenter.classify(params, PerClassifier(maps[1][0]))
    np.testing.assert_allclose(alone.main, scores.main[0], rtol=1e-5, atol=1e-5)
    assert alone.auxiliary is None


def test_stored_settings_build_the_same_network(tiny_config, tiny_segmenter):
    # A checkpoint stores its settings as JSON, where tuples are lists.
    stored = json.loads(tiny_config.model.to_json())
    assert make_segmenter(stored, CLASSES) is tiny_segmenter


def test_half_precision_keeps_parameters_and_scores_in_float32(tiny_config, clips):
    tiny_config.model.dtype = "bfloat16"
    segmenter = make_segmenter(tiny_config.model, CLASSES)
    variables = jax.eval_shape(lambda: initial_variables(segmenter, jax.random.key(0)))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}

    def run(variables, frames):
        features, _ = segmenter.features(variables, frames, True, 2)
        return features, segmenter.classify(variables["params"], features)

    features, scores = jax.eval_shape(run, variables, np.moveaxis(clips(1)["frames"], 1, 0))
    assert features.main.dtype == features.auxiliary.dtype == jnp.bfloat16
    assert scores.main.dtype == scores.auxiliary.dtype == jnp.float32
