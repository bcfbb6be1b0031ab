"""What the tests of data sets share."""

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory):
    """A cache for the real sets: each is decoded once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def open_folder():
    """A folder that everybody may enter; pytest's own are closed to others."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o777)
    yield path
    subprocess.run(["chmod", "-R", "u+rwX", path], check=True)
    shutil.rmtree(path)
