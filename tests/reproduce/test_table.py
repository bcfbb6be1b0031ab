"""Tables of the paper: every printed number has a run, and every run the right settings."""

import re
from pathlib import Path

import pytest

from eakd.composing import compose
from eakd.config import method_label
from eakd.errors import UserError
from eakd.reproduce.plan import make_plan
from eakd.reproduce.table import load_table, make_table, paper_numbers, printed, table_names

TABLES = [name for name in table_names() if name.isdecimal()]


@pytest.mark.parametrize("name", TABLES)
def test_every_printed_number_of_a_table_has_its_cell(name):
    table = make_table(load_table(name))
    numbers = [number for cell in table.cells for number in cell.paper.values()]
    # METHOD+WEIGHTING is a row of ours.
    of_paper = [cell for cell in table.cells if "+" not in cell.method]
    assert all(cell.paper.keys() == set(table.metrics) for cell in of_paper)

    def leaves(node):
        return sum(map(leaves, node.values())) if isinstance(node, dict) else 1

    assert len(numbers) == leaves(paper_numbers()[name])


def test_printed_numbers_of_the_paper():
    assert printed("2", "resnet50-mobilenetv2", "ea_fcfd") == {"top1": 71.97}
    assert printed("3", "resnet32x4-resnet8x4", "ea_mld_ls") == {"top1": 61.93, "top5": 84.35}
    assert printed("7", "wrn_28_4-wrn_16_2", "ea_kd", "τ′=2") == {"top1": 74.89}
    assert printed("8", "resnet32x4-resnet8x4", "fcfd", "ea") == {"top1": 77.44}
    assert printed("4", "swin_b-resnet8x4", "teacher") == {"top1": 86.3}
    expected = {"ap": 31.81, "ap50": 53.18, "ap75": 33.18}
    assert printed("5", "frcnn_r50-frcnn_mobilenetv2", "ea_kd") == expected
    assert printed("2", "resnet20-resnet8", "kd") == {} and printed("control", "x-y", "kd") == {}


def test_the_average_gains_that_the_paper_prints_follow_from_its_cells():
    table = make_table(load_table("2"))
    averages = paper_numbers()["average_gains"]["2"]
    for ea, base in table.gains:
        gains = [
            cell.paper["top1"] - other.paper["top1"]
            for cell, other in table.compared()
            if (cell.method, other.method) == (ea, base)
        ]
        assert len(gains) == 7
        assert sum(gains) / 7 == pytest.approx(averages[ea], abs=0.011)


@pytest.mark.parametrize("name", table_names())
def test_the_runs_of_a_cell_are_what_its_name_says(name):
    table = make_table(load_table(name))
    kinds = {"base": "teacher", "ea_100": "ea"}
    for cell in table.cells if name != "2" else table.at(pair="vgg13-vgg8"):
        if not cell.overrides:
            assert cell.method == "teacher"
            continue
        config = compose([*cell.overrides, "recipe=authors"])
        assert f"{config.teacher.name}-{config.student.name}" == cell.pair
        if cell.variant.startswith("τ′="):
            assert config.weighting.entropy_temperature == int(cell.variant[-1])
        elif cell.variant:
            assert config.weighting.kind == kinds.get(cell.variant, cell.variant)
        else:
            assert method_label(config) == cell.method
        assert (config.weighting.max_entropy == 100) == (cell.variant == "ea_100")


def test_narrowing():
    definition = load_table(2)
    table = make_table(
        definition, pairs=["vgg13-vgg8", "resnet20-resnet8"], methods=["ea_kd", "kd"]
    )
    assert table.methods == ("teacher", "kd", "ea_kd")
    assert table.pairs == ("vgg13-vgg8", "resnet20-resnet8")
    assert len(table.cells) == 6 and len(table.compared()) == 2
    assert make_table(definition, pairs="vgg13-vgg8").pairs == ("vgg13-vgg8",)


