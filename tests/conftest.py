"""What every test shares: small runs, and a user's own configs beside ours."""

import copy
import os
from pathlib import Path

import pytest
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins

from eakd.config import CONFIGS, register

os.environ.setdefault("WANDB_MODE", "offline")
# Small tensors on many threads are slower than on one, the more so with several test processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items):
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def real_data():
    """The folder of real data sets, from ``EAKD_TEST_DATA``."""
    folder = os.environ.get("EAKD_TEST_DATA")
    if not folder:
        pytest.skip("EAKD_TEST_DATA is not set: no folder of real data sets")
    return Path(folder)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Overrides of a run that takes a second: few digits, two epochs, ResNet-8 twice."""
    root = tmp_path_factory.mktemp("tiny")
    return [
        "data.train_per_class=8",
        "recipe.epochs=2",
        "recipe.batch_size=16",
        "teacher=resnet8",
        "student=resnet8",
        f"output_root={root / 'outputs'}",
        f"checkpoint_root={root / 'checkpoints'}",
    ]


@pytest.fixture(scope="session")
def tiny_with_teacher(tiny):
    """The same overrides, with a trained teacher in ``checkpoint_root``."""
    from eakd.composing import compose
    from eakd.training.run import run

    run(compose([*tiny, "distiller=none", "seed=7", "save_teacher=true"]))
    return tiny


@pytest.fixture
def own_configs(tmp_path, monkeypatch):
    """Write files ``{path: text}`` and offer them as ``--config-dir`` does, inside one test."""
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


@pytest.fixture(scope="session")
def trained(tiny_with_teacher, tmp_path_factory):
    """The folder of finished tiny runs: kd, ea_kd and kd+matched, two seeds each."""
    from eakd.composing import compose
    from eakd.training.run import run

    root = tmp_path_factory.mktemp("trained")
    for method in (["distiller=kd"], ["distiller=ea_kd"], ["distiller=kd", "weighting=matched"]):
        for seed in (0, 1):
            overrides = [*tiny_with_teacher, *method, f"seed={seed}", f"output_root={root}"]
            run(compose(overrides))
    return root
