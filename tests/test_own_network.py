"""How a network is added: two kinds that ACCEL is not, each here from end to end, and a method that works online."""

import dataclasses
import gc
import weakref

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from tiny_run import tiny_run_config

from input_pipeline.errors import UserError
from input_pipeline.labels import CLASSES
from input_pipeline.needs import DomainNeeds
from stpl_jax import checkpoint, methods, models, modes, optim, parallel, predict, preflight, validation
from stpl_jax.evaluate import evaluate, segment_clips
from stpl_jax.methods import make_method
from stpl_jax.methods.base import Aux, Method
from stpl_jax.metrics.temporal_consistency import ConsistencyCounts
from stpl_jax.models.network import Network, PerClassifier, group_by_group
from stpl_jax.rows import row_config
from stpl_jax.train import build_segmenter
from stpl_jax.train_state import create_state, make_train_step

SIZE = (32, 64)


class Decoded(nn.Module):
    """As ESPNet: features at an eighth, scores at the image's size, K + 1 outputs of which the last means void."""

    num_classes: int

    def setup(self):
        self.conv = nn.Conv(6, (8, 8), strides=8)
        self.norm = nn.BatchNorm(momentum=0.9)
        self.out = nn.Dense(self.num_classes + 1)

    def features(self, images, train):
        return nn.relu(self.norm(self.conv(images), use_running_average=not train))

    def scores(self, features):
        return self.out(features).repeat(8, -3).repeat(8, -2)

    def __call__(self, images):
        return self.scores(self.features(images, True))


def decoded(model, num_classes, sync_axis=None):
    """The network as the rest of the code sees it; `model.name=decoded` builds it."""
    del model, sync_axis
    module = Decoded(num_classes)

    def backbone(variables, images, train):
        # Flax mixes whole numbers and floats in its averages.
        with jax.numpy_dtype_promotion("standard"):
            features, new = module.apply(variables, images, train, method="features", mutable=["batch_stats"])
        return PerClassifier(features), new["batch_stats"]

    def initial(key):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return module.init(key, jnp.zeros((1, *SIZE, 3)))

    return Network(
        num_classes=num_classes,
        initial=initial,
        normalise=lambda rgb, dtype: rgb.astype(dtype) / 127.5 - 1,
        backbone=group_by_group(backbone),
        main_classifier=lambda params, x: module.apply({"params": params}, x, method="scores")[..., :-1],
        groups={"normalisation": "^norm/", "backbone": "^conv/", "main_classifier": "^out/"},
    )


class Transformed(nn.Module):
    """As SegFormer: LayerNorm, and no running statistics at all."""

    num_classes: int

    def setup(self):
        self.embed = nn.Conv(8, (4, 4), strides=4)
        self.norm = nn.LayerNorm()
        self.out = nn.Dense(self.num_classes)

    def features(self, images):
        return self.norm(self.embed(images))

    def __call__(self, images):
        return self.out(self.features(images))


def transformed(model, num_classes, sync_axis=None):
    del model, sync_axis
    module = Transformed(num_classes)

    def backbone(variables, images, train):
        del train
        with jax.numpy_rank_promotion("allow"):
            return PerClassifier(module.apply(variables, images, method="features")), {}

    def initial(key):
        with jax.numpy_rank_promotion("allow"):
            return {"params": module.init(key, jnp.zeros((1, *SIZE, 3)))["params"], "batch_stats": {}}

    return Network(
        num_classes=num_classes,
        initial=initial,
        normalise=lambda rgb, dtype: rgb.astype(dtype) / 255,
        backbone=group_by_group(backbone),
        main_classifier=lambda params, x: x @ params["out"]["kernel"],
        groups={"normalisation": "^norm/", "backbone": "^embed/", "main_classifier": "^out/"},
        running_statistics=False,
    )


NETWORKS = {"decoded": decoded, "transformed": transformed}


@pytest.fixture(autouse=True)
def added(monkeypatch):
    for name, make in NETWORKS.items():
        cache = {}
        one = lambda model, k, axis=None, make=make, cache=cache: cache.setdefault(k, make(model, k, axis))  # noqa: E731
        monkeypatch.setitem(models.NETWORKS, name, one)


