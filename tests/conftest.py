"""Small runs that every test shares."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("WANDB_MODE", "offline")
# Small tensors on many threads are slower than on one, the more so with several test processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")


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


@pytest.fixture(scope="session")
def tiny_with_teacher(tiny):
    """The same overrides, with a trained teacher in ``checkpoint_root``."""
    from eakd.composing import compose
    from eakd.training.run import run

    run(compose([*tiny, "distiller=none", "seed=7", "save_teacher=true"]))
    return tiny
