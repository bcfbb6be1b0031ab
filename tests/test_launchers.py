"""Sweeps through every launcher, with the real engines: results, failures, signals, requeues."""

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
import torch
from joblib import Parallel, delayed
from processes import Command
from safetensors.torch import load_file

from eakd.composing import compose
from eakd.errors import Diverged, Interrupted, UserError
from eakd.training.run import run
from eakd.training.signals import collected
from eakd.workers import cores, pin, share

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}  # worker processes import this checkout


def start(*words, cwd=ROOT, env=ENVIRONMENT):
    return Command([ROOT / "scripts" / "train.py", *words], cwd=cwd, env=env)


def start_afresh(*words, cwd=ROOT, before=(), env=ENVIRONMENT):
    """With an interpreter of its own, for what depends on it; ends when all of its children do."""
    return subprocess.Popen(
        [*before, sys.executable, str(ROOT / "scripts" / "train.py"), *words],
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ray_environment():
    environment = {**ENVIRONMENT, "RAY_AUTH_MODE": "disabled"}
    environment.pop("RAY_ADDRESS", None)
    return environment


def sweep(*words, start=start, **options):
    """The exit status and everything printed."""
    process = start("-m", *words, **options)
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def small(tiny, root):
    words = [word for word in tiny if not word.startswith("output_root")]
    return [*words, "distiller=none", "threads=1", f"output_root={root}"]


def summaries(root):
    return {
        (line["seed"], line["student"]): line
        for line in (json.loads(path.read_text()) for path in Path(root).glob("**/summary.json"))
    }


def errors(text):
    return [line for line in text.splitlines() if "error: " in line]


def same_weights(*folders):
    first, second = (load_file(folder / "last.safetensors") for folder in folders)
    return all(torch.equal(first[name], second[name]) for name in first)


# What the launchers rely on


@pytest.mark.parametrize(
    "error",
    [UserError("a: found b"), Diverged("loss"), Interrupted(signal.SIGTERM, "last.pt")],
    ids=lambda error: type(error).__name__,
)
def test_errors_survive_the_way_to_the_main_process(error):
    error.reported = True
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and str(again) == str(error) and vars(again) == vars(error)


def test_importing_the_config_module_is_enough_to_resolve():
    code = (
        "import eakd.config; from omegaconf import OmegaConf;"
        "from hydra.core.config_store import ConfigStore;"
        "assert OmegaConf.has_resolver('run_name') and OmegaConf.has_resolver('published');"
        "assert 'resnet8.yaml' in ConfigStore.instance().list('student')"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, check=False).returncode == 0
    )


def test_only_awaited_signals_are_taken():
    assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL
    with collected():
        assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    told = []
    signal.signal(signal.SIGUSR2, lambda number, frame: told.append(number))
    try:
        with collected() as inbox:
            signal.raise_signal(signal.SIGUSR2)
            assert inbox.received == [signal.SIGUSR2] and told == []
        Interrupted(signal.SIGUSR2, "last.pt").hand_on()
        assert told == [signal.SIGUSR2]
    finally:
        signal.signal(signal.SIGUSR2, signal.SIG_DFL)


# Workers on one machine


def pinned(folder, count):
    """A job that ends when ``count`` of its kind have begun, so that each has its own process."""
    slot = pin(count)
    (folder / f"{os.getpid()}").touch()
    while len(list(folder.iterdir())) < count:
        time.sleep(0.01)
    return slot, os.environ.get("CUDA_VISIBLE_DEVICES"), sorted(os.sched_getaffinity(0))


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no CPU affinity here")
def test_every_worker_keeps_to_its_own_part(tmp_path):
    found = Parallel(n_jobs=2, backend="loky")(delayed(pinned)(tmp_path, 2) for _ in range(2))
    assert sorted(slot for slot, _, _ in found) == [0, 1]
    for slot, devices, affinity in found:
        if torch.cuda.is_available():
            assert devices == str(slot % torch.cuda.device_count())
        else:
            assert affinity == list(share(cores(), slot, 2))


