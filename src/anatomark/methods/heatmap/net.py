"""Heatmap regression: a U-Net or a SpatialConfiguration-Net, and targets, losses and decoding of their maps.

Payer, Stern, Bischof, Urschler: Regressing Heatmaps for Multiple Landmark Localization Using CNNs (MICCAI 2016), and
Integrating Spatial Configuration into Heatmap Regression Based CNNs for Landmark Localization (Medical Image Analysis
2019), whose targets' widths are learned.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from anatomark.methods.kit.layers import channels_last, conv, lattice
from anatomark.methods.kit.precision import plain_precision

GROUP = 8  # channels that are normalised together, more where a width is no multiple of it
SHRINK = 4  # the spatial configuration is looked at in cells so many times as wide
SPATIAL_KERNEL = {2: 7, 3: 5}
FOREGROUND = 10.0  # weight of a squared error at a target's peak, added to 1
LEAST_SIGMA = 0.5  # cells
FLOOR = {"softmax": 0.01, "l2": 0.1}  # of the peak: below it a map says nothing of where the landmark is
SHIFTS = 12  # steps of the mean shift, each of which leaves about a fifth of the way to the mode


class HeatmapNet(nn.Module):
    """From blocks (B, 1, px, ..., px) to one map per landmark (B, N, cells, ..., cells), ``cells`` = px / stem.

    A U-Net: convolutions of 3 (group norm, leaky ReLU) at each of the resolutions whose widths ``maps`` lists, finest
    first, halved by strided convolutions; on the way up what comes from below is interpolated and added. The first
    convolution thins by ``stem``. ``spatial``: the SpatialConfiguration-Net; the U-Net's maps are those of the local
    appearance, and they are multiplied by maps that convolutions of ``spatial`` channels, which see nothing but all
    landmarks' local maps at a quarter of their resolution, derive from them. ``log``: maps are logarithms up to a
    constant, normalised by a softmax over the cells, so multiplying is adding.
    """

    def __init__(
        self, ndim: int, landmarks: int, *, maps: Sequence[int], stem: int, spatial: int | None = None, log: bool = True
    ):
        super().__init__()
        self.ndim, self.log, self.stride = ndim, log, stem
        self.whole = stem * max(2 ** (len(maps) - 1), SHRINK if spatial else 1)  # a block is a multiple of it
        steps = list(itertools.pairwise(maps))
        self.stem = _normed(ndim, 1, maps[0], *((3, 1, 1) if stem == 1 else (2 * stem, stem, stem // 2)))
        down = [nn.Sequential(_normed(ndim, a, b, 2, 2, 0), _normed(ndim, b, b)) for a, b in steps]
        self.down = nn.ModuleList([_normed(ndim, maps[0], maps[0]), *down])
        self.lateral = nn.ModuleList(conv(ndim)(b, a, 1) for a, b in steps)
        self.up = nn.ModuleList(_normed(ndim, a, a) for a, _ in steps)
        self.head = _ending(conv(ndim)(maps[0], landmarks, 1), 1e-2, 0.0)
        self.spatial = _spatial(ndim, landmarks, spatial, log=log) if spatial else None
        if ndim == 2:  # bf16 convolutions in 2D are fast in this layout alone
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, blocks: torch.Tensor) -> torch.Tensor:
        """(B, N, *cells) float32; see the class."""
        with plain_precision(blocks, self.training):
            x = self.stem(channels_last(blocks) if self.ndim == 2 else blocks)
            seen = []
            for level in self.down:
                x = level(x)
                seen.append(x)
            for i in reversed(range(len(self.up))):
                x = self.up[i](seen[i] + self._interpolated(self.lateral[i](x), 2))
            local = self.head(x)
            if self.spatial is None:
                return local.float()
            shown = (local - local.amax(tuple(range(2, local.ndim)), keepdim=True)).float().exp() if self.log else local
            pool = F.avg_pool2d if self.ndim == 2 else F.avg_pool3d
            where = self._interpolated(self.spatial(pool(shown.float(), SHRINK)), SHRINK).float()
        return local.float() + where if self.log else local.float() * where

    def _interpolated(self, x: torch.Tensor, factor: int) -> torch.Tensor:
        mode = "bilinear" if self.ndim == 2 else "trilinear"
        return F.interpolate(x, scale_factor=factor, mode=mode, align_corners=False)


def _normed(ndim: int, before: int, after: int, kernel: int = 3, stride: int = 1, padding: int = 1) -> nn.Sequential:
    groups = next(n for n in range(max(1, after // GROUP), 0, -1) if after % n == 0)
    layer = conv(ndim)(before, after, kernel, stride, padding, bias=False)
    return nn.Sequential(layer, nn.GroupNorm(groups, after), nn.LeakyReLU(0.01, inplace=True))


def _spatial(ndim: int, landmarks: int, width: int, *, log: bool) -> nn.Sequential:
    """Wide convolutions from all landmarks' maps to all landmarks' maps. It begins with no say: log maps of 0, factors
    of 1 (published: of about 0, which multiplied leave almost no gradient)."""
    k = SPATIAL_KERNEL[ndim]
    layers: list[nn.Module] = []
    for before in (landmarks, width, width):
        layers += [conv(ndim)(before, width, k, padding=k // 2), nn.LeakyReLU(0.1, inplace=True)]
    last = conv(ndim)(width, landmarks, k, padding=k // 2)
    return nn.Sequential(*layers, _ending(last, 1e-3, 0.0 if log else 1.0))


def _ending(layer: nn.Conv2d | nn.Conv3d, sd: float, bias: float) -> nn.Module:
    """A last convolution that begins at about ``bias``."""
    nn.init.normal_(layer.weight, std=sd)
    assert layer.bias is not None
    nn.init.constant_(layer.bias, bias)
    return layer


def cell_line(cells: int) -> torch.Tensor:
    """(cells,) centres of the cells along an axis, in cells from the block's middle."""
    return torch.arange(cells) + 0.5 - cells / 2


