"""Two flow estimators of one's own, each an entry: flow files, preparing from them or without, frames of a video."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import raw_trees

from configs import base
from input_pipeline import optical_flow
from input_pipeline.clips import read_clip
from input_pipeline.domains import open_domain
from stpl_jax import flow_estimators, modes, settings
from stpl_jax.flow_estimators import DeviceEstimator

SHAPE = (24, 40, 2)


def brightness(params, frames, earlier):
    """On the devices: u and v are how much brighter the corner of the one frame is, in pixels, times the parameter."""
    corner, before = (images[:, 0, 0, 0].astype(jnp.float32) for images in (frames, earlier))
    step = (corner - before) / 10
    return jnp.broadcast_to(step[:, None, None, None] * params["scale"], (len(frames), *frames.shape[1:3], 2))


def still(frame, earlier):
    """On the host, and so also while a set is prepared: one pixel to the right, everywhere."""
    del earlier
    return np.broadcast_to(np.float32([1, 0]), (*frame.shape[:2], 2))


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setitem(
        flow_estimators.ESTIMATORS, "brightness", DeviceEstimator(brightness, lambda _: ({"scale": np.float32(2)}, "2"))
    )
    monkeypatch.setitem(optical_flow.ESTIMATORS, "still", optical_flow.HostEstimator(still))
    raw_trees.write_viper(tmp_path / "viper")
    config = base.get_config()
    config.data.source.raw_dir, config.data.source.size = str(tmp_path / "viper"), SHAPE[:2]
    return config


def flow_of(config, workdir):
    """Prepares the set; returns the first clip's flow in pixels, its frames, and the set's description."""
    source = open_domain(config, workdir, "source", progress=lambda line: None)
    clip = read_clip(source, 0, (0, 1), ((0, 1),), False)
    return clip["flow"][0] / 10, clip["frames"], source.spec


def test_on_the_devices_into_files_and_from_them(config, tmp_path):
    config.flow.estimator = "brightness"
    settings.check(config)
    modes.flow(config, tmp_path, lambda line: None)
    note = json.loads((tmp_path / "flow" / "source" / "estimated_with.json").read_text())
    assert note == {"source": "brightness", "size": "training", "weights": "2"}
    config.flow.files = "write"
    flow, (frame, earlier), spec = flow_of(config, tmp_path)
    assert spec.flow_estimator == "brightness"
    expected = np.full(SHAPE, (float(frame[0, 0, 0]) - float(earlier[0, 0, 0])) / 5)
    np.testing.assert_allclose(flow, expected, atol=1e-6)
    of_pair = flow_estimators.load(config.flow).of_pair()  # what --mode=predict calls between two frames
    np.testing.assert_allclose(of_pair(frame, earlier), expected, rtol=1e-5)


def test_on_the_host_while_preparing(config, tmp_path):
    config.flow.estimator = "still"
    settings.check(config)
    flow, (frame, earlier), spec = flow_of(config, tmp_path)
    assert spec.flow_source == "still" and not (tmp_path / "flow").exists()
    np.testing.assert_array_equal(flow, still(frame, earlier))
    np.testing.assert_array_equal(flow_estimators.load(config.flow).of_pair()(frame, earlier), flow)