def test_the_share_of_a_worker():
    assert [share((0, 1, 2, 3, 4), slot, 2) for slot in range(2)] == [(0, 1), (2, 3)]
    assert [share((4, 7), slot, 3) for slot in range(3)] == [(4,), (7,), (4,)]


def test_the_slot_of_a_killed_worker_is_free_again():
    code = "import sys; from eakd.workers import claim; print(claim({}, 2), flush=True); input()"

    def worker():
        process = subprocess.Popen(
            [sys.executable, "-c", code.format(2**22 + os.getpid())],
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return process, int(process.stdout.readline())

    (first, slot), (second, other) = worker(), worker()
    assert {slot, other} == {0, 1}
    first.kill()
    first.wait()
    third, again = worker()
    assert again == slot
    for process in (second, third):
        process.communicate("\n", timeout=60)


@pytest.mark.slow
def test_joblib_finishes_the_other_runs_and_says_what_failed(tiny, tmp_path):
    words = [word for word in small(tiny, tmp_path) if word != "threads=1"]
    status, out, err = sweep("hydra/launcher=workers", *words, "recipe.lr=0.1,-1", "seed=0,1")
    assert status == 2, err
    told = errors(err)
    assert told == ["error: recipe.lr: found -1, allowed is a number > 0"] * 2, err
    assert "Traceback" not in err
    done = summaries(tmp_path)
    assert {seed for seed, _ in done} == {0, 1}
    for line in done.values():  # the same numbers as without a launcher
        alone = [*words, "recipe.lr=0.1", f"seed={line['seed']}", f"run_dir={tmp_path / 'alone'}"]
        assert run(compose([*alone, "resume=false"]))["top1_last"] == line["top1_last"]
        if not torch.cuda.is_available() and hasattr(os, "sched_getaffinity"):
            shares = [list(share(cores(), slot, 2)) for slot in range(2)]
            assert line["environment"]["affinity"] in shares
            assert line["environment"]["threads"] == len(shares[0])
        shutil.rmtree(tmp_path / "alone")
    status, out, err = sweep("hydra/launcher=workers", *words, "seed=0,1", "recipe.lr=0.1")
    assert status == 0 and out.count("finished before") == 2, err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_save_and_stop_when_the_sweep_is_killed(tiny, tmp_path, number):
    words = [*small(tiny, tmp_path), "recipe.epochs=2000", "seed=0,1,2,3"]
    process = start_afresh("-m", "hydra/launcher=workers", *words)
    wait_for_epochs(tmp_path, 2, process, runs=2)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)  # until the workers have closed their outputs, too
    assert process.returncode == -number
    assert err.count("SIGTERM: state saved to") == 2, err
    states = [json.loads(path.read_text())["state"] for path in tmp_path.glob("**/status.json")]
    assert states == ["interrupted"] * 2  # and the other runs did not begin


# The launcher inside this process


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_signal_ends_a_whole_sweep(tiny, tmp_path, launcher):
    """joblib with one worker uses no other process."""
    words = [*small(tiny, tmp_path), "recipe.epochs=500", "seed=0,1", f"hydra/launcher={launcher}"]
    words += ["hydra.launcher.n_jobs=1"] if launcher == "joblib" else []
    process = start("-m", *words)
    wait_for_epochs(tmp_path, 2, process)
    process.terminate()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert err.count("the same command continues the run") == 1 and "Traceback" not in err
    (status,) = tmp_path.glob("**/status.json")  # the second run did not begin
    assert json.loads(status.read_text())["state"] == "interrupted"


@pytest.mark.slow
def test_a_refused_write_is_one_line_and_the_other_runs_go_on(tiny, tmp_path):
    limit = ("bash", "-c", 'ulimit -f 900; exec "$@"', "bash")  # KiB: less than ResNet-32's state
    words = [word for word in small(tiny, tmp_path) if not word.startswith(("student", "teacher"))]
    status, _, err = sweep(*words, "student=resnet32,resnet8", start=start_afresh, before=limit)
    assert status == 2, err
    (line,) = errors(err)
    assert line.startswith(f"error: {tmp_path}/") and line.endswith(": File too large"), line
    assert "Traceback" not in err
    assert [student for _, student in summaries(tmp_path)] == ["resnet8"]


