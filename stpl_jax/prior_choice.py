"""How much of the source's statistics to keep, chosen without labels: `batch_norm.choose_prior`.

    C(α) = mean over pixels of -Σ_k p_k(x) · log p_k(mirrored x)  -  H(mean over pixels of p)

with p the predictions under the blend of share α, is low where they are sure, the same in a mirror, and not all of one
class: minus the mutual information between a pixel and its class, as its mirror image tells it (Ji et al., "Invariant
Information Clustering", ICCV 2019, has it of two views as a loss). Statistics of another domain cost all three, and so
do those of a drive whose contents are not the source's: C bends where mIoU does. Without the entropy of the mean a
model that calls nearly everything one class, sure of it and steady, would be kept.
"""

import jax
import jax.numpy as jnp
import numpy as np

from stpl_jax import parallel
from stpl_jax.forward import frames_first
from stpl_jax.methods.alpha_bn import blend
from stpl_jax.ops.mirror import mirror
from stpl_jax.parallel import AXIS

SHARES = np.linspace(0, 1, 5)


def make_measures(segmenter):
    """Builds what `costs` is made of, for every one of `SHARES`, compiled for all devices.

    Args:
      segmenter: a `Network`.

    Returns:
      A function of replicated parameters and statistics (source, target), and a batch with `frames`
      `[B, T, H, W, 3]` on each device, that returns means over the pixels of all: the cross-entropy between a frame and
      its mirror image `[len(SHARES)]`, and the probabilities `[len(SHARES), K]`; the same on each device.
    """

    def measures(params, source, target, batch):
        frames = frames_first(batch["frames"][:, :1])

        def log_probabilities(share, frames):
            stats = blend(source, target, share)
            features, _ = segmenter.features({"params": params, "batch_stats": stats}, frames)
            scores = segmenter.classify(params, features.replace(auxiliary=None)).main
            return jax.nn.log_softmax(scores.astype(jnp.float32), -1)

        def measure(share):
            return measure_views(log_probabilities(share, frames), mirror(log_probabilities(share, mirror(frames))))

        # One share after the other: the program is compiled once, and the memory is that of one.
        return jax.lax.pmean(jax.lax.map(measure, jnp.asarray(SHARES, jnp.float32)), AXIS)

    return parallel.pmap(measures)


def measure_views(direct, mirrored):
    """Measures how a network sees frames and their mirror images.

    Args:
      direct, mirrored: log probabilities `[..., K]` of the frames, and of their mirror images, mirrored back.

    Returns:
      Means over the pixels: the cross-entropy between the two, a scalar, and the probabilities `[K]`.
    """
    p = jnp.exp(direct)
    return -(p * mirrored).sum(-1).mean(), p.reshape(-1, p.shape[-1]).mean(0)


def costs(measures):
    """Computes C of several networks.

    Args:
      measures: for each batch of as many clips a pair, what `measure_views` says of N networks: `[N]` and `[N, K]`.

    Returns:
      `[N]`.
    """
    cross_entropy, mean = (np.mean(np.asarray(each, float), 0) for each in zip(*measures, strict=True))
    return cross_entropy + (mean * np.log(np.where(mean > 0, mean, 1))).sum(-1)


def lowest(costs):
    """Finds the share of the lowest cost: the vertex of the parabola through the best of `SHARES` and its neighbours.

    Args:
      costs: `[len(SHARES)]`.

    Returns:
      Share of the target's statistics, 0..1; one of `SHARES` where the best is at an end.
    """
    costs = np.asarray(costs, float)
    best = int(np.argmin(costs))
    if best in (0, len(SHARES) - 1):
        return float(SHARES[best])
    before, at, after = costs[best - 1 : best + 2]
    curvature = before - 2 * at + after
    offset = (before - after) / (2 * curvature) if curvature > 0 else 0.0
    return float(SHARES[best] + offset * (SHARES[1] - SHARES[0]))
