"""A small stand-in for the segmentation network, for tests that compile many programs."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from stpl_jax.models.accel import DilatedClassifier
from stpl_jax.models.batch_norm import GroupedBatchNorm
from stpl_jax.models.network import Network, PerClassifier


class Patches(nn.Module):
    """A network of patches of 4×4 pixels, without convolutions, which would take minutes to compile."""

    num_classes: int
    channels: int
    sync_axis: str | None
    dtype: type
    param_dtype: type

    def setup(self):
        self.norm = GroupedBatchNorm(self.sync_axis, self.param_dtype)
        self.first, self.second, self.layer5, self.layer6 = (
            nn.Dense(width, dtype=self.dtype, param_dtype=self.param_dtype)
            for width in (self.channels, self.channels, self.num_classes, self.num_classes)
        )
        self.sf_layer = nn.Dense(self.num_classes, use_bias=False, dtype=self.dtype, param_dtype=self.param_dtype)

    def features(self, rgb, batch_statistics=False, averaged=0):
        groups, clips, height, width, _ = rgb.shape
        patches = rgb.reshape(groups * clips, height // 4, 4, width // 4, 4, 3)
        patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(groups * clips, height // 4, width // 4, 48)
        x = self.norm(patches, groups if batch_statistics else 0, averaged)
        auxiliary = jnp.tanh(self.first(x))
        maps = PerClassifier(jnp.tanh(self.second(auxiliary)), auxiliary)
        return jax.tree.map(lambda f: f.reshape(groups, clips, *f.shape[1:]), maps)

    def score(self, layer, x):
        return getattr(self, layer)(x)

    def fuse(self, current, warped):
        return self.sf_layer(jnp.concatenate([current, warped], -1))

    def __call__(self, rgb):
        features = self.features(rgb, True)
        self.layer5(features.auxiliary)
        scores = self.layer6(features.main)
        return self.fuse(scores[0], scores[-1])


@functools.cache
def patch_network(num_classes=5, channels=16, sync_axis=None, dtype=jnp.float64, param_dtype=jnp.float64):
    """Fills a `Network` by hand; its layers are called as those of ACCEL."""
    module = Patches(num_classes, channels, sync_axis, dtype, param_dtype)

    def backbone(variables, images, batch_statistics, averaged):
        features, updated = module.apply(
            variables, images, batch_statistics, averaged, method="features", mutable=["batch_stats"]
        )
        return features, updated["batch_stats"]

    def classifier(layer):
        return lambda params, x: module.apply({"params": params}, layer, x, method="score")

    return Network(
        num_classes=num_classes,
        initial=lambda key: module.init(key, jnp.zeros((2, 1, 16, 32, 3), dtype)),
        normalise=lambda rgb, dtype: rgb.astype(dtype),
        backbone=backbone,
        main_classifier=classifier("layer6"),
        auxiliary_classifier=classifier("layer5"),
        fusion=lambda params, current, warped: module.apply({"params": params}, current, warped, method="fuse"),
        groups={
            "normalisation": "^norm/",
            "backbone": "^(first|second)/",
            "main_classifier": "^layer6/",
            "auxiliary_classifier": "^layer5/",
            "score_fusion": "^sf_layer/",
        },
        new_classifier=functools.partial(DilatedClassifier, num_classes, (1, 2), param_dtype),
        dtype=dtype,
        param_dtype=param_dtype,
    )
