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
LEAST_CONTRAST = 0.03  # of the normalised values: a standard deviation below it is noise
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
    constant, normalised by a softmax over the cells, so multiplying is adding. ``context``: the block's size; the
    coarsest cells then look at each other, knowing where they lie (:class:`Context`). ``local``: a second channel holds
    the block freed from its local mean and contrast (:func:`local_contrast`).
    """

    def __init__(
        self,
        ndim: int,
        landmarks: int,
        *,
        maps: Sequence[int],
        stem: int,
        spatial: int | None = None,
        log: bool = True,
        context: Sequence[int] | None = None,
        local: bool = False,
    ):
        super().__init__()
        self.ndim, self.log, self.stride, self.local = ndim, log, stem, local
        self.whole = stem * max(2 ** (len(maps) - 1), SHRINK if spatial else 1)  # a block is a multiple of it
        steps = list(itertools.pairwise(maps))
        self.stem = _normed(ndim, 1 + local, maps[0], *((3, 1, 1) if stem == 1 else (2 * stem, stem, stem // 2)))
        down = [nn.Sequential(_normed(ndim, a, b, 2, 2, 0), _normed(ndim, b, b)) for a, b in steps]
        self.down = nn.ModuleList([_normed(ndim, maps[0], maps[0]), *down])
        coarsest = [n // (stem * 2 ** len(steps)) for n in context] if context else None
        self.context = Context(ndim, maps[-1], coarsest) if coarsest else None
        self.lateral = nn.ModuleList(conv(ndim)(b, a, 1) for a, b in steps)
        self.up = nn.ModuleList(_normed(ndim, a, a) for a, _ in steps)
        self.head = _ending(conv(ndim)(maps[0], landmarks, 1), 1e-2, 0.0)
        self.spatial = _spatial(ndim, landmarks, spatial, log=log) if spatial else None
        if ndim == 2:  # bf16 convolutions in 2D are fast in this layout alone
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, blocks: torch.Tensor) -> torch.Tensor:
        """(B, N, *cells) float32; see the class."""
        if self.local:
            blocks = torch.cat([blocks, local_contrast(blocks)], 1)
        with plain_precision(blocks, self.training):
            x = self.stem(channels_last(blocks) if self.ndim == 2 else blocks)
            seen = []
            for level in self.down:
                x = level(x)
                seen.append(x)
            x = x if self.context is None else self.context(x)
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


def local_contrast(blocks: torch.Tensor) -> torch.Tensor:
    """Blocks (B, 1, *S) less their mean over some 36 voxels, over their standard deviation there: a structure looks
    alike in the bright and the dark parts of a radiograph."""
    rest = blocks - _blurred(blocks)
    return rest / (_blurred(rest.square()).clamp(min=0).sqrt() + LEAST_CONTRAST)


def _blurred(x: torch.Tensor) -> torch.Tensor:
    """Means over cubes of 9 cells of 4 voxels, linear in between."""
    pool = F.avg_pool2d if x.ndim == 4 else F.avg_pool3d
    coarse = pool(F.pad(pool(x, 4), (4, 4) * (x.ndim - 2), mode="replicate"), 9, 1)
    mode = "bilinear" if x.ndim == 4 else "trilinear"
    return F.interpolate(coarse, size=x.shape[2:], mode=mode, align_corners=False)


class Context(nn.Module):
    """Three layers of self-attention over all cells (B, C, *cells) and where they lie (Vaswani et al. 2017): what is
    found at one end of an anatomy tells which of many alike parts lies at the other."""

    HEADS = 4
    LAYERS = 3

    def __init__(self, ndim: int, width: int, cells: Sequence[int]):
        super().__init__()
        self.place = nn.Parameter(0.02 * torch.randn(1, width, *cells))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, self.HEADS, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(self.LAYERS)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape, x = x.shape, (x + self.place.to(x.dtype)).flatten(2).mT
        for layer in self.layers:
            x = layer(x)
        return x.mT.reshape(shape)


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


def gaussian_lines(target: torch.Tensor, sigma: torch.Tensor, cells: Sequence[int]) -> list[torch.Tensor]:
    """The factors of Gaussians at ``target`` (B, N, D), x first, with standard deviations ``sigma`` (N,), in cells: for
    each array axis (z, y, x order), of which there are ``cells``, (B, N, cells), 1 at the peak."""
    away = [cell_line(n).to(target) - at[..., None] for n, at in zip(cells, target.flip(-1).unbind(-1), strict=True)]
    return [torch.exp(-0.5 * (a / sigma[:, None]).square()) for a in away]


def cross_entropy(maps: torch.Tensor, target: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """(B, N) Kullback-Leibler divergence of the softmax of ``maps`` (B, N, *S) from the Gaussians about ``target``,
    normalised on the grid: the cross entropy, less the target's own, which matters only where ``sigma`` is learned."""
    lines = [g / g.sum(-1, keepdim=True).clamp(min=1e-12) for g in gaussian_lines(target, sigma, maps.shape[2:])]
    mean = maps
    for line in reversed(lines):  # the map's mean over the target, one axis after the other
        mean = (mean * line.view(*line.shape[:2], *(1,) * (mean.ndim - 3), -1)).sum(-1)
    own = sum((g * g.clamp(min=1e-12).log()).sum(-1) for g in lines)
    return maps.flatten(2).logsumexp(-1) - mean + own


