"""UR: the whole loss and its gradient against PyTorch in float64, and real steps on two devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from patch_network import patch_network
from torch.nn import functional as F
from torch_reference import torch_patch
from two_devices import changed, first_updates, is_batch_norm, names, states_of_steps
from view_loops import classes_shown, flow_shown, image_shown

from configs import base, synthetic
from stpl_jax.methods import make_method
from stpl_jax.models.decoders import draw_channel_masks
from stpl_jax.ops.view import sample_view
from stpl_jax.rows import row_config
from stpl_jax.train_state import TrainState

KEY, SHARE, CLASSES, DECODERS = jax.random.key(11), 0.6, 5, 3
SIZE, OUT = (16, 32), (12, 24)  # of the frames and of the views
INDEX = (6, 7)  # of the clips: the first is mirrored and shrunk, the second enlarged
STATISTICS = ("running", "batch")
TOLERANCE = 1e-8


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """For tensors this small, PyTorch's threads cost more than they bring."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def mirrored_scores(params, frames, flow, sign, averages):
    """Main scores of the mirrored clip, mirrored back; `sign` is what happens to the horizontal flow."""
    flow = np.flip(flow, 2) * np.array([sign, 1], np.int16)
    frames = np.flip(frames, 3)
    return torch_patch.scores(params, frames[:, 0], frames[:, 1], flow, averages)[1].flip(2)


