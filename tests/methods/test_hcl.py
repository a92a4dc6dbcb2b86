"""HCL: the whole loss and its gradient against PyTorch in float64, the networks that it keeps, and real steps."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from patch_network import patch_network
from torch.nn import functional as F
from torch_reference import torch_patch
from two_devices import changed, first_updates, is_batch_norm, names, states_of_steps

from stpl_jax import forward
from stpl_jax.methods import make_method
from stpl_jax.ops.augment import AugmentSettings
from stpl_jax.train_state import TrainState

KEY, CLASSES, PIXELS = jax.random.key(11), 5, 20  # of 32
TOLERANCE = 1e-8
LABELLERS = ("source", "historical", "average")
LABELLING = list(itertools.product(LABELLERS, ("running", "batch")))  # who labels, and what normalises then
SETTINGS = {
    "pixels": PIXELS,
    "temperature": 0.3,
    "auxiliary_weight": 0.4,
    "instance_weight": 0.6,
    "reliability_margin": 0.7,  # so wide that random networks are not all equally unreliable
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """For tensors this small, PyTorch's threads cost more than they bring."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def darkened(key, frames, settings):
    """Stands in for `photometric`, which is tested apart: a draw for the clip and a gamma, in whole numbers."""
    assert settings == AugmentSettings()
    return jnp.floor(frames**2 / 256) + jnp.floor(64 * jax.random.uniform(key, (), jnp.float32))


def instance_loss(queries, keys, labels, reliability):
    """One clip, all pairs written out."""
    count = len(queries)
    others = 1 - torch.eye(count, dtype=torch.float64)
    positive = (labels[:, None] == labels[None]) * others
    similarity = queries @ keys.T / SETTINGS["temperature"]
    denominator = (similarity.exp() * others * reliability[None]).sum(1, keepdim=True)
    return -(positive * (similarity - denominator.log() + reliability.log()[None])).sum() / count**2


def reference(params, stats, kept, data, labeller, statistics):
    """The loss as the publication writes it, the pseudo-labels, and the gradients of G."""
    params = torch_patch.trainable(params)
    kept = jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf)), kept)
    frames, flow = data["frames"], data["flow"][:, 0]
    augment_key, pixel_key = jax.random.split(KEY)
    augmented = np.stack(
        [
            darkened(jax.random.fold_in(augment_key, i), jnp.asarray(clip, jnp.float32), AugmentSettings())
            for i, clip in zip(data["index"].tolist(), frames, strict=True)
        ]
    )

    def look(network, frames=frames, flow=flow, averages=None):
        return torch_patch.scores(network, frames[:, 0], frames[:, 1], flow, averages)

    def project(head, x):
        return F.normalize(torch_patch.dense(head["conv2"], torch_patch.dense(head["conv1"], x).relu()), dim=-1)

    auxiliary, main, features, _ = look(params["segmenter"], augmented)
    averaged_auxiliary, averaged_main, averaged_features, _ = look(kept["average"]["segmenter"])
    historical_auxiliary, historical_main, _, _ = look(kept["historical"])

    network = {
        "source": kept["source"]["params"],
        "historical": kept["historical"],
        "average": kept["average"]["segmenter"],
    }[labeller]
    averages = kept["source"]["batch_stats"] if labeller == "source" else stats
    averages = averages if statistics == "running" else None
    direct = look(network, averages=averages)
    mirrored = look(network, np.flip(frames, 3), np.flip(flow, 2) * np.array([-1, 1], np.int16), averages)
    labels = sum((0.5 * view[0] + view[1]).softmax(-1) for view in (direct, [m.flip(2) for m in mirrored]))
    labels = labels.argmax(-1)

    def category(scores, historical, averaged):
        divergence = F.kl_div(averaged.log_softmax(-1), historical.softmax(-1), reduction="none").sum(-1)
        loss = F.cross_entropy(scores.permute(0, 3, 1, 2), labels, reduction="none")
        return (torch.exp(-divergence) * loss).mean()

    p = averaged_auxiliary.softmax(-1)
    entropy = -(p * torch.log2(p)).sum(-1) / np.log2(CLASSES)
    reliability = torch.clamp(1.7 - entropy, 0.3, 1.7)
    queries = project(params["projection"], features)
    keys = project(kept["average"]["projection"], averaged_features)
    instance = []
    for b, index in enumerate(data["index"].tolist()):
        drawn = np.array(jax.random.permutation(jax.random.fold_in(pixel_key, index), 32))[:PIXELS]
        flat = (x[b].reshape(32, *x.shape[3:])[drawn] for x in (queries, keys, labels, reliability))
        instance.append(instance_loss(*flat))
    loss = category(main, historical_main, averaged_main)
    loss = loss + 0.4 * category(auxiliary, historical_auxiliary, averaged_auxiliary) + 0.6 * sum(instance) / 2
    return loss.item(), labels.numpy(), torch_patch.gradients(loss, params), augmented


