"""Blended statistics of each single frame, layer after layer, against PyTorch's layers in inference."""

import flax.linen as nn
import jax
import numpy as np
import torch

from stpl_jax import models
from stpl_jax.methods import make_method
from stpl_jax.models.batch_norm import GroupedBatchNorm
from stpl_jax.models.network import Network, PerClassifier
from stpl_jax.train_state import create_state, make_train_step

CHANNELS = 3


class TwoLayers(nn.Module):
    """Normalisation, ReLU, normalisation: the second one sees what the first one makes of a frame."""

    @nn.compact
    def __call__(self, images, groups, averaged, share=1.0):
        x = nn.relu(GroupedBatchNorm(name="first")(images, groups, averaged, share))
        return GroupedBatchNorm(name="second")(x, groups, averaged, share)


def two_layers():
    module = TwoLayers()

    def backbone(variables, images, share, averaged):
        groups = images.shape[0] if share else 0
        arguments = (images.reshape(-1, *images.shape[2:]), groups, averaged, share)
        features, new = module.apply(variables, *arguments, mutable=["batch_stats"])
        return PerClassifier(features.reshape(images.shape)), new.get("batch_stats", variables["batch_stats"])

    return Network(
        num_classes=CHANNELS,
        normalise=lambda rgb, dtype: rgb.astype(dtype) / 255,
        backbone=backbone,
        main_classifier=lambda params, x: x,
        groups={"normalisation": "^(first|second)/"},
        blends_statistics=True,
        initial=lambda key: module.init(key, np.zeros((1, 4, 4, CHANNELS), np.float32), 0, 0),
    )


def test_each_frame_by_pytorch(tiny_config, drawn_variables):
    tiny_config.method = "cbna"
    assert models.frame_statistics(tiny_config) == 0.2, "the publication's"
    segmenter = models.with_frame_statistics(two_layers(), models.frame_statistics(tiny_config))
    variables = drawn_variables(segmenter)
    frames = np.random.default_rng(0).integers(0, 256, (1, 2, 6, 8, 3)).astype(np.uint8)
    found = jax.jit(segmenter.features)(variables, frames)[0].main
    for b in range(2):
        x = torch.tensor(frames[0, b] / 255.0).permute(2, 0, 1)[None]
        for i, name in enumerate(("first", "second")):
            params, stats = variables["params"][name], variables["batch_stats"][name]
            arrays = (params["scale"], params["bias"], stats["mean"], stats["var"])
            scale, bias, mean, var = (torch.tensor(a).double() for a in arrays)
            mean = 0.8 * mean + 0.2 * x.mean((0, 2, 3))
            var = 0.8 * var + 0.2 * x.var((0, 2, 3), unbiased=False)
            x = torch.nn.functional.batch_norm(x, mean, var, scale, bias, eps=1e-5)
            x = x if i else x.relu()
        np.testing.assert_allclose(found[0, b], x[0].permute(1, 2, 0), rtol=1e-4, atol=1e-5)


def test_nothing_changes_from_clip_to_clip(tiny_config, drawn_variables, clips):
    tiny_config.method = "cbna"
    segmenter = models.with_frame_statistics(two_layers(), 0.2)
    method = make_method(tiny_config, segmenter)
    assert method.online and list(method.needs) == ["target"] and not method.needs["target"].labels
    state = create_state(method, method.optimisers(tiny_config.optim), drawn_variables(segmenter), jax.random.key(0))
    step = make_train_step(method, {}, 0)
    batch = {"target": clips(1, frames=1, pairs=())}
    after, _ = jax.vmap(step, (None, 0), axis_name="devices")(state, jax.tree.map(lambda x: x[None], batch))
    for part in ("params", "batch_stats"):
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b), getattr(after, part), getattr(state, part))
