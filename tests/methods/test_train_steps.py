"""Two steps on eight devices: what has to move moves, and what is frozen stays to the last bit.

The baselines that other papers published have files of their own beside this one, with such a test each.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from patch_network import patch_network

from stpl_jax import parallel
from stpl_jax.forward import augmented_clips, extract
from stpl_jax.methods import METHODS, make_method
from stpl_jax.models import make_segmenter
from stpl_jax.models.accel import normalise_images
from stpl_jax.ops.augment import AugmentSettings, photometric
from stpl_jax.optim import parameter_path
from stpl_jax.train_state import create_state, make_train_step

STPL_FAMILY = ("stpl", "spatial", "temporal", "duplicate", "naive")
HERE = ("source_only", "oracle", "bn_statistics", "self_training", *STPL_FAMILY)


def flatten(tree):
    return {parameter_path(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def changed(before, after):
    before, after = flatten(before), flatten(after)
    assert before.keys() == after.keys()
    return {name for name in before if not np.array_equal(before[name], after[name])}


def is_batch_norm(name):
    return name.endswith(("/scale", "/bias")) and name.split("/")[-2] in ("bn1", "bn2", "bn3", "downsample_1")


def expected_to_move(method, names):
    if method == "bn_statistics":
        return set()
    names = {name for name in names if not is_batch_norm(name)}
    if method in STPL_FAMILY:
        names = {name for name in names if not name.startswith(("segmenter/layer", "segmenter/sf_layer"))}
    return names


def test_every_other_method_has_its_own_file():
    others = set(METHODS) - set(HERE)
    assert not {name for name in others if not Path(__file__).with_name(f"test_{name}.py").is_file()}


@pytest.mark.parametrize("name", HERE)
def test_two_steps_on_eight_devices(name, small_config, small_segmenter, small_variables, small_clips):
    assert jax.local_device_count() == 8
    small_config.method = name
    small_config.optim.weight_decay = 0.0  # so that only a gradient moves a parameter
    method = make_method(small_config, small_segmenter)
    domain = "source" if name == "source_only" else "target"
    assert list(method.needs) == [domain]
    labels = method.needs[domain].labels
    assert labels == (name in ("source_only", "oracle"))
    batch = small_clips(8, pairs=method.needs[domain].flow_pairs, label=labels)

    optimisers = method.optimisers(small_config.optim)
    before = create_state(method, optimisers, small_variables, jax.random.key(0))
    before = jax.tree.map(np.asarray, before)
    step = parallel.pmap(make_train_step(method, optimisers, 0), donate_state=True)
    state = parallel.replicate(before)
    for _ in range(2):
        donated = jax.tree.leaves(state.params)
        state, metrics = step(state, {domain: parallel.split_over_devices(batch)})
        assert all(leaf.is_deleted() for leaf in donated), "the state's memory is not reused"

    for path, leaf in jax.tree_util.tree_leaves_with_path((state, metrics)):
        copies = np.asarray(leaf)
        assert copies.shape[0] == 8
        assert np.isfinite(copies).all(), path
        assert (copies == copies[:1]).all(), f"devices differ: {path}"
    after = parallel.unreplicate(state)
    assert int(after.step) == 2
    moved = changed(before.params["network"], after.params["network"])
    assert moved == expected_to_move(name, flatten(before.params["network"]))
    assert changed(before.batch_stats, after.batch_stats) == set(flatten(before.batch_stats))
    assert ("fusion" in after.params["network"]) == (name == "stpl")
    assert ("projection" in after.params["network"]) == (name in STPL_FAMILY)
    assert set(parallel.unreplicate(metrics)) == {"state_norm"} | {
        "bn_statistics": set(),
        **{n: {"loss/network", "confident"} for n in STPL_FAMILY},
    }.get(name, {"loss/network"})
    if "confident" in metrics:
        assert float(metrics["confident"][0]) == 1.0
        assert float(metrics["loss/network"][0]) != 0.0, "the clips are of one class: the test shows nothing"


def test_running_averages_stay_under_mode_running(small_config, small_segmenter, small_variables, small_clips):
    small_config.batch_norm.mode = "running"
    method = make_method(small_config, small_segmenter)
    state = create_state(method, {}, small_variables, jax.random.key(0))
    _, aux = jax.jit(method.loss)(state.params, state, {"target": small_clips(1)}, jax.random.key(0))
    assert not changed(aux.batch_stats, small_variables["batch_stats"])
    small_config.method = "bn_statistics"
    with pytest.raises(ValueError, match="batch_norm.mode=running keeps them"):
        make_method(small_config, small_segmenter)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"method": "stlp"}, "config.method is one of .*stpl.*found 'stlp'"),
        ({"methods.stpl.objective": "both"}, "methods.stpl.objective is one of .*naive.*found 'both'"),
        ({"methods.stpl.contrast.scope": "batch"}, "methods.stpl.contrast.scope is one of .*clip.*found 'batch'"),
        ({"methods.stpl.fusion": "mean"}, "fusion is one of .*stam.*found 'mean'"),
        ({"num_frames": 1}, "num_frames is 2 or more, found 1"),
    ],
)
def test_wrong_settings(small_config, small_segmenter, changes, message):
    small_config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        make_method(small_config, small_segmenter)


@pytest.mark.parametrize("fusion", ["stam", "concat", "conv1x1", "add"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("head", ["random", "identity"])
def test_fusions_heads_and_half_precision_trace(small_config, drawn_variables, small_clips, fusion, dtype, head):
    small_config.model.dtype = dtype
    small_config.methods.stpl.fusion = fusion
    small_config.methods.stpl.projection.init = head
    method = make_method(small_config, make_segmenter(small_config.model, 5))
    optimisers = method.optimisers(small_config.optim)
    variables = drawn_variables(method.segmenter)
    state = jax.eval_shape(lambda: create_state(method, optimisers, variables, jax.random.key(0)))
    losses, aux = jax.eval_shape(method.loss, state.params, state, {"target": small_clips(1)}, jax.random.key(0))
    assert losses["network"].shape == () and losses["network"].dtype == np.float32
    jax.tree.map(
        lambda a, b: np.testing.assert_equal((a.shape, a.dtype), (b.shape, b.dtype)), aux.batch_stats, state.batch_stats
    )


def test_running_averages_of_clean_frames_alone(small_config, drawn_variables, clips):
    network = patch_network(dtype=jnp.float32, param_dtype=jnp.float32)
    variables = drawn_variables(network)
    groups = np.moveaxis(clips(2, frames=4, size=(16, 32))["frames"], 1, 0)

    def averages(groups, average_over, clean):
        small_config.batch_norm.average_over = average_over
        return extract(
            network, variables["params"], variables["batch_stats"], jnp.asarray(groups), small_config.batch_norm, clean
        )[1]

    same = functools.partial(jax.tree.map, functools.partial(np.testing.assert_allclose, rtol=1e-5))
    same(averages(groups, "clean", 2), averages(groups[:2], "all", None))
    same(averages(groups, "all", 2), averages(groups, "clean", None))
    assert changed(averages(groups, "all", 2), averages(groups, "clean", 2))


def test_augmentation_survives_compilation(small_config, clips):
    # Compiled into one program with what follows, colours have once been computed twice with other rounding, and a
    # tenth of the pixels had another hue.
    small_config.methods.stpl.augment.update({"jitter_probability": 1.0, "blur_probability": 0.0})
    settings = AugmentSettings(**small_config.methods.stpl.augment)
    batch, key = clips(4, seed=1), jax.random.key(0)

    @jax.jit
    def compiled(batch, key):
        clean = batch["frames"].swapaxes(0, 1).astype(jnp.float32)
        augmented = augmented_clips(batch, key, settings).swapaxes(0, 1)
        return normalise_images(jnp.concatenate([clean, augmented]))[2:]

    found = np.asarray(compiled(batch, key))
    for i, frames in enumerate(batch["frames"]):
        alone = photometric(jax.random.fold_in(key, i), jnp.asarray(frames, jnp.float32), settings)
        np.testing.assert_allclose(found[:, i], normalise_images(alone), atol=0.01)
