"""Plans build a table of a teacher's answers where its runs have more epochs than it has views."""

import json
import shutil

import processes
import pytest
import torch
from safetensors.torch import load_file

from eakd.composing import compose
from eakd.config import CONFIGS, ROOT, method_files
from eakd.data import Pipeline, digits
from eakd.distillers.base import Distiller
from eakd.reproduce.answers import tables_that_pay
from eakd.reproduce.plan import State, make_plan
from eakd.reproduce.progress import describe_plan, estimate
from eakd.reproduce.states import read_states
from eakd.reproduce.table import load_table, make_table
from eakd.targets import target_of

QUICK = ["threads=1", "device=cpu", "precision=float32"]


@pytest.mark.parametrize("method", list(method_files(CONFIGS)))
def test_a_methods_file_and_its_class_say_the_same(method):
    node = compose([f"distiller={method}"]).distiller
    assert node.get("logits_only", False) == target_of(node, "distiller", Distiller).takes_answers


@pytest.mark.parametrize(
    ("table", "data", "samples"),
    [("2", "cifar100", 50_000), ("control_digits", "digits_pool", 100)],
)
def test_a_plan_counts_the_views_that_a_pipeline_has(table, data, samples, tmp_path):
    definition = load_table(table)
    narrowed = make_table(definition, pairs=["resnet20-resnet8"], methods=["kd", "fcfd"])
    plan = make_plan(narrowed, output_root=str(tmp_path))
    config = compose([f"data={data}"]).data
    options = {"crop_padding": config.crop_padding, "flip": config.flip}
    small = Pipeline(
        digits(train_per_class=1), batch_size=2, mean=[0.3] * 3, std=[0.3] * 3, **options
    )
    expected = small.views, 4 * small.views * samples * config.num_classes
    for cell, job in plan.each():
        assert job.answers == (expected if cell.method == "kd" else None)


def planned(tmp_path, epochs, *overrides, methods=("kd", "ea_mld", "reviewkd"), seeds=(0, 1)):
    table = make_table(load_table("2"), pairs=["resnet14-resnet8"], methods=list(methods))
    plan = make_plan(
        table,
        seeds=list(seeds),
        scale="smoke",
        overrides=[f"recipe.epochs={epochs}", *QUICK, *overrides],
        output_root=str(tmp_path / "outputs"),
        checkpoint_root=str(tmp_path / "checkpoints"),
    )
    return plan, read_states(plan.jobs)


def test_a_table_pays_if_its_runs_have_more_epochs_than_views(tmp_path, monkeypatch):
    assert tables_that_pay(*planned(tmp_path, 6)) == []  # 4 runs of 6 epochs, 25 views
    plan, states = planned(tmp_path, 7)
    (shared,) = tables_that_pay(plan, states)
    assert (shared.views, shared.epochs, len(shared.jobs), shared.room) == (25, 28, 4, True)
    assert not any("reviewkd" in str(place) for place in shared.jobs)
    text = describe_plan(plan, states, tmp_path, every_run=False, grid=True)
    assert "a table of resnet14's answers (25 views, 0.00 GB) pays: 4 runs have 28 epochs" in text
    for word in ("teacher.table=false", "data.rotation=5"):
        assert tables_that_pay(*planned(tmp_path, 7, word)) == []
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    (shared,) = tables_that_pay(plan, states)
    assert not shared.room and "no room" in str(shared)


def test_the_time_that_remains_knows_of_tables(tmp_path):
    """Two runs that begin with a table: at the pace of such a run once there is one."""
    plan, states = planned(tmp_path, 20, methods=("kd",))
    (teacher,), (one, _) = plan.teachers, plan.students
    kind = one.kind
    speeds = {"a machine": {kind: 10.0, teacher.kind: 1.0}}
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "speed.json").write_text(json.dumps(speeds))
    (found,) = estimate(plan, states, tmp_path / "outputs")
    assert (found.known, found.spared) == (3, 2)
    assert found.hours == pytest.approx((40 * 10 + 20) / 3600)
    text = describe_plan(plan, states, tmp_path / "outputs", every_run=False)
    assert "for 3 runs; less, for a table will answer 2 of them" in text

    place = one.directory
    place.mkdir(parents=True)
    (place / "metrics.jsonl").write_text('{"epoch": 1, "train_seconds": 2.0}\n')
    (place / "environment.json").write_text(
        json.dumps({"teacher_table": "some", "accelerator": "a machine"})
    )
    begun = {**states, place: State("interrupted", "epoch 1 of 20", 1)}
    (found,) = estimate(plan, begun, tmp_path / "outputs")
    # The other has too few epochs alone to build a table, 20 for 25 views.
    assert found.hours == pytest.approx((19 * 2 + 20 * 10 + 20) / 3600) and found.spared == 0


@pytest.mark.slow
def test_reproducing_with_tables_gives_the_same_weights(tmp_path):
    for folder, more in (("with", []), ("without", ["teacher.table=false"])):
        words = ["recipe.epochs=13", *QUICK, *more]
        command = ["table=2", "scale=smoke", "pairs=[resnet14-resnet8]", "seeds=[0]"]
        command += ["methods=[kd,ea_dkd,reviewkd]", f"overrides={json.dumps(words)}"]
        (tmp_path / folder).mkdir()
        done = processes.run([ROOT / "scripts" / "reproduce.py", *command], cwd=tmp_path / folder)
        assert done.returncode == 0, done.stderr
        assert ("answers (25 views" in done.stdout + done.stderr) == (folder == "with")
    runs = [p.relative_to(tmp_path / "with") for p in (tmp_path / "with").rglob("summary.json")]
    assert len(runs) == 4  # the teacher is one
    for run in runs:
        one, other = (tmp_path / folder / run for folder in ("with", "without"))
        weights, expected = (load_file(path.with_name("last.safetensors")) for path in (one, other))
        assert all(torch.equal(weights[key], expected[key]) for key in expected)
        uses = json.loads(one.read_text()).get("teacher_table", "none") != "none"
        assert uses == (("kd" in run.parts) or ("ea_dkd" in run.parts))
