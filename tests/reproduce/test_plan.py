"""Plans: the directories that the runs will have, their states, the time that remains."""

import hashlib
import json
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from eakd.composing import compose
from eakd.config import method_files
from eakd.errors import UserError
from eakd.reproduce.command import title
from eakd.reproduce.plan import STATES, State, make_plan
from eakd.reproduce.progress import describe_plan, estimate
from eakd.reproduce.speed import measurable, measure
from eakd.reproduce.states import read_states, state_of
from eakd.reproduce.table import load_table, make_table, table_names
from eakd.training.lock import RunLock
from eakd.training.reading import checksum
from eakd.training.run import run

GOLDEN = Path(__file__).parents[1] / "golden"


def plan_of(name, tmp_path, **settings):
    narrow = {key: settings.pop(key) for key in ("pairs", "methods", "variants") if key in settings}
    settings.setdefault("seeds", [0, 1])
    return make_plan(
        make_table(load_table(name), **narrow), output_root=str(tmp_path / "outputs"), **settings
    )


@pytest.mark.parametrize(
    ("protocol", "scale"),
    [
        ("authors", "paper"),
        pytest.param("common", "short", marks=pytest.mark.slow),
        pytest.param("authors", "smoke", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", table_names())
def test_planned_directories_are_those_of_the_command_lines(name, scale, protocol, tmp_path):
    plan = plan_of(name, tmp_path, scale=scale, protocol=protocol, seeds=[3])
    # Every fourth: Hydra takes a tenth of a second for each.
    for job in plan.jobs[::4]:
        assert f"data={plan.table.data}" in job.overrides
        assert Path(compose(list(job.overrides)).run_dir) == job.directory


# What a table had when the directories were written down; it has more now.
EARLIER = {"control": {"methods": ["kd"], "variants": ["uniform", "matched", "ea", "ea_100"]}}


def directories(name, protocol="authors", scale="paper", composed=None):
    plan = make_plan(
        make_table(load_table(name), **EARLIER.get(name, {})),
        seeds=range(5),
        protocol=protocol,
        scale=scale,
        checkpoint_root="/nonexistent",
        composed=composed,
    )
    return sorted(str(job.directory) for job in plan.jobs)


def test_table_2_finds_the_runs_of_earlier_versions():
    stored = (GOLDEN / "table2_directories.txt").read_text(encoding="utf-8").splitlines()
    assert len(stored) == 525 and directories("2") == stored


@pytest.mark.slow
def test_every_table_finds_the_runs_of_earlier_versions():
    digests = json.loads((GOLDEN / "directories.json").read_text(encoding="utf-8"))
    assert len(digests) == 27
    composed = {}  # what one plan has composed, the others share
    for words, digest in digests.items():
        name, scale, protocol = words.split()
        text = "\n".join(directories(name, protocol, scale, composed))
        assert hashlib.sha256(text.encode()).hexdigest() == digest, words


def test_table_2_has_every_run_of_the_paper(tmp_path):
    plan = plan_of("2", tmp_path, seeds=range(5), checkpoint_root=str(tmp_path))
    distilled = [job for job in plan.students if job.teacher]
    assert len(distilled) == 490
    # The student alone depends on no teacher: MobileNetV2 is one run for both its pairs.
    assert len(plan.students) == 490 + 6 * 5
    assert [job.saves.stem for job in plan.teachers] == [
        *("resnet32x4", "wrn_28_4", "wrn_40_2", "vgg13", "resnet50"),
    ]
    seeds = [job.identified["seed"] for job in plan.students]
    assert seeds == sorted(seeds)  # whole seeds first


def test_short_is_a_twentieth_with_drops_at_the_same_fractions(tmp_path):
    plan = plan_of("2", tmp_path, scale="short", pairs=["resnet32x4-resnet8x4"])
    recipes = {job.kind.split()[2]: job.identified["recipe"] for job in plan.students}
    assert recipes["kd"]["epochs"] == 12 and recipes["mld"]["epochs"] == 24
    assert recipes["kd"]["milestones"] == [0.625, 0.75, 0.875]
    assert recipes["mld"]["milestones"] == [150 / 480, 180 / 480, 210 / 480]
    methods = {job.kind.split()[2]: job.identified["distiller"] for job in plan.students}
    assert methods["dkd"]["warmup"] == methods["reviewkd"]["warmup_epochs"] == 1
    assert methods["fcfd"]["ramp_epochs"] == methods["ctkd"]["decay_epochs"] == 1


@pytest.mark.parametrize("method", list(method_files()))
def test_every_length_in_epochs_of_a_method_scales(method):
    """The file of a method says which; a name that looks like one must be among them."""
    node = compose([f"distiller={method}"]).distiller
    lengths = [key for key in node if re.search("epochs$|^warmup", key)]
    assert [key for key in lengths if key != "scales_with_epochs"] == list(
        node.get("scales_with_epochs", [])
    )


SET = """
name: {name}
num_classes: 10
load: {{_target_: eakd.data.digits}}
mean: [0.3, 0.3, 0.3]
std: [0.3, 0.3, 0.3]
"""
METHOD = """
name: mine
_target_: eakd.distillers.DKD
temperature: 4.0
alpha: 1.0
beta: 1.0
warmup: 40
scales_with_epochs: [warmup]
"""


def test_data_sets_and_methods_say_what_a_plan_must_know(own_configs, tmp_path):
    """Sets without such words are planned too, but for a smoke test and the time it takes."""
    told = SET + "plan: {{samples: 4000, image_size: 16, smoke: [data=told], smoke_epochs: 3}}\n"
    own_configs(
        {
            "data/told.yaml": told.format(name="told"),
            "data/untold.yaml": SET.format(name="untold"),
            "distiller/mine.yaml": METHOD,
        }
    )

    def planned(data, scale):
        definition = {**load_table("2"), "data": data}
        table = make_table(definition, pairs=["resnet8-resnet8"], methods=["mine", "ea_mine"])
        root = str(tmp_path)
        return make_plan(table, seeds=[0], scale=scale, output_root=root, checkpoint_root=root)

    smoke = planned("told", "smoke")
    assert {job.epochs for job in smoke.jobs} == {3}
    assert {job.identified["data"]["name"] for job in smoke.jobs} == {"told"}
    assert smoke.about_scale == "3 epochs with data=told, whatever the table's data set"
    short = planned("untold", "short")
    assert [job.identified["distiller"]["warmup"] for job in short.students] == [2, 2]
    for job in short.jobs:
        assert Path(compose(list(job.overrides)).run_dir) == job.directory
    with pytest.raises(
        UserError, match=r"^scale: found smoke, but no plan\.smoke in .*data=untold"
    ):
        planned("untold", "smoke")
    states = {job.directory: state_of(job) for job in short.jobs}
    with pytest.raises(UserError, match=r"^measure: found no plan\.samples .* set untold, allowed"):
        measure(short, states, 1, str(tmp_path))
    assert not (tmp_path / "speed.json").exists()


def test_networks_of_ones_own_are_planned(own_configs, tmp_path):
    """Beside others, where networks are exchanged in a composed config."""
    own_configs({"model/mine.yaml": "name: mine\n_target_: eakd.models.resnet8\n"})
    plan = plan_of("2", tmp_path, pairs=["mine-resnet8", "resnet20-mine"], methods=["kd"])
    for job in plan.jobs:
        assert Path(compose(list(job.overrides)).run_dir) == job.directory
    assert len(plan.teachers) == 2


def test_teachers_of_other_scales_are_kept_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = {
        scale: plan_of("1", tmp_path, scale=scale).teachers[0].saves
        for scale in ("paper", "short", "smoke")
    }
    assert places == {
        "paper": Path("checkpoints/cifar100/resnet32x4.safetensors"),
        "short": Path("checkpoints/short/cifar100/resnet32x4.safetensors"),
        "smoke": Path("checkpoints/smoke/digits_pool/resnet32x4.safetensors"),
    }
    places["short"].parent.mkdir(parents=True)
    places["short"].touch()
    assert plan_of("1", tmp_path, scale="short").teachers == ()


def test_transformer_teachers_are_fine_tuned_as_documented(tmp_path):
    plan = plan_of("4", tmp_path, checkpoint_root=str(tmp_path))
    for job in plan.teachers:
        assert {"recipe=finetune", "student.pretrained=true"} <= set(job.overrides)
        assert "recipe=authors" not in job.overrides


def test_overrides_reach_every_run_and_its_teacher(tmp_path):
    plan = plan_of(
        "1",
        tmp_path,
        overrides=["+teacher.published_bn_momentum=true"],
        pairs=["wrn_40_2-wrn_16_2"],
    )
    assert all(job.identified["teacher"]["published_bn_momentum"] for job in plan.students)
    assert plan.teachers[0].identified["student"]["published_bn_momentum"]
    with pytest.raises(UserError, match=r"recipe\.epoch"):
        plan_of("1", tmp_path, overrides=["recipe.epoch=1"])


def test_tracked_runs_are_grouped_by_table_and_cell(tmp_path):
    plan = plan_of("7", tmp_path, overrides=["tracking=wandb"], pairs=["resnet32x4-resnet8x4"])
    groups = {compose(list(job.overrides)).tracking.group for job in plan.students}
    assert groups == {f"table 7: ea_kd τ′={t}, resnet32x4-resnet8x4" for t in (2, 3, 4)}


@pytest.fixture
def one(tmp_path, tiny_with_teacher):
    """The plan of one tiny run, and how to train it."""
    overrides = [text for text in tiny_with_teacher if text.startswith(("data.", "recipe."))]
    root = next(text for text in tiny_with_teacher if text.startswith("checkpoint_root="))
    teacher = Path(root.partition("=")[2]) / "digits" / "resnet8.safetensors"
    plan = plan_of(
        "8",
        tmp_path,
        scale="smoke",
        pairs=["resnet8-resnet8"],
        methods=["kd"],
        variants=["ea"],
        seeds=[5],
        overrides=[*overrides, f"teacher.checkpoint={teacher}"],
        checkpoint_root=root.partition("=")[2],
    )
    (job,) = plan.jobs
    return plan, job, lambda: run(compose(list(job.overrides)))


def test_states_of_a_run(one, tmp_path):
    plan, job, train = one
    assert state_of(job).name == "to do"
    job.directory.mkdir(parents=True)
    with RunLock(job.directory):
        assert state_of(job).name == "running" and "process" in state_of(job).text
    summary = train()
    assert state_of(job) == ("done", "", 2)
    (found,) = estimate(plan, {job.directory: state_of(job)}, tmp_path)
    assert found.hours == 0 and found.known == 0

    (job.directory / "summary.json").write_text(json.dumps(summary)[:40])  # half-written
    assert state_of(job).name == "damaged"
    assert f"{job.directory}/summary.json: found a damaged file" in state_of(job).text
    assert train()["top1_last"] == summary["top1_last"]
    assert state_of(job).name == "done"


def test_time_that_remains_comes_from_recorded_epochs(one, tmp_path):
    plan, job, train = one
    train()
    (job.directory / "summary.json").unlink()
    lines = (job.directory / "metrics.jsonl").read_text().splitlines()
    (job.directory / "metrics.jsonl").write_text(lines[0] + "\n")
    state = state_of(job)
    assert state.name == "interrupted" and state.text == "epoch 1 of 2"
    (found,) = estimate(plan, {job.directory: state}, tmp_path)
    assert found.hours == pytest.approx(json.loads(lines[0])["train_seconds"] / 3600)
    text = describe_plan(plan, {job.directory: state}, tmp_path, every_run=False)
    assert re.search(r"0 done, 0 running, 1 interrupted, 0 failed, 0 to do", text)
    assert re.search(r"0\.0 hours remain on one .* for 1 runs", text)


def test_speed_of_what_never_ran_can_be_measured(one, tmp_path):
    plan, job, _ = one
    states = {job.directory: state_of(job)}
    assert estimate(plan, states, tmp_path) == []
    measure(plan, states, 2, tmp_path)
    (found,) = estimate(plan, states, tmp_path)
    assert (found.known, found.unknown) == (1, 0) and found.hours > 0
    before = (tmp_path / "speed.json").read_bytes()
    measure(plan, states, 2, tmp_path)  # known by now
    assert (tmp_path / "speed.json").read_bytes() == before


def test_a_directory_with_another_config_is_a_failure_and_untouched(one):
    _, job, train = one
    job.directory.mkdir(parents=True)
    other = job.identified | {"seed": 6}
    (job.directory / "config.json").write_text(json.dumps(other))
    state = state_of(job)
    assert state.name == "failed" and "seed (found 6, wanted 5)" in state.text
    with pytest.raises(UserError, match="another config"):
        train()
    assert [path.name for path in job.directory.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"protocol": "mine"},
            "protocol: found 'mine', allowed is one of authors, common, default",
        ),
        ({"scale": "tiny"}, "scale: found 'tiny', allowed is one of paper, short, smoke"),
        ({"seeds": []}, "seeds: found an empty list"),
        ({"seeds": 3}, "seeds: found 3, allowed is a list of integers >= 0"),
        ({"seeds": [-1]}, "seeds: found -1, allowed is an integer >= 0"),
    ],
)
def test_bad_settings(settings, message, tmp_path):
    with pytest.raises(UserError, match=message):
        plan_of("1", tmp_path, **settings)


