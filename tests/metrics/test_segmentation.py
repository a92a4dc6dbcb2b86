import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
from PIL import Image

from stpl_jax.metrics import segmentation


def random_maps(shape, num_classes, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, size=shape).astype(np.uint8)
    predictions = np.where(rng.random(shape) < 0.6, labels, rng.integers(0, num_classes, size=shape)).astype(np.uint8)
    labels[rng.random(shape) < 0.2] = 255
    return labels, predictions


@pytest.mark.parametrize(("shape", "num_classes"), [((7, 9), 4), ((3, 90, 200), 12), ((200, 300), 15), ((5,), 2)])
def test_confusion_matrix_agrees_with_scikit_learn(shape, num_classes):
    labels, predictions = random_maps(shape, num_classes)
    result = jax.jit(segmentation.confusion_matrix, static_argnums=2)(
        jnp.asarray(labels), jnp.asarray(predictions), num_classes
    )
    assert result.dtype == jnp.int32
    counted = labels != 255
    expected = sklearn.metrics.confusion_matrix(labels[counted], predictions[counted], labels=np.arange(num_classes))
    np.testing.assert_array_equal(np.asarray(result), expected)


def test_confusion_matrix_is_exact_for_two_million_pixels():
    labels = np.zeros((1024, 2048), np.uint8)
    labels[0, :3] = 255
    labels[-1, -1] = 1
    result = segmentation.confusion_matrix(jnp.asarray(labels), jnp.zeros(labels.shape, jnp.int32), 3)
    np.testing.assert_array_equal(np.asarray(result), [[1024 * 2048 - 4, 0, 0], [1, 0, 0], [0, 0, 0]])


def test_confusion_matrix_leaves_out_what_is_no_class():
    labels = jnp.asarray([0, 0, 1, 2, 9, 255], jnp.int32)
    predictions = jnp.asarray([0, 7, 1, 0, 0, 0], jnp.int32)
    np.testing.assert_array_equal(np.asarray(segmentation.confusion_matrix(labels, predictions, 2)), [[1, 0], [0, 1]])
    # Another ignored id, here one of the classes.
    np.testing.assert_array_equal(
        np.asarray(segmentation.confusion_matrix(labels, predictions, 2, ignored=0)), [[0, 0], [0, 1]]
    )
    empty = jnp.zeros((0,), jnp.int32)
    np.testing.assert_array_equal(np.asarray(segmentation.confusion_matrix(empty, empty, 2)), np.zeros((2, 2)))


def test_confusion_matrix_refuses_bad_input():
    zeros = jnp.zeros((2, 3), jnp.int32)
    with pytest.raises(ValueError, match="differ in shape"):
        segmentation.confusion_matrix(zeros, zeros[:1], 2)
    with pytest.raises(TypeError, match="predictions must be integers"):
        segmentation.confusion_matrix(zeros, zeros.astype(jnp.float32), 2)
    with pytest.raises(ValueError, match="num_classes"):
        segmentation.confusion_matrix(zeros, zeros, 0)
    with pytest.raises(ValueError, match=r"label \[H, W\]"):
        segmentation.confusion_of_scores(jnp.zeros((2, 2, 3)), zeros[None])


def test_confusion_of_scores_resizes_argmaxes_and_counts():
    # The independent resize is PIL's affine transform, asked for the align-corners positions.
    rng = np.random.default_rng(5)
    scores = rng.normal(size=(5, 8, 4)).astype(np.float32)
    label = rng.integers(0, 4, size=(33, 57)).astype(np.uint8)
    label[:4] = 255
    # PIL counts from pixel edges: output centre i + 0.5 must land on input centre i·step + 0.5.
    step_x, step_y = 7 / 56, 4 / 32
    affine = (step_x, 0, 0.5 - 0.5 * step_x, 0, step_y, 0.5 - 0.5 * step_y)
    padded = np.pad(scores, ((1, 1), (1, 1), (0, 0)), mode="edge")  # PIL reads nothing outside its image
    affine = (affine[0], 0, affine[2] + 1, 0, affine[4], affine[5] + 1)
    resized = np.stack(
        [
            np.asarray(
                Image.fromarray(padded[..., k]).transform(
                    (57, 33), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR
                )
            )
            for k in range(4)
        ],
        axis=-1,
    )
    ordered = np.sort(resized, axis=-1)
    label[ordered[..., -1] - ordered[..., -2] < 1e-4] = 255  # there rounding decides
    counted = label != 255
    assert counted.mean() > 0.8
    expected = sklearn.metrics.confusion_matrix(label[counted], resized.argmax(-1)[counted], labels=np.arange(4))
    result = jax.jit(segmentation.confusion_of_scores)(jnp.asarray(scores), jnp.asarray(label))
    np.testing.assert_array_equal(np.asarray(result), expected)


def test_iou_agrees_with_scikit_learn():
    labels, predictions = random_maps((60, 70), 6)
    labels[labels == 4] = 255
    predictions[predictions == 4] = 0  # class 4 is nowhere
    labels[labels == 5] = 1  # class 5 is predicted only
    counted = labels != 255
    confusion = np.asarray(segmentation.confusion_matrix(jnp.asarray(labels), jnp.asarray(predictions), 6))
    result = segmentation.iou(confusion)
    assert result.dtype == np.float64
    expected = 100 * sklearn.metrics.jaccard_score(
        labels[counted], predictions[counted], labels=[0, 1, 2, 3, 5], average=None, zero_division=0
    )
    np.testing.assert_allclose(result[[0, 1, 2, 3, 5]], expected)
    assert np.isnan(result[4]) and result[5] == 0
    evaluated = np.asarray([True, False, True, True, True, True])
    np.testing.assert_allclose(segmentation.mean_iou(confusion, evaluated), expected[[0, 2, 3, 4]].mean())


def test_counts_of_many_frames_are_summed_beyond_int32():
    frames = np.zeros((3, 2, 2), np.int32)
    frames[:, 0, 0] = frames[:, 1, 0] = 2**31 - 1
    np.testing.assert_allclose(segmentation.iou(frames), [50, 0])
    assert segmentation.mean_iou(frames, np.asarray([True, True])) == 25


def test_mean_iou_without_any_class_and_bad_input():
    assert np.isnan(segmentation.mean_iou(np.zeros((2, 2), np.int64), np.asarray([True, True])))
    assert np.isnan(segmentation.mean_iou(np.eye(2, dtype=np.int64), np.asarray([False, False])))
    with pytest.raises(ValueError, match=r"bool \(2,\)"):
        segmentation.mean_iou(np.eye(2), np.asarray([1, 0]))
    with pytest.raises(ValueError, match=r"\[\.\.\., K, K\]"):
        segmentation.iou(np.zeros((2, 3)))