def labels_by_class(probabilities):
    """Class by class: the best 0.6 of its pixels set its threshold."""
    pixels = probabilities.reshape(-1, CLASSES)
    winners, thresholds = pixels.argmax(1), np.ones(CLASSES)
    for c in range(CLASSES):
        confidences = np.sort(pixels[winners == c, c])[::-1]
        if len(confidences) * 3 // 5:
            thresholds[c] = confidences[len(confidences) * 3 // 5 - 1]
    ratios = pixels / thresholds
    return np.where(ratios.max(1) >= 1, ratios.argmax(1), 255).reshape(probabilities.shape[:-1])


def drawn_views(index):
    """Each clip's view, by the clip's own key."""
    key, scale = jax.random.split(KEY)[0], (0.5, 1.5)
    return [sample_view(jax.random.fold_in(key, i), SIZE, OUT, scale, 0.5) for i in index.tolist()]


def shown(data):
    """The clips in their views: frames `[B, T, h, w, 3]`, flow `[B, h, w, 2]`, in tenths of a pixel there."""
    views = drawn_views(data["index"])
    frames = [[image_shown(f, v, OUT) for f in clip] for clip, v in zip(data["frames"], views, strict=True)]
    flow = [flow_shown(f, v, OUT) for f, v in zip(data["flow"][:, 0], views, strict=True)]
    return np.array(frames), np.array(flow)


def reference(params, data, dilations, averages, sign=-1):
    """The loss as the publication writes it, on what shows the frame alone; the pseudo-labels; and the gradients.

    Args:
      params, data, dilations: the method's parameters, its clips, and its decoders' dilations.
      averages: the running averages that the labelling network is normalised by, or None for its own statistics.
      sign: what happens to the horizontal flow of the mirror image.
    """
    params = torch_patch.trainable(params)
    network, frames, flow = params["segmenter"], data["frames"], data["flow"][:, 0]
    direct = torch_patch.scores(network, frames[:, 0], frames[:, 1], flow, averages)[1]
    averaged = (direct.softmax(-1) + mirrored_scores(network, frames, flow, sign, averages).softmax(-1)) / 2
    labels = labels_by_class(averaged.detach().numpy())

    frames, flow = shown(data)
    _, scores, _, features = torch_patch.scores(network, frames[:, 0], frames[:, 1], flow)
    grid, views = scores.shape[1:3], drawn_views(data["index"])
    in_view = np.array([classes_shown(y, v, SIZE, OUT, grid) for y, v in zip(labels, views, strict=True)])
    seen = np.array([classes_shown(np.zeros((4, 8), int), v, SIZE, OUT, grid) == 0 for v in views])
    loss = F.cross_entropy(scores.reshape(-1, CLASSES), torch.tensor(in_view).reshape(-1), ignore_index=255)

    p = scores.softmax(-1)[torch.tensor(seen)]  # [pixels, K]
    loss = loss - (p * torch.log2(p)).sum() / (len(p) * np.log2(CLASSES))

    keys = jnp.stack([jax.random.fold_in(jax.random.split(KEY)[1], i) for i in data["index"].tolist()])
    masks = np.asarray(draw_channel_masks(keys, DECODERS, features.shape[-1], 0.5))
    for i in range(DECODERS):
        dropped = (features * torch.tensor(masks[i])[:, None, None]).permute(0, 3, 1, 2)
        decoded = 0
        for j, dilation in enumerate(dilations):
            layer = params["decoders"][f"decoder_{i}"][f"conv2d_list_{j}"]
            kernel = layer["kernel"].permute(3, 2, 0, 1)
            decoded = decoded + F.conv2d(dropped, kernel, layer["bias"], padding=dilation, dilation=dilation)
        decoded = decoded.permute(0, 2, 3, 1)[torch.tensor(seen)]
        loss = loss + 0.1 * F.mse_loss(decoded.softmax(1), p.detach())
    return loss.item(), labels, torch_patch.gradients(loss, params), seen


@pytest.fixture(scope="module")
def results(clips, drawn_variables, tiny_settings):
    """By label_statistics: the method's loss, gradients and the rest; the reference's; and those of a misreading."""
    with jax.enable_x64(True):
        segmenter, config = patch_network(), tiny_settings.copy_and_resolve_references()
        config.method = "ur"
        config.methods.ur.update({"decoders": DECODERS, "proportion": SHARE, "pseudo_labels": "current"})
        config.methods.ur.view.beyond = "zero"  # the public code's
        config.methods.ur.view.crop = tuple(o / s for o, s in zip(OUT, SIZE, strict=True))
        config.batch_norm.average_over = "clean"  # the view is, by its colours
        variables = drawn_variables(segmenter)
        data = clips(2, seed=4, size=SIZE) | {"index": np.array(INDEX, np.int32)}
        random = np.random.default_rng(2)
        stats = {"norm": {"mean": random.uniform(90, 150, 48), "var": random.uniform(2000, 5000, 48)}}
        method = make_method(config, segmenter)
        decoders = jax.eval_shape(method.init, KEY, variables)[0]["network"]["decoders"]
        params = {
            "segmenter": variables["params"],
            "decoders": jax.tree.map(lambda leaf: 0.3 * random.normal(size=leaf.shape), decoders),
        }

        @jax.jit
        def ours(params, data):
            def loss(params, statistics):
                config.methods.ur.label_statistics = statistics
                state = TrainState(0, params, stats, {}, None)
                losses, aux = make_method(config, segmenter).loss({"network": params}, state, {"target": data}, KEY)
                return losses["network"], aux

            return {s: jax.value_and_grad(loss, has_aux=True)(params, s) for s in STATISTICS}

        found, dilations = ours(params, data), config.model.classifier_dilations
        expected, misread = (
            {s: reference(params, data, dilations, stats if s == "running" else None, sign) for s in STATISTICS}
            for sign in (-1, 1)
        )
        frames, _ = shown(data)
        seen = [torch_patch.features(torch_patch.trainable(variables["params"]), frames[:, t]) for t in (0, 1)]
        averages = torch_patch.averages_after(stats, [statistics for *_, statistics in seen])
        return found, expected, misread, averages


def test_the_clips_show_every_kind_of_view():
    (first, second), sides = drawn_views(np.array(INDEX)), np.array(SIZE)
    assert bool(first.mirrored) != bool(second.mirrored)
    first, second = (np.array(view.box) for view in (first, second))
    assert (first[:2] + first[2:] > sides).any() and (second[:2] + second[2:] <= sides).all() and second[:2].any()


@pytest.mark.parametrize("beyond", [None, "zero"])
def test_what_a_view_shows_beyond_the_frame(x64, clips, tiny_config, beyond):
    if beyond:
        tiny_config.methods.ur.view.beyond = beyond
    tiny_config.methods.ur.view.crop = tuple(o / s for o, s in zip(OUT, SIZE, strict=True))
    tiny_config.method = "ur"
    data = clips(2, seed=4, size=SIZE) | {"index": np.array(INDEX, np.int32)}
    method = make_method(tiny_config, patch_network())
    found, frames, _ = jax.jit(method.views)(data, jax.random.split(KEY)[0])
    drawn = drawn_views(data["index"])
    np.testing.assert_array_equal(found.box, np.transpose([view.box for view in drawn]))
    for clip, view, seen in zip(data["frames"], drawn, frames, strict=True):
        # By default the frame's mirror image is below it and on its right; the frame itself may be mirrored already.
        turned = clip[:, :, ::-1] if view.mirrored else clip
        if beyond is None:
            turned = np.pad(turned, ((0, 0), (0, SIZE[0]), (0, SIZE[1]), (0, 0)), "symmetric")
        upright = view._replace(mirrored=jnp.zeros((), bool))
        expected = [image_shown(frame, upright, OUT) for frame in turned]
        np.testing.assert_allclose(seen, expected, atol=1e-9)


@pytest.mark.parametrize("statistics", STATISTICS)
def test_loss(results, statistics):
    found, expected, misread, _ = results
    ((value, aux), _), (loss, labels, _, seen) = found[statistics], expected[statistics]
    np.testing.assert_allclose(value, loss, rtol=TOLERANCE)
    np.testing.assert_allclose(aux.metrics["labelled"], (labels != 255).mean(), rtol=1e-6)
    assert len(set(labels[labels != 255].tolist())) >= 3, "the clips show too little"
    assert not seen.all() and seen.any((1, 2)).all()
    assert abs(misread[statistics][0] - loss) > 1e-3 and (misread[statistics][1] != labels).any()
    assert abs(expected["running"][0] - expected["batch"][0]) > 1e-3, "who normalises would not be noticed"


@pytest.mark.parametrize("statistics", STATISTICS)
def test_gradient(results, statistics):
    (_, gradients), (_, _, expected, _) = (side[statistics] for side in results[:2])

    def close(path, found, expected):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=TOLERANCE, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(close, gradients, expected)
    without = {name for name, leaf in gradients["segmenter"].items() if not any(map(np.any, jax.tree.leaves(leaf)))}
    assert without == {"layer5"}
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradients["decoders"]))


