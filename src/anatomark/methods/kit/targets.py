"""What methods teach and read alike: targets with gaps, means over what is given, and positions in planes."""

from __future__ import annotations

import numpy as np
import torch

from anatomark.core.grid import Array
from anatomark.methods.base import Batch
from anatomark.methods.kit.posed import planes


def masked(values: Array, learned: Array | None = None, names: tuple[str, str] = ("target", "defined")) -> Batch:
    """Targets (N, D) as float32 with 0 in the gaps, and a mask (N,): 1 where they are ``learned``, else where all
    components are finite; under ``names``."""
    given = np.asarray(np.isfinite(values).all(1) if learned is None else learned)
    filled = np.where(given[:, None], values, 0.0)
    return dict(zip(names, (torch.from_numpy(filled).float(), torch.from_numpy(given).float()), strict=True))


def average(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The weighted mean; 0 where all weights (0 or 1) are."""
    return (values * weight).sum() / weight.sum().clamp(min=1)


def logged(loss: torch.Tensor, **parts: torch.Tensor) -> dict[str, torch.Tensor]:
    """A loss with the parts to be logged beside it."""
    return {"loss": loss, **{name: value.detach() for name, value in parts.items()}}


def on_planes(points: torch.Tensor) -> torch.Tensor:
    """(..., P, 2) where points (..., D) are seen in each plane, (column, row)."""
    return torch.stack([points[..., list(p)] for p in planes(points.shape[-1])], -2)


def across_planes(mean: torch.Tensor, variance: torch.Tensor, ndim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(..., D) positions from those in planes (..., P, 2), and the sums of inverse variances: each axis is seen in one
    (2D) or two planes, which count by their inverse variance."""
    total = mean.new_zeros(*mean.shape[:-2], ndim)
    weighted = torch.zeros_like(total)
    for i, axes in enumerate(planes(ndim)):
        for j, a in enumerate(axes):
            total[..., a] += 1 / variance[..., i, j]
            weighted[..., a] += mean[..., i, j] / variance[..., i, j]
    return weighted / total, total


def agreement(covariance: Array, radius: float) -> Array:
    """(N,) a score from how votes spread: 0.5 where they do by 0.05 radii."""
    sd = np.sqrt(np.trace(covariance, axis1=1, axis2=2))
    return np.asarray(1 / (1 + (sd / (0.05 * radius)) ** 2))
