"""Check sweeps on a real SLURM: one node, started here in a private folder and ended afterwards.

Two runs are sent through ``hydra/launcher=slurm``. Both reach their time limit, one is requeued by
the operator before; both must end with the weights of undisturbed runs. Needs root and Debian's
packages ``slurmctld slurmd slurm-client munge``, which are installed if they are missing. Exit
status: 0 passed, 1 failed, 77 SLURM cannot be installed or started here.

    python scripts/check_slurm.py [--epochs 240]
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
RUN = ("student=resnet8", "distiller=none", "data.train_per_class=40", "recipe.batch_size=16")

CONFIG = """\
ClusterName=check
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} State=UNKNOWN
PartitionName=check Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:2
"""


def skip(reason: str) -> NoReturn:
    print(f"skipped: {reason}")
    sys.exit(77)


def wait_for(what: Callable[[], object], seconds: float, problem: Callable[[], str]) -> None:
    """Until ``what()`` is true; exits with ``problem()`` when that takes too long."""
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            print(f"failed: {problem()}")
            sys.exit(1)
        time.sleep(0.2)


def output(*command: str) -> str:
    """Everything a command prints; empty if it fails."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout if result.returncode == 0 else ""


def install() -> None:
    """SLURM from the distribution's packages, unless it is there."""
    missing = [name for name in ("slurmctld", "slurmd", "sbatch", "munged") if not path(name)]
    if not missing:
        return
    if os.geteuid() != 0 or not path("apt-get"):
        skip(f"{', '.join(missing)} not found, and only root on Debian can install them here")
    command = ("apt-get", "install", "-y", "--no-install-recommends", *PACKAGES)
    if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode != 0:
        skip(f"{' '.join(command)} failed")