def test_running_averages_take_the_view_alone(results):
    found, *_, averages = results
    for (_, aux), _ in found.values():
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), aux.batch_stats, averages)


def test_what_is_beyond_the_frame_counts_in_no_term(small_config, small_segmenter):
    small_config.method = "ur"
    method, random = make_method(small_config, small_segmenter), np.random.default_rng(0)
    seen, terms = np.arange(32).reshape(1, 4, 8) % 8 < 5, jax.jit(method.terms)
    scores, decoded = random.normal(size=(1, 4, 8, CLASSES)), random.normal(size=(4, 1, 4, 8, CLASSES))
    labels = np.where(seen, random.integers(0, CLASSES, seen.shape), 255)

    def loss(where):
        """The loss with other predictions in a part of the view."""
        changed = np.where(where[..., None], 3 * scores[..., ::-1], scores).astype(np.float32)
        other = np.where(where[..., None], -decoded, decoded).astype(np.float32)
        return terms(jnp.asarray(changed), jnp.asarray(labels), jnp.asarray(seen), jnp.asarray(other), seen)

    nowhere = np.zeros_like(seen)
    np.testing.assert_allclose(loss(~seen), loss(nowhere), rtol=1e-6)
    assert abs(loss(seen) - loss(nowhere)) > 0.1
    # Cut off, it gives the same, term by term: a mean is over what is left.
    left = [x[..., :5, :] for x in (scores.astype(np.float32), decoded.astype(np.float32))]
    cut = terms(jnp.asarray(left[0]), jnp.asarray(labels[..., :5]), seen[..., :5], left[1], seen[..., :5])
    np.testing.assert_allclose(loss(nowhere), cut, rtol=1e-6)


