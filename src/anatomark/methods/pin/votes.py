"""Where a patch sees its landmark: a distribution over the cells of each plane, how it is learned and read."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from anatomark.core.grid import Array
from anatomark.methods.kit.posed import planes

REGRESSION_WEIGHT = 20.0  # brings the Huber term, in half widths, to the size of the cross entropy


def cell_centres(k: int, device: torch.device) -> torch.Tensor:
    """(k,) centres of k cells over -1 ... 1, where -1 and 1 are the first and last pixel centres of 2 k pixels."""
    px = 2 * k
    return (torch.arange(k, device=device) * 2 + 0.5) * (2 / (px - 1)) - 1


def plane_means(p: torch.Tensor, k: int) -> torch.Tensor:
    """(..., 2) mean (column, row) position of distributions (..., k * k)."""
    cells = cell_centres(k, p.device)
    square = p.view(*p.shape[:-1], k, k)
    return torch.stack([(square.sum(-2) * cells).sum(-1), (square.sum(-1) * cells).sum(-1)], -1)


def vote_loss(
    logits: torch.Tensor, target: torch.Tensor, mask: torch.Tensor, *, alpha: float, cell_sigma: float
) -> dict[str, torch.Tensor]:
    """Classification and regression together (Li et al. 2018, eq. 2), per plane and landmark.

    ``logits`` (B, N, P, k, k); ``target`` (B, N, D) in half widths; ``mask`` (B, N), 0 = not annotated. Cross entropy
    against a Gaussian of ``cell_sigma`` cells at the landmark, and Huber loss of the distribution's mean. A landmark
    seen beyond a plane's border gives no loss there.
    """
    k = logits.shape[-1]
    flat = logits.flatten(-2)
    cells = cell_centres(k, flat.device)
    mean = plane_means(flat.softmax(-1), k)
    seen = torch.stack([target[..., list(p)] for p in planes(target.shape[-1])], -2)  # (B, N, P, 2)
    learned = mask[..., None] * (seen.abs() < 1).all(-1)
    sigma = cell_sigma * 2 / k
    near = [torch.exp(-0.5 * ((cells - seen[..., a, None]) / sigma) ** 2) for a in (0, 1)]
    goal = (near[1][..., :, None] * near[0][..., None, :]).flatten(-2)
    goal = goal / goal.sum(-1, keepdim=True).clamp(min=1e-12)
    cross = -(goal * flat.log_softmax(-1)).sum(-1)
    miss = F.smooth_l1_loss(mean, seen, reduction="none", beta=0.02).mean(-1)
    count = learned.sum().clamp(min=1)
    classification, regression = (cross * learned).sum() / count, (miss * learned).sum() / count
    loss = alpha * classification + (1 - alpha) * REGRESSION_WEIGHT * regression
    return {"loss": loss, "classification": classification.detach(), "regression": regression.detach()}


def read_votes(logits: torch.Tensor, ndim: int) -> tuple[Array, Array]:
    """Mean displacement and variance (M, N, D) in half widths of logits (M, N, P, k, k): each axis is seen in one (2D)
    or two planes, which count by their inverse variance."""
    k = logits.shape[-1]
    p = logits.flatten(-2).softmax(-1)
    mean = plane_means(p, k)
    cells = cell_centres(k, p.device)
    rows, columns = p.view(*p.shape[:-1], k, k).sum(-1), p.view(*p.shape[:-1], k, k).sum(-2)
    square = torch.stack([(columns * cells**2).sum(-1), (rows * cells**2).sum(-1)], -1)
    variance = (square - mean**2).clamp(min=(0.2 / k) ** 2)
    total = torch.zeros(*p.shape[:2], ndim)
    weighted = torch.zeros_like(total)
    for i, axes in enumerate(planes(ndim)):
        for j, a in enumerate(axes):
            total[..., a] += 1 / variance[..., i, j]
            weighted[..., a] += mean[..., i, j] / variance[..., i, j]
    return (weighted / total).double().numpy(), (1 / total).double().numpy()
