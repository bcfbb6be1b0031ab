"""Recorded runs that tests of figures share."""

import pytest
from recorded import write_trio


@pytest.fixture(scope="session")
def trio(tmp_path_factory):
    """KD, EA-KD and KD+matched, three seeds each; the folder is only read."""
    root = tmp_path_factory.mktemp("trio")
    write_trio(root)
    return root
