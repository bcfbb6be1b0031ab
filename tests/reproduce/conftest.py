"""A user's own configs beside ours, as ``--config-dir`` brings them in."""

import copy

import pytest
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins

from eakd.config import CONFIGS, register


@pytest.fixture
def own_configs(tmp_path, monkeypatch):
    """Write files ``{path: text}`` and offer them, all inside one test."""
    folder = tmp_path / "own configs"
    Plugins.instance()  # registers the plugins' own configs, once
    store = ConfigStore.instance()
    monkeypatch.setattr(store, "repo", copy.deepcopy(store.repo))

    def offer(files):
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        register([str(folder)])
        path = create_config_search_path(str(CONFIGS))
        # As Hydra's main does, which knows no other way in.
        schema = SearchPathQuery(provider="schema")
        path.prepend("command-line", f"file://{folder}", anchor=schema)
        GlobalHydra.instance().clear()
        Hydra.create_main_hydra2("own", path)
        return folder

    yield offer
    GlobalHydra.instance().clear()
