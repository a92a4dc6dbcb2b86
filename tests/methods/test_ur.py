"""UR: the whole loss and its gradient against PyTorch in float64, and real steps on two devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from patch_network import patch_network
from torch.nn import functional as F
from torch_reference import torch_patch
from two_devices import changed, first_updates, is_batch_norm, names, states_of_steps

from stpl_jax.methods import make_method
from stpl_jax.models.decoders import draw_channel_masks
from stpl_jax.train_state import TrainState

KEY, SHARE, CLASSES, DECODERS = jax.random.key(11), 0.6, 5, 3
TOLERANCE = 1e-8


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """For tensors this small, PyTorch's threads cost more than they bring."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def mirrored_scores(params, frames, flow, sign=-1):
    """Main scores of the mirrored clip, mirrored back; `sign` is what happens to the horizontal flow."""
    flow = np.flip(flow, 2) * np.array([sign, 1], np.int16)
    frames = np.flip(frames, 3)
    return torch_patch.scores(params, frames[:, 0], frames[:, 1], flow)[1].flip(2)


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


def reference(params, data, dilations, sign=-1):
    """The loss as the publication writes it, the pseudo-labels, and the gradients."""
    params = torch_patch.trainable(params)
    network, frames, flow = params["segmenter"], data["frames"], data["flow"][:, 0]
    _, scores, _, features = torch_patch.scores(network, frames[:, 0], frames[:, 1], flow)
    averaged = (scores.softmax(-1) + mirrored_scores(network, frames, flow, sign).softmax(-1)) / 2
    labels = labels_by_class(averaged.detach().numpy())
    loss = F.cross_entropy(scores.reshape(-1, CLASSES), torch.tensor(labels).reshape(-1), ignore_index=255)

    p = scores.softmax(-1)
    pixels = p[..., 0].numel()
    loss = loss - (p * torch.log2(p)).sum() / (pixels * np.log2(CLASSES))

    keys = jnp.stack([jax.random.fold_in(KEY, i) for i in data["index"].tolist()])
    masks = np.asarray(draw_channel_masks(keys, DECODERS, features.shape[-1], 0.5))
    for i in range(DECODERS):
        dropped = (features * torch.tensor(masks[i])[:, None, None]).permute(0, 3, 1, 2)
        decoded = 0
        for j, dilation in enumerate(dilations):
            layer = params["decoders"][f"decoder_{i}"][f"conv2d_list_{j}"]
            kernel = layer["kernel"].permute(3, 2, 0, 1)
            decoded = decoded + F.conv2d(dropped, kernel, layer["bias"], padding=dilation, dilation=dilation)
        loss = loss + 0.1 * F.mse_loss(decoded.softmax(1), p.detach().permute(0, 3, 1, 2))
    return loss.item(), labels, torch_patch.gradients(loss, params)


@pytest.fixture(scope="module")
def results(clips, drawn_variables, tiny_settings):
    """The method's loss, gradients and the rest, and the reference's."""
    with jax.enable_x64(True):
        segmenter, config = patch_network(), tiny_settings.copy_and_resolve_references()
        config.method = "ur"
        config.methods.ur.update({"decoders": DECODERS, "proportion": SHARE})
        method, variables = make_method(config, segmenter), drawn_variables(segmenter)
        data = clips(2, seed=4, size=(16, 32)) | {"index": np.array([7, 8], np.int32)}
        random = np.random.default_rng(2)
        decoders = jax.eval_shape(method.init, KEY, variables)[0]["network"]["decoders"]
        params = {
            "segmenter": variables["params"],
            "decoders": jax.tree.map(lambda leaf: 0.3 * random.normal(size=leaf.shape), decoders),
        }

        def loss(params, stats):
            state = TrainState(0, params, stats, {}, None)
            losses, aux = method.loss({"network": params}, state, {"target": data}, KEY)
            return losses["network"], aux

        (value, aux), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, variables["batch_stats"])
        seen = [torch_patch.features(torch_patch.trainable(variables["params"]), data["frames"][:, t]) for t in (0, 1)]
        averages = torch_patch.averages_after(variables["batch_stats"], [statistics for *_, statistics in seen])
        expected = reference(params, data, config.model.classifier_dilations)
        misread = reference(params, data, config.model.classifier_dilations, sign=1)
        return (value, aux, gradients), expected, averages, misread


def test_loss(results):
    (value, aux, _), (expected, labels, _), _, (misread, other_labels, _) = results
    np.testing.assert_allclose(value, expected, rtol=TOLERANCE)
    np.testing.assert_allclose(aux.metrics["labelled"], (labels != 255).mean(), rtol=1e-6)
    assert len(set(labels[labels != 255].tolist())) >= 3, "the clips show too little"
    assert abs(misread - expected) > 1e-3 and (labels != other_labels).any(), "unmirrored flow would not be noticed"


def test_gradient(results):
    (_, _, gradients), (_, _, expected), _, _ = results

    def close(path, found, expected):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=TOLERANCE, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(close, gradients, expected)
    without = {name for name, leaf in gradients["segmenter"].items() if not any(map(np.any, jax.tree.leaves(leaf)))}
    assert without == {"layer5"}
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradients["decoders"]))


def test_running_averages_take_the_clip_and_not_its_mirror_image(results):
    (_, aux, _), _, averages, _ = results
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), aux.batch_stats, averages)


def test_what_is_trained_and_how_fast(small_config, small_segmenter, small_variables):
    small_config.method = "ur"
    small_config.optim.update(small_config.methods.ur.own)
    method = make_method(small_config, small_segmenter)
    for name, update in first_updates(method, small_config.optim, small_variables).items():
        factor = 10 if name.startswith(("segmenter/layer6/", "decoders/")) else 1
        frozen = is_batch_norm(name) or name.startswith("segmenter/layer5/")
        expected = 0 if frozen else -5e-5 * factor * (1 + 5e-4)  # the decay of a parameter of one is added
        np.testing.assert_allclose(update, expected, rtol=1e-5, err_msg=name)


def test_three_steps_on_two_devices(small_config, small_segmenter, small_variables, small_clips):
    small_config.method = "ur"
    small_config.optim.weight_decay = 0.5  # whatever is not frozen would shrink
    method = make_method(small_config, small_segmenter)
    assert list(method.needs) == ["target"] and not method.needs["target"].labels
    batches = [{"target": small_clips(4, seed=seed)} for seed in range(3)]
    states, metrics = states_of_steps(method, small_config.optim, small_variables, batches)
    assert states[-1].step == 3 and states[-1].extra is None
    network = states[0].params["network"]
    assert sorted(network["decoders"]) == [f"decoder_{i}" for i in range(4)]
    trained = {n for n in names(network) if not is_batch_norm(n) and not n.startswith("segmenter/layer5/")}
    assert changed(network, states[-1].params["network"]) == trained
    assert changed(states[0].batch_stats, states[-1].batch_stats) == names(states[0].batch_stats)
    assert all(0 < seen["labelled"] < 1 for seen in metrics)
