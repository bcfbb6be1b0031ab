"""What the tests of data sets share."""

import pytest


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory):
    """A cache for the real sets: each is decoded once."""
    return tmp_path_factory.mktemp("cache")