DAMAGES = {
    "summary.json": ["", "[]", "7", '{"seed": "x"}', '{"top1_last": NaN}', b"\xff\xfe{", None],
    "config.json": ["", "[]", "{", b"\xff", None],
    "status.json": ["{", "[1]", b"\x00\xff", None],
    "metrics.jsonl": ["{}\n", "nonsense\n", b"\xff\n", None],
}


@pytest.mark.parametrize(
    ("name", "content"), [(name, each) for name, found in DAMAGES.items() for each in found]
)
def test_a_damaged_file_is_one_line_that_names_it(name, content, one, tmp_path):
    """Whatever lies in its place (``None`` for a folder), the plan and its state are there."""
    plan, job, _ = one
    job.directory.mkdir(parents=True)
    if name != "config.json":
        (job.directory / "config.json").write_text(json.dumps(job.identified))
    if content is None:
        (job.directory / name).mkdir()
    else:
        content = content if isinstance(content, bytes) else content.encode()
        (job.directory / name).write_bytes(content)
    states = read_states(plan.jobs)
    state = states[job.directory]
    assert state.name == "damaged" and str(job.directory / name) in state.text
    assert "\n" not in state.text
    text = describe_plan(plan, states, tmp_path, every_run=False)
    assert "1 damaged" in text and str(job.directory / name) in text


