"""What the tests of benchmarks share."""

import pytest

import grids


@pytest.fixture(scope="module")
def dataset(synthetic_root):
    return grids.dataset(synthetic_root)
