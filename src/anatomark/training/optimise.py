"""Optimiser, learning rate, what is trained, weight averaging."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from anatomark.methods.base import Stage

FACTOR = "factor"  # of a parameter group: its learning rate against the stage's


def rate_factor(stage: Stage, step: int) -> float:
    """Learning rate at ``step`` as a share of ``stage.lr``.

    ``restarts`` is cosine annealing with warm restarts (Loshchilov & Hutter 2017): ``stage.cycles`` periods,
    each twice as long as the one before, fill the steps.
    """
    warmup = min(stage.warmup, stage.steps // 5)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if stage.schedule == "constant":
        return 1.0
    if stage.schedule not in ("cosine", "restarts"):
        raise ValueError(
            f"stage {stage.name}: schedule {stage.schedule!r} is neither 'constant' nor 'cosine' nor 'restarts'"
        )
    progress = (step - warmup) / max(1, stage.steps - warmup)
    if stage.schedule == "restarts":
        periods = progress * (2**stage.cycles - 1)  # in first periods; period k ends at 2 ** (k + 1) - 1
        k = np.floor(np.log2(periods + 1) + 1e-9)
        progress = (periods + 1) / 2**k - 1
    return float(0.5 * (1 + np.cos(np.pi * progress)))


def _trained(method: nn.Module, stage: Stage) -> list[nn.Module]:
    return [method.get_submodule(name) for name in stage.modules] if stage.modules else [method]


def set_modes(method: nn.Module, stage: Stage) -> None:
    """Train mode and gradients for the stage's modules, eval mode and none for all others."""
    method.eval().requires_grad_(False)
    for module in _trained(method, stage):
        module.train().requires_grad_(True)


def make_optimizer(method: nn.Module, stage: Stage) -> torch.optim.Optimizer:
    """Adam (AdamW where the stage decays weights) over the parameters of the stage's modules. Where the stage has
    ``rates``, each module's parameters are a group of their own."""
    trained = _trained(method, stage)
    parameters = dict.fromkeys(p for m in trained for p in m.parameters())
    groups: list[dict[str, Any]] = [{"params": list(parameters)}]
    if stage.rates:
        groups = []
        for module, factor in zip(trained, stage.rates, strict=True):
            own = [p for p in module.parameters() if p in parameters]
            groups.append({"params": own, FACTOR: factor})
            for p in own:  # what two modules share is the first one's
                del parameters[p]
    kind = torch.optim.AdamW if stage.weight_decay else torch.optim.Adam
    return kind(groups, lr=stage.lr, weight_decay=stage.weight_decay, amsgrad=stage.amsgrad, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, stage: Stage, step: int) -> None:
    """The learning rate of every group at ``step``."""
    rate = stage.lr * rate_factor(stage, step)
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(FACTOR, 1.0)


def weights_of(method: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the method's state, on its device."""
    return {k: v.detach().clone() for k, v in method.state_dict().items()}


def average(ema: dict[str, torch.Tensor], method: nn.Module, decay: float, step: int) -> None:
    """Exponential moving average, quicker at the start; buffers of whole numbers are copied."""
    weight = 1 - min(decay, (step + 1) / (step + 10))
    now = method.state_dict()
    for k, mean in ema.items():
        if mean.is_floating_point():
            mean.lerp_(now[k].detach(), weight)
        else:
            mean.copy_(now[k])