def test_a_plan_is_a_grid_of_states(tmp_path):
    plan = plan_of("2", tmp_path, methods=["none", "kd", "ea_kd"], checkpoint_root=str(tmp_path))
    states = {job.directory: State("to do", "", 0) for job in plan.jobs}
    cell = next(cell for cell in plan.cells if cell.method == "ea_kd")
    first, second = plan.cells[cell].values()
    states[first.directory], states[second.directory] = (
        State("done", "", 240),
        State("stale", "", 0),
    )
    text = describe_plan(plan, states, tmp_path, every_run=False, grid=True)
    lines = text.splitlines()
    assert len(lines) < 20 and "verbose=true" in lines[-1]
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.startswith("  ")}
    assert rows["teacher"] == ["1t"] * 7 and rows["kd"] == ["2t"] * 7
    assert rows["ea_kd"] == ["1d", "1s", *["2t"] * 6]
    for name in STATES:
        assert f"{STATES[name]} {name}" in text
    every = describe_plan(plan, states, tmp_path, every_run=True, grid=True)
    assert all(str(job.directory) in every for job in plan.jobs)


def test_a_plan_without_a_speed_says_how_to_measure_it(one, tmp_path):
    plan, job, _ = one

    def text(state, **given):
        states = {job.directory: State(state, "", 0)}
        return describe_plan(plan, states, tmp_path, every_run=False, **given)

    assert "measure=20" in text("to do", measurable=measurable(plan))
    assert "measure=20" not in text("done", measurable=True)
    assert "measure=20" not in text("to do")
    assert not measurable(plan_of("5", tmp_path, methods=["none"]))  # boxes are not timed