def words_of(definition, method, **narrow):
    """What the first cell of a method adds to the pair."""
    return make_table(definition, methods=[method], **narrow).at(method=method)[0].overrides[2:]


def test_any_method_under_any_weighting_can_be_in_a_table():
    definition = load_table("2")
    assert words_of(definition, "kd_ls") == ("distiller=kd_ls",)
    assert words_of(definition, "ea_dkd_ls") == ("distiller=ea_dkd_ls",)
    words = words_of(definition, "kd+matched")
    assert words == ("distiller=kd", "weighting=matched")
    assert method_label(compose(list(words))) == "kd+matched"
    methods = ["kd+matched", "ea_kd_ls", "dkd_ls", "kd_ls", "kd"]
    table = make_table(definition, methods=methods, pairs=["vgg13-vgg8"])
    assert table.methods == ("teacher", "kd", *methods[:-1])
    assert [(a.method, b.method) for a, b in table.compared()] == [
        ("kd+matched", "kd"),
        ("ea_kd_ls", "kd_ls"),
    ]


def test_a_table_of_weightings_takes_plain_methods_only():
    definition = load_table("8")
    assert words_of(definition, "dkd", variants=["base"]) == ("distiller=dkd", "weighting=teacher")
    for method in ("ea_kd", "kd+matched"):
        with pytest.raises(UserError, match=rf"methods: found '{re.escape(method)}'.*, dkd_ls, "):
            make_table(definition, methods=[method])
    with pytest.raises(UserError, match=r"^(?!.*ea_).*$"):
        make_table(definition, methods=["xkd"])


def test_methods_of_ones_own(own_configs):
    mine = "name: mine\n_target_: my.Method\n"
    alone = "name: alone\n_target_: my.Labels\nneeds_teacher: false\n"
    own_configs({"distiller/mine.yaml": mine, "distiller/alone.yaml": alone})
    table = make_table(load_table("2"), methods=["alone", "mine", "ea_mine", "mine+student"])
    assert table.methods == ("teacher", "alone", "mine", "ea_mine", "mine+student")
    with pytest.raises(UserError, match=r"methods: found 'ea_alone', .*, mine, .*METHOD\+WEIGHT"):
        make_table(load_table("2"), methods=["ea_alone"])


def test_methods_of_a_group(own_configs):
    kd = "name: kd\n_target_: my.KD\n"
    own_configs({"distiller/speech/kd.yaml": kd, "distiller/speech/none.yaml": kd})
    definition = {**load_table("2"), "group": "speech", "methods": ["kd", "ea_kd"]}
    assert words_of(definition, "ea_kd") == ("distiller=speech/ea_kd",)
    config = compose(list(make_table(definition).cells[1].overrides))
    assert config.distiller._target_ == "my.KD" and method_label(config) == "ea_kd"
    with pytest.raises(UserError, match="methods: found 'dkd', allowed is one of kd, ea_kd, "):
        make_table(definition, methods=["dkd"])
    plan = make_plan(make_table(definition), seeds=[0], checkpoint_root="/nonexistent")
    assert "distiller=speech/none" in plan.teachers[0].overrides


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pairs": ["vgg13"]}, r"pairs: found 'vgg13', allowed is one of resnet32x4-.*two models"),
        ({"pairs": ["vgg13-vgg9"]}, r"pairs: found 'vgg13-vgg9'"),
        ({"methods": ["ea"]}, r"methods: found 'ea', allowed is one of teacher, none, kd, ea_kd"),
        (
            {"methods": ["ea"]},
            r"methods: .*, ea_kd_ls, .*, or METHOD\+WEIGHTING such as kd\+matched",
        ),
        ({"methods": ["kd+heavy"]}, r"methods: found 'kd\+heavy'"),
        ({"methods": ["teacher+ea"]}, r"methods: found 'teacher\+ea'"),
        ({"methods": 3}, r"methods: found '3'"),
        ({"methods": []}, r"methods: found an empty list"),
        ({"variants": ["ea"]}, r"variants: found 'ea'"),
    ],
)
def test_unknown_names_list_the_valid_ones(arguments, message):
    with pytest.raises(UserError, match=message):
        make_table(load_table(2), **arguments)


