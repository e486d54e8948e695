"""The network of the deep Q-learning agents (Ghesu et al. 2016; Alansary et al. 2019), shared by all landmarks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from anatomark.methods.kit.layers import channels_last, conv
from anatomark.methods.kit.precision import plain_precision


class QNet(nn.Module):
    """From an agent's last patches to what each of its moves is worth.

    ``layers``: (maps, kernel) of the convolutions (padded, ReLU): ``pooled``, with max-pooling by 2 after all but the
    last, else with stride 2, at a fifth of the cost on a CPU. Then one layer of ``hidden``, shared like them. Each of
    ``heads`` agents has its own two layers, by way of ``narrow``, to ``moves`` values. ``patches`` of ``px`` a side are
    its channels. Raises ValueError where nothing is left to pool.
    """

    def __init__(
        self,
        ndim: int,
        px: int,
        patches: int,
        *,
        heads: int,
        layers: Sequence[tuple[int, int]],
        pooled: bool,
        hidden: int,
        narrow: int,
    ):
        super().__init__()
        side = last_side(px, len(layers), pooled)
        if side < 1:
            raise ValueError(f"patches of {px} cannot be halved {len(layers) - 1} times")
        pool = nn.MaxPool2d if ndim == 2 else nn.MaxPool3d
        trunk: list[nn.Module] = []
        before = patches
        for i, (maps, kernel) in enumerate(layers):
            how: dict[str, Any] = {"padding": "same"} if pooled else {"padding": (kernel - 1) // 2, "stride": 2}
            trunk += [conv(ndim)(before, maps, kernel, **how), nn.ReLU(inplace=True)]
            trunk += [pool(2)] if pooled and i + 1 < len(layers) else []
            before = maps
        self.ndim, self.moves = ndim, 2 * ndim
        self.trunk = nn.Sequential(*trunk)
        self.shared = nn.Linear(before * side**ndim, hidden)
        self.first = nn.Parameter(torch.randn(heads, hidden, narrow) * (2 / hidden) ** 0.5)
        self.first_bias = nn.Parameter(torch.zeros(heads, 1, narrow))
        self.last = nn.Parameter(torch.randn(heads, narrow, self.moves) * 0.1 / narrow**0.5)
        self.last_bias = nn.Parameter(torch.zeros(heads, 1, self.moves))

    def forward(self, frames: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        """Q (B, 2 D) float32 of patches (B, patches, px, ..., px), each by the head of its number (B,)."""
        if self.ndim == 2:  # max-pooling is three times as fast
            frames = channels_last(frames)
        with plain_precision(frames, torch.is_grad_enabled()):
            x = self.trunk(frames)
        x = F.relu(self.shared(x.float().flatten(1)))[:, None]
        x = F.relu(torch.baddbmm(_of(self.first_bias, head), x, _of(self.first, head)))
        return torch.baddbmm(_of(self.last_bias, head), x, _of(self.last, head))[:, 0]


def last_side(px: int, layers: int, pooled: bool) -> int:
    """Side of the trunk's last maps; 0 where nothing is left. Without pooling, of odd kernels."""
    return px >> (layers - 1) if pooled else -(-px // 2**layers)


def _of(parameter: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
    return parameter.index_select(0, head)
