"""The published recipes: every cell of the paper's tables is one command with the right values."""

import functools
import itertools
import json
import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from eakd.composing import compose
from eakd.config import CONFIGS, plain, published_tables, run_name
from eakd.errors import UserError

ROOT = Path(__file__).parents[1]
GOLDEN = json.loads((ROOT / "tests" / "golden" / "recipes.json").read_text(encoding="utf-8"))
RENAMED = {"MobileNetV2": "mobilenetv2", "ShuffleV2": "shufflenetv2", "ResNet50": "resnet50"}
PAIRS = {
    tuple(RENAMED.get(name, name) for name in pair.split("->")): methods
    for pair, methods in GOLDEN.items()
    if "->" in pair
}
IDS = ["-".join(pair) for pair in PAIRS]
METHODS = ("kd", "ctkd", "dkd", "mld", "mld_ls", "reviewkd", "fcfd")
IN_GOLDEN = {
    "kd": "KD",
    "ctkd": "CTKD",
    "dkd": "DKD",
    "mld": "MLD",
    "mld_ls": "MLD+LS",
    "reviewkd": "ReviewKD",
    "fcfd": "FCFD",
}

# Golden name -> ours.
PROTOCOL = {
    "epochs": "epochs",
    "batch_size": "batch_size",
    "lr": "lr",
    "lr_milestones": "milestones",
    "lr_gamma": "gamma",
    "weight_decay": "weight_decay",
    "momentum": "momentum",
    "nesterov": "nesterov",
}
WEIGHTS = {"ce_weight": "ce_weight", "kd_weight": "kd_weight"}
PARAMETERS = {
    "kd": WEIGHTS | {"T": "temperature"},
    "ctkd": WEIGHTS
    | {"t_start": "min_temperature", "t_end": "temperature_range", "theta_init": "theta"},
    "dkd": {
        "ce_weight": "ce_weight",
        "alpha": "alpha",
        "beta": "beta",
        "T": "temperature",
        "warmup_epochs": "warmup",
    },
    "mld": WEIGHTS | {"base_T": "temperature"},
    "mld_ls": WEIGHTS | {"base_T": "temperature"},
    "reviewkd": {
        "ce_weight": "ce_weight",
        "reviewkd_weight": "review_weight",
        "warmup_epochs": "warmup_epochs",
    },
    "fcfd": {
        "T": "temperature",
        "weight_l2": "l2_weight",
        "ce_weight": "ce_weight",
        "kl_student_from_teacher": "kl_weight",
        "kl_mixture_from_teacher": "mixed_kl_weight",
        "extra_paths_per_iteration": "mixed_paths",
    },
}
# Where the golden record has the protocol; of several, the one chosen.
PROTOCOL_AT = {"mld": "optim_LS_repo", "mld_ls": "optim", "reviewkd": "optim_mdistiller_EA-KD"}


@functools.cache
def composed(*overrides):
    return plain(compose(list(overrides)))


def cell(pair, method, recipe="authors", data="cifar100"):
    """The composed config of a cell of the paper's tables."""
    teacher, student = pair
    return composed(
        *(f"data={data}", f"recipe={recipe}", f"teacher={teacher}", f"student={student}"),
        f"distiller={method}",
    )


@pytest.mark.parametrize("pair", PAIRS, ids=IDS)
@pytest.mark.parametrize("method", [*METHODS, *(f"ea_{method}" for method in METHODS)])
def test_values_are_the_published_ones(pair, method):
    base = method.removeprefix("ea_")
    golden = PAIRS[pair][("EA-" if base != method else "") + IN_GOLDEN[base]]
    protocol = golden[PROTOCOL_AT[base]] if base in PROTOCOL_AT else golden
    config = cell(pair, method)
    unknown = set()
    for node, known, names in (
        (config["recipe"], protocol, PROTOCOL),
        (config["distiller"], golden, PARAMETERS[base]),
    ):
        for theirs, ours in names.items():
            if known[theirs]["value"] == "unknown":
                unknown.add(ours)
            else:
                assert node[ours] == known[theirs]["value"], (theirs, known[theirs])
    assert unknown <= {"review_weight"}
    if base != method:
        assert config["weighting"]["kind"] == "ea"
        assert config["weighting"]["entropy_temperature"] == golden["tau_prime"]["value"]
        assert config["weighting"]["max_entropy"] is None  # log C, as in the paper


@pytest.mark.parametrize("pair", PAIRS, ids=IDS)
def test_ea_changes_the_weighting_and_only_mld_ls_besides(pair):
    for method in METHODS:
        plain_cell, ea = cell(pair, method), cell(pair, f"ea_{method}")
        assert ea["recipe"] == plain_cell["recipe"]
        distiller = dict(plain_cell["distiller"])
        if method == "mld_ls":
            assert distiller["kd_weight"] in (6.0, 9.0)
            distiller["kd_weight"] = 4.0
        assert ea["distiller"] == distiller


