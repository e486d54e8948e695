"""Tensors of a safetensors file, checked before they are used."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from anatomark.errors import InputError


def read_tensors(path: Path, data: bytes, largest: float) -> dict[str, torch.Tensor]:
    """The tensors in the ``data`` of a file ``path``. Raises InputError where it is no safetensors file, or a tensor
    holds a number that is not finite, or greater than ``largest``."""
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, OverflowError) as error:
        raise InputError(f"{path}: is not a safetensors file, or damaged: {error}") from None
    for name, value in tensors.items():
        if value.is_complex():
            raise InputError(f"{path}: {name} holds complex numbers")
        if value.is_floating_point() and value.numel() and not float(value.float().abs().max()) <= largest:
            raise InputError(f"{path}: {name} holds numbers that are not finite, or far too large; it is damaged")
    return tensors
