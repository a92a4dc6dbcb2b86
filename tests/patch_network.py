"""A small stand-in for the segmentation network, for tests that compile many programs."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from stpl_jax.models.accel import Features, Scores
from stpl_jax.models.batch_norm import GroupedBatchNorm


class PatchNetwork(nn.Module):
    """Stands in for `Accel`, with its methods and without its convolutions, which would take minutes to compile."""

    num_classes: int = 5
    channels: int = 16
    sync_axis: str | None = None
    dtype: type = jnp.float64
    param_dtype: type = jnp.float64

    def setup(self):
        self.norm = GroupedBatchNorm(self.sync_axis, self.param_dtype)
        self.first, self.second, self.layer5, self.layer6 = (
            nn.Dense(width, dtype=self.dtype, param_dtype=self.param_dtype)
            for width in (self.channels, self.channels, self.num_classes, self.num_classes)
        )
        self.sf_layer = nn.Dense(self.num_classes, use_bias=False, dtype=self.dtype, param_dtype=self.param_dtype)

    def features(self, rgb, batch_statistics=False, averaged=0):
        groups, clips, height, width, _ = rgb.shape
        patches = rgb.astype(self.dtype).reshape(groups * clips, height // 4, 4, width // 4, 4, 3)
        patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(groups * clips, height // 4, width // 4, 48)
        x = self.norm(patches, groups if batch_statistics else 0, averaged)
        auxiliary = jnp.tanh(self.first(x))
        maps = Features(auxiliary, jnp.tanh(self.second(auxiliary)))
        return jax.tree.map(lambda f: f.reshape(groups, clips, *f.shape[1:]), maps)

    def classify(self, features):
        return Scores(self.layer5(features.auxiliary), self.layer6(features.main))

    def classify_main(self, features):
        return self.layer6(features)

    def fuse(self, current, warped):
        return self.sf_layer(jnp.concatenate([current, warped], -1))

    def __call__(self, rgb):
        scores = self.classify(self.features(rgb, True))
        return self.fuse(scores.main[0], scores.main[-1])