# Missing plugins


@pytest.mark.parametrize(
    ("launcher", "plugin", "extra"),
    [
        ("workers", "hydra_joblib_launcher", "joblib"),
        ("slurm", "hydra_submitit_launcher", "slurm"),
        ("ray_cluster", "hydra_ray_launcher", "ray"),
    ],
)
def test_a_missing_plugin_is_named_with_its_extra(launcher, plugin, extra, tmp_path):
    """Site packages with everything but the plugin: a folder of links, read instead of them."""
    packages, links = Path(sysconfig.get_path("purelib")), tmp_path / "packages"
    (links / "hydra_plugins").mkdir(parents=True)
    for path in packages.iterdir():
        if path.name != "hydra_plugins" and path.suffix != ".pth":
            (links / path.name).symlink_to(path)
    for path in (packages / "hydra_plugins").iterdir():
        if path.name != plugin:
            (links / "hydra_plugins" / path.name).symlink_to(path)
    result = subprocess.run(
        [sys.executable, "-S", "scripts/train.py", "-m", f"hydra/launcher={launcher}", "seed=0,1"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{links}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: hydra/launcher: ") and f"pip install 'eakd[{extra}]'" in line


@pytest.mark.parametrize("launcher", ["workers", "slurm", "ray_cluster"])
def test_the_plugins_know_the_keys_of_our_launchers(launcher):
    words = [f"hydra/launcher={launcher}", "--cfg", "hydra", "--package", "hydra.launcher"]
    process = start(*words)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and "_target_: hydra_plugins." in out, err


# submitit and Ray


def wait_for_epochs(root, count, process, runs=1):
    for _ in range(1200):
        lines = [len(path.read_text().splitlines()) for path in root.glob("**/metrics.jsonl")]
        if sum(line >= count for line in lines) >= runs:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError(f"{root} did not reach {count} epochs")


def job_process(root):
    """The process that runs a submitit job whose folder is below ``root``."""
    found = subprocess.run(
        ["pgrep", "-f", f"submitit.core._submit {root}"], capture_output=True, text=True, check=True
    )
    (pid,) = found.stdout.split()
    return int(pid)


@pytest.fixture(scope="module")
def undisturbed(tiny, tmp_path_factory):
    """Words of a run that lasts a few seconds, and what it ends with when nothing happens."""
    folder = tmp_path_factory.mktemp("undisturbed")
    words = [*small(tiny, folder), "recipe.epochs=60", "recipe.evaluate_every=10", "seed=3"]
    run(compose([*words, f"run_dir={folder}"]))
    return words, folder


def disturb(words, root, number):
    """Start the run as a submitit job, send it a signal within an epoch; (process, job's pid)."""
    local = ("hydra/launcher=submitit_local", "hydra.launcher.timeout_min=10")
    process = start("-m", *local, *words, f"output_root={root}")
    wait_for_epochs(root, 3, process)
    job = job_process(root)
    os.kill(job, number)
    return process, job


def run_folder(root):
    (config,) = root.glob("digits/**/config.json")
    return config.parent


def wait_for_words(path, words, process):
    for _ in range(600):
        if path.exists() and words in path.read_text():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError(f"{path} does not say {words!r}")


@pytest.mark.slow
def test_a_submitit_job_that_is_terminated_continues_exactly(undisturbed, tmp_path):
    """As schedulers preempt: SIGTERM, and SIGKILL when the grace time is over."""
    words, whole = undisturbed
    process, job = disturb(words, tmp_path, signal.SIGTERM)
    wait_for_words(run_folder(tmp_path) / "train.log", "SIGTERM: state saved to", process)
    os.kill(job, signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1 and len(errors(err)) == 1, err
    assert "the same command runs what is missing" in err and "Traceback" not in err
    local = ("hydra/launcher=submitit_local", "hydra.launcher.timeout_min=10")
    status, _, err = sweep(*local, *words, f"output_root={tmp_path}")
    assert status == 0, err
    assert "continuing after epoch" in (run_folder(tmp_path) / "train.log").read_text()
    assert same_weights(whole, run_folder(tmp_path))


@pytest.mark.slow
def test_a_submitit_job_at_its_time_limit_saves_is_requeued_and_continues_exactly(
    undisturbed, tmp_path
):
    words, whole = undisturbed
    process, _ = disturb(words, tmp_path, signal.SIGUSR2)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    (log,) = tmp_path.glob(".submitit/*/*_log.err")
    text = log.read_text()  # saved by the loop first, then submitit's handler
    assert 0 <= text.index("SIGUSR2: state saved to") < text.index("Caught signal SIGUSR2")
    lines = (run_folder(tmp_path) / "train.log").read_text()
    assert lines.index("SIGUSR2: saving") < lines.index("continuing after epoch")
    assert same_weights(whole, run_folder(tmp_path))


@pytest.mark.slow
def test_submitit_finishes_the_other_runs_and_says_what_failed(tiny, tmp_path):
    local = ("hydra/launcher=submitit_local", "hydra.launcher.timeout_min=10")
    status, _, err = sweep(*local, *small(tiny, tmp_path), "recipe.lr=-1,0.1")
    assert status == 2 and errors(err) == ["error: recipe.lr: found -1, allowed is a number > 0"]
    assert "Traceback" not in err and len(summaries(tmp_path)) == 1


@pytest.fixture
def ray_cluster(tmp_path):
    """A running Ray of one core, started in another folder than the sweep."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    script = Path(sysconfig.get_path("scripts")) / "ray"
    words = ("--head", "--port=0", "--num-cpus=1", "--include-dashboard=false", "--block")
    words += ("--object-store-memory=78643200",)
    with (elsewhere / "log").open("w") as log:
        process = subprocess.Popen(
            [script, "start", *words],
            cwd=elsewhere,
            env=ray_environment(),
            stdout=log,
            stderr=log,
        )
    for _ in range(1200):
        address = re.search(r"--address='([\d.:]+)'", (elsewhere / "log").read_text())
        if address:
            break
        assert process.poll() is None, (elsewhere / "log").read_text()
        time.sleep(0.1)
    yield address[1], elsewhere
    process.terminate()
    process.wait()


@pytest.mark.slow
def test_ray_finishes_the_other_runs_and_says_what_failed(tiny, tmp_path, ray_cluster):
    address, elsewhere = ray_cluster
    ray = ("hydra/launcher=ray_cluster", f"hydra.launcher.ray.init.address={address}")
    words = ["hydra.launcher.ray.remote.num_gpus=0", *small(tiny, "here"), "recipe.lr=-1,0.1"]
    status, out, err = sweep(*ray, *words, start=start_afresh, cwd=tmp_path, env=ray_environment())
    assert status == 2, out + err
    told = errors(out + err)
    assert len(told) == 1 and told[0].endswith("recipe.lr: found -1, allowed is a number > 0")
    assert "Traceback" not in out + err
    assert len(summaries(tmp_path / "here")) == 1  # a relative folder means this one's
    assert [path.name for path in elsewhere.iterdir()] == ["log"]


@pytest.mark.slow
def test_a_ray_of_our_own_runs_a_lost_run_again(undisturbed, tmp_path):
    words, whole = undisturbed
    ray = ("hydra/launcher=ray_cluster", "hydra.launcher.ray.remote.num_gpus=0")
    ray += ("hydra.launcher.ray.init.address=local", "+hydra.launcher.ray.init.num_cpus=1")
    root = tmp_path / "outputs"
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "scripts/train.py", "-m", *ray, *words, f"output_root={root}"],
            cwd=ROOT,
            env=ray_environment(),
            stdout=log,
            stderr=log,
        )
    wait_for_epochs(root, 3, process)
    wait_for_words(tmp_path / "log", "_run_job pid=", process)
    worker = re.search(r"_run_job pid=(\d+)", (tmp_path / "log").read_text())
    os.kill(int(worker[1]), signal.SIGKILL)
    assert process.wait(timeout=300) == 0, (tmp_path / "log").read_text()
    assert "continuing after epoch" in (run_folder(root) / "train.log").read_text()
    assert same_weights(whole, run_folder(root))