@pytest.fixture(scope="module")
def results(clips, drawn_variables, tiny_settings):
    """The method's losses, by who labels, the gradients, what the reference has, and the running averages of both."""
    with jax.enable_x64(True), pytest.MonkeyPatch.context() as patch:
        patch.setattr(forward, "photometric", darkened)
        segmenter, config = patch_network(), tiny_settings.copy_and_resolve_references()
        config.method = "hcl"
        config.methods.hcl.update(SETTINGS)
        config.methods.hcl.projection.update({"hidden": 12, "dim": 6})
        variables, random = drawn_variables(segmenter), np.random.default_rng(2)
        data = clips(2, seed=4, size=(16, 32)) | {"index": np.array([7, 8], np.int32)}

        def another(tree):
            return jax.tree.map(lambda leaf: leaf + 0.3 * leaf.std() * random.normal(size=leaf.shape), tree)

        params = {"segmenter": variables["params"]}
        shapes = jax.eval_shape(make_method(config, segmenter).init, KEY, variables)[0]["network"]["projection"]
        params["projection"] = jax.tree.map(lambda leaf: 0.3 * random.normal(size=leaf.shape), shapes)
        kept = {"average": another(params), "historical": another(variables["params"])}
        # Far from the clips' own statistics, and from each other.
        stats = {"norm": {"mean": np.linspace(60, 180, 48), "var": np.linspace(1000, 6000, 48)}}
        kept["source"] = {
            "params": another(variables["params"]),
            "batch_stats": {"norm": {"mean": np.linspace(170, 80, 48), "var": np.linspace(9000, 2000, 48)}},
        }

        def losses(params, stats):
            found, averages = {}, {}
            for labelling, average_over in zip(LABELLING, ("all", "clean") * 3, strict=True):
                config.methods.hcl.pseudo_labels, config.methods.hcl.label_statistics = labelling
                config.batch_norm.average_over = average_over
                method = make_method(config, segmenter)
                state = TrainState(0, params, stats, {}, kept)
                out, aux = method.loss({"network": params}, state, {"target": data}, KEY)
                found[labelling], averages[average_over] = out["network"], aux.batch_stats
            return found[LABELLING[0]], (found, averages)

        compiled = jax.jit(jax.value_and_grad(losses, has_aux=True))
        (_, (found, averages)), gradients = compiled(params, stats)
        expected = {labelling: reference(params, stats, kept, data, *labelling) for labelling in LABELLING}
        network, augmented = torch_patch.trainable(variables["params"]), expected[LABELLING[0]][-1]
        seen = [torch_patch.features(network, view[:, t])[-1] for view in (data["frames"], augmented) for t in range(2)]
        averages = {
            name: (averages[name], torch_patch.averages_after(stats, seen[:count]))
            for name, count in (("all", 4), ("clean", 2))
        }
        return found, gradients, expected, averages


@pytest.mark.parametrize("labelling", LABELLING, ids="-".join)
def test_loss(results, labelling):
    found, _, expected, _ = results
    np.testing.assert_allclose(found[labelling], expected[labelling][0], rtol=TOLERANCE)
    labels = expected[labelling][1]
    assert len(set(labels.ravel().tolist())) >= 3, "the clips show too little"
    others = [expected[other][1] for other in LABELLING if other != labelling]
    assert all((labels != other).any() for other in others), "who labels, and how, would not be noticed"


def test_gradient(results):
    _, gradients, expected, _ = results

    def close(path, found, expected):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=TOLERANCE, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(close, gradients, expected[LABELLING[0]][2])
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("average_over", ["all", "clean"])
def test_running_averages_are_of_the_trained_network(results, average_over):
    found, expected = results[3][average_over]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), found, expected)


