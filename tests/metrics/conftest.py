"""Metrics are compiled as for training: what the compiler makes of their arithmetic is part of what is tested."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def compiled_as_for_training(optimised):
    """For all modules of this folder."""
