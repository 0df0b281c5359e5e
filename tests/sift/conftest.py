"""Processes of two ranks that the tests of sifting share."""

import pytest
from sift_ranks_kit import Ranks


@pytest.fixture(scope="session")
def two(tmp_path_factory):
    """Return a function that runs a case of ``sift_ranks_kit``, or of another file, on two ranks."""
    ranks = Ranks(tmp_path_factory.mktemp("ranks"), 2)
    yield ranks.run
    ranks.close()