def test_the_default_protocol_is_the_data_sets_own(own_configs, tmp_path):
    """Data of any domain bring a recipe; none is forced on them."""
    head = "defaults: [{override /recipe@_global_.recipe: digits}]\n"
    own_configs({"data/own.yaml": head + SET.format(name="own").strip("\n")})
    definition = {**load_table("2"), "data": "own"}
    table = make_table(definition, pairs=["resnet8-resnet8"], methods=["kd", "mld"])
    roots = {"output_root": str(tmp_path), "checkpoint_root": str(tmp_path)}
    plan = make_plan(table, seeds=[0], protocol="default", **roots)
    assert {job.epochs for job in plan.jobs} == {60}
    for job in plan.jobs:
        assert not any(text.startswith("recipe=") for text in job.overrides)
        assert Path(compose(list(job.overrides)).run_dir) == job.directory


@pytest.mark.parametrize(
    ("scale", "override"),
    [
        ("short", "++recipe.epochs=7"),
        ("short", "recipe.epochs=100"),
        ("short", "recipe.milestones=[3,5]"),
        ("short", "distiller.warmup=5"),
    ],
)
def test_an_override_that_a_scale_would_overrule_is_refused(scale, override, tmp_path):
    key = override.lstrip("+").partition("=")[0]
    settings = {"methods": ["dkd"], "pairs": ["vgg13-vgg8"]}
    message = rf"^overrides: found '.*', but scale={scale} sets {re.escape(key)} itself, allowed"
    with pytest.raises(UserError, match=message):
        plan_of("2", tmp_path, scale=scale, overrides=[override], **settings)
    plan = plan_of("2", tmp_path, overrides=[override], **settings)
    value = compose(list(plan.students[0].overrides))
    assert str(OmegaConf.select(value, key)).replace(" ", "") == override.partition("=")[2]


