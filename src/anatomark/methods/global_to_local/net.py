"""The coarse global network: a block that holds the anatomy to a vote of every cell for every landmark."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from anatomark.methods.kit.layers import conv, conv_norm, lattice
from anatomark.methods.kit.precision import plain_precision

STRIDE = 4  # voxels along a cell's side
_DEEPEST = 16  # stride of the bottleneck
FARTHEST = 4.0  # a logarithmic displacement is read as at most 10 ** 4 - 1


class BlockVotes(NamedTuple):
    """What a block says. ``points`` (B, N, D): the landmarks directly, in cells from the block's centre, along the
    model's axes x, y[, z]. Cells: ``logits`` (B, N, K + 1): which of them holds the landmark, the last one: none of
    them; ``correction`` (B, N, K, D): added to the log displacement from the cell's centre to the landmark's direct
    point."""

    points: torch.Tensor
    logits: torch.Tensor
    correction: torch.Tensor


class CoarseNet(nn.Module):
    """Blocks (B, 1, px, ..., px), px a multiple of 16, to :class:`BlockVotes` of K = (px / 4)^D cells in array order.

    Residual blocks down to a bottleneck that sees the whole block; what it knows of all landmarks (points, and a
    vector of context) is added to every cell on the way up, so that a cell has to learn only what it sees better.
    """

    centres: torch.Tensor

    def __init__(self, ndim: int, px: int, landmarks: int, width: int = 16, hidden: int = 384):
        super().__init__()
        if px % _DEEPEST:
            raise ValueError(f"a block of {px} voxels a side; expected a multiple of {_DEEPEST}")
        w, n, d = width, landmarks, ndim
        self.ndim, self.landmarks, self.cells = d, n, px // STRIDE
        self.stem = nn.Sequential(*conv_norm(d, 1, w, stride=2, padding=1))
        self.down = nn.ModuleList(_Down(d, a * w, b * w) for a, b in ((1, 2), (2, 4), (4, 8)))
        flat = 8 * w * (px // _DEEPEST) ** d
        self.whole = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(flat, hidden), nn.ReLU())
        self.direct = nn.Linear(hidden, n * d)
        self.nowhere = nn.Linear(hidden, n)
        self.context = nn.Linear(hidden, 2 * w)
        self.up = nn.ModuleList([conv(d)(8 * w, 4 * w, 1), conv(d)(4 * w, 2 * w, 1)])
        self.mix = nn.Sequential(*conv_norm(d, 2 * w, 2 * w, padding=1))
        self.head = nn.Parameter(torch.randn(n, 2 * w, d + 1) * 0.01)
        self.offset = nn.Parameter(torch.zeros(n, d + 1))
        self.sharpness = nn.Parameter(torch.full((n, 1), -1.0))
        self.register_buffer("centres", block_cells(d, self.cells), persistent=False)

    def forward(self, block: torch.Tensor, chosen: torch.Tensor | None = None) -> BlockVotes:
        """See the class. ``chosen``: indices of the landmarks that cells shall vote for, in training; None: all."""
        with plain_precision(block, self.training):
            fine = self.down[0](self.stem(block))
            middle = self.down[1](fine)
            deep = self.down[2](middle)
        whole = self.whole(deep.float())
        points = self.direct(whole).view(-1, self.landmarks, self.ndim)
        context = self.context(whole).view(len(whole), -1, *(1,) * self.ndim)
        with plain_precision(block, self.training):
            x = torch.relu(middle + F.interpolate(self.up[0](deep), scale_factor=2, mode="nearest"))
            x = torch.relu(fine + F.interpolate(self.up[1](x), scale_factor=2, mode="nearest") + context)
            x = self.mix(x)
        return self._votes(x.float(), points, self.nowhere(whole), chosen)

    def _votes(
        self, x: torch.Tensor, points: torch.Tensor, nowhere: torch.Tensor, chosen: torch.Tensor | None
    ) -> BlockVotes:
        rows = slice(None) if chosen is None else chosen
        head, offset, sharpness = self.head[rows], self.offset[rows], self.sharpness[rows]
        near, nowhere = points[:, rows], nowhere[:, rows]
        own = torch.einsum("bck,nco->bnko", x.flatten(2), head) + offset[:, None]  # (B, N, K, D + 1)
        # a cell far from the direct point is improbable, however alike it looks
        far = (near[:, :, None] - self.centres).square().sum(-1)
        logits = torch.cat([own[..., -1] - F.softplus(sharpness) * far, nowhere[..., None]], -1)
        return BlockVotes(points, logits, own[..., :-1])


def log_displacement(d: torch.Tensor) -> torch.Tensor:
    """g(d) = sign(d) log10(|d| + 1), of voxels or cells."""
    return torch.sign(d) * torch.log10(d.abs() + 1)


def displacement(y: torch.Tensor) -> torch.Tensor:
    """The inverse of :func:`log_displacement`, sign(y) (10 ** |y| - 1), with |y| clipped to ``FARTHEST``."""
    return torch.sign(y) * (10 ** y.abs().clamp(max=FARTHEST) - 1)


def block_cells(ndim: int, cells: int) -> torch.Tensor:
    """(cells^D, D) centres of all cells in array order, x, y[, z] from the block's centre, in cells."""
    return lattice([torch.arange(cells) + 0.5 - cells / 2] * ndim)


def log_votes(votes: BlockVotes, centres: torch.Tensor) -> torch.Tensor:
    """(B, N, K, D) log displacement of every cell with centre ``centres`` (K, D) to every landmark."""
    return log_displacement(votes.points[:, :, None] - centres) + votes.correction


def read_votes(votes: BlockVotes, centres: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Posterior-weighted mean (B, N, D) of the cells' votes and covariance (B, N, D, D) of the cloud, in cells from the
    block's centre, and the posterior (B, N) that any cell holds the landmark."""
    weight = votes.logits[..., :-1].softmax(-1)
    places = centres + displacement(log_votes(votes, centres))
    mean = torch.einsum("bnk,bnkd->bnd", weight, places)
    aside = places - mean[:, :, None]
    cloud = torch.einsum("bnk,bnki,bnkj->bnij", weight, aside, aside)
    return mean, cloud, 1 - votes.logits.softmax(-1)[..., -1]


class _Down(nn.Module):
    """Half the resolution, then one residual block."""

    def __init__(self, ndim: int, before: int, after: int):
        super().__init__()
        self.thin = nn.Sequential(*conv_norm(ndim, before, after, stride=2, padding=1))
        self.block = nn.Sequential(*conv_norm(ndim, after, after, padding=1)[:2])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.thin(x)
        return torch.relu(x + self.block(x))
