"""Where a test's TFDS sets and their cache lie."""

import pytest


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def sets(tmp_path):
    return tmp_path / "sets"