def test_unknown_table():
    with pytest.raises(UserError, match="table: found '9', allowed is one of 1, 2, 3, 4, 5, 6"):
        load_table(9)


MINE = """\
data: mine
metrics: [top1]
pairs: [deep-net, resnet14-net]
methods: [teacher, none, own, ea_own]
variants:
  two: [recipe.batch_size=2]
  four: [recipe.batch_size=4]
gains:
  - [two, four]
"""
OWN = {
    "tables/mine.yaml": MINE,
    "data/mine.yaml": "defaults: [digits, _self_]\nname: mine\n",
    "model/net.yaml": "name: net\n_target_: eakd.models.resnet8\n",
    "model/deep.yaml": "defaults: [net, _self_]\nname: deep\n_target_: eakd.models.resnet20\n",
    "distiller/own.yaml": "defaults: [kd, _self_]\nname: own\n",
}


def test_a_table_of_ones_own_networks_methods_and_data_is_planned(own_configs, tmp_path):
    own_configs(OWN)
    ours = ["1", "2", "3", "4", "5", "6", "7", "8", "control", "control_digits"]
    assert table_names() == [*ours, "mine", "weightings"]
    with pytest.raises(
        UserError, match=r"table: found 'x', allowed is one of 1, .*mine, weightings"
    ):
        load_table("x")
    table = make_table(load_table("mine"))
    assert len(table.cells) == 2 * 4 * 2 and not any(cell.paper for cell in table.cells)
    places = {"output_root": str(tmp_path), "checkpoint_root": str(tmp_path)}
    plan = make_plan(table, seeds=[0], protocol="default", **places)
    assert [job.saves.name for job in plan.teachers] == ["deep.safetensors", "resnet14.safetensors"]
    for job in plan.jobs:
        config = compose(list(job.overrides))
        assert Path(config.run_dir) == job.directory and config.data.name == "mine"
    assert {job.identified["student"]["_target_"] for job in plan.students} == {
        "eakd.models.resnet8"
    }


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("data: mine\n", "", "data: found None, allowed is a text"),
        ("data: mine", "datum: mine", "key: found 'datum', allowed is one of name, title, data, "),
        ("[top1]", "top1", "metrics: found 'top1', allowed is a list of texts"),
        ("teacher, none", "no", r"methods: found \[False, 'own', 'ea_own'\], allowed is a list of"),
        ("resnet14-net", "net", "pairs: found 'net', allowed is TEACHER-STUDENT"),
        ("data: mine", "data: mine\nrows: pair", "rows: found 'pair', allowed is one of method, "),
        ("data: mine", "data: mine\nname: '2'", "name: found '2', allowed is one of mine"),
        ("[recipe.batch_size=2]", "a=2", "variants: found .*, allowed are lines NAME: "),
        ("recipe.batch_size=2", "recipe=short", "variants: found 'recipe=short', allowed is"),
        ("recipe.batch_size=2", "=2", "variants: found '=2', allowed is KEY=VALUE"),
        ("[two, four]", "[two, own]", r"gains: found \['two', 'own'\], allowed is a list of pairs"),
        ("  - [two, four]", "", "gains: found None, allowed is a list of pairs"),
        (
            "data: mine",
            "data: mine\nsmoke_pairs: [3]",
            "smoke_pairs: found 3, allowed is TEACHER-STUDENT",
        ),
    ],
)
def test_mistakes_in_a_table_of_ones_own_are_one_line(own_configs, before, after, message):
    assert MINE.count(before) == 1
    folder = own_configs({"tables/mine.yaml": MINE.replace(before, after)})
    with pytest.raises(UserError, match=f"^{re.escape(str(folder))}/tables/mine.yaml: {message}"):
        load_table("mine")
