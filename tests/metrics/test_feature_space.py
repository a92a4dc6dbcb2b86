import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from stpl_jax.metrics import feature_space

KS = (1, 2, 3, 7, 20)


def draw(counts, channels=6, seed=0):
    """Normalised float32 features scattered around a direction for each class; shuffled."""
    random = np.random.default_rng(seed)
    classes = np.repeat(np.arange(len(counts)), counts)
    random.shuffle(classes)
    features = random.normal(size=(len(counts), channels))[classes] + random.normal(size=(len(classes), channels))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return features.astype(np.float32), classes


def test_variances_are_those_of_a_plain_loop():
    features, classes = draw((12, 5, 30, 9))
    means, within = [], []
    for c in range(4):
        members = [f.astype(float) for f, label in zip(features, classes, strict=True) if label == c]
        mean = sum(members) / len(members)
        means.append(mean)
        within.append(sum(((f - mean) ** 2).sum() for f in members) / len(members))
    centre = sum(means) / 4
    between = sum(((m - centre) ** 2).sum() for m in means) / 4
    assert feature_space.intra_class_variance(features, classes) == pytest.approx(sum(within) / 4, rel=1e-6)
    assert feature_space.inter_class_variance(features, classes) == pytest.approx(between, rel=1e-6)


def test_every_class_counts_alike():
    few, many = np.array([[1.0, 0], [0, 1]]), np.tile([[1.0, 0]], (100, 1))
    features, classes = np.concatenate([few, many]), np.array([0, 0] + [1] * 100)
    # Class 0: both are at a squared distance of 1/2 from (1/2, 1/2). Class 1: 0.
    assert feature_space.intra_class_variance(features, classes) == pytest.approx(0.25)
    # Means (1/2, 1/2) and (1, 0) are at 1/8 from their mean.
    assert feature_space.inter_class_variance(features, classes) == pytest.approx(0.125)


def test_absent_classes_are_left_out():
    features, classes = draw((6, 0, 6))
    named = np.where(classes == 2, 14, classes)
    for measure in (feature_space.intra_class_variance, feature_space.inter_class_variance):
        assert measure(features, classes) == measure(features, named)
    assert feature_space.class_means(features, named)[0].tolist() == [0, 14]


def test_one_pixel_of_each_class():
    features, classes = draw((1, 1, 1))
    assert feature_space.intra_class_variance(features, classes) == 0
    assert feature_space.inter_class_variance(features, classes) > 0
    np.testing.assert_array_equal(feature_space.neighbour_shares(features, classes, (1, 2, 9)), 0)
    one = feature_space.inter_class_variance(features[:1], classes[:1])
    assert one == 0
    assert np.isnan(feature_space.neighbour_shares(features[:1], classes[:1], (1, 2))).all()


def test_no_pixel():
    features, classes = np.zeros((0, 4)), np.zeros(0, int)
    assert np.isnan(feature_space.intra_class_variance(features, classes))
    assert np.isnan(feature_space.inter_class_variance(features, classes))
    assert np.isnan(feature_space.neighbour_shares(features, classes, (1,))).all()


def test_neighbours_are_those_of_scikit_learn():
    features, classes = draw((400, 150, 90, 11), seed=2)  # more than one block of queries
    shares = feature_space.neighbour_shares(features, classes, KS)
    nearest = NearestNeighbors(n_neighbors=max(KS)).fit(features).kneighbors(return_distance=False)  # without itself
    expected = [(classes[nearest[:, :k]] == classes[:, None]).mean() for k in KS]
    np.testing.assert_allclose(shares, expected, atol=1e-3)
    assert shares[0] > shares[-1] > 0.3


