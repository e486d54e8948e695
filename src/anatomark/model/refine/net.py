"""Local networks of the refiner: sub-images around all landmarks to where each landmark lies in its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from anatomark.methods.kit.precision import conv_precision

Trunk = Literal["shared", "grouped"]
FLAT = 0.05  # standard deviation below which a sub-image counts as flat


class LocalNet(nn.Module):
    """One network per landmark, all in one call.

    Input (B, N, C, px, px), px a multiple of 16. Output, per plane: ``logits`` (B, N, P, k * k + 1) over the k x k
    cells of the sub-image, k = px / 4, and one more for "not in here"; ``votes`` (B, N, P, 2, k * k), each cell's
    displacement to the landmark (column, row) in cells. Trunk ``grouped``: N networks of their own as one grouped
    network (Noothout et al. 2020 train one per landmark). ``shared``: one trunk reads all sub-images; per-landmark
    scales and shifts (FiLM, Perez et al. 2018) and output layers tell it which one it reads.
    """

    def __init__(
        self,
        channels: int,
        planes: int,
        landmarks: int,
        width: int = 32,
        trunk: Trunk = "grouped",
        dropout: float = 0.1,
    ):
        super().__init__()
        w, n, self.dropout = width, landmarks, dropout
        self.landmarks, self.planes, self.grouped = n, planes, trunk == "grouped"
        self.convs, self.norms, self.films = nn.ModuleList(), nn.ModuleList(), nn.ParameterList()
        self._layer(channels, w // 2, 5, 2)
        self._layer(w // 2, w)
        for _ in range(8):  # two at 1/2 and 1/4, one at 1/8 and 1/16 of the sub-image; up: one at 1/8, two at 1/4
            self._layer(w, w)
        self.weight = nn.Parameter(torch.randn(n, w, 3 * planes) * 0.05)
        self.bias = nn.Parameter(torch.zeros(n, 3 * planes))
        self.elsewhere = nn.Parameter(torch.zeros(n, w, planes))
        self.elsewhere_bias = nn.Parameter(torch.zeros(n, planes))

    def _layer(self, before: int, after: int, kernel: int = 3, stride: int = 1) -> None:
        groups = self.landmarks if self.grouped else 1
        conv = nn.Conv2d(groups * before, groups * after, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.convs.append(conv)
        self.norms.append(nn.BatchNorm2d(groups * after))
        if not self.grouped:
            self.films.append(nn.Parameter(torch.zeros(self.landmarks, 2 * after)))

    def forward(self, patches: torch.Tensor, first: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """See the class; in eval mode ``patches`` may hold a chunk of the landmarks, from ``first`` on."""
        b, n = patches.shape[:2]
        some = slice(first, first + n)
        shape = (b, -1) if self.grouped else (b * n, -1)
        # exposure and contrast say nothing of the place
        patches = (patches - patches.mean((-1, -2), keepdim=True)) / (patches.std((-1, -2), keepdim=True) + FLAT)
        x = patches.reshape(*shape, *patches.shape[3:]).contiguous(memory_format=torch.channels_last)
        with conv_precision(patches.device):
            x = self._run((0, 1, 2), x, b, some)
            quarter = self._run((3, 4), F.max_pool2d(x, 2), b, some)
            eighth = self._run((5,), F.max_pool2d(quarter, 2), b, some)
            deepest = self._run((6,), F.max_pool2d(eighth, 2), b, some)
            deepest = F.dropout2d(deepest, self.dropout, self.training)
            x = self._run((7,), eighth + F.interpolate(deepest, scale_factor=2, mode="nearest"), b, some)
            x = self._run((8, 9), quarter + F.interpolate(x, scale_factor=2, mode="nearest"), b, some)
        x = F.dropout2d(x, self.dropout, self.training)
        return self._heads(x, deepest, b, some)

    def _run(self, layers: Iterable[int], x: torch.Tensor, b: int, some: slice) -> torch.Tensor:
        """Convolution, batch norm, FiLM where shared, ReLU; of the landmarks ``some``."""
        for i in layers:
            conv, norm = self.convs[i], self.norms[i]
            if not self.grouped:
                x = norm(conv(x))
                gain, shift = self.films[i][some].to(x.dtype).repeat(b, 1)[:, :, None, None].chunk(2, 1)
                x = torch.addcmul(x + shift, x, gain)
            elif (some.stop - some.start) == self.landmarks:
                x = norm(conv(x))
            else:
                x = _part_of(conv, norm, x, some, self.landmarks)
            x = torch.relu(x)
        return x

    def _heads(self, x: torch.Tensor, deepest: torch.Tensor, b: int, some: slice) -> tuple[torch.Tensor, torch.Tensor]:
        p, k, n = self.planes, x.shape[-1], some.stop - some.start
        features = x.float().reshape(b, n, -1, k * k)
        maps = torch.einsum("bnfc,nfp->bnpc", features, self.weight[some]) + self.bias[some][..., None]
        pooled = deepest.float().mean((2, 3)).view(b, n, -1)
        none = torch.einsum("bnf,nfp->bnp", pooled, self.elsewhere[some]) + self.elsewhere_bias[some]
        logits = torch.cat([maps[:, :, :p], none[..., None]], -1)
        return logits, maps[:, :, p:].reshape(b, n, p, 2, k * k)


def _part_of(conv: Any, norm: Any, x: torch.Tensor, some: slice, landmarks: int) -> torch.Tensor:
    """A grouped convolution and its batch norm (eval) for the groups ``some`` only."""
    size = len(conv.weight) // landmarks
    rows = slice(some.start * size, some.stop * size)
    x = F.conv2d(x, conv.weight[rows], None, conv.stride, conv.padding, groups=some.stop - some.start)
    return F.batch_norm(
        x, norm.running_mean[rows], norm.running_var[rows], norm.weight[rows], norm.bias[rows], eps=norm.eps
    )
