"""Losses and gradients of the methods, in float64, against a recomputation in a straight line.

A loss alone does not show a wrong gradient path: stopping the gradient to keys or earlier frames leaves every loss as
it is. So gradients are compared, and readings that part are shown to part.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from patch_network import patch_network

from stpl_jax import forward
from stpl_jax.methods import make_method
from stpl_jax.ops.augment import AugmentSettings
from stpl_jax.ops.resize import resize_align_corners, resize_flow
from stpl_jax.ops.warp import warp
from stpl_jax.train_state import TrainState

GRID = (4, 8)
CONFIDENT = 22  # ⌊0.7 · 32⌋
TEMPERATURE = 0.07
KEY = jax.random.key(11)

# What each variant changes, and which parameters its projection and fusion are.
VARIANTS = {
    "stpl": ({}, "fusion", "projection_wide"),
    "no gradient to the earlier frame": ({"methods.stpl.previous_gradient": False}, "fusion", "projection_wide"),
    "no gradient to the keys": ({"methods.stpl.key_gradient": False}, "fusion", "projection_wide"),
    "three frames": ({"num_frames": 3, "methods.stpl.fusion": "conv1x1"}, "fusion_three", "projection"),
    "spatial": ({"methods.stpl.objective": "spatial"}, None, "projection"),
    "temporal": ({"methods.stpl.objective": "temporal"}, None, "projection"),
    "temporal, earlier frame stopped": (
        {"methods.stpl.objective": "temporal", "methods.stpl.previous_gradient": False},
        None,
        "projection",
    ),
    "temporal, warped": ({"methods.stpl.objective": "temporal", "methods.stpl.warp_keys": True}, None, "projection"),
    "duplicate": ({"methods.stpl.objective": "duplicate"}, None, "projection"),
    "naive": ({"methods.stpl.objective": "naive"}, None, "projection"),
    "self_training": ({"method": "self_training"}, None, None),
    "oracle": ({"method": "oracle"}, None, None),
}


def conv1x1(layer, x):
    return jnp.einsum("...c,cd->...d", x, layer["kernel"][0, 0]) + layer["bias"]


def project(layers, x):
    x = conv1x1(layers["conv2"], jnp.maximum(conv1x1(layers["conv1"], x), 0))
    return x / jnp.sqrt((x**2).sum(-1, keepdims=True))


def stam(layers, earlier, current):
    """Appendix A1 on two frames `[B, h, w, C]`."""
    z = [earlier, current]
    # Sorting and not jnp.max: see _largest of models/fusion.py.
    means = jnp.stack([frame.mean((1, 2, 3)) for frame in z], -1)  # [B, 2]
    maxima = jnp.stack([jnp.sort(frame.reshape(2, -1))[:, -1] for frame in z], -1)
    temporal = jax.nn.sigmoid(
        means @ layers["temporal"]["kernel"]
        + maxima @ layers["temporal"]["kernel"]
        + 2 * layers["temporal"]["bias"][None]
    )
    attended = [temporal[:, t, None, None, None] * frame for t, frame in enumerate(z)]
    both = jnp.concatenate(attended, -1)
    pooled = jnp.stack([both.mean(-1), jnp.sort(both)[..., -1]], -1)  # [B, h, w, 2]
    kernel, bias = layers["spatial"]["kernel"], layers["spatial"]["bias"]
    spatial = jax.lax.conv_general_dilated(
        pooled, kernel, (1, 1), ((3, 3), (3, 3)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    spatial = spatial + bias
    return jnp.concatenate([jax.nn.sigmoid(spatial) * a + frame for a, frame in zip(attended, z, strict=True)], -1)


def equations_3_and_4(queries, keys, labels):
    """One clip: `[N, D]` twice, `[N]`; every pair of pixels written out."""
    similarity = queries @ keys.T / TEMPERATURE
    positive = labels[:, None] == labels[None]
    denominator = jnp.where(positive, 0, jnp.exp(similarity)).sum(1, keepdims=True)
    has_negative = (~positive).any(1)
    log_ratio = similarity - jnp.log(jnp.where(has_negative[:, None], denominator, 1))
    loss = -jnp.where(positive, log_ratio, 0).sum(1) / positive.sum(1)
    return jnp.where(has_negative, loss, 0).sum() / jnp.maximum(has_negative.sum(), 1)


def frozen(x):
    return jax.lax.stop_gradient(x)


def cross_entropy(scores, labels):
    valid = labels != 255
    log_p = scores - jnp.log(jnp.exp(scores).sum(-1, keepdims=True))
    picked = (jax.nn.one_hot(labels, scores.shape[-1], dtype=scores.dtype) * log_p).sum(-1)
    return -jnp.where(valid, picked, 0).sum() / valid.sum()


def dimmed(key, frames, settings):
    """Stands in for `photometric`, which is tested apart: a draw for the clip, and a colour cast."""
    assert settings == AugmentSettings()
    low, high = jax.random.uniform(key, (2,), jnp.float32)
    return frames * (0.2 + 0.5 * low) + 80 * high * (frames / 255) ** 2


def reference(segmenter, params, stats, data):
    """Loss of each variant, and the running averages after each frame."""

    def backbone(frame, stats):
        values = {"params": params["segmenter"], "batch_stats": stats}
        features, updated = segmenter.features(values, frame[None], True, 1)
        return jax.tree.map(lambda f: f[0], features), updated

    keys = [jax.random.fold_in(KEY, i) for i in data["index"].tolist()]
    two, three = (
        jnp.stack(
            [
                dimmed(k, jnp.asarray(clip[:count], jnp.float32), AugmentSettings())
                for k, clip in zip(keys, data["frames"], strict=True)
            ]
        )
        for count in (2, 3)
    )
    clean, averages = [], [stats]
    for t in range(3):
        features, stats = backbone(jnp.asarray(data["frames"][:, t], jnp.float64), stats)
        clean.append(features)
        averages.append(stats)
    augmented, after_augmented = [], averages[2]
    for t in range(2):
        features, after_augmented = backbone(two[:, t].astype(jnp.float64), after_augmented)
        augmented.append(features.main)
    augmented_three = [backbone(three[:, t].astype(jnp.float64), averages[0])[0].main for t in range(3)]
    z = [features.main for features in clean]
    to_earlier = [resize_flow(jnp.asarray(data["flow"][:, p], jnp.float64) / 10, GRID) for p in range(2)]

    def layer(name, x):
        return x @ params["segmenter"][name]["kernel"] + params["segmenter"][name]["bias"]

    def fused(name, now, before, stop=frozen):
        weights = params["segmenter"]["sf_layer"]["kernel"]
        warped = stop(warp(layer(name, before), to_earlier[0]))
        return jnp.concatenate([layer(name, now), warped], -1) @ weights

    scores = fused("layer6", z[0], z[1])
    flat = frozen(scores).reshape(2, 32, -1)
    labels = flat.argmax(-1)
    confidence = (jnp.exp(flat) / jnp.exp(flat).sum(-1, keepdims=True)).max(-1)
    chosen = jnp.argsort(-confidence, axis=1, stable=True)[:, :CONFIDENT]

    def contrast(head, queries, keys, stop_keys=False):
        losses = []
        for b in range(2):
            q, k = (project(params[head], x[b].reshape(32, -1))[chosen[b]] for x in (queries, keys))
            losses.append(equations_3_and_4(q, frozen(k) if stop_keys else k, labels[b][chosen[b]]))
        return sum(losses) / 2

    def fuse(view, stop=lambda x: x):
        return stam(params["fusion"], stop(warp(view[1], to_earlier[0])), view[0])

    def fuse_three(view):
        frames = [warp(view[2], to_earlier[1]), warp(view[1], to_earlier[0]), view[0]]
        return conv1x1(params["fusion_three"]["conv"], jnp.concatenate(frames, -1))

    def on_confident(scores):
        picked = jnp.take_along_axis(scores.reshape(2, 32, -1), chosen[..., None], 1)
        return cross_entropy(picked, jnp.take_along_axis(labels, chosen, 1))

    def at_label_size(scores):
        return cross_entropy(resize_align_corners(scores, data["label"].shape[1:]), jnp.asarray(data["label"]))

    def fused_auxiliary(stop=frozen):
        return fused("layer5", clean[0].auxiliary, clean[1].auxiliary, stop)

    wide, narrow = "projection_wide", "projection"
    spatial, temporal = contrast(narrow, z[0], augmented[0]), contrast(narrow, z[0], z[1])
    losses = {
        "stpl": contrast(wide, fuse(z), fuse(augmented)),
        "no gradient to the earlier frame": contrast(wide, fuse(z, frozen), fuse(augmented, frozen)),
        "no gradient to the keys": contrast(wide, fuse(z), fuse(augmented), stop_keys=True),
        "three frames": contrast(narrow, fuse_three(z), fuse_three(augmented_three)),
        "spatial": spatial,
        "temporal": temporal,
        "temporal, earlier frame stopped": contrast(narrow, z[0], frozen(z[1])),
        "temporal, warped": contrast(narrow, z[0], warp(z[1], to_earlier[0])),
        "duplicate": contrast(narrow, z[0], z[0]),
        "naive": spatial + temporal,
        "self_training": on_confident(scores) + 0.1 * on_confident(fused_auxiliary()),
        "oracle": at_label_size(scores) + 0.1 * at_label_size(fused_auxiliary()),
        "oracle, earlier frame trained": at_label_size(fused("layer6", z[0], z[1], lambda x: x))
        + 0.1 * at_label_size(fused_auxiliary(lambda x: x)),
    }
    return losses, ({2: averages[2], 4: after_augmented}, labels, chosen)


def draw_heads(channels=16, hidden=12, dim=6):
    random = np.random.default_rng(5)

    def layer(*shape):
        weights = random.normal(0, np.prod(shape[:-1]) ** -0.5, shape)
        return {"kernel": weights, "bias": random.normal(0, 0.1, shape[-1])}

    def head(width):
        return {"conv1": layer(1, 1, width, hidden), "conv2": layer(1, 1, hidden, dim)}

    return {
        "fusion": {"temporal": layer(2, 2), "spatial": layer(7, 7, 2, 1)},
        "fusion_three": {"conv": layer(1, 1, 3 * channels, channels)},
        "projection": head(channels),
        "projection_wide": head(2 * channels),
    }


@pytest.fixture(scope="module")
def results(clips, drawn_variables, tiny_settings):
    """Losses and gradients of the project's methods, and the reference's: one compilation each."""
    tiny = tiny_settings
    with jax.enable_x64(True), pytest.MonkeyPatch.context() as patch:
        patch.setattr(forward, "photometric", dimmed)
        segmenter = patch_network()
        variables = drawn_variables(segmenter)
        params = jax.tree.map(jnp.asarray, {"segmenter": variables["params"]} | draw_heads())
        data = clips(2, seed=4, frames=3, pairs=((0, 1), (0, 2)), label=True, size=(16, 32))
        data["index"] += 7

        def of_methods(params, stats):
            losses, averages = {}, {}
            for name, (changes, fusion, projection) in VARIANTS.items():
                config = tiny.copy_and_resolve_references()
                config.update_from_flattened_dict(changes)
                method = make_method(config, segmenter)
                needs = method.needs["target"]
                network = {"segmenter": params["segmenter"]}
                if fusion:
                    network["fusion"] = params[fusion]
                if projection:
                    network["projection"] = params[projection]
                batch = data | {
                    "frames": data["frames"][:, needs.offsets],
                    "flow": data["flow"][:, : len(needs.flow_pairs)],
                }
                batch = jax.tree.map(jnp.asarray, batch)
                state = TrainState(0, {"network": network}, stats, {}, None)
                out, aux = method.loss({"network": network}, state, {"target": batch}, KEY)
                losses[name], averages[name] = out["network"], aux.batch_stats
            return losses, averages

        def of_reference(params, stats):
            with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
                return reference(segmenter, params, stats, data)

        def with_gradients(function):
            def twice(params, stats):
                losses, rest = function(params, stats)
                return losses, (losses, rest)

            return jax.jit(jax.jacrev(twice, has_aux=True))

        found, expected = with_gradients(of_methods), with_gradients(of_reference)
        stats = jax.tree.map(jnp.asarray, variables["batch_stats"])
        moved = jax.tree.map(lambda x: x + 1.5, stats)
        return {
            "found": jax.tree.map(np.asarray, found(params, stats)),
            "found with other running averages": jax.tree.map(np.asarray, found(params, moved)),
            "expected": jax.tree.map(np.asarray, expected(params, stats)),
        }


def cosine(a, b):
    a, b = (np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)]) for tree in (a, b))
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def test_the_clips_show_something(results):
    _, (_, (_, labels, chosen)) = results["expected"]
    for clip, pixels in zip(labels, chosen, strict=True):
        assert len(set(clip[pixels].tolist())) >= 3


@pytest.mark.parametrize("name", VARIANTS)
def test_loss_and_gradient(results, name):
    gradients, (losses, _) = results["found"]
    expected_gradients, (expected_losses, _) = results["expected"]
    np.testing.assert_allclose(losses[name], expected_losses[name], rtol=1e-9)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected_gradients[name])) > 1e-3

    def close(path, found, expected):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(close, gradients[name], expected_gradients[name])


@pytest.mark.parametrize(
    "one, other",
    [
        ("stpl", "no gradient to the earlier frame"),
        ("stpl", "no gradient to the keys"),
        ("temporal", "temporal, earlier frame stopped"),
        ("oracle", "oracle, earlier frame trained"),
    ],
)
def test_gradients_part_where_losses_do_not(results, one, other):
    gradients, (losses, _) = results["expected"]
    np.testing.assert_allclose(losses[one], losses[other], rtol=1e-12)
    assert cosine(gradients[one], gradients[other]) < 0.9999


def test_pseudo_labels_and_losses_come_from_batch_statistics(results):
    # Running averages that are far off change nothing.
    for name in VARIANTS:
        np.testing.assert_allclose(
            results["found with other running averages"][1][0][name], results["found"][1][0][name], rtol=1e-12
        )


@pytest.mark.parametrize(
    "name, frames", [("temporal", 2), ("duplicate", 2), ("self_training", 2), ("oracle", 2), ("stpl", 4)]
)
def test_running_averages_take_all_frames_in_order(results, name, frames):
    _, (_, averages) = results["found"]
    _, (_, (expected, _, _)) = results["expected"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), averages[name], expected[frames])