@pytest.fixture
def config(tiny_config):
    tiny_config.methods.hcl.pixels = 8
    return tiny_config


WITHOUT_SOURCE = ("self_training", "ur", "hcl", "da_vsn_free", "tps_free", "stpl", "spatial", "temporal", "stpl_plus")
WITHOUT_SOURCE += ("tent", "sar", "cotta")


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("row", WITHOUT_SOURCE)
def test_every_source_free_method_takes_a_step(network, row, config, clips):
    config.model.name, config.method = network, row.removesuffix("_free")
    config.source_free = row.endswith("_free")
    segmenter = models.make_segmenter(config.model, 5)
    method = make_method(config, segmenter)
    needs = method.needs["target"]
    optimisers = method.optimisers(config.optim)
    variables = jax.eval_shape(segmenter.initial, jax.random.key(0))
    state = jax.eval_shape(lambda v: create_state(method, optimisers, v, jax.random.key(0)), variables)
    batch = {"target": clips(2, frames=len(needs.offsets), pairs=needs.flow_pairs, size=SIZE)}
    losses, aux = jax.eval_shape(method.loss, state.params, state, batch, jax.random.key(1))
    assert losses["network"].shape == ()
    assert jax.tree.structure(aux.batch_stats) == jax.tree.structure(state.batch_stats)
    assert bool(jax.tree.leaves(aux.batch_stats)) == (network == "decoded")


@pytest.mark.parametrize("network", NETWORKS)
def test_two_steps_move_what_they_should(network, config, clips):
    config.model.name, config.method = network, "stpl_plus"
    segmenter = models.make_segmenter(config.model, 5)
    method = make_method(config, segmenter)
    optimisers = method.optimisers(config.optim)
    variables = segmenter.initial(jax.random.key(0))
    before = jax.tree.map(np.asarray, create_state(method, optimisers, variables, jax.random.key(0)))
    step = parallel.pmap(make_train_step(method, optimisers, 0), donate_state=True)
    state = parallel.replicate(before)
    for _ in range(2):
        state, _ = step(state, {"target": parallel.split_over_devices(clips(8, size=SIZE))})
    after = parallel.unreplicate(state)
    moved = {
        optim.parameter_path(path)
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(before.params["network"]),
            jax.tree.leaves(after.params["network"]),
            strict=True,
        )
        if not np.array_equal(a, b)
    }
    first = {"decoded": "conv", "transformed": "embed"}[network]
    assert moved == {f"segmenter/{first}/kernel", f"segmenter/{first}/bias"}, "classifier and normalisation stay"


def test_scores_are_those_of_the_frame_and_never_void():
    segmenter = decoded(None, 3)
    variables = segmenter.initial(jax.random.key(0))
    variables["params"]["out"]["bias"] = jnp.asarray([0.0, 0.0, 0.0, 99.0])
    frames = np.random.default_rng(0).integers(0, 256, (2, 2, *SIZE, 3)).astype(np.uint8)
    flow = np.full((2, 1, *SIZE, 2), 50, np.int16)
    (scores,) = segment_clips(segmenter, variables, frames, flow, "align_corners")
    assert scores.shape == (2, *SIZE, 3), "at the image's size, K of K + 1"
    params, stats = variables["params"], variables["batch_stats"]["norm"]
    for b in range(2):
        image = frames[b, 0] / 127.5 - 1
        for y, x in ((0, 0), (1, 5)):
            patch = image[8 * y : 8 * y + 8, 8 * x : 8 * x + 8]
            z = np.einsum("yxc,yxcd->d", patch, params["conv"]["kernel"]) + params["conv"]["bias"]
            z = (z - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * params["norm"]["scale"] + params["norm"]["bias"]
            expected = np.maximum(z, 0) @ params["out"]["kernel"][:, :3] + params["out"]["bias"][:3]
            np.testing.assert_allclose(scores[b, 8 * y + 3, 8 * x + 7], expected, rtol=1e-4, atol=1e-4)


def test_groups_of_images_have_their_own_statistics():
    segmenter = decoded(None, 3)
    variables = segmenter.initial(jax.random.key(0))
    images = np.random.default_rng(1).integers(0, 256, (3, 2, *SIZE, 3)).astype(np.uint8)
    together, stats = segmenter.features(variables, images, True, 2)
    expected = variables["batch_stats"]
    for i, group in enumerate(images):
        alone, after = segmenter.features(variables | {"batch_stats": expected}, group[None], True, 1)
        np.testing.assert_allclose(together.main[i], alone.main[0], rtol=1e-5, atol=1e-5)
        expected = after if i < 2 else expected
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), stats, expected)


