"""Figures that open networks: their files say what their functions take, and no more."""

import inspect

import pytest
import yaml

from eakd.config import CONFIGS
from eakd.targets import locate

MODULES = (
    *("gap", "embedding", "landscape", "fidelity", "similarity", "pictures"),
    *("maps", "trajectories", "proposals"),
)


def files():
    for path in sorted((CONFIGS / "figures").glob("*.yaml")):
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        if found["kind"].split(".")[2] in MODULES:
            yield pytest.param(found, id=path.stem)


@pytest.mark.parametrize("figure", [*files()])
def test_every_setting_is_in_the_file(figure):
    parameters = inspect.signature(locate(figure["kind"], "kind")).parameters
    assert list(parameters)[:2] == ["runs", "output_root"]
    assert set(figure["settings"]) == set(parameters) - {"runs", "output_root"}


def test_there_are_some():
    assert len([*files()]) == 16