def without_name(recipe):
    return {key: value for key, value in recipe.items() if key != "name"}


@pytest.mark.parametrize("data", ["cifar100", "tiny_imagenet"])
def test_common_is_one_protocol_and_the_public_zoos(data):
    pair = ("resnet32x4", "resnet8x4")
    name = {"cifar100": "cifar", "tiny_imagenet": "tiny_imagenet"}[data]
    own = composed(f"data={data}", f"recipe={name}")["recipe"]
    assert own["name"] == name
    for method in ("kd", "mld", "ea_mld_ls", "fcfd"):
        found = cell(pair, method, "common", data)["recipe"]
        assert found["name"] == "common" and without_name(found) == without_name(own)


@pytest.mark.parametrize("data", ["cifar100", "tiny_imagenet"])
@pytest.mark.parametrize("method", [*METHODS, *(f"ea_{method}" for method in METHODS)])
def test_a_command_without_a_recipe_trains_the_published_protocol(method, data):
    words = [f"data={data}", "teacher=resnet32x4", "student=resnet8x4", f"distiller={method}"]
    default = compose(words)
    assert default.recipe.name == "authors"
    assert run_name(default) == run_name(compose([*words, "recipe=authors"]))
    # The others keep the directories of runs from before.
    older = run_name(compose([*words, "recipe=cifar" if data == "cifar100" else f"recipe={data}"]))
    moved = {"mld", "mld_ls", "fcfd"}
    assert (older != run_name(default)) is (method.removeprefix("ea_") in moved)


def test_authors_and_common_differ_where_they_should():
    pair = ("resnet32x4", "resnet8x4")
    differing = {
        method
        for method in METHODS
        if without_name(cell(pair, method)["recipe"])
        != without_name(cell(pair, method, "common")["recipe"])
    }
    assert differing == {"mld", "mld_ls", "fcfd"}


def test_the_default_recipe_knows_the_students_rate():
    def lr(*overrides):
        return composed("data=cifar100", *overrides)["recipe"]["lr"]

    assert lr("student=resnet8x4") == 0.05
    for student in ("mobilenetv2", "shufflenetv1", "shufflenetv2"):
        assert lr("teacher=vgg13", f"student={student}") == 0.01
        assert lr(f"student={student}", "distiller=none") == 0.01
        assert lr("recipe=short", f"student={student}") == 0.01
    for teacher in ("resnet32x4", "wrn_28_4", "resnet50"):
        assert lr(f"student={teacher}", "distiller=none", "recipe=authors") == 0.05


def test_tiny_imagenet_has_the_same_grammar():
    pair = ("resnet32x4", "resnet8x4")
    for method in ("kd", "mld", "mld_ls", "fcfd"):
        for name in (method, f"ea_{method}"):
            recipe = cell(pair, name, data="tiny_imagenet")["recipe"]
            assert (recipe["epochs"], recipe["batch_size"]) == (200, 256)
            assert recipe["milestones"] == [60, 120, 160]
            assert recipe["lr"] == (0.1 if method.startswith("mld") else 0.2)
            assert recipe["nesterov"] is (method == "fcfd")
    assert cell(pair, "ea_mld_ls", data="tiny_imagenet")["distiller"]["kd_weight"] == 4.0
    for teacher in ("vit_b", "deit_b", "swin_b"):
        config = cell((teacher, "resnet8x4"), "ea_kd", data="tiny_imagenet")
        assert config["weighting"]["entropy_temperature"] != 3.0
        assert config["teacher"]["data_mean"] == config["data"]["mean"]
        assert not config["teacher"]["pretrained"]


def test_command_line_wins():
    config = composed(
        *("data=cifar100", "recipe=authors", "teacher=vgg13", "student=mobilenetv2"),
        "distiller=ea_mld_ls",
        *("recipe.lr=0.3", "recipe.epochs=7", "recipe.milestones=[3,5]", "distiller.kd_weight=2"),
        "weighting.entropy_temperature=4",
    )
    recipe = config["recipe"]
    assert (recipe["lr"], recipe["epochs"], recipe["milestones"]) == (0.3, 7, [3, 5])
    assert config["distiller"]["kd_weight"] == 2
    assert config["weighting"]["entropy_temperature"] == 4


