"""Every configuration loads, holds what the paper says, and describes a network that can be built."""

import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import base
from input_pipeline.labels import CLASSES
from stpl_jax.methods import METHODS, make_method
from stpl_jax.models import make_segmenter
from stpl_jax.models.network import initial_variables
from stpl_jax.ops.augment import AugmentSettings
from stpl_jax.rows import row_config, row_names
from stpl_jax.train_state import create_state

FILES = sorted(p.stem for p in (Path(__file__).parents[1] / "configs").glob("*.py") if p.stem != "__init__")


def load(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    assert isinstance(config, ConfigDict)
    return config


def keys(config, prefix=""):
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from keys(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_the_real_sets_have_files():
    assert {"base", "viper", "synthia"} <= set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_keys_are_those_of_base(name):
    known = set(keys(base.get_config()))
    # Rows and worlds are open: they hold differences, and settings of input_pipeline/world/generate.py.
    new = {key for key in keys(load(name)) if key not in known and not key.startswith(("rows.", "world."))}
    assert not new


@pytest.mark.parametrize("name", FILES)
def test_all_rows_build_their_method(name):
    config = load(name)
    for row in {*row_names(config), *config.rows}:
        settings = row_config(config, row)
        known = set(keys(base.get_config()))
        assert not {k for k in keys(settings) if k not in known and not k.startswith(("rows.", "world."))}, row
        segmenter = make_segmenter(settings.model, len(CLASSES[settings.data.classes]))
        method = make_method(settings, segmenter)
        assert set(method.needs) <= {"source", "target"}
        for domain, needs in method.needs.items():
            # All rows of a run read one prepared set.
            if row in row_names(config):
                assert set(needs.offsets) <= set(settings.data[domain].offsets), (row, domain)
                assert set(needs.flow_pairs) <= set(settings.data[domain].flow_pairs), (row, domain)


@pytest.mark.parametrize("method", METHODS)
def test_full_size_methods_build(method):
    config = row_config(base.get_config(), method)
    segmenter = make_segmenter(config.model, 15)
    built = make_method(config, segmenter)
    state = jax.eval_shape(
        lambda: create_state(
            built, built.optimisers(config.optim), initial_variables(segmenter, jax.random.key(0)), jax.random.key(0)
        )
    )
    extra = {name: sum(leaf.size for leaf in jax.tree.leaves(p)) for name, p in state.params["network"].items()}
    assert extra.pop("segmenter") == 44_159_610
    head = {width: width * 2048 + 2048 + 2048 * 128 + 128 for width in (2048, 4096)}
    # STAM: 2×2 weights and 2 biases, 7×7×2 weights and 1 bias.
    stpl = {"fusion": 105, "projection": head[4096]}
    expected = {"stpl": stpl} | {
        name: {"projection": head[2048]} for name in ("spatial", "temporal", "duplicate", "naive")
    }
    expected["hcl"] = {"projection": 2048 * 1024 + 2048 + 2048 * 128 + 128}  # on the last stage but one
    expected["ur"] = {"decoders": 4 * 4 * (9 * 2048 * 15 + 15)}
    assert extra == expected.get(method, {})


@pytest.mark.parametrize("name, classes", [("viper", 15), ("synthia", 12)])
def test_full_size_forward_pass_and_loss(name, classes):
    config = load(name)
    assert len(CLASSES[config.data.classes]) == classes
    segmenter = make_segmenter(config.model, classes)
    variables = jax.eval_shape(lambda: initial_variables(segmenter, jax.random.key(0)))
    height, width = config.data.target.size
    assert (height, width) == (512, 1024)
    method = make_method(config, segmenter)
    state = jax.eval_shape(lambda v: create_state(method, {}, v, jax.random.key(0)), variables)
    batch = {
        "frames": jax.ShapeDtypeStruct((1, 2, height, width, 3), jnp.uint8),
        "flow": jax.ShapeDtypeStruct((1, 1, height, width, 2), jnp.int16),
        "index": jax.ShapeDtypeStruct((1,), jnp.int32),
    }
    losses, _ = jax.eval_shape(method.loss, state.params, state, {"target": batch}, jax.random.key(0))
    assert losses["network"].shape == ()
    frames = jax.ShapeDtypeStruct((1, 1, *config.data.source.size, 3), jnp.uint8)
    scores = jax.eval_shape(
        lambda v, x: segmenter.classify(v["params"], segmenter.features(v, x)[0]), variables, frames
    )
    expected = {"viper": (91, 161), "synthia": (81, 161)}[name]
    assert scores.main.shape == (1, 1, *expected, classes)


@pytest.mark.parametrize("name", ["viper", "synthia"])
def test_the_papers_settings(name):
    config = load(name)
    found = {
        "learning rate": config.optim.learning_rate,
        "momentum": config.optim.momentum,
        "weight decay": config.optim.weight_decay,
        "power": config.optim.power,
        "steps": (config.optim.steps, config.optim.decay_steps),
        "temperature": config.methods.stpl.contrast.temperature,
        "proportion": config.methods.stpl.topk.proportion,
        "scope": config.methods.stpl.contrast.scope,
        "fusion": config.methods.stpl.fusion,
        "objective": config.methods.stpl.objective,
        "head": (config.methods.stpl.projection.hidden, config.methods.stpl.projection.dim),
        "clips": config.clips_per_device,
        "method": config.method,
        "frames": config.num_frames,
        "batch norm": (config.batch_norm.mode, config.batch_norm.average_over),
        "target": tuple(config.data.target.size),
        "source": tuple(config.data.source.size),
    }
    assert found == {
        "learning rate": 2.5e-6,
        "momentum": 0.9,
        "weight decay": 5e-4,
        "power": 0.9,
        "steps": (20_000, 20_000),
        "temperature": 0.07,
        "proportion": 0.7,
        "scope": "clip",
        "fusion": "stam",
        "objective": "stpl",
        "head": (2048, 128),
        "clips": 1,
        "method": "stpl",
        "frames": 2,
        "batch norm": ("batch", "all"),
        "target": (512, 1024),
        "source": {"viper": (720, 1280), "synthia": (640, 1280)}[name],
    }
    source = row_config(config, "source_only").optim
    assert (source.learning_rate, source.steps, source.decay_steps) == (2.5e-4, 40_000, 250_000)


def test_augmentation_settings_are_the_defaults():
    config = base.get_config().methods.stpl.augment
    settings = AugmentSettings(**config)
    assert settings == AugmentSettings()
    assert (settings.blur_probability, settings.jitter_probability) == (0.6, 0.8)
    assert tuple(settings.blur_radii) == (5, 7, 9)
    assert (settings.brightness, settings.contrast, settings.saturation, settings.hue) == (0.8, 0.8, 0.8, 0.2)


def test_steps_cut_a_row_short_and_leave_its_schedule():
    config = base.get_config()
    config.steps = 2
    for row in ("stpl", "source_only", "oracle"):
        settings = row_config(config, row)
        assert settings.optim.steps == 2
        assert settings.optim.decay_steps == {"stpl": 20_000}.get(row, 250_000)
    assert np.isclose(config.optim.steps, 20_000), "the run's own settings do not change"


def test_a_methods_own_optimiser():
    config = base.get_config()
    assert row_config(config, "ur").optim.learning_rate == 2.5e-6
    config.optim.profile = "own"
    own = row_config(config, "ur").optim
    assert (own.learning_rate, own.power, own.steps) == (5e-5, 0.0, 3_200)
    assert own.multipliers[0][1] == 10.0
    assert row_config(config, "hcl").optim.nesterov
    assert row_config(config, "tps_free").optim.learning_rate == 1e-4
    assert row_config(config, "stpl").optim.learning_rate == 2.5e-6
    assert row_config(config, "source_only").optim.steps == 40_000
    assert config.optim.learning_rate == 2.5e-6, "the run's own settings do not change"
    config.optim.profile = "theirs"
    with pytest.raises(ValueError, match="optim.profile is paper or own; found 'theirs'"):
        row_config(config, "ur")


@pytest.mark.parametrize(
    ("name", "weight", "rate"),
    [("viper", 0.1, 1e-4), ("synthetic", 0.1, 1e-4), ("synthia", 1.0, 2.5e-4), ("synthetic_synthia", 1.0, 2.5e-4)],
)
def test_the_publications_settings_of_tps(name, weight, rate):
    config = load(name)
    config.optim.profile = "own"
    settings = row_config(config, "tps")
    found = (settings.methods.tps.target_weight, settings.methods.tps.own.learning_rate)
    assert found == (weight, rate) and not settings.methods.tps.as_published
    if "synthetic" not in name:  # its rows have rates of their own
        assert settings.optim.learning_rate == rate


def test_the_row_with_the_published_faults_of_tps():
    config = load("synthetic")
    rows = [row_config(config, row).to_dict() for row in ("tps_free", "tps_free_as_published")]
    assert [row["methods"]["tps"].pop("as_published") for row in rows] == [False, True]
    assert rows[0] == rows[1] and rows[0]["source_free"]


def test_mistyped_keys_are_errors():
    config = base.get_config()
    config.lock()
    with pytest.raises(AttributeError):
        config.optim.lerning_rate = 1.0
    with pytest.raises(TypeError):
        config.optim.steps = 2.5


def test_labelled_clips_are_mirrored_where_the_public_code_does_so():
    mirrored = {}
    for row in ("source_only", "oracle", "fda", "pixmatch", "rda", "da_vsn", "vat_vst", "tps", "ur", "hcl", "stpl"):
        config = row_config(base.get_config(), row)
        needs = make_method(config, make_segmenter(config.model, 15)).needs
        mirrored[row] = {domain for domain, need in needs.items() if need.mirrored}
    assert mirrored == dict.fromkeys(mirrored, set()) | {"pixmatch": {"source"}}
    # The embedded benchmark's few clips: what source_only and oracle were tuned with.
    config = row_config(load("synthetic"), "source_only")
    assert make_method(config, make_segmenter(config.model, 15)).needs["source"].mirrored
