"""Which device a model runs on."""

from __future__ import annotations

import torch

from anatomark.errors import InputError, check_range

MOST_THREADS = 1024  # more than any machine has; each takes memory of its own


def set_threads(count: int) -> None:
    """Threads of torch on the CPU. Raises InputError for a number that would end the process."""
    check_range("threads", count, 1, MOST_THREADS)
    torch.set_num_threads(count)


def find_device(name: str | None) -> torch.device:
    """``cpu``, ``cuda``, ``cuda:0`` or ``mps``; ``auto`` or None: the CUDA GPU where there is one, else the CPU. Raises
    InputError for any other, and for one that this machine has not."""
    kind, _, index = (name or "auto").partition(":")
    if kind not in ("auto", "cpu", "cuda", "mps") or (index and not index.isdigit()):
        raise InputError(f"device {name!r} is unknown; use auto, cpu, cuda, cuda:0 or mps")
    if kind == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}.get(kind, True)
    if not there:
        raise InputError(f"device {name!r}: this machine or this build of torch has no {kind}; use `device` cpu")
    if kind == "cuda" and index and int(index) >= torch.cuda.device_count():
        raise InputError(f"device {name!r}: this machine has {torch.cuda.device_count()}, counted from 0")
    return torch.device(str(name))