def test_one_computation_has_one_directory():
    def name(*overrides):
        return run_name(compose(["data=cifar100", *overrides]))

    assert name("distiller=mld_ls", "weighting=ea") == name("distiller=ea_mld_ls")
    assert name("distiller=ea_mld_ls", "weighting=uniform") == name("distiller=mld_ls")
    assert name("recipe=authors") == name("recipe=common") == name()
    assert name("recipe=authors", "distiller=mld") == name("distiller=mld")
    assert name("recipe=common", "distiller=mld") != name("distiller=mld")
    beta = ("teacher=vgg13", "student=vgg8", "distiller=dkd")
    assert name(*beta, "distiller.beta=6") == name(*beta) != name(*beta, "distiller.beta=8")


# The tables themselves: a typo in a name would silently leave the default.

MODELS = sorted(path.stem for path in (CONFIGS / "model").glob("*.yaml"))
DATA = sorted(path.stem for path in (CONFIGS / "data").glob("*.yaml"))
DISTILLERS = sorted(path.stem for path in (CONFIGS / "distiller").glob("*.yaml"))
BASES = [name for name in DISTILLERS if not name.startswith("ea_")]
TABLES = {
    f"{section}.{key}": entries
    for section, keys in published_tables().items()
    for key, entries in keys.items()
}


def problems(entries):
    """Entries that no run can reach: unknown names, or later entries always win."""
    runs = [
        {data, base, f"{teacher}-{student}"} | ({f"ea_{base}"} if reweighted else set())
        for data, base, reweighted in itertools.product(
            ("cifar100", "tiny_imagenet"), BASES, (False, True)
        )
        for teacher, student in itertools.product(MODELS, MODELS)
    ]
    unreached = list(entries)
    for names in runs:
        matching = [
            entry
            for entry in entries
            if entry == "default"
            or all(any(fnmatchcase(name, part) for name in names) for part in entry.split("/"))
        ]
        if matching and matching[-1] in unreached:
            unreached.remove(matching[-1])
        if not unreached:
            break
    return unreached


@pytest.mark.parametrize("table", TABLES)
def test_every_entry_reaches_a_run(table):
    assert problems(TABLES[table]) == []


def test_typos_are_found():
    good = {"default": 1, "dkd": 2, "ea_mld_ls/vgg13-vgg8": 3, "tiny_imagenet/mld*": 4}
    assert problems(good) == []
    for typo in ("dkdd", "vgg13_vgg8", "vgg13-vgg9", "cifar1000", "mld/vgg8", "*-mobilnetv2"):
        assert problems(good | {typo: 5}) == [typo]
    assert problems({"dkd": 1, "default": 2}) == ["dkd"]  # the general after the special


def test_tables_and_configs_name_each_other():
    used, first = set(), set()
    for path in CONFIGS.rglob("*.yaml"):
        if path.name == "published.yaml":
            continue
        for names in re.findall(r"\$\{published:([^}]+)\}", path.read_text(encoding="utf-8")):
            used |= {*names.split(",")}
            first.add(names.split(",")[0])
    assert used == set(TABLES)
    for table in first:
        assert next(iter(TABLES[table])) == "default"
    for table in used - first:
        assert "default" not in TABLES[table]  # it would hide the tables before it


def test_every_value_names_its_source():
    sources = ("public zoo", "authors'", "paper", "ours", "code", "report", "the same", "others")
    for line in (CONFIGS / "published.yaml").read_text(encoding="utf-8").splitlines():
        if re.match(r"    \S+: ", line):
            assert any(word in line.partition("#")[2] for word in sources), line


# What the documentation says is what is composed.

DOCUMENTED = (
    *(("kd", "recipe", key) for key in ("lr",)),
    *(("mld", "recipe", key) for key in ("epochs", "lr")),
    ("dkd", "distiller", "beta"),
    *((method, "distiller", "kd_weight") for method in ("mld_ls", "ea_mld_ls")),
    ("reviewkd", "distiller", "review_weight"),
    *(("fcfd", "distiller", key) for key in ("temperature", "mixed_kl_weight")),
    *(("kd_ls", "distiller", key) for key in ("temperature", "kd_weight")),
    *(("dkd_ls", "distiller", key) for key in ("temperature", "kd_weight", "beta")),
)


def test_the_documented_table():
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    for pair in PAIRS:
        label = " → ".join(f"`{name}`" for name in pair)
        row = next(line for line in page.splitlines() if line.startswith(f"| {label} "))
        found = [float(number) for number in re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.])", row)]
        expected = [cell(pair, method)[node][key] for method, node, key in DOCUMENTED]
        assert found == expected, pair


def test_wrong_strong_view():
    from eakd.training import Recipe

    with pytest.raises(
        UserError, match="strong_view: found 'cutout', allowed is one of auto, none"
    ):
        Recipe(epochs=1, strong_view="cutout")