@pytest.mark.parametrize(
    "network, method, role",
    [("transformed", "bn_statistics", "running_statistics"), ("decoded", "rda", "auxiliary_classifier")],
)
def test_a_method_says_which_role_it_lacks(network, method, role, config):
    config.model.name, config.method = network, method
    with pytest.raises(
        UserError, match=f"method={method} needs a network with {role}, and config.model.name={network}"
    ):
        make_method(config, models.make_segmenter(config.model, 5))


def test_a_network_keeps_its_share_of_frame_statistics_unless_a_method_has_one(config, monkeypatch):
    own = dataclasses.replace(decoded(None, 15), frame_statistics=1.0)
    monkeypatch.setitem(models.NETWORKS, "own", lambda model, k, axis=None: own)
    config.model.name, config.method = "own", "stpl_plus"
    assert build_segmenter(config) is own
    config.method, config.methods.tent.frame_statistics = "tent", 0.0
    assert build_segmenter(config).frame_statistics == 0


def test_networks_of_other_shares_go_with_the_network():
    network = decoded(None, 5)
    made = [weakref.ref(network), weakref.ref(models.with_frame_statistics(network, 1.0))]
    assert made[1]() is models.with_frame_statistics(network, 1.0)
    del network
    gc.collect()
    assert [found() for found in made] == [None, None]


def test_a_network_without_running_statistics_says_what_to_set(config):
    config.model.name, config.method = "transformed", "cotta"
    with pytest.raises(UserError, match="methods.cotta.frame_statistics=0"):
        build_segmenter(config)
    config.method, config.batch_norm.prior = "stpl", 0.5
    with pytest.raises(UserError, match="blend running statistics, and config.model.name=transformed has none"):
        make_method(config, build_segmenter(config))


class Online(Method):
    """Moves a copy's bias with each clip that it has seen; what that predicts shows how many these were."""

    online = True
    inference = "extra/copy"

    def __init__(self, config, segmenter):
        self.config, self.segmenter = config, segmenter
        self.needs = {"target": DomainNeeds(offsets=(0,), flow_pairs=())}

    def optimisers(self, settings):
        return {}

    def init(self, key, variables):
        return {"network": {"segmenter": variables["params"]}}, {
            "copy": jax.tree.map(jnp.copy, variables["params"]),
            "seen": jnp.zeros(64),
            "count": jnp.zeros((), jnp.int32),
        }

    def loss(self, params, state, batch, key):
        mean = batch["target"]["frames"].astype(jnp.float32).mean()
        assert set(batch["target"]) == {"frames", "flow", "index"}, "labels stay out"
        return {}, Aux(state.batch_stats, extra=mean)

    def after_update(self, state, aux):
        kept = state.extra
        seen = kept["seen"].at[kept["count"]].set(aux.extra)
        out = kept["copy"]["out"]
        bias = jnp.zeros_like(out["bias"]).at[kept["count"] % 2 + 1].set(1.0)
        copy = kept["copy"] | {"out": {"kernel": out["kernel"] * 0, "bias": bias}}
        return state.replace(extra={"copy": copy, "seen": seen, "count": kept["count"] + 1})


