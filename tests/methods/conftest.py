"""What the tests of methods share: clips for the network of two blocks."""

import pytest

SIZE = (16, 32)  # frames; features are 4×8, of which 22 pixels are confident
CLASSES = 5


@pytest.fixture(scope="session")
def small_clips(clips):
    """The function that makes clips for `small_segmenter`."""
    return lambda count, **options: clips(count, size=SIZE, num_classes=CLASSES, **options)
