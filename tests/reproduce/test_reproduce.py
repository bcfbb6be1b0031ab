"""``scripts/reproduce.py`` as a user meets it: real processes, real runs, killed and restarted."""

import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from processes import Command
from safetensors.torch import load_file, save_file

from eakd.config import ROOT

SCRIPT = ROOT / "scripts" / "reproduce.py"
WORKERS = ["hydra/launcher=workers", "hydra.launcher.n_jobs=2"]
QUICK = ["scale=smoke", 'overrides=["recipe.epochs=2"]']
# Four runs a seed, and one teacher.
SMALL = ["table=8", *QUICK, "pairs=[resnet14-resnet8]", "methods=[kd]", "seeds=[0,1]"]


def start(folder, *words):
    """`scripts/reproduce.py` in a process group of its own."""
    return Command([SCRIPT, *words], cwd=folder, merged=True, alone=True)


def reproduce(folder, *words, status=0):
    process = start(folder, *words)
    output = process.communicate()[0]
    assert process.returncode == status, output
    return output


def finished(folder):
    return sorted(folder.glob("outputs/**/summary.json"))


def report(folder, name):
    """The files of a report without its times."""
    files = {}
    for path in sorted((folder / "outputs" / "reports" / name).iterdir()):
        lines = path.read_text().splitlines()
        files[path.name] = [line for line in lines if "Time:" not in line]
        if path.suffix == ".csv":
            rows = list(csv.DictReader(lines))
            files[path.name] = [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    return files


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder in which the small table is finished, and what the command printed."""
    folder = tmp_path_factory.mktemp("small")
    return folder, reproduce(folder, *SMALL)


def test_the_table_comes_out(small):
    folder, output = small
    assert len(finished(folder)) == 9
    files = report(folder, "table8-authors-smoke")
    assert set(files) == {f"report.{kind}" for kind in ("md", "tex", "csv", "html", "svg")}
    assert "8 of 8 runs are finished" in output
    for path in finished(folder):
        if "none" not in path.parts:
            assert f"{json.loads(path.read_text())['top1_last']:.2f}" in output


def test_launched_again_it_runs_what_is_missing(small):
    folder, _ = small
    before = {path: path.stat().st_mtime_ns for path in finished(folder)}
    output = reproduce(folder, *SMALL[:-1], "seeds=[0,1,2]", "variants=[ea,uniform]")
    assert "2 of 6 runs to do" in output
    after = {path: path.stat().st_mtime_ns for path in finished(folder)}
    assert len(after) == 11 and before.items() <= after.items()


def test_plan_and_status_and_report_change_nothing(small):
    folder, _ = small
    before = sorted(folder.rglob("*"))
    plan = reproduce(folder, *SMALL, "mode=plan", "seeds=[0,1,7]")
    assert "12 runs, 0 of them teachers" in plan
    assert "8 done, 0 running, 0 interrupted, 0 failed, 4 to do" in plan
    assert "hours remain on one" in plan and plan.count(" 2d 1t\n") == 4
    assert "\n  to do " not in plan
    every = reproduce(folder, *SMALL, "mode=plan", "seeds=[0,1,7]", "verbose=true")
    assert every.count("\n  to do ") == 4 and every.count("\n  done ") == 8
    status = reproduce(folder, *SMALL, "mode=status", "seeds=[0,1,7]")
    assert "8 done" in status and "\n  to do " not in status
    assert sorted(folder.rglob("*")) == before
    partial = reproduce(folder, *SMALL, "mode=report", "seeds=[0,1,7]")
    assert "8 of 12 runs are finished" in partial


def test_a_smoke_test_has_one_pair_or_all_or_any(tmp_path):
    words = ["table=2", "scale=smoke", "methods=[kd]", "seeds=[0]", "mode=plan"]
    assert "2 runs, 1 of them teachers" in reproduce(tmp_path, *words)
    assert "12 runs, 5 of them teachers" in reproduce(tmp_path, *words, "pairs=all")
    assert "2 runs, 1 of them teachers" in reproduce(tmp_path, *words, "pairs=[vgg13-vgg8]")


def test_the_report_goes_into_a_document(small):
    folder, _ = small
    name = "table8-authors-smoke"
    (folder / "results.md").write_text(f"# Ours\n<!-- begin {name} -->\n<!-- end {name} -->\nEnd\n")
    reproduce(folder, *SMALL, "mode=report", "into=results.md")
    text = (folder / "results.md").read_text()
    assert text.startswith("# Ours\n") and text.endswith("End\n") and "| uniform |" in text
    output = reproduce(folder, *SMALL, "mode=report", "into=nothing.md", status=2)
    assert output.splitlines()[-1].startswith("error: nothing.md: found no block")


@pytest.mark.slow
def test_a_failed_run_is_named_and_retried(tmp_path):
    words = [*SMALL, "seeds=[0]", "variants=[uniform,ea]"]
    planned = reproduce(tmp_path, *words, "mode=plan", "verbose=true")
    victim = next(line for line in planned.splitlines() if "kd ea" in line)
    directory = tmp_path / victim.partition("(")[2].partition(")")[0]
    directory.mkdir(parents=True)
    (directory / "last.pt").write_bytes(b"not a checkpoint")
    output = reproduce(tmp_path, *words, status=2)
    assert len(finished(tmp_path)) == 2  # the teacher and the other run
    assert output.splitlines()[-1].startswith("error: 1 of 3 runs are not finished (1 failed)")
    status = reproduce(tmp_path, *words, "mode=status")
    assert "  failed      kd ea, resnet14-resnet8, seed 0" in status and "unreadable" in status
    assert "1 of 2 runs are finished" in reproduce(tmp_path, *words, "mode=report")

    assert "0 of 2 runs to do" in reproduce(tmp_path, *words, status=2)  # not without being asked
    (directory / "last.pt").unlink()
    reproduce(tmp_path, *words, "retry=true")
    assert len(finished(tmp_path)) == 3


def test_students_of_a_failed_teacher_wait_and_others_go_on(tmp_path):
    words = ["table=8", *QUICK, "methods=[kd]", "variants=[uniform]", "seeds=[0]"]
    words.append("pairs=[resnet14-resnet8,resnet20-resnet8]")
    planned = reproduce(tmp_path, *words, "mode=plan", "verbose=true")
    victim = next(line for line in planned.splitlines() if "teacher resnet14" in line)
    directory = tmp_path / victim.partition("(")[2].partition(")")[0]
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    output = reproduce(tmp_path, *words, status=2)
    assert "runs that need these teachers wait: checkpoints/smoke/digits_pool/resnet14" in output
    assert sorted(path.parts[-3] for path in finished(tmp_path)) == ["kd", "none"]
    assert (directory / "config.json").read_text() == "{}"
    assert not (directory / "status.json").exists()


def test_a_lock_from_another_machine_is_respected(tmp_path):
    words = [*SMALL[:-1], "seeds=[0]"]
    planned = reproduce(tmp_path, *words, "mode=plan", "verbose=true")
    victim = next(line for line in planned.splitlines() if "kd interaction" in line)
    lock = tmp_path / victim.partition("(")[2].partition(")")[0] / "lock.json"
    lock.parent.mkdir(parents=True)
    owner = {"host": "node7", "system": "x", "pid": 1, "started": "5", "token": "abc"}
    lock.write_text(json.dumps(owner))
    process = start(tmp_path, *words)
    while process.poll() is None:
        os.utime(lock)  # its owner's heartbeat
        time.sleep(0.2)
    output, _ = process.communicate()
    assert process.returncode == 2 and len(finished(tmp_path)) == 4
    assert "(1 running)" in output.splitlines()[-1]
    status = reproduce(tmp_path, *words, "mode=status")
    assert "running     kd interaction" in status and "process 1 on node7" in status
    assert json.loads(lock.read_text()) == owner


@pytest.mark.slow
def test_runs_of_another_teacher_are_shown_and_trained_again_when_told(tmp_path):
    words = [*SMALL[:-1], "seeds=[0]"]
    reproduce(tmp_path, *words, "variants=[uniform,ea]")
    (teacher,) = tmp_path.glob("checkpoints/**/resnet14.safetensors")
    weights = load_file(teacher)
    save_file({k: v * 1.5 if k == "fc.weight" else v for k, v in weights.items()}, teacher)
    words.append("variants=[uniform,ea,base]")
    plan = reproduce(tmp_path, *words, "mode=plan")
    assert "2 stale, 1 to do" in plan and plan.count(" 1s\n") == 2
    before = {path: path.read_bytes() for path in finished(tmp_path)}
    output = reproduce(tmp_path, *words, status=2)
    assert "(2 stale)" in output.splitlines()[-1]
    assert "| kd | – (0 of 1, 1 stale) |" in output and "Warning: 2 runs stale" in output
    (written,) = tmp_path.glob("outputs/reports/*/report.md")
    assert written.read_text().count(": stale: made with another teacher") == 2
    assert all(path.read_bytes() == text for path, text in before.items())
    assert "3 of 3 runs are finished" in reproduce(tmp_path, *words, "retry=true")
    digests = {json.loads(path.read_text()).get("teacher_digest") for path in finished(tmp_path)}
    assert len(digests - {None}) == 1


def obeying_permissions():
    """What to put before a command so that even the superuser obeys permissions."""
    if os.name != "posix" or os.getuid() != 0:
        return []
    words = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
    if shutil.which("setpriv") is None or subprocess.run([*words, "true"]).returncode != 0:
        pytest.skip("the superuser reads and writes everything, and setpriv is not there")
    return words


def test_what_may_only_be_read_is_reported(small):
    """As from a disk that is mounted read-only, with a directory that nobody may read."""
    folder, _ = small
    before = obeying_permissions()
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / "copy"
        shutil.copytree(folder, copy)
        shutil.rmtree(copy / "outputs" / "reports", ignore_errors=True)
        for path in (copy.parent, copy, *copy.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        closed = min(copy.glob("outputs/digits_pool/*/kd+interaction/seed0-*"))
        closed.chmod(0)

        def command(script, *words):
            done = subprocess.run(
                [*before, sys.executable, str(ROOT / "scripts" / script), *words],
                cwd=copy,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
            return done.stdout + done.stderr

        try:
            output = command("reproduce.py", *SMALL, "mode=report")
            assert "7 of 8 runs are finished" in output and "report is not written" in output
            output = command("reproduce.py", *SMALL, "mode=status")
            (line,) = [line for line in output.splitlines() if line.startswith("  damaged  ")]
            assert f"{closed.relative_to(copy)}/config.json: found no readable file" in line
            output = command("report.py", "runs='outputs/digits_pool/*/kd*/**'", "by=[method]")
            assert "| kd+interaction | 1 |" in output
            assert re.search(r"Left out: 1 of \d+ runs \(1 damaged\)", output)
        finally:
            for path in (copy.parent, copy, closed, *copy.rglob("*")):
                path.chmod(0o755)


METHOD = """
from eakd.distillers import KD


class Mine(KD):
    pass
"""


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [[], WORKERS])
def test_a_method_of_ones_own(launcher, tmp_path, monkeypatch):
    """From a directory of configs, through any launcher, with its EA form."""
    (tmp_path / "my configs" / "distiller").mkdir(parents=True)
    (tmp_path / "my configs" / "distiller" / "mine.yaml").write_text(
        "defaults: [kd, _self_]\nname: mine\n_target_: mine_of_tests.Mine\n"
    )
    (tmp_path / "mine_of_tests.py").write_text(METHOD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    words = ["--config-dir", "my configs", "table=2", *QUICK, "seeds=[0]", *launcher]
    words += ["pairs=[resnet14-resnet8]", "methods=[mine,ea_mine,mine+matched]"]
    output = reproduce(tmp_path, *words)
    assert "3 of 3 runs are finished" in output and "| ea_mine − mine |" in output
    (command,) = re.findall(r"^- Command: (.*)$", output, re.M)
    assert f"'--config-dir={tmp_path}/my configs' table=2" in command
    for path in finished(tmp_path):
        assert path.parts[-3] in ("none", "mine", "ea_mine", "mine+matched")
    assert len(finished(tmp_path)) == 4


@pytest.mark.slow
def test_two_processes_share_the_work(tmp_path):
    processes = [start(tmp_path, *SMALL, "seeds=[0,1,2]") for _ in range(2)]
    outputs = [process.communicate()[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        # Who is done first says that the other still works.
        elsewhere = re.match(r"error: 1 of 13 .*\(1 running\)", output.splitlines()[-1])
        assert process.returncode == (2 if elsewhere else 0), output
    trained = sum(output.count(": last ") for output in outputs)
    assert trained == len(finished(tmp_path)) == 13
    for path in finished(tmp_path):
        lines = (path.parent / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    assert "12 of 12 runs are finished" in reproduce(tmp_path, *SMALL, "seeds=[0,1,2]")


@pytest.mark.slow
def test_killed_three_times_the_report_is_that_of_an_undisturbed_run(tmp_path):
    """Methods of every kind, two seeds, two workers; the whole process tree killed."""
    methods = "methods=[none,ea_kd,ctkd,mld,ea_reviewkd,fcfd]"
    words = ["table=2", *QUICK, methods, "seeds=[0,1]", *WORKERS]
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    undisturbed.mkdir()
    disturbed.mkdir()
    reproduce(undisturbed, *words)
    assert len(finished(undisturbed)) == 13

    moments = random.Random(os.urandom(8))
    for _ in range(3):
        done = len(finished(disturbed)) + moments.randrange(4)
        pause = moments.random() * 2
        process = start(disturbed, *words)
        while len(finished(disturbed)) < done and process.poll() is None:
            time.sleep(0.02)
        time.sleep(pause)
        assert process.poll() is None, f"done before the kill ({done}, {pause})"
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    reproduce(disturbed, *words)
    name = "table2-authors-smoke"
    assert report(disturbed, name) == report(undisturbed, name)
    for path in finished(undisturbed):  # and the weights are the same, bit for bit
        name = path.parent.relative_to(undisturbed) / "last.safetensors"
        one, other = (load_file(folder / name) for folder in (undisturbed, disturbed))
        assert one.keys() == other.keys() and all(one[k].equal(other[k]) for k in one)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            [],
            "error: table: found 'nothing', allowed is one of 1, 2, 3, 4, 5, 6, 7, 8, control, ",
        ),
        (
            ["table=9"],
            "error: table: found '9', allowed is one of 1, 2, 3, 4, 5, 6, 7, 8, control, ",
        ),
        (["table=1", "mode=go"], "error: mode: found 'go', allowed is one of plan, run, status"),
        (["table=1", "pairs=[a-b]"], "error: pairs: found 'a-b', allowed is one of resnet32x4-"),
        (["table=1", "methods=[xkd]"], "error: methods: found 'xkd', allowed is one of kd, ctkd"),
        (["table=1", "protocol=x"], "error: protocol: found 'x', allowed is one of authors"),
        (["table=1", "protocl=x"], "error: protocl: found an unknown key"),
        (["table=1", 'overrides=["recipe.x=1"]'], "error: recipe.x: found an unknown key"),
        (["table=1", 'overrides=["seed=1"]'], "error: overrides: found 'seed=1'"),
        (["table=1", "overrides=x"], "error: overrides: found 'x', allowed is a list"),
        (["table=1", "seeds=1"], "error: seeds: found 1, allowed is a list"),
    ],
)
def test_bad_input_is_one_line(words, message, tmp_path):
    output = reproduce(tmp_path, *words, status=2)
    assert output.startswith(message) and len(output.splitlines()) == 1
    assert list(tmp_path.rglob("*.json")) == []
