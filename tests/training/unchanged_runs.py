"""Small runs whose weights are on record from earlier versions of this code."""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

METHODS = [
    *("none", "kd", "ctkd", "dkd", "mld", "mld_ls", "reviewkd", "fcfd", "kd_ls", "dkd_ls"),
    *("ea_kd", "ea_ctkd", "ea_dkd", "ea_mld", "ea_mld_ls", "ea_reviewkd", "ea_fcfd"),
    *("ea_kd_ls", "ea_dkd_ls"),
]
SEEDS = (0, 1)


def digest(tensors: dict[str, torch.Tensor]) -> str:
    """Of names, types, shapes and values, in hex."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name].detach().contiguous().numpy()
        found.update(f"{name}{array.dtype}{array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()[:32]


def kernels() -> str:
    """Digest of one training step in bare torch: equal where torch computes the same bits.

    Another version, or another processor's instructions, round differently; then weights after
    some steps cannot be compared bit for bit, whatever our code does.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    results = {}
    for channels, size in ((16, 16), (32, 8), (64, 4)):
        x = torch.randn(16, channels, size, size, generator=generator)
        x = x.to(memory_format=torch.channels_last).requires_grad_()
        weight = torch.randn(2 * channels, channels, 3, 3, generator=generator)
        weight = weight.to(memory_format=torch.channels_last).requires_grad_()
        y = torch.nn.functional.conv2d(x, weight, stride=2, padding=1)
        y = torch.nn.functional.batch_norm(y, None, None, training=True).relu()
        torch.log_softmax(y.mean((2, 3)) / 3, dim=-1).square().sum().backward()
        results |= {f"{size}x": x.grad, f"{size}w": weight.grad, f"{size}y": y}
    torch.set_num_threads(threads)
    # MKL, behind matrix products, has other kernels on processors of another maker.
    return f"{processor_maker()} torch {torch.__version__} {digest(results)}"


def processor_maker() -> str:
    """``GenuineIntel``, ``AuthenticAMD``, or ``unknown``."""
    file = Path("/proc/cpuinfo")
    text = file.read_text() if file.exists() else ""
    return text.partition("vendor_id\t: ")[2].partition("\n")[0] or "unknown"


def make_teacher(root: Path, name: str = "resnet14") -> None:
    """A teacher file from numpy's generator, the same on every machine."""
    from eakd import models

    model, state = getattr(models, name)(num_classes=10), {}
    for key, tensor in model.state_dict().items():
        rng, shape = np.random.RandomState(zlib.crc32(key.encode())), tuple(tensor.shape)
        value = rng.randn(*shape) * np.sqrt(2 / max(np.prod(shape[1:]), 1))
        if tensor.ndim < 2:
            value = (0.8 + 0.4 * rng.rand(*shape)) if key.endswith(("weight", "var")) else 0 * value
        state[key] = torch.as_tensor(np.asarray(value)).to(tensor.dtype)
    folder = root / "checkpoints" / "digits"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / f"{name}.safetensors")


def overrides(method: str, seed: int, root: Path) -> list[str]:
    return [
        *("teacher=resnet14", "student=resnet8", f"distiller={method}", f"seed={seed}"),
        *("recipe.epochs=3", "device=cpu", "precision=float32", "threads=1"),
        *(f"output_root={root / 'outputs'}", f"checkpoint_root={root / 'checkpoints'}"),
    ]


def outcome(method: str, seed: int, root: Path) -> dict[str, object]:
    """Train and return what must not change: the directory's name, digests, accuracies."""
    from eakd.composing import compose
    from eakd.training.run import run

    make_teacher(root)
    config = compose(overrides(method, seed, root))
    summary = run(config)
    directory = Path(config.run_dir)
    state = torch.load(directory / "last.pt", weights_only=True)
    momenta = state["optimizer"]["state"]
    return {
        "name": str(directory.relative_to(root / "outputs")),
        "student": digest(load_file(directory / "last.safetensors")),
        "best": digest(load_file(directory / "best.safetensors")),
        "distiller": digest(state["distiller"]),
        "momentum": digest({str(key): momenta[key]["momentum_buffer"] for key in momenta}),
        "top1_last": summary["top1_last"],
        "top1_best_epoch": summary["top1_best_epoch"],
    }