def test_what_is_trained_and_how_fast(small_config, small_segmenter, small_variables):
    small_config.method = "ur"
    small_config.optim.update(small_config.methods.ur.own)
    method = make_method(small_config, small_segmenter)
    for name, update in first_updates(method, small_config.optim, small_variables).items():
        factor = 10 if name.startswith(("segmenter/layer6/", "decoders/")) else 1
        frozen = is_batch_norm(name) or name.startswith("segmenter/layer5/")
        expected = 0 if frozen else -5e-5 * factor * (1 + 5e-4)  # the decay of a parameter of one is added
        np.testing.assert_allclose(update, expected, rtol=1e-5, err_msg=name)


def test_the_papers_optimiser_moves_decoders_as_far_as_the_publications(small_config, small_segmenter, small_variables):
    small_config.method = "ur"
    small_config.optim.update(base.get_config().optim)
    for name, update in first_updates(
        make_method(small_config, small_segmenter), small_config.optim, small_variables
    ).items():
        frozen = is_batch_norm(name) or name.startswith("segmenter/layer5/")
        rate = 1.5e-4 if name.startswith("decoders/") else 0 if frozen else 2.5e-6
        np.testing.assert_allclose(update, -rate * (1 + 5e-4), rtol=1e-5, err_msg=name)
    # Summed over a run, rates are those of the public code, 5e-5·10 in each of 3,200 steps.
    for config in (base.get_config(), synthetic.get_config()):
        optim = row_config(config, "ur").optim
        total = sum(optim.learning_rate * (1 - step / optim.decay_steps) ** optim.power for step in range(optim.steps))
        np.testing.assert_allclose(total * config.methods.ur.decoder_multiplier, 1.6, rtol=0.02)


def test_three_steps_on_two_devices(small_config, small_segmenter, small_variables, small_clips):
    small_config.method = "ur"
    small_config.optim.weight_decay = 0.5  # whatever is not frozen would shrink
    method = make_method(small_config, small_segmenter)
    assert list(method.needs) == ["target"] and not method.needs["target"].labels
    batches = [{"target": small_clips(4, seed=seed)} for seed in range(3)]
    states, metrics = states_of_steps(method, small_config.optim, small_variables, batches)
    assert states[-1].step == 3
    # What labels is the source model, whatever training makes of the network.
    kept = states[-1].extra["source"]
    jax.tree.map(np.testing.assert_array_equal, kept["params"], dict(small_variables["params"]))
    jax.tree.map(np.testing.assert_array_equal, kept["batch_stats"], dict(small_variables["batch_stats"]))
    network = states[0].params["network"]
    assert sorted(network["decoders"]) == [f"decoder_{i}" for i in range(4)]
    trained = {n for n in names(network) if not is_batch_norm(n) and not n.startswith("segmenter/layer5/")}
    assert changed(network, states[-1].params["network"]) == trained
    assert changed(states[0].batch_stats, states[-1].batch_stats) == names(states[0].batch_stats)
    assert all(0 < seen["labelled"] < 1 for seen in metrics)


def test_the_network_that_labels(small_config, small_segmenter, small_variables, small_clips):
    small_config.method = "ur"
    data = {"target": small_clips(2, seed=3)}

    @functools.partial(jax.jit, static_argnums=0)
    def labelled(labeller, params):
        small_config.methods.ur.pseudo_labels = labeller
        method = make_method(small_config, small_segmenter)
        network, kept = method.init(KEY, small_variables)
        network = {"network": network["network"] | {"segmenter": params}}
        state = TrainState(0, network, small_variables["batch_stats"], {}, kept)
        return method.loss(network, state, data, KEY)[1].metrics["labelled"]

    source = small_variables["params"]
    other = jax.tree.map(lambda leaf: leaf * np.float32(0.3), source)
    assert labelled("source", other) == labelled("source", source) == labelled("current", source)
    assert labelled("current", other) != labelled("current", source)
