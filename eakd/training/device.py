"""Where and in which precision to compute."""

from __future__ import annotations

import contextlib
import ctypes
from dataclasses import dataclass

import torch

from eakd.errors import UserError, check_choice, check_number, check_text
from eakd.training.parallel import ALONE, Processes


def _has_native_bfloat16(device: torch.device) -> bool:
    """Emulated bfloat16 is slower than float32, so only hardware that has it gets it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)
    return False


def keep_freed_memory() -> None:
    """Let the process keep the memory that tensors free, instead of returning it to the system.

    Every step of training on a CPU allocates and frees the same megabytes. By default glibc hands
    large blocks back, and the next step pays for thousands of page faults: a fifth of the time of
    a small ResNet. Elsewhere than on glibc this does nothing.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(trim_threshold, 1 << 30)
    # Some versions of glibc refuse (return 0 for) more than 32 MiB.
    _ = mallopt(mmap_threshold, 1 << 30) or mallopt(mmap_threshold, 32 << 20)


@dataclass(frozen=True)
class Compute:
    """Where and how a run computes: what travels together through the program.

    Args:
        device: ``"auto"`` (CUDA, then MPS, then CPU) or a torch device string.
        precision: ``"auto"`` (bf16 where the hardware has it), ``"bf16"`` or ``"float32"``.
        compile: run `torch.compile` on student and teacher.
        channels_last: keep images and convolution weights in NHWC memory.
        threads: CPU threads, ``None`` for torch's default.
        processes: those that train one model together; this one alone by default.
    """

    device: torch.device
    precision: str
    compile: bool = False
    channels_last: bool = True
    processes: Processes = ALONE

    @classmethod
    def create(
        cls,
        device: str = "auto",
        precision: str = "auto",
        compile: bool = False,
        channels_last: bool = True,
        threads: int | None = None,
        processes: Processes = ALONE,
    ) -> Compute:
        check_choice("precision", precision, ("auto", "bf16", "float32"))
        check_choice("compile", compile, (True, False))
        check_choice("channels_last", channels_last, (True, False))
        check_text("device", device)
        if threads is not None:
            torch.set_num_threads(check_number("threads", threads, at_least=1, integer=True))
        if device == "auto":
            mps = torch.backends.mps.is_available()
            device = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
        try:
            chosen = torch.device(device)
            torch.empty(0, device=chosen)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"device: found {device!r}, allowed is auto, cpu or an accelerator here ({reason})"
            ) from error
        if chosen.type == "cpu":
            keep_freed_memory()
        elif chosen.type == "cuda":
            torch.backends.cudnn.benchmark = True  # shapes repeat, so search for the fastest once
        if precision == "auto":
            precision = "bf16" if _has_native_bfloat16(chosen) else "float32"
        return cls(chosen, precision, compile, channels_last, processes)

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def autocast(self) -> contextlib.AbstractContextManager:
        """The context in which models run."""
        if self.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def move(self, module: torch.nn.Module) -> torch.nn.Module:
        """Move ``module`` to the device, in the right memory format."""
        module = module.to(self.device)
        return module.to(memory_format=torch.channels_last) if self.channels_last else module

    def place(self, module: torch.nn.Module) -> torch.nn.Module:
        """`move` a network that will be called on images, and compile it if asked for."""
        module = self.move(module)
        if self.compile:
            module.compile()  # in place: state-dict names stay the public zoo's
        return module

    def peak_memory(self) -> int:
        """Bytes: allocated on the accelerator, or resident in the process on a CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        try:
            import resource
        except ImportError:  # not on Windows
            return 0
        import sys

        usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return usage if sys.platform == "darwin" else usage * 1024
