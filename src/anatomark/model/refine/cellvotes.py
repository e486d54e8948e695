"""Votes of the cells of sub-images: joint classification and regression, as in Noothout et al. 2020, per plane.

Positions are in cells from the sub-image's centre, (column, row). Each cell says how probable it is that the landmark
lies in it, and where from its own centre the landmark lies; the landmark is the posterior-weighted mean of these votes.
Ours: one softmax over the cells and "not in here" instead of a sigmoid for each cell; the error of the mean itself
is part of the loss.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from anatomark.core.grid import Array
from anatomark.methods.kit.posed import planes

NEAR = 2.0  # cells: a cell's own vote counts by a Gaussian of this width around the landmark
BLUR = 0.7  # cells: width of the classification target
LEAST_VARIANCE = 0.02  # cells^2: no plane is surer than this


def cell_centres(k: int) -> torch.Tensor:
    """(2, k * k) column and row of the centres of k x k cells, row by row, from the middle."""
    steps = torch.arange(k) - (k - 1) / 2
    return torch.stack([steps.repeat(k), steps.repeat_interleave(k)])


def vote_loss(
    logits: torch.Tensor, votes: torch.Tensor, target: torch.Tensor, mask: torch.Tensor, *, alpha: float
) -> dict[str, torch.Tensor]:
    """Cross entropy of the cells, distance of the votes near the landmark, distance of their weighted mean.

    ``logits`` (B, N, P, k * k + 1), ``votes`` (B, N, P, 2, k * k), ``target`` (B, N, D) in cells along the model's
    axes, ``mask`` (B, N) 0 = not annotated. A landmark beyond a plane's border belongs to the class "not in here".
    """
    k = round((logits.shape[-1] - 1) ** 0.5)
    seen = torch.stack([target[..., list(p)] for p in planes(target.shape[-1])], -2)  # (B, N, P, 2)
    inside = (seen.abs() < k / 2).all(-1)
    centres = cell_centres(k).to(logits.device)
    square = (centres - seen[..., None]).pow(2).sum(-2)  # (B, N, P, k * k)
    goal = torch.exp(-0.5 * square / BLUR**2)
    goal = goal / goal.sum(-1, keepdim=True).clamp(min=1e-9) * inside[..., None]
    goal = torch.cat([goal, (~inside)[..., None].float()], -1)
    learned = mask[..., None].expand(inside.shape)
    cross = -(goal * logits.log_softmax(-1)).sum(-1)
    absolute = centres + votes
    near = torch.exp(-0.5 * square / NEAR**2)
    own = (_length(absolute - seen[..., None], -2) * near).sum(-1) / near.sum(-1).clamp(min=1e-6)
    p = logits[..., :-1].softmax(-1)
    mean = _length((p[..., None, :] * absolute).sum(-1) - seen, -1)
    here = learned * inside
    classification = (cross * learned).sum() / learned.sum().clamp(min=1)
    regression = ((own + mean) * here).sum() / here.sum().clamp(min=1)
    loss = alpha * classification + (1 - alpha) * regression
    return {"loss": loss, "classification": classification.detach(), "regression": regression.detach()}


def _length(x: torch.Tensor, axis: int) -> torch.Tensor:
    """Euclidean length, smooth at zero."""
    return torch.sqrt(x.pow(2).sum(axis) + 1e-4)


def read_votes(logits: torch.Tensor, votes: torch.Tensor, ndim: int) -> tuple[Array, Array, Array]:
    """Posterior-weighted mean (M, N, D) and covariance (M, N, D, D) in cells of the vote clouds, and the posterior mass
    (M, N) that lies in the sub-image. In 3D each axis is seen in two planes, which count by their inverse variance."""
    k = round((logits.shape[-1] - 1) ** 0.5)
    p = logits.softmax(-1)
    mass = p[..., :-1].sum(-1).mean(-1)
    p = F.normalize(p[..., :-1].clamp(min=1e-12), p=1, dim=-1)
    absolute = cell_centres(k).to(logits.device) + votes
    mean = (p[..., None, :] * absolute).sum(-1)  # (M, N, P, 2)
    off = absolute - mean[..., None]
    cloud = torch.einsum("mnpc,mnpic,mnpjc->mnpij", p, off, off)
    cloud = cloud + LEAST_VARIANCE * torch.eye(2, device=p.device)
    if ndim == 2:
        return mean[:, :, 0].cpu().double().numpy(), cloud[:, :, 0].cpu().double().numpy(), mass.cpu().double().numpy()
    total = torch.zeros(*p.shape[:2], ndim, device=p.device)
    weighted, correlation = torch.zeros_like(total), torch.zeros(*p.shape[:2], ndim, ndim, device=p.device)
    for i, axes in enumerate(planes(ndim)):
        sd = torch.diagonal(cloud[:, :, i], dim1=-2, dim2=-1).sqrt()
        for j, a in enumerate(axes):
            total[..., a] += 1 / sd[..., j] ** 2
            weighted[..., a] += mean[:, :, i, j] / sd[..., j] ** 2
        u, v = axes
        correlation[..., u, v] = correlation[..., v, u] = cloud[:, :, i, 0, 1] / (sd[..., 0] * sd[..., 1])
    # the two looks at an axis are not independent: their mean variance, not half of it
    spread = (2 / total).sqrt()
    correlation = 0.5 * correlation + torch.eye(ndim, device=p.device)  # halved: stays positive definite
    covariance = spread[..., :, None] * correlation * spread[..., None, :]
    return (weighted / total).cpu().double().numpy(), covariance.cpu().double().numpy(), mass.cpu().double().numpy()
