"""Layers by dimension, and the precision in which convolutions are trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn import functional as F

from anatomark.methods.kit.precision import conv_precision


def conv(ndim: int) -> type[nn.Conv2d] | type[nn.Conv3d]:
    return nn.Conv2d if ndim == 2 else nn.Conv3d


def norm(ndim: int) -> type[nn.BatchNorm2d] | type[nn.BatchNorm3d]:
    return nn.BatchNorm2d if ndim == 2 else nn.BatchNorm3d


def convolve(ndim: int) -> Callable[..., torch.Tensor]:
    """The convolution function of a dimension."""
    return F.conv2d if ndim == 2 else F.conv3d


def lattice(lines: Sequence[torch.Tensor]) -> torch.Tensor:
    """(K, D) the points of a lattice in array order, x first, whose places along the array's axes are ``lines``."""
    return torch.stack(torch.meshgrid(*lines, indexing="ij")[::-1], -1).reshape(-1, len(lines))


def plain_precision(x: torch.Tensor, training: bool) -> AbstractContextManager[object]:
    """:func:`conv_precision` for maps (B, C, *S), but float32 where 3D convolutions are trained on a CPU: torch 2.13's
    bf16 weight gradients of small ones are garbage there now and then (inf, NaN)."""
    unsafe = training and x.ndim == 5 and x.device.type == "cpu"
    return nullcontext() if unsafe else conv_precision(x.device)
