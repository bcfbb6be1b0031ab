"""Recorded runs that tests of figures share."""

import pytest
from recorded import write_trio

from eakd.analysis.runs import glob_runs


@pytest.fixture(scope="session")
def trio(tmp_path_factory):
    """KD, EA-KD and KD+matched, three seeds each; the folder is only read."""
    root = tmp_path_factory.mktemp("trio")
    write_trio(root)
    return root


@pytest.fixture(scope="module")
def runs(trained):
    return glob_runs(str(trained / "**"))


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """One cache for all tests of a file."""
    return str(tmp_path_factory.mktemp("outputs"))