def gaussian_lines(target: torch.Tensor, sigma: torch.Tensor, cells: int) -> list[torch.Tensor]:
    """The factors of Gaussians at ``target`` (B, N, D), x first, with standard deviations ``sigma`` (N,), in cells: for
    each array axis (z, y, x order) (B, N, cells), 1 at the peak."""
    line = cell_line(cells).to(target)
    away = (line - target.flip(-1)[..., None]) / sigma[:, None, None]
    return list(torch.exp(-0.5 * away.square()).unbind(2))


def cross_entropy(maps: torch.Tensor, target: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """(B, N) Kullback-Leibler divergence of the softmax of ``maps`` (B, N, *S) from the Gaussians about ``target``,
    normalised on the grid: the cross entropy, less the target's own, which matters only where ``sigma`` is learned."""
    lines = [g / g.sum(-1, keepdim=True).clamp(min=1e-12) for g in gaussian_lines(target, sigma, maps.shape[-1])]
    mean = maps
    for line in reversed(lines):  # the map's mean over the target, one axis after the other
        mean = (mean * line.view(*line.shape[:2], *(1,) * (mean.ndim - 3), -1)).sum(-1)
    own = sum((g * g.clamp(min=1e-12).log()).sum(-1) for g in lines)
    return maps.flatten(2).logsumexp(-1) - mean + own


def squared_error(maps: torch.Tensor, target: torch.Tensor, sigma: torch.Tensor, first: float) -> torch.Tensor:
    """(B, N) weighted squared error from Gaussians of equal mass, 1 high where ``sigma`` is what it began with
    (``first``), as a share of what empty maps have there."""
    d = target.shape[-1]
    lines = gaussian_lines(target, sigma, maps.shape[-1])
    goal = lines[0]
    for line in lines[1:]:
        goal = goal[..., None] * line.view(*line.shape[:2], *(1,) * (goal.ndim - 2), -1)
    goal = goal * (first / sigma).pow(d).view(-1, *(1,) * d)
    weight = 1 + FOREGROUND * goal.detach()
    empty = (torch.pi**0.5 * first) ** d * (1 + FOREGROUND * (2 / 3) ** (d / 2))
    return (weight * (maps - goal).square()).flatten(2).sum(-1) / empty


class Peaks(NamedTuple):
    """``points`` (B, N, D), x first, in cells from the block's middle; ``covariance`` (B, N, D, D) of the map about
    them, in cells; ``score`` (B, N) 0 ... 1, the share of the map (of a Gaussian's worth) that lies at the peak."""

    points: torch.Tensor
    covariance: torch.Tensor
    score: torch.Tensor


def peaks(maps: torch.Tensor, sigma: torch.Tensor, *, log: bool) -> Peaks:
    """Where the mode nearest to each map's highest cell lies: the fixed point of the mean in a Gaussian window of twice
    ``sigma`` (N,) cells (mean shift), which for a Gaussian map is its mean, whatever part of a cell it falls on.

    Raw maps (not ``log``) are taken as the weights that they are, scored also by their height.
    """
    b, n, *shape = maps.shape
    d, flat = len(shape), maps.flatten(2).flatten(0, 1)
    mass = flat.softmax(-1) if log else flat.clamp(min=0)
    top, at = mass.max(-1, keepdim=True)
    mass = torch.where(mass >= FLOOR["softmax" if log else "l2"] * top, mass, 0)
    if not log:
        mass = mass / mass.sum(-1, keepdim=True).clamp(min=1e-12)
    line = cell_line(shape[0]).to(maps)
    point = torch.stack([line[at[:, 0] // shape[0] ** a % shape[0]] for a in range(d)], -1)
    width = (2 * sigma).repeat(b)
    for _ in range(SHIFTS):
        near, point = _windowed(mass.view(-1, *shape), point, width, line)
    usual = 0.8 ** (d / 2)  # what a window of twice its width leaves of a Gaussian
    score = (near / usual).clamp(0, 1) * (1 if log else top[:, 0].clamp(0, 1))
    places = lattice([line] * d)
    products = (places[:, :, None] * places[:, None]).flatten(1)
    total = mass.sum(-1, keepdim=True).clamp(min=1e-12)
    first, second = mass @ places / total, (mass @ products / total).view(-1, d, d)
    across = first[:, :, None] * point[:, None]
    covariance = second - (across + across.mT) + point[:, :, None] * point[:, None]
    covariance = (covariance + covariance.mT) / 2
    return Peaks(point.view(b, n, d), covariance.view(b, n, d, d), score.view(b, n))


def _windowed(
    mass: torch.Tensor, point: torch.Tensor, width: torch.Tensor, line: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """How much of ``mass`` (M, *S) a Gaussian window at ``point`` (M, D) holds, and the mean within it."""
    d = point.shape[-1]
    window = torch.exp(-0.5 * ((line - point[..., None]) / width[:, None, None]).square())  # (M, D, S)
    moments = mass
    for a in range(d):  # x first: the last axis is summed up, weighted by 1 and by the place; these go to the front
        factor = torch.stack([window[:, a], window[:, a] * line], -1)
        summed = moments.flatten(1, -2) @ factor
        moments = summed.view(*moments.shape[:-1], 2).movedim(-1, 1)
    moments = moments.reshape(len(mass), 2**d)
    total = moments[:, 0].clamp(min=1e-12)
    return total, moments[:, [2**a for a in range(d)]] / total[:, None]