def test_neighbours_are_those_of_a_plain_loop():
    features, classes = draw((5, 4, 8), seed=3)
    expected = np.zeros(len(KS))
    for i, query in enumerate(features.astype(float)):
        others = sorted((((f - query) ** 2).sum(), j) for j, f in enumerate(features.astype(float)) if j != i)
        for n, k in enumerate(KS):
            chosen = [j for _, j in others[:k]]
            expected[n] += np.mean([classes[j] == classes[i] for j in chosen]) / len(features)
    np.testing.assert_allclose(feature_space.neighbour_shares(features, classes, KS), expected)


def test_more_neighbours_than_there_are():
    features, classes = draw((3, 4))
    shares = feature_space.neighbour_shares(features, classes, (6, 7, 500))
    # Of the six others, two and three are of the same class.
    np.testing.assert_allclose(shares, (3 * 2 / 6 + 4 * 3 / 6) / 7)


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_one_is_an_error(k):
    with pytest.raises(ValueError, match="k must be at least 1"):
        feature_space.neighbour_shares(*draw((3, 4)), (1, k))


def test_features_without_length_stay_zero():
    features = np.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_array_equal(feature_space.normalise(features), [[0.6, 0.8], [0, 0]])


@pytest.mark.parametrize(
    "size, grid", [((9, 17), (3, 5)), ((512, 1024), (65, 129)), ((64, 128), (16, 32)), ((4, 6), (1, 1))]
)
def test_labels_on_the_grid_are_the_nearest_pixel(size, grid):
    label = np.arange(size[0] * size[1]).reshape(size)
    found = feature_space.nearest_on_grid(label, grid)
    assert found.shape == grid
    for i, j in np.ndindex(grid):
        y, x = found[i, j] // size[1], found[i, j] % size[1]
        # Corner on corner: place (i, j) of the grid lies at these pixels.
        for at, place, count, n in ((y, i, size[0], grid[0]), (x, j, size[1], grid[1])):
            assert abs(at - place * (count - 1) / max(n - 1, 1)) <= 0.5


def test_pixels_are_drawn_from_the_labels():
    labels = np.random.default_rng(0).choice([0, 0, 0, 1, 3, 255], (4, 6, 8)).astype(np.uint8)
    labels[labels == 1] = 255
    labels[2, 3, 4] = 1
    places, classes = feature_space.sample_pixels(labels, 4, 20, seed=5)
    assert [(classes == c).sum() for c in range(4)] == [20, 1, 0, 20]
    np.testing.assert_array_equal(labels[tuple(places.T)], classes)
    assert len({tuple(p) for p in places}) == len(places)
    assert places[classes == 1].tolist() == [[2, 3, 4]]

    again, _ = feature_space.sample_pixels(labels, 4, 20, seed=5)
    other, _ = feature_space.sample_pixels(labels, 4, 20, seed=6)
    np.testing.assert_array_equal(places, again)
    assert (places != other).any()
    # A class's pixels stay when another class is gone.
    fewer, names = feature_space.sample_pixels(np.where(labels == 0, 255, labels), 4, 20, seed=5)
    np.testing.assert_array_equal(fewer[names == 3], places[classes == 3])
    with pytest.raises(ValueError, match="at least 1"):
        feature_space.sample_pixels(labels, 4, 0, seed=5)


def test_nothing_to_draw():
    places, classes = feature_space.sample_pixels(np.full((2, 3, 4), 255, np.uint8), 5, 10, seed=0)
    assert places.shape == (0, 3) and classes.shape == (0,)


def test_axes_are_those_of_scikit_learn():
    features, _ = draw((40, 30), channels=5)
    mean, axes = feature_space.principal_axes(features, 3)
    expected = PCA(3).fit(features)
    np.testing.assert_allclose(mean, expected.mean_, atol=1e-6)
    np.testing.assert_allclose(np.abs((axes * expected.components_).sum(1)), 1, atol=1e-5)
    assert (axes[np.arange(3), np.abs(axes).argmax(1)] > 0).all()
    # More directions than channels: there is nothing to see in the rest.
    assert (feature_space.principal_axes(features[:, :2], 3)[1][2] == 0).all()
