"""bf16 inside convolutions where the machine is fast at it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path

import torch

_forced: list[bool] = []


@cache
def fast_bf16(device: str = "cpu") -> bool:
    """True where bf16 convolutions are faster than float32: CPUs with avx512_bf16 or amx_bf16, recent GPUs."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported()
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def use_bf16(on: bool | None) -> None:
    """Force bf16 convolutions on or off in this process; None returns to what the machine is fast at."""
    _forced[:] = [] if on is None else [on]


def conv_precision(device: torch.device) -> AbstractContextManager[object]:
    """Context for convolutions only: bf16 autocast where fast, float32 otherwise. Heads and geometry stay outside."""
    wanted = _forced[0] if _forced else fast_bf16(str(device.type))
    return torch.autocast(device.type, dtype=torch.bfloat16) if wanted else nullcontext()


def plain_precision(x: torch.Tensor, training: bool) -> AbstractContextManager[object]:
    """:func:`conv_precision` for maps (B, C, *S), but float32 where 3D convolutions are trained on a CPU: torch 2.13's
    bf16 weight gradients of small ones are garbage there now and then (inf, NaN)."""
    unsafe = training and x.ndim == 5 and x.device.type == "cpu"
    return nullcontext() if unsafe else conv_precision(x.device)


def conv_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where :func:`conv_precision` chooses it, else float32."""
    return torch.bfloat16 if isinstance(conv_precision(device), torch.autocast) else torch.float32


def set_precision(precision: str) -> None:
    """A run's setting: ``auto`` (what the machine is fast at), ``fp32`` or ``bf16``, for this process."""
    use_bf16({"auto": None, "fp32": False, "bf16": True}[precision])
