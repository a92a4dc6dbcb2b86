"""How the earlier frame's scores come to the current one, warp or splat: fusion, evaluation, checkpoints."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stpl_jax
from configs import base, own_video
from input_pipeline.errors import UserError
from input_pipeline.labels import CLASSES
from stpl_jax import checkpoint, settings, source_settings
from stpl_jax.checkpoint import CheckpointError, CheckpointMeta
from stpl_jax.evaluate import segment_clips
from stpl_jax.models import make_segmenter
from stpl_jax.models.network import Network, PerClassifier
from stpl_jax.starting_point import check_propagation, starting_variables

EARLIER = np.arange(1, 4).reshape(1, 1, 1, 3)  # the weights of the earlier frame's scores in the fusion


def fusing(propagation):
    """Scores are the image itself, three classes; fused, they are the current ones + EARLIER · the earlier ones."""
    return Network(
        num_classes=3,
        normalise=lambda rgb, dtype: rgb.astype(dtype),
        backbone=lambda variables, images, *_: (PerClassifier(images), {}),
        main_classifier=lambda params, features: features,
        groups={},
        fusion=lambda params, now, before: now + jnp.asarray(EARLIER, now.dtype) * before,
        propagation=propagation,
        running_statistics=False,
    )


def thrown(earlier, flow):
    """Pixel after pixel, columns from left to right and each from top to bottom: the last one written stays."""
    out, writer, writes = np.zeros_like(earlier), {}, 0
    clips, h, w, _ = earlier.shape
    for b in range(clips):
        for x in range(w):
            for y in range(h):
                to = b, round(y - float(flow[b, y, x, 1])), round(x - float(flow[b, y, x, 0]))
                if 0 <= to[1] < h and 0 <= to[2] < w:
                    out[to], writer[to], writes = earlier[b, y, x], (b, y, x), writes + 1
    return out, writer, writes


def test_splat_fuses_what_a_loop_throws_and_its_gradient_enters_what_stayed(x64):
    random = np.random.default_rng(0)
    now, before, weights = random.normal(size=(3, 2, 5, 6, 3))
    flow = random.integers(-5, 6, (2, 5, 6, 2)) / 2  # halves are among them
    moved, writer, writes = thrown(before, flow)
    assert len(writer) < writes < 2 * 5 * 6, "holes, overlaps, and pixels that leave the frame"

    @jax.jit
    def fused(now, before):
        return fusing("splat").fuse({}, PerClassifier(now, before), PerClassifier(before, now), jnp.asarray(flow))

    found = fused(now, before)
    np.testing.assert_allclose(found.main, now + EARLIER * moved, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.auxiliary, before + EARLIER * thrown(now, flow)[0], rtol=1e-12, atol=1e-12)
    assert np.abs(fusing("warp").fuse({}, now, before, jnp.asarray(flow)) - found.main).max() > 0.1
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(fused(now, x).main * weights)))(before)
    expected = np.zeros_like(before)
    for to, origin in writer.items():
        expected[origin] += EARLIER.reshape(3) * weights[to]
    np.testing.assert_allclose(gradient, expected, rtol=1e-12, atol=1e-12)


def test_evaluation_leaves_holes_where_a_frame_moves_away():
    # The picture moves by two pixels to the right, so that x_t's two left columns were never seen.
    now, before = np.random.default_rng(1).integers(1, 256, (2, 1, 4, 6, 3)).astype(np.uint8)
    flow = np.tile(np.int16([-20, 0]), (1, 1, 4, 6, 1))
    frames = np.stack([now, before], 1)
    (scores,) = segment_clips(fusing("splat"), {"params": {}, "batch_stats": {}}, frames, flow, "align_corners")
    moved = np.concatenate([np.zeros((1, 4, 2, 3)), before[:, :, :-2]], 2)
    np.testing.assert_allclose(scores, now + EARLIER * moved)
    (scores,) = segment_clips(fusing("warp"), {"params": {}, "batch_stats": {}}, frames, flow, "align_corners")
    repeated = np.concatenate([before[:, :, :1].repeat(2, 2), before[:, :, :-2]], 2)
    np.testing.assert_allclose(scores, now + EARLIER * repeated, rtol=1e-4)


def test_other_values_are_refused(tiny_config):
    tiny_config.model.fusion.propagation = "throw"
    with pytest.raises(UserError, match="config.model.fusion.propagation: expected one of warp, splat, found 'throw'"):
        settings.check(tiny_config)
    with pytest.raises(
        UserError, match=r"config.model.fusion.propagation\): expected one of warp, splat, found 'throw'"
    ):
        make_segmenter(tiny_config.model, 5)
    with pytest.raises(UserError, match="Network.propagation .*expected one of warp, splat, found 'throw'"):
        dataclasses.replace(fusing("warp"), propagation="throw")


@pytest.fixture
def save(tmp_path, tiny_config, drawn_variables):
    """The function that writes a source model which fuses that way, None: as earlier versions did; returns its path."""

    def write(propagation):
        config, path = tiny_config.copy_and_resolve_references(), tmp_path / str(propagation)
        config.data.target.size = (32, 64)
        config.model.fusion.propagation = propagation or "warp"
        variables = drawn_variables(make_segmenter(config.model, 15))
        stored = json.loads(config.to_json_best_effort())
        if propagation is None:
            del stored["model"]["fusion"]
        meta = CheckpointMeta(config=stored, classes=CLASSES["viper"], label_setting="viper", row="source_only")
        checkpoint.save_model(path, variables, meta)
        return path

    return write


@pytest.mark.parametrize("propagation", [None, "splat"])
def test_a_checkpoint_is_applied_and_adapted_as_it_was_trained(propagation, save, tiny_config):
    path, other = save(propagation), {"splat": "warp", None: "splat"}[propagation]
    assert stpl_jax.load(path).segmenter.propagation == (propagation or "warp")
    config = own_video.get_config()
    config.init_from = str(path)
    complete = source_settings.complete(config)
    assert make_segmenter(complete.model, 15).propagation == (propagation or "warp")
    # Where the run says itself what its network is, it has to say the same.
    tiny_config.model.fusion.propagation = propagation or "warp"
    starting_variables(tiny_config, make_segmenter(tiny_config.model, 15), str(path), lambda line: None)
    stored = checkpoint.load_model(path)
    check_propagation(tiny_config, make_segmenter(tiny_config.model, 15), stored)
    tiny_config.model.fusion.propagation = other
    segmenter, message = (
        make_segmenter(tiny_config.model, 15),
        f"--config.model.fusion.propagation={propagation or 'warp'}",
    )
    with pytest.raises(CheckpointError, match=message):
        starting_variables(tiny_config, segmenter, str(path), lambda line: None)
    with pytest.raises(CheckpointError, match=message):
        check_propagation(tiny_config, segmenter, stored)
    # It says nothing of a network that does not fuse.
    check_propagation(tiny_config, dataclasses.replace(segmenter, fusion=None), stored)
    # Source training may begin at any weights.
    tiny_config.pretrain_from = str(path)
    starting_variables(tiny_config, segmenter, str(path), lambda line: None)


def test_a_run_that_was_begun_before_there_was_the_setting_goes_on_with_warp(tmp_path):
    config = base.get_config()
    before = json.loads(config.to_json_best_effort())
    del before["model"]["fusion"]
    settings.check_same_run(config, before, tmp_path)
    config.model.fusion.propagation = "splat"
    with pytest.raises(CheckpointError, match="model.fusion.propagation: was 'warp', is 'splat'"):
        settings.check_same_run(config, before, tmp_path)
