"""A small set, and the real one where it is."""

import zipfile
from pathlib import Path

import pytest
from coco_sets import write_set


@pytest.fixture
def own_set(tmp_path):
    return write_set(tmp_path / "set")


@pytest.fixture(scope="session")
def coco_mini(real_data, tmp_path_factory):
    """The folder of 129 + 129 real images."""
    archive = Path(real_data) / "coco-mini.zip"
    if not archive.exists():
        pytest.skip(f"no {archive}")
    folder = tmp_path_factory.mktemp("coco")
    with zipfile.ZipFile(archive) as file:
        file.extractall(folder)
    return folder / "coco-mini"
