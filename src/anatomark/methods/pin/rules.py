"""PIN's targets, loss and update rules (Li et al. 2018, eq. 1-2 and rules A-C): functions of tensors alone.

B is the batch, n the number of components of a state (voxel coordinates or shape parameters). Classes are ordered
(1+, 1-, 2+, 2-, ..., n+, n-), logits accordingly (B, 2n). A displacement is truth minus current state.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional as F

Rule = Literal["A", "B", "C", "c-pair"]


def targets(displacement: torch.Tensor) -> torch.Tensor:
    """Eq. 1: class index (B,) int64 of displacements (B, n): the largest component by magnitude, and its sign."""
    component = displacement.abs().argmax(1)
    value = displacement.gather(1, component[:, None])[:, 0]
    return 2 * component + (value <= 0).long()


def pin_loss(
    d_pred: torch.Tensor,
    logits: torch.Tensor,
    d_true: torch.Tensor,
    alpha: float,
    huber: float | None = None,
    weight: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """Eq. 2: ``(1 - alpha)`` mean squared error over components and batch ``+ alpha`` cross entropy.

    ``d_pred``, ``d_true`` (B, n), ``logits`` (B, 2n). ``huber``: the deviation from which the error grows linearly
    (None: squared throughout, as published). ``weight`` (B,): 0 for an example without truth. Gives ``loss``,
    ``regression`` and ``classification``; a term whose share is 0 is reported but passes no gradient.
    """
    if huber is None:
        error = (d_pred - d_true).square()
    else:
        # twice torch's Huber loss, so that both agree where deviations are small
        error = 2 * F.huber_loss(d_pred, d_true, reduction="none", delta=huber)
    share = torch.ones(len(d_true), device=d_true.device) if weight is None else weight
    total = share.sum().clamp_min(1e-12)
    regression = (error.mean(1) * share).sum() / total
    classification = (F.cross_entropy(logits, targets(d_true), reduction="none") * share).sum() / total
    terms = [part * value for part, value in ((1 - alpha, regression), (alpha, classification)) if part > 0]
    return {
        "loss": sum(terms[1:], terms[0]),
        "regression": regression.detach(),
        "classification": classification.detach(),
    }


def update(rule: str, d: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """The step (B, n) from predicted displacements (B, n) and logits (B, 2n).

    A: one unit along the most probable class. B: d. C: d weighted by max(P+, P-), the softmax taken over all 2n
    classes. c-pair (ours): d weighted by max(P+, P-) / (P+ + P-), so that rare classes can move too. Raises ValueError
    for another rule.
    """
    if rule == "A":
        best = logits.argmax(1, keepdim=True)
        sign = (1 - 2 * (best % 2)).to(d.dtype)
        return torch.zeros_like(d).scatter_(1, best // 2, sign)
    if rule == "B":
        return d
    pairs = logits.unflatten(1, (-1, 2))
    if rule == "C":
        return logits.softmax(1).view_as(pairs).amax(2) * d
    if rule == "c-pair":
        return (pairs[..., 0] - pairs[..., 1]).abs().sigmoid() * d
    raise ValueError(f"unknown update rule {rule!r}; known: A, B, C, c-pair")
