"""What the tests of methods share: a network of two blocks."""

import pytest

from stpl_jax.models import make_segmenter

SIZE = (16, 32)  # frames; features are 4×8, of which 22 pixels are confident
CLASSES = 5


@pytest.fixture
def small_config(tiny_config):
    """A fresh configuration of a network of two stages with one block each."""
    tiny_config.model.backbone.update({"blocks": (1, 1), "widths": (4, 4), "strides": (2, 1), "dilations": (1, 2)})
    return tiny_config


@pytest.fixture
def small_segmenter(small_config):
    """The network of `small_config`."""
    return make_segmenter(small_config.model, CLASSES)


@pytest.fixture
def small_variables(small_segmenter, drawn_variables):
    """Variables of `small_segmenter`."""
    return drawn_variables(small_segmenter)


@pytest.fixture(scope="session")
def small_clips(clips):
    """The function that makes clips for `small_segmenter`."""
    return lambda count, **options: clips(count, size=SIZE, num_classes=CLASSES, **options)
