"""How well a feature space tells classes apart: the paper's Figures 6 to 8, on the host.

It works on a sample of pixels that is drawn from the labels, so that all networks are asked about the same.
"""

import numpy as np

# Queries whose distances are held at once.
_BLOCK = 512


def nearest_on_grid(label, size):
    """Brings a label to the feature grid: each place takes the nearest pixel, corner on corner as scores are resized.

    Args:
      label: `[H, W]`.
      size: (h, w) of the grid.

    Returns:
      `[h, w]`.
    """

    def places(n, count):
        # Halves go up; numpy's own rounding would take every other one down.
        return np.floor(np.arange(n) * ((count - 1) / max(n - 1, 1)) + 0.5).astype(int)

    return label[places(size[0], label.shape[0])][:, places(size[1], label.shape[1])]


def sample_pixels(labels, num_classes, per_class, seed):
    """Draws pixels of each class without putting any back; all there are where a class has fewer.

    Args:
      labels: `[N, h, w]` integer train ids on the feature grid; others than 0..K-1 are never drawn.
      num_classes: K.
      per_class: pixels wanted of each class.
      seed: of the draw.

    Returns:
      places `[P, 3]` int64: clip, row and column of each pixel, by class, and in order within it; classes `[P]` int64.

    Raises:
      ValueError: `per_class` is below 1.

    Source: the paper's Figure 7 looks at 500 pixels of each class.
    """
    if per_class < 1:
        raise ValueError(f"sample_pixels: per_class must be at least 1, got {per_class}")
    places, classes = [], []
    for c in range(num_classes):
        found = np.argwhere(labels == c)
        # A class's draw does not depend on the other classes.
        random = np.random.default_rng((seed, c))
        if len(found) > per_class:
            found = found[np.sort(random.choice(len(found), per_class, replace=False))]
        places.append(found)
        classes.append(np.full(len(found), c))
    return np.concatenate(places).astype(np.int64), np.concatenate(classes).astype(np.int64)


def normalise(features):
    """Divides features `[..., C]` by their length; those without length stay 0."""
    length = np.linalg.norm(features, axis=-1, keepdims=True)
    return features / np.where(length > 0, length, 1)


def class_means(features, classes):
    """Mean feature of each class that occurs.

    Args:
      features: `[P, C]`.
      classes: `[P]` integer.

    Returns:
      names `[M]` of the classes that occur, ascending; means `[M, C]` float64.
    """
    found = np.unique(classes)
    if not found.size:
        return found, np.zeros((0, features.shape[-1]))
    return found, np.stack([features[classes == c].mean(0, dtype=np.float64) for c in found])


def intra_class_variance(features, classes):
    """σ_intra, lower is better: mean over classes of the mean squared distance to the class's mean.

        σ_intra = mean_c mean_{i: y_i=c} |z_i − μ_c|²

    Args:
      features: `[P, C]`, L2-normalised.
      classes: `[P]` integer; classes that do not occur are left out.

    Returns:
      The variance; NaN without pixels.

    Source: paper, Figures 6 and 8.
    """
    found, means = class_means(features, classes)
    if not found.size:
        return float("nan")
    return float(
        np.mean([((features[classes == c] - m) ** 2).sum(-1).mean() for c, m in zip(found, means, strict=True)])
    )


def inter_class_variance(features, classes):
    """σ_inter, higher is better: mean squared distance of the class means to their own mean.

        σ_inter = mean_c |μ_c − mean_c' μ_c'|²

    Args:
      features: `[P, C]`, L2-normalised.
      classes: `[P]` integer; classes that do not occur are left out.

    Returns:
      The variance; 0 where one class occurs, NaN without pixels.

    Source: paper, Figures 6 and 8.
    """
    found, means = class_means(features, classes)
    if not found.size:
        return float("nan")
    return float(((means - means.mean(0)) ** 2).sum(-1).mean())


def neighbour_shares(features, classes, counts):
    """Share of same-class pixels among the k nearest of each pixel, itself left out, averaged over all pixels.

    Args:
      features: `[P, C]`, L2-normalised: the order by distance is the order by scalar product.
      classes: `[P]` integer.
      counts: values of k, each at least 1. One above P - 1 takes all the others.

    Returns:
      `[len(counts)]` float64 from 0 to 1; NaN with fewer than two pixels.

    Source: paper, Figure 7.
    """
    total = len(features)
    counts = np.asarray(counts, np.int64)
    if counts.size and counts.min() < 1:
        raise ValueError(f"neighbour_shares: every k must be at least 1, got {counts.tolist()}")
    if total < 2:
        return np.full(counts.shape, np.nan)
    counts = np.minimum(counts, total - 1)
    most = int(counts.max(initial=1))
    features = np.ascontiguousarray(features, np.float32)
    shares = np.zeros(most)
    for start in range(0, total, _BLOCK):
        similarity = features[start : start + _BLOCK] @ features.T
        queries = np.arange(len(similarity))
        similarity[queries, start + queries] = -np.inf  # the pixel itself
        nearest = np.argpartition(-similarity, most - 1, axis=1)[:, :most]
        order = np.argsort(-np.take_along_axis(similarity, nearest, 1), axis=1, kind="stable")
        nearest = np.take_along_axis(nearest, order, 1)
        same = classes[nearest] == classes[start : start + _BLOCK, None]
        shares += same.cumsum(1).sum(0)
    return shares[counts - 1] / (counts * total)


def principal_axes(features, count):
    """The directions in which features vary most, for showing them as colours.

    Args:
      features: `[P, C]`.
      count: number of directions.

    Returns:
      mean `[C]`; axes `[count, C]`, orthonormal, each with its largest entry positive so that colours are repeatable.
      Where C is below `count`, the rest of the axes are 0.
    """
    mean = features.mean(0, dtype=np.float64)
    centred = features - mean
    # Of the covariance: there are far more pixels than channels.
    found = np.linalg.eigh(centred.T @ centred)[1].T[::-1][:count]
    signs = np.sign(found[np.arange(len(found)), np.abs(found).argmax(1)])
    axes = np.zeros((count, features.shape[1]))
    axes[: len(found)] = found * signs[:, None]
    return mean, axes
