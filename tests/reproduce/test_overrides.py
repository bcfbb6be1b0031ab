"""What overrides of all runs may not set, because the table sets it."""

import pytest

from eakd.composing import compose
from eakd.errors import UserError
from eakd.reproduce.overrides import check_overrides, of_teacher
from eakd.reproduce.plan import make_plan
from eakd.reproduce.table import load_table, make_table

METHODS, PAIRS, VARIANTS = r"methods=\[", r"pairs=\[", r"variants=\[…\], or methods=\[ea_"


def checked(*overrides, table="2"):
    return check_overrides(list(overrides), make_table(load_table(table)))


@pytest.mark.parametrize(
    ("override", "instead"),
    [
        ("distiller=dkd", METHODS),
        ("distiller.name=mine", METHODS),
        ("distiller._target_=my.Method", METHODS),
        *((f"{role}=vgg8", PAIRS) for role in ("teacher", "student")),
        *((f"{role}.name=mine", PAIRS) for role in ("teacher", "student")),
        *((f"{role}._target_=my.Net", PAIRS) for role in ("teacher", "student")),
        ("seed=7", r"seeds=\["),
        ("weighting=ea", VARIANTS),
        ("weighting.kind=teacher", VARIANTS),
        ("weighting._target_=my.Weighting", VARIANTS),
        ("data=digits", "table="),
        ("recipe=short", "protocol="),
        ("experiment=table2", "table="),
        ("run_dir=here", "output_root="),
        ("output_root=here", "output_root="),
        ("checkpoint_root=here", "checkpoint_root="),
        # However it is spelt
        ("+distiller=dkd", METHODS),
        ("++seed=7", r"seeds=\["),
        ("~weighting", VARIANTS),
        ("~weighting.kind=uniform", VARIANTS),
        ("weighting@_global_.weighting=ea", VARIANTS),
        ("+teacher@student=vgg8", PAIRS),
        ("++data={name: x}", "table="),
        ("recipe={lr: 1}", "protocol="),
        ("seed= 7", r"seeds=\["),
    ],
)
def test_what_the_table_decides_is_refused(override, instead):
    with pytest.raises(UserError, match=rf"overrides: found .*, allowed is .*{instead}") as caught:
        checked("recipe.lr=0.1", override)
    assert override in str(caught.value) and "\n" not in str(caught.value)


def test_what_a_cell_sets_is_refused_where_it_is_one_of_the_table():
    text = "++weighting.entropy_temperature=2"
    assert checked(text) == [text]
    with pytest.raises(UserError, match=r"weighting\.entropy_temperature .*allowed is variants="):
        checked(text, table="7")
    text = "weighting.max_entropy=100"
    assert checked(text, table="8") == [text]
    with pytest.raises(UserError, match=r"weighting\.max_entropy .*allowed is variants="):
        checked(text, table="control")
    narrow = make_table(load_table("control"), variants=["uniform", "ea"])
    assert check_overrides([text], narrow) == [text]


def test_all_else_is_possible():
    overrides = [
        *("recipe.lr=0.1", "data.root='a, b'", "teacher.checkpoint=x.pth", "distiller.beta=2"),
        *("+teacher.published_bn_momentum=true", "student.width=2", "tracking=wandb", "threads=1"),
        *("data.mean=[0.1,0.2,0.3]", "recipe.milestones=[]", "++data.name=mine", "~recipe.gamma"),
    ]
    assert checked(*overrides) == overrides


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("recipe.lr=0.1", "found 'recipe.lr=0.1', allowed is a list"),
        (None, "found None, allowed is a list"),
        ([0.1], "found 0.1, allowed is a quoted text"),
        ([{"recipe.lr": 0.1}], "found {'recipe.lr': 0.1}, allowed is a quoted text"),
        (["recipe.lr=0.1,0.2"], "found several values in 'recipe.lr=0.1,0.2', allowed is one"),
        (["recipe.lr=choice(0.1)"], "found several values"),
        (["recipe.epochs=range(1,9)"], "found several values"),
        (["tracking=glob(*)"], "found several values"),
        (["recipe.lr"], r"found 'recipe.lr', allowed is KEY=VALUE \("),
        (["recipe.lr =1"], "found 'recipe.lr =1', allowed is KEY=VALUE"),
    ],
)
def test_what_is_no_override(overrides, message):
    with pytest.raises(UserError, match=f"^overrides: {message}") as caught:
        check_overrides(overrides, make_table(load_table("1")))
    assert "\n" not in str(caught.value)


def test_a_plan_refuses_before_it_composes(tmp_path):
    with pytest.raises(UserError, match="overrides: found 'seed=1'"):
        make_plan(make_table(load_table("1")), seeds=[0], overrides=["recipe.x=1", "seed=1"])


def test_a_teachers_run_takes_over_what_concerns_it():
    overrides = ["teacher.width=2", "++teacher.teacher.x=1", "teacher.checkpoint=auto"]
    overrides += ["student.width=4", "distiller.beta=2", "weighting.max_entropy=1", "recipe.lr=1"]
    overrides += ["output_root=/a/teacher.b"]
    assert list(of_teacher(overrides)) == [
        *("student.width=2", "++student.teacher.x=1", "recipe.lr=1", "output_root=/a/teacher.b"),
    ]


def test_an_override_of_a_method_does_not_reach_its_teacher(tmp_path):
    plan = make_plan(
        make_table(load_table("2"), pairs=["vgg13-vgg8"], methods=["dkd", "ea_dkd"]),
        seeds=[0],
        overrides=["distiller.beta=2"],
        output_root=str(tmp_path / "teacher.x, y=z"),
        checkpoint_root=str(tmp_path),
    )
    assert {job.identified["distiller"]["beta"] for job in plan.students} == {2}
    (teacher,) = plan.teachers
    for job in plan.jobs:
        assert compose(list(job.overrides)).run_dir == str(job.directory)
        assert str(job.directory).startswith(str(tmp_path / "teacher.x, y=z"))
    assert teacher.identified["distiller"]["name"] == "none"