def test_an_online_method_predicts_before_it_updates_in_time_order(tmp_path, monkeypatch):
    monkeypatch.setitem(methods.METHODS, "counting", Online)
    config = tiny_run_config()
    config.model.name, config.method, config.compare_with = "decoded", "counting", ("source_only",)
    config.methods.counting = ConfigDict(dict(frame_statistics=1.0))
    config.optim.steps = config.rows.source_only.optim.steps = 1
    config.steps = 1
    lines = []
    modes.auto(config, tmp_path, lines.append)
    scores = modes.read_scores(tmp_path, "counting")
    clips = 9 // jax.device_count() + 1
    assert scores.last["online"] and scores.last["step"] == clips
    assert len(scores.last["confusion"]) == len(CLASSES["viper"])
    stored = checkpoint.load_model(tmp_path / "counting")
    assert stored.meta.step == clips
    loaded = predict.load(tmp_path, network=decoded(None, len(CLASSES["viper"])), tell=lines.append)
    assert loaded.segmenter.frame_statistics == 1.0
    out = stored.variables["params"]["out"]
    assert not out["kernel"].any() and out["bias"].sum() == out["bias"][(clips - 1) % 2 + 1] == 1
    again = []
    modes.auto(config, tmp_path, again.append)
    assert any("counting  is done" in line for line in again)
    # Scored again as it is now, it would have seen the clips before.
    modes.evaluate(config, tmp_path, again.append)
    assert any("counting keeps its score, taken on the way" in line for line in again)
    assert modes.read_scores(tmp_path, "counting") == scores


def test_rows_are_scored_on_the_way_that_read_target_clips_alone(config):
    config.evaluate.online, config.model.name = True, "decoded"

    def online(row):
        settings = row_config(config, row)
        return validation.is_scored_online(settings, make_method(settings, models.make_segmenter(config.model, 5)))

    assert [row for row in ("source_only", "oracle", "tps", "tps_free", "stpl_plus") if online(row)] == [
        "tps_free",
        "stpl_plus",
    ]
    config.evaluate.online = False
    assert not online("stpl_plus")


@pytest.mark.parametrize(
    "needs, settings, message",
    [
        (DomainNeeds((0, 3), ()), {}, r"frames \(0, 1, 2\).* counting needs .*Set evaluate.online=False"),
        (DomainNeeds((0, 2), ((0, 2),)), {}, r"counting needs \[\(0, 2\)\], too"),
        (
            DomainNeeds((0,), ()),
            {"evaluate.clips_per_device": 3, "optim.accumulate": 2},
            "evaluate.clips_per_device=3 .*optim.accumulate=2 cannot divide",
        ),
    ],
)
def test_what_scoring_on_the_way_does_not_give_is_said_before_training(needs, settings, message, tmp_path, monkeypatch):
    class Needy(Online):
        online = False

        def __init__(self, config, segmenter):
            super().__init__(config, segmenter)
            self.needs = {"target": needs}

    monkeypatch.setitem(methods.METHODS, "counting", Needy)
    config = tiny_run_config()
    config.update_from_flattened_dict({"model.name": "decoded", "method": "counting", "evaluate.online": True})
    config.update_from_flattened_dict(settings)
    with pytest.raises(UserError, match=message):
        preflight.check(config, tmp_path, ("source_only", "counting"), lambda line: None)


def test_each_batch_is_predicted_by_what_the_batches_before_have_made_of_the_model():
    calls, devices = [], jax.local_device_count()

    def number(batch):
        return int(parallel.unreplicate(batch["index"])[0])

    def eval_step(params, batch_stats, batch):
        calls.append(("predict", number(batch), params))
        return parallel.replicate((np.eye(2, dtype=np.int32), ConsistencyCounts(*[np.int32(1)] * 4)))

    def update(batch):
        calls.append(("update", number(batch)))
        return number(batch) + 1, None

    batches = ({name: np.full(devices, i) for name in ("frames", "flow", "label", "valid", "index")} for i in range(4))
    evaluate(eval_step, (0, None), batches, ("a", "b"), np.ones(2, bool), update)
    assert calls == [call for i in range(4) for call in (("predict", i, i), ("update", i))]
