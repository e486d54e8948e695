"""What a cell is taught and how the cells of an image vote for a landmark (Noothout et al., IEEE TMI 2020).

An image is tiled into cells of ``stride`` q voxels; cell i has its centre at q i + (q - 1) / 2. Points, displacements
and covariances are in voxels, components in the order of the array's axes; ``Grid.to_world`` makes mm of them. Maps are
(B, N, *cells) logits and (B, N, D, *cells) logarithmic displacements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional as F

Vote = Literal["posterior", "positive"]

FARTHEST = 4.0  # a logarithmic displacement is read as at most 10 ** 4 - 1 voxels
LEAST_MASS = 1e-6  # below this sum of posteriors nobody votes but the most probable cell


def log_displacement(d: torch.Tensor) -> torch.Tensor:
    """g(d) = sign(d) log10(|d| + 1), of voxels."""
    return torch.sign(d) * torch.log10(d.abs() + 1)


def displacement(y: torch.Tensor) -> torch.Tensor:
    """The inverse of :func:`log_displacement`, sign(y) (10 ** |y| - 1), with |y| clipped to ``FARTHEST``."""
    return torch.sign(y) * (10 ** y.abs().clamp(max=FARTHEST) - 1)


def cell_centres(cells: Sequence[int], stride: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """(D, *cells) the cells' centres, voxels, float32."""
    lines = [torch.arange(n, device=device) * stride + (stride - 1) / 2 for n in cells]
    return torch.stack(torch.meshgrid(*lines, indexing="ij"))


def targets(points: torch.Tensor, cells: Sequence[int], stride: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Occupancy (B, N, *cells), 1 in the cell that contains the landmark (nowhere if none does), and logarithmic
    displacements (B, N, D, *cells) of landmarks at ``points`` (B, N, D)."""
    d = len(cells)
    centres = cell_centres(cells, stride, points.device)
    towards = log_displacement(points.view(*points.shape, *(1,) * d) - centres)
    at = torch.floor((points + 0.5) / stride)
    occupied = torch.ones((), dtype=points.dtype, device=points.device)
    for a, n in enumerate(cells):
        view = [1] * d
        view[a] = n
        line = torch.arange(n, device=points.device, dtype=points.dtype) == at[..., a, None]
        occupied = occupied * line.view(*points.shape[:-1], *view)
    return occupied, towards


def vote_loss(
    maps: tuple[torch.Tensor, torch.Tensor],
    points: torch.Tensor,
    defined: torch.Tensor,
    judged: torch.Tensor,
    *,
    stride: int,
    weight: float,
    separate: bool = False,
) -> dict[str, torch.Tensor]:
    """Mean absolute error of the displacements + ``weight`` x mean binary cross entropy of the posteriors.

    ``maps`` logits and displacements; ``points`` (B, N, D); ``defined`` (B, N) 1 where the position is given, else no
    displacement is learned; ``judged`` (B, N) 1 where it is known whether and where the landmark is there (an absent
    one has a posterior of 0 everywhere), else no posterior is learned. Means are over all landmarks, cells and axes;
    ``separate``: over each landmark's own, and added up, as N networks trained one by one would have them.
    """
    logits, moves = maps
    cells = logits.shape[2:]
    # a point that is not defined must not put NaN into the gradients
    here = torch.where(defined[..., None] > 0, points, points.new_full((), -1e4))
    occupied, towards = targets(here, cells, stride)
    absolute = (moves - towards).abs().flatten(2).mean(2)
    cross = F.binary_cross_entropy_with_logits(logits, occupied, reduction="none").flatten(2).mean(2)
    axes = (0,) if separate else (0, 1)
    regression = ((absolute * defined).sum(axes) / defined.sum(axes).clamp(min=1)).sum()
    classification = ((cross * judged).sum(axes) / judged.sum(axes).clamp(min=1)).sum()
    loss = regression + weight * classification
    return {"loss": loss, "regression": regression.detach(), "classification": classification.detach()}


@dataclass(frozen=True)
class Votes:
    """What the cells say of each landmark: ``points`` (B, N, D) voxels, ``score`` (B, N) the largest posterior,
    ``mass`` (B, N) the sum of posteriors, ``covariance`` (B, N, D, D) of the votes, voxels^2 (NaN where a single cell
    voted). Float64."""

    points: torch.Tensor
    score: torch.Tensor
    mass: torch.Tensor
    covariance: torch.Tensor


def decode(logits: torch.Tensor, moves: torch.Tensor, stride: int, vote: Vote = "posterior") -> Votes:
    """x = sum_p pi_p (c_p + g^-1(r_p)) / sum_p pi_p over all cells p.

    ``vote`` ``positive``: only cells with pi >= 0.5 vote, all alike (the predecessor of 2018). Where the votes' weight
    is (nearly) nought, the most probable cell alone decides.
    """
    logits, moves = logits.cpu(), moves.cpu()  # not every device has float64
    cells = logits.shape[2:]
    flat = logits.flatten(2).double()
    posterior = flat.sigmoid()
    mass = posterior.sum(2)
    weights = posterior if vote == "posterior" else (posterior >= 0.5).double()
    total = weights.sum(2, keepdim=True)
    alone = F.one_hot(flat.argmax(2), flat.shape[2]).to(weights.dtype)
    weights = torch.where(total > LEAST_MASS, weights / total.clamp(min=LEAST_MASS), alone)
    votes = (cell_centres(cells, stride, logits.device) + displacement(moves)).flatten(3).double()  # (B, N, D, cells)
    points = torch.einsum("bnc,bndc->bnd", weights, votes)
    apart = votes - points[..., None]
    covariance = torch.einsum("bnc,bndc,bnec->bnde", weights, apart, apart)
    single = (weights > 0).sum(2) == 1
    covariance = covariance.masked_fill(single[..., None, None], torch.nan)
    return Votes(points, posterior.amax(2), mass, covariance)