def squared_error(maps: torch.Tensor, target: torch.Tensor, sigma: torch.Tensor, first: float) -> torch.Tensor:
    """(B, N) weighted squared error from Gaussians of equal mass, 1 high where ``sigma`` is what it began with
    (``first``), as a share of what empty maps have there."""
    d = target.shape[-1]
    lines = gaussian_lines(target, sigma, maps.shape[2:])
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


class Candidates(NamedTuple):
    """Each map's highest peaks: ``at`` (B, N, K) their cells, flat; ``places`` (B, N, K, D), x first, in cells from the
    block's middle; ``log_mass`` (B, N, K) the logarithm of the map's share about them."""

    at: torch.Tensor
    places: torch.Tensor
    log_mass: torch.Tensor


def candidates(maps: torch.Tensor, count: int, reach: int = 2) -> Candidates:
    """The ``count`` highest cells of log maps (B, N, *S) that none within ``reach`` cells exceeds."""
    d, side = maps.ndim - 2, 2 * reach + 1
    most = (F.max_pool2d if d == 2 else F.max_pool3d)(maps, side, 1, reach)
    mass = maps.flatten(2).softmax(-1).view_as(maps)
    around = (F.avg_pool2d if d == 2 else F.avg_pool3d)(mass, side, 1, reach) * side**d
    height, at = torch.where(maps >= most, mass, -1.0).flatten(2).topk(min(count, mass[0, 0].numel()), -1)
    share = around.flatten(2).gather(-1, at).clamp(1e-7, 1)
    return Candidates(at, _place(at, maps.shape[2:]), torch.where(height < 0, -1e9, share.log()))


def peaks(maps: torch.Tensor, sigma: torch.Tensor, *, log: bool, at: torch.Tensor | None = None) -> Peaks:
    """Where the mode nearest to each map's highest cell, or to the flat cell ``at`` (B, N), lies: the fixed point of
    the mean in a Gaussian window of twice ``sigma`` (N,) cells (mean shift), which for a Gaussian map is its mean,
    whatever part of a cell it falls on.

    Raw maps (not ``log``) are taken as the weights that they are, scored also by their height.
    """
    b, n, *shape = maps.shape
    d, flat = len(shape), maps.flatten(2).flatten(0, 1)
    mass = flat.softmax(-1) if log else flat.clamp(min=0)
    if at is None:
        top, cell = mass.max(-1, keepdim=True)
    else:
        cell = at.reshape(-1, 1)
        top = mass.gather(-1, cell)
    mass = torch.where(mass >= FLOOR["softmax" if log else "l2"] * top, mass, 0)
    if not log:
        mass = mass / mass.sum(-1, keepdim=True).clamp(min=1e-12)
    lines = [cell_line(size).to(maps) for size in shape]
    point = _place(cell[:, 0], shape)
    width = (2 * sigma).repeat(b)
    for _ in range(SHIFTS):
        near, point = _windowed(mass.view(-1, *shape), point, width, lines)
    usual = 0.8 ** (d / 2)  # what a window of twice its width leaves of a Gaussian
    score = (near / usual).clamp(0, 1) * (1 if log else top[:, 0].clamp(0, 1))
    places = lattice(lines)
    products = (places[:, :, None] * places[:, None]).flatten(1)
    total = mass.sum(-1, keepdim=True).clamp(min=1e-12)
    first, second = mass @ places / total, (mass @ products / total).view(-1, d, d)
    across = first[:, :, None] * point[:, None]
    covariance = second - (across + across.mT) + point[:, :, None] * point[:, None]
    covariance = (covariance + covariance.mT) / 2
    return Peaks(point.view(b, n, d), covariance.view(b, n, d, d), score.view(b, n))


def _place(at: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """(..., D), x first, in cells from the middle, of flat cells (...) of a block of ``shape``."""
    out = []
    for size in reversed(shape):
        out.append(at % size + 0.5 - size / 2)
        at = at // size
    return torch.stack(out, -1).float()


def _windowed(
    mass: torch.Tensor, point: torch.Tensor, width: torch.Tensor, lines: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """How much of ``mass`` (M, *S) a Gaussian window at ``point`` (M, D) holds, and the mean within it."""
    d = point.shape[-1]
    moments = mass
    for a, line in enumerate(reversed(lines)):  # x first: the last axis is summed up; its moments go to the front
        window = torch.exp(-0.5 * ((line - point[:, a, None]) / width[:, None]).square())  # (M, S)
        factor = torch.stack([window, window * line], -1)
        summed = moments.flatten(1, -2) @ factor
        moments = summed.view(*moments.shape[:-1], 2).movedim(-1, 1)
    moments = moments.reshape(len(mass), 2**d)
    total = moments[:, 0].clamp(min=1e-12)
    return total, moments[:, [2**a for a in range(d)]] / total[:, None]