@pytest.mark.parametrize("restart", [True, False])
def test_average_and_historical_copy_by_hand(small_config, small_segmenter, restart):
    small_config.method = "hcl"
    small_config.methods.hcl.update({"refresh_every": 3, "restart_average": restart, "average_decay": 0.75})
    method = make_method(small_config, small_segmenter)
    values = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)  # of the network after each step

    def network(step):
        return {"segmenter": {"w": jnp.asarray(values[step])}, "projection": {"w": jnp.asarray(-values[step])}}

    kept = {"average": network(0), "historical": {"w": jnp.asarray(values[0])}, "source": {"w": jnp.asarray(values[0])}}
    after_update = jax.jit(method.after_update)
    average = values[0]
    for step in range(1, 8):
        state = TrainState(jnp.int32(step), {"network": network(step)}, {}, {}, kept)
        kept = after_update(state, None).extra
        average = 0.75 * average + 0.25 * values[step]
        if restart and step in (3, 6):
            average = values[step]
        np.testing.assert_allclose(kept["average"]["segmenter"]["w"], average, rtol=1e-6)
        np.testing.assert_allclose(kept["average"]["projection"]["w"], -average, rtol=1e-6)
        np.testing.assert_array_equal(kept["historical"]["w"], values[step // 3 * 3])
        np.testing.assert_array_equal(kept["source"]["w"], values[0])


def test_what_is_trained_and_how_fast(small_config, small_segmenter, small_variables):
    small_config.method = "hcl"
    small_config.optim.update(small_config.methods.hcl.own)
    method = make_method(small_config, small_segmenter)
    for name, update in first_updates(method, small_config.optim, small_variables).items():
        factor = 10 if name.startswith(("segmenter/layer5/", "segmenter/layer6/", "projection/")) else 1
        factor *= 0.1  # the warm-up's
        # Nesterov's momentum sees 1.9 times the first gradient, to which the decay of a parameter of one is added.
        expected = 0 if is_batch_norm(name) else -1e-4 * factor * 1.9 * (1 + 5e-4)
        np.testing.assert_allclose(update, expected, rtol=1e-5, err_msg=name)


def test_three_steps_on_two_devices(small_config, drawn_variables, small_clips):
    small_config.method = "hcl"
    network = patch_network(dtype=jnp.float32, param_dtype=jnp.float32)
    small_config.methods.hcl.update({"refresh_every": 2, "average_decay": 0.9})
    small_config.methods.hcl.projection.update({"hidden": 12, "dim": 6})
    method = make_method(small_config, network)
    assert list(method.needs) == ["target"] and not method.needs["target"].labels
    batches = [{"target": small_clips(4, seed=seed)} for seed in range(3)]
    states, metrics = states_of_steps(method, small_config.optim, drawn_variables(network), batches)
    networks, kept = [state.params["network"] for state in states], [state.extra for state in states]
    assert changed(networks[0], networks[3]) == {n for n in names(networks[0]) if not is_batch_norm(n)}
    assert changed(states[0].batch_stats, states[3].batch_stats) == names(states[0].batch_stats)

    assert not changed(kept[0]["average"], networks[0])
    for step, start in ((1, networks[0]), (3, networks[2])):  # it started again after step 2
        expected = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, start, networks[step])
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), kept[step]["average"], expected
        )
    assert not changed(kept[2]["average"], networks[2])
    for step, origin in enumerate((0, 0, 2, 2)):
        assert not changed(kept[step]["historical"], networks[origin]["segmenter"])
        assert not changed(kept[step]["source"]["params"], networks[0]["segmenter"])
        assert not changed(kept[step]["source"]["batch_stats"], states[0].batch_stats)
    # All networks agree at first, and after step 2 again.
    consistency = [float(seen["consistency"]) for seen in metrics]
    np.testing.assert_allclose([consistency[0], consistency[2]], 1, atol=1e-6)
    assert 0 < consistency[1] < 1


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"pseudo_labels": "teacher"}, "pseudo_labels is one of .*historical.*found 'teacher'"),
        ({"refresh_every": 0}, "refresh_every is 1 or more, found 0"),
        ({"pixels": 0}, "pixels is 1 or more, found 0"),
    ],
)
def test_wrong_settings(small_config, small_segmenter, changes, message):
    small_config.method = "hcl"
    small_config.methods.hcl.update(changes)
    with pytest.raises(ValueError, match=message):
        make_method(small_config, small_segmenter)


def test_without_source_labels_no_source_network_is_kept(small_config, small_segmenter, small_variables):
    small_config.method = "hcl"
    small_config.methods.hcl.pseudo_labels = "historical"
    params, kept = jax.eval_shape(make_method(small_config, small_segmenter).init, KEY, small_variables)
    assert sorted(kept) == ["average", "historical"]
    assert names(kept["average"]) == names(params["network"])