def test_runs_of_another_teacher_or_other_data_are_stale(one, tmp_path):
    plan, job, train = one
    summary = train()
    assert read_states(plan.jobs)[job.directory].name == "done"
    place = job.directory / "summary.json"

    def state(**changes):
        changed = {key: value for key, value in {**summary, **changes}.items() if value is not None}
        changed["checksum"] = checksum(changed)
        place.write_text(json.dumps(changed))
        return read_states(plan.jobs)[job.directory]

    assert state().name == "done"
    stale = state(teacher_digest="ab" * 32)
    assert stale.name == "stale" and "another teacher (abababababab) than" in stale.text
    assert str(job.teacher) in stale.text and "retry=true" in stale.text
    assert state(teacher_digest=None).name == "done"  # of an earlier version
    (found,) = estimate(plan, {job.directory: stale}, tmp_path) or [None]
    assert found.known == 0  # trained again only when told


def test_a_smoke_test_has_a_teacher_that_learned_from_more(tmp_path):
    plan = plan_of("2", tmp_path, scale="smoke", pairs=["resnet20-resnet8"], seeds=[0])
    (teacher,) = plan.teachers
    assert teacher.identified["data"]["train_per_class"] == 100
    assert {job.identified["data"]["train_per_class"] for job in plan.students} == {10}
    assert {job.epochs for job in plan.students} == {30}
    assert not plan.table.in_paper and plan.table.data == "digits_pool"


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("2", {}, "CIFAR-100, top-1 accuracy (%)"),
        ("3", {}, "Tiny-ImageNet, top-1 and top-5 accuracy (%)"),
        ("2", {"scale": "short"}, "CIFAR-100 (scale=short, 12, 24 epochs), top-1 accuracy (%)"),
        ("2", {"protocol": "common"}, "CIFAR-100 (240 epochs), top-1 accuracy (%)"),
        ("2", {"scale": "smoke"}, "embedded digits (scale=smoke, 30 epochs), top-1 accuracy (%)"),
    ],
)
def test_a_title_says_what_was_run(name, settings, expected, tmp_path):
    narrow = {"pairs": ["resnet32x4-resnet8x4"], "methods": ["kd", "mld"]}
    assert title(plan_of(name, tmp_path, **narrow, **settings)) == expected


def test_a_table_may_bring_protocol_and_seeds(tmp_path):
    narrow = {"methods": ["kd"], "variants": ["uniform", "ea"]}
    plan = make_plan(make_table(load_table("control_digits"), **narrow), output_root=str(tmp_path))
    assert (plan.protocol, plan.seeds) == ("default", tuple(range(10)))
    assert {job.epochs for job in plan.students} == {30}
    assert (
        title(plan) == "Which samples, or how much? embedded digits (30 epochs), top-1 accuracy (%)"
    )