def path(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(folder: Path) -> list[subprocess.Popen[bytes]]:
    """The daemons, in the foreground of processes that this one can end."""
    if os.geteuid() != 0:
        skip("the daemons of a private SLURM need root")
    host = socket.gethostname().partition(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "slurm.conf").write_text(
        CONFIG.format(
            host=host,
            folder=folder,
            cores=os.cpu_count(),
            controller_port=free_port(),
            node_port=free_port(),
        )
    )
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    (folder / "munge.key").touch(mode=0o600)
    (folder / "munge.key").write_bytes(os.urandom(1024))
    munged = [str(path("munged")), "--foreground", "--force", f"--key-file={folder}/munge.key"]
    munged += [f"--socket={folder}/munge.socket", f"--pid-file={folder}/munge.pid"]
    munged += [f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed"]
    commands = (munged, [str(path("slurmctld")), "-D"], [str(path("slurmd")), "-D", "-N", host])
    daemons = []
    for command in commands:
        log = (folder / f"{Path(command[0]).name}.out").open("wb")
        daemons.append(subprocess.Popen(command, stdout=log, stderr=log))
        time.sleep(1)
    end = time.monotonic() + 60
    while "idle" not in output("sinfo", "--noheader", "--format=%t"):
        ended = [command[0] for command, d in zip(commands, daemons, strict=True) if d.poll()]
        if ended or time.monotonic() > end:
            logs = "".join(log.read_text(errors="replace") for log in folder.glob("*.out"))
            stop(daemons)
            last = " | ".join(line for line in logs.splitlines() if "error" in line.lower())
            skip(f"SLURM did not start ({', '.join(ended) or 'no idle node'}): {last[-500:]}")
        time.sleep(0.5)
    return daemons


def stop(daemons: list[subprocess.Popen[bytes]]) -> None:
    for daemon in reversed(daemons):
        daemon.terminate()
        try:
            daemon.wait(timeout=20)
        except subprocess.TimeoutExpired:
            daemon.kill()


def sweep(launcher: list[str], epochs: int, outputs: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "scripts/train.py", "-m", *launcher, *RUN, "seed=0,1", "threads=1"]
    command += [f"recipe.epochs={epochs}", f"output_root={outputs}"]
    # Without accounting, submitit warns about sacct every few seconds.
    with outputs.with_suffix(".log").open("w") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)


def run_of(outputs: Path, seed: int) -> Path | None:
    return next(iter(outputs.glob(f"digits/*/*/seed{seed}-*")), None)


def lines(outputs: Path, seed: int) -> int:
    run = run_of(outputs, seed)
    metrics = run / "metrics.jsonl" if run else None
    return len(metrics.read_text().splitlines()) if metrics and metrics.exists() else 0


def check(epochs: int, folder: Path) -> int:
    """Run the sweep with and without SLURM, disturb the first, compare; the exit status."""
    undisturbed, outputs = folder / "undisturbed", folder / "outputs"
    began = time.monotonic()
    if sweep([], epochs, undisturbed).wait() != 0:
        print("failed:", (folder / "undisturbed.log").read_text())
        return 1
    print(f"two undisturbed runs: {time.monotonic() - began:.0f} s")

    launcher = ["hydra/launcher=slurm", "hydra.launcher.partition=check"]
    launcher += ["hydra.launcher.gpus_per_node=null", "hydra.launcher.cpus_per_task=1"]
    launcher += ["hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=10"]
    began = time.monotonic()
    main = sweep(launcher, epochs, outputs)
    try:
        wait_for(
            lambda: lines(outputs, 1) >= 2 or main.poll() is not None,
            *(180, lambda: f"no job trained; queue: {output('squeue')}"),
        )
        job = output("squeue", "--noheader", "--format=%F").split()
        if job:
            subprocess.run(["scontrol", "requeue", f"{job[0]}_1"], check=True)
            print(f"scontrol requeue {job[0]}_1 after {lines(outputs, 1)} epochs of seed 1")
        wait_for(
            lambda: main.poll() is not None,
            *(1500, lambda: f"the sweep did not end; queue: {output('squeue')}"),
        )
    finally:
        if main.poll() is None:
            main.kill()
            subprocess.run(["scancel", "--user", "root"], check=False)
    print(f"the sweep through SLURM: {time.monotonic() - began:.0f} s, status {main.returncode}")
    if main.returncode != 0:
        print((folder / "outputs.log").read_text())
    return report(main.returncode, undisturbed, outputs)


def report(status: int, undisturbed: Path, outputs: Path) -> int:
    import torch
    from safetensors.torch import load_file

    failed = status != 0
    for seed, sign in ((0, "SIGUSR2"), (1, "SIGTERM")):
        whole, run = run_of(undisturbed, seed), run_of(outputs, seed)
        if whole is None or run is None or not (run / "last.safetensors").exists():
            print(f"seed {seed}: not finished")
            failed = True
            continue
        log = (run / "train.log").read_text()
        a, b = (load_file(place / "last.safetensors") for place in (whole, run))
        equal = all(torch.equal(a[name], b[name]) for name in a)
        told = log.count(f"{sign}: saving after this step")
        events = [line for line in log.splitlines() if "saving after" in line or "contin" in line]
        print(f"seed {seed}: weights {'equal' if equal else 'DIFFER'} to the undisturbed run's")
        print("".join(f"    {event}\n" for event in events), end="")
        failed |= not equal or not told or "continuing after epoch" not in log
    print("failed" if failed else "passed")
    return int(failed)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=240, help="a run needs over a minute")
    parser.add_argument("--keep", action="store_true", help="keep the private folder")
    arguments = parser.parse_args()
    install()
    folder = Path(tempfile.mkdtemp(prefix="eakd-slurm-"))
    try:
        daemons = start(folder)
        print(output("sinfo", "--version").strip(), "on one node")
        try:
            return check(arguments.epochs, folder)
        finally:
            stop(daemons)
    finally:
        if arguments.keep:
            print(folder)
        else:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
