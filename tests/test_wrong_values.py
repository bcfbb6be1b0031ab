"""Every key of every command, with values of every kind: a result, or one line and no trace.

The keys come from the composed configs, so that a new key is tried without being listed here. A
test run tries a few hundred of the pairs, and all with EAKD_TEST_ALL_VALUES=1.
"""

import logging
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from PIL import Image

from eakd import commands
from eakd.composing import compose

VALUES = [
    *("null", "true", "5", "-1", "0.5", "nan", "inf", "1e400", "x", "''", "' '", "'5'"),
    *("[]", "[1,2]", "[a,null]", "{}", "{a:1}", "'../../x'", "/dev/null/x", f"'{250 * 'n'}'"),
    *("'${nothing}'", "'???'", "'a\\tb'", "eakd", "os.system"),
]

ALL = "EAKD_TEST_ALL_VALUES" in os.environ
SHARE = 10

# Not tried: what is right, and fetches something.
LEFT_OUT = {("student.pretrained", "true")}


def leaves(node, path=""):
    """The dotted keys of a config: of its values, and of the nodes above them."""
    for key, value in node.items():
        yield f"{path}{key}"
        if isinstance(value, dict):
            yield from leaves(value, f"{path}{key}.")


def keys_of(root, overrides=()):
    from omegaconf import OmegaConf

    node = OmegaConf.to_container(compose(list(overrides), root))
    return [key for key in leaves(node) if not key.startswith("data.plan.")]


IMAGES = ["data=image_folder", "data.name=tiny", "data.root=images", "data.crop_padding=1"]
SMALL = [*IMAGES, "teacher=resnet8", "recipe.epochs=1", "recipe.batch_size=4", "threads=1"]
SMALL += ["progress=false", "data.cache_dir=cache", "recipe.milestones=[]", "device=cpu"]
TIMM = ["student=timm", "student.name=vit_tiny_patch16_224", "student.input_size=16"]

CASES = [("train", SMALL, key) for key in keys_of("train", SMALL)]
CASES += [("train", [*SMALL, *TIMM], f"student.{k}") for k in ("pretrained", "feature_indices")]
CASES += [("train", [*SMALL, *TIMM], f"student.{k}") for k in ("data_mean", "input_size", "name")]
CASES += [("train", SMALL, key) for key in ("experiment", "hydra.run.dir", "hydra.sweep.dir")]
CASES += [("train", SMALL, key) for key in ("+foo", "+data.foo", "+teacher.foo", "+record.foo")]
for root, base in (
    ("evaluate", [*IMAGES, "data.cache_dir=cache", "model=resnet8", "threads=1"]),
    ("report", ["runs=outputs/**"]),
    ("reproduce", ["table=2", "mode=plan"]),
    ("figure", ["figure=5", "runs=outputs/tiny/*/kd/*", "draw=false"]),
):
    keys = [key for key in keys_of(root, base) if root != "evaluate" or "recipe" not in key]
    CASES += [(root, base, key) for key in (*keys, "+foo")]


@pytest.fixture(scope="session")
def workplace(tmp_path_factory):
    """A folder with a tiny data set, its teacher and a finished run."""
    folder = tmp_path_factory.mktemp("workplace")
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 2)):
        for kind, level in (("dark", 40), ("light", 200)):
            place = folder / "images" / split / kind
            place.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(level, level + 40, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    before = Path.cwd()
    os.chdir(folder)
    try:
        for overrides in (["student=resnet8", "distiller=none", "save_teacher=true"], []):
            assert command("train", [*SMALL, *overrides]) == (0, "")
    finally:
        os.chdir(before)
    return folder


def command(root, overrides, errors=None):
    """The exit status of a command in this process, and what it printed to ``errors``."""
    arguments, sys.argv = sys.argv, [f"eakd-{root}", *overrides]
    logger = logging.getLogger()
    level, handlers = logger.level, logger.handlers[:]
    try:
        getattr(commands, root)()
    except SystemExit as error:
        return error.code, errors() if errors else ""
    finally:
        # What Hydra and a run leave, for the tests that follow in this process.
        sys.argv, logger.handlers[:] = arguments, handlers
        logger.setLevel(level)
        HydraConfig.instance().cfg = None
        torch.set_num_threads(1)
    return 0, errors() if errors else ""


def listing(folder):
    """Every file and folder, but for caches: a refusal may come after a cache was filled."""
    found = {path.relative_to(folder) for path in folder.rglob("*")}
    return {p for p in found if p.parts[0] != "cache" and "evaluations" not in p.parts}


@pytest.mark.slow
@pytest.mark.parametrize(("root", "base", "key"), CASES, ids=[f"{r}-{k}" for r, _, k in CASES])
def test_a_result_or_one_line(workplace, monkeypatch, capsys, root, base, key):
    monkeypatch.chdir(workplace)
    wrong, start = [], 0 if ALL else sum(key.encode()) % SHARE
    for value in VALUES[start :: 1 if ALL else SHARE]:
        if (key, value) in LEFT_OUT:
            continue
        before, word = listing(workplace), f"{key}={value}"
        capsys.readouterr()
        try:
            status, text = command(root, [*base, word], lambda: capsys.readouterr().err)
        except Exception as error:
            wrong.append(f"{word}: {type(error).__name__}: {error}")
            continue
        if status == 0:
            continue
        lines = text.strip().splitlines()
        if status not in (1, 2) or len(lines) != 1 or not lines[0].startswith("error: "):
            wrong.append(f"{word}: status {status}, {text!r}")
        elif status == 2 and listing(workplace) != before:
            wrong.append(f"{word}: left {sorted(map(str, listing(workplace) - before))}")
    assert not wrong, "\n".join(wrong)
