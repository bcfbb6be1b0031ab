"""What a run is computed with: versions, machine, commit."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from functools import cache
from importlib import metadata
from typing import Any

from eakd import __version__
from eakd.places import ROOT


@cache
def environment() -> dict[str, Any]:
    """Versions, machine kind, the part of it that this process keeps to, and git commit."""
    import torch

    packages = ("torchvision", "timm", "hydra-core", "numpy", "safetensors")
    return {
        "eakd": __version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        **{name: metadata.version(name) for name in packages if _installed(name)},
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "processor": platform.machine(),
        "visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "cores": os.cpu_count(),
        "affinity": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        **git_state(),
    }


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def git_state() -> dict[str, Any]:
    """Commit of this source tree and whether it has uncommitted changes."""

    def git(*words: str) -> str | None:
        try:
            return subprocess.run(
                ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True
            ).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    if not (ROOT / ".git").exists():
        return {"commit": None, "modified": None}
    status = git("status", "--porcelain", "--untracked-files=no")
    return {
        "commit": git("rev-parse", "HEAD"),
        "modified": None if status is None else bool(status),
    }
