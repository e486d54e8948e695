"""The networks of T2DL (Zhang et al. 2017): a patch regressor that is a fully convolutional network as well (the
published one, and a lean one for blocks in the anatomy's frame), the weighted vote of its cells, and layers that
correct all coordinates jointly.

In evaluation the published one's first block, whose maps are by far the largest, goes over the image in slabs. Without
gradients it runs on folded weights (``kit/layers.py``).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from anatomark.methods.base import PerLandmark
from anatomark.methods.kit.layers import Folded, cast, conv, conv_norm, convolve, fold, folded, lattice
from anatomark.methods.kit.precision import conv_dtype, plain_precision

STRIDE = 8  # voxels from cell to cell: three poolings by 2
STEM_VOXELS = 700_000  # of the first block at once: bounds memory, and keeps a slab near the cache
VOTES_AT_ONCE = 1_000_000  # numbers in one piece of work on votes: it stays in the cache


class PatchRegressor(nn.Module):
    """From a patch to the displacements of all landmarks from its centre.

    Three blocks of ``per_block`` x (convolution of 3, BN, ReLU) and max-pooling by 2, a convolution of 2, a 1 x 1
    convolution with dropout, a 1 x 1 convolution to N * D outputs. Every convolution is valid, so that the same weights
    on a larger image give, in cell k, what they give on the patch that begins at voxel ``8 k`` there. ``patch`` is the
    receptive field: 30 voxels (``per_block`` 1) or 44 (2).
    """

    def __init__(
        self,
        ndim: int,
        landmarks: int,
        *,
        maps: Sequence[int] = (32, 64, 128),
        hidden: int = 512,
        per_block: int = 1,
        dropout: float = 0.5,
    ):
        super().__init__()
        pool = nn.MaxPool2d if ndim == 2 else nn.MaxPool3d
        self.ndim, self.landmarks, self.per_block = ndim, landmarks, per_block
        layers: list[nn.Module] = []
        before, patch, step = 1, 1, 1
        for width in maps:
            for _ in range(per_block):
                layers += conv_norm(ndim, before, width)
                before, patch = width, patch + 2 * step
            layers.append(pool(2))
            patch, step = patch + step, 2 * step
        layers += [conv(ndim)(before, hidden, 2), nn.ReLU(inplace=True)]
        self.patch = patch + step
        self.trunk = nn.Sequential(*layers)
        self.mix = nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden, landmarks * ndim)
        nn.init.normal_(self.out.weight, std=1e-3)
        nn.init.zeros_(self.out.bias)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """(B, K, hidden) float32 of the K cells of images (B, 1, *S), in array order."""
        plain = self.training or torch.is_grad_enabled()
        x = (self._plain(images) if plain else self._fast(images)).float().flatten(2).transpose(1, 2)
        mixed: torch.Tensor = self.dropout(F.relu(self.mix(x)))
        return mixed

    def votes(self, features: torch.Tensor, rows: slice = slice(None)) -> torch.Tensor:
        """(B, K, n, D) displacements, in the units learned, of the landmarks ``rows``, x first, from features
        (B, K, hidden). In memory the cells are the fastest axis, as :func:`weighted_vote` reads them."""
        weight, bias = _output(self.out, self.ndim, rows)
        by_landmark = torch.matmul(weight, features.transpose(1, 2)) + bias[:, None]
        return by_landmark.unflatten(1, (-1, self.ndim)).permute(0, 3, 1, 2)

    def cells(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Number of cells along each axis of an image. Raises ValueError where it is smaller than a patch."""
        if min(shape) < self.patch:
            raise ValueError(f"an image of {tuple(shape)} voxels is smaller than a patch of {self.patch}")
        return tuple((n - self.patch) // STRIDE + 1 for n in shape)

    def centres(self, shape: Sequence[int]) -> torch.Tensor:
        """(K, D) voxel coordinates of the cells' centres in an image of this shape, in array order, x first:
        (patch - 1) / 2 + 8 k."""
        return lattice([torch.arange(n) * float(STRIDE) + (self.patch - 1) / 2 for n in self.cells(shape)])

    def _plain(self, images: torch.Tensor) -> torch.Tensor:
        """(B, hidden, *cells). In evaluation with gradients the first block keeps none of its maps."""
        first = 3 * self.per_block + 1
        stem, rest = self.trunk[:first], self.trunk[first:]
        with plain_precision(images, torch.is_grad_enabled()):
            if self.training:  # batch norm's statistics are of all voxels
                maps = stem(images)
            else:
                slabs = [checkpoint(stem, images[:, :, a:b], use_reentrant=False) for a, b in self._slabs(images)]
                maps = torch.cat(slabs, 2)
            out: torch.Tensor = rest(maps)
            return out

    def _slabs(self, images: torch.Tensor) -> list[tuple[int, int]]:
        """First and last rows of the image's parts whose first blocks, put together, are the image's."""
        margin = 2 * self.per_block
        pooled = (images.shape[2] - margin) // 2
        rows = max(1, STEM_VOXELS // max(1, 2 * images[:, 0, 0].numel()))
        return [(2 * a, 2 * min(a + rows, pooled) + margin) for a in range(0, pooled, rows)]

    def _fast(self, images: torch.Tensor) -> torch.Tensor:
        kind = conv_dtype(images.device)
        stem, blocks, last = folded(self, kind, self._fold)
        x = images.to(kind)
        slabs = (x[:, :, a:b] for a, b in self._slabs(x))
        parts = [self._block(s, blocks[0]) if stem is None else self._products(s[:, 0], stem) for s in slabs]
        x = parts[0] if len(parts) == 1 else torch.cat(parts, 2)
        for block in blocks[1:]:
            x = self._block(x, block)
        return convolve(self.ndim)(x, *last).relu_()

    def _block(self, x: torch.Tensor, layers: Sequence[Folded]) -> torch.Tensor:
        pool = F.max_pool2d if self.ndim == 2 else F.max_pool3d
        for layer in layers[:-1]:
            x = convolve(self.ndim)(x, *layer).relu_()
        return pool(convolve(self.ndim)(x, *layers[-1]), 2).relu_()  # the maximum of ReLUs is the maximum's ReLU

    def _products(self, x: torch.Tensor, layer: Folded) -> torch.Tensor:
        """The first block of one convolution, (B, maps, *pooled), of voxels (B, *S), as one matrix product: from the
        4 ** D voxels that a pooled voxel sees to the 2 ** D values whose maximum it is. A convolution of one channel is
        slow."""
        weight, bias = layer
        pooled = [(n - 2) // 2 for n in x.shape[1:]]
        # two neighbours in a row stay neighbours, so they are moved as one number of twice the size
        pairs = x[..., : 2 * pooled[-1] + 2].contiguous().view({2: torch.int32, 4: torch.int64}[x.element_size()])
        for axis in range(1, self.ndim):
            pairs = pairs.unfold(axis, 4, 2)
        windows = pairs.unfold(self.ndim, 2, 1).reshape(-1, 4**self.ndim // 2).view(x.dtype)
        values = F.linear(windows, weight).view(1, len(windows), 2**self.ndim, -1).permute(0, 3, 1, 2)
        highest = F.max_pool2d(values, (1, 2**self.ndim)).permute(0, 2, 3, 1)  # pooling is torch's fastest maximum
        return highest.add_(bias).relu_().view(len(x), *pooled, -1).movedim(-1, 1)

    def _fold(self, kind: torch.dtype) -> tuple[Folded | None, list[list[Folded]], Folded]:
        """The first block as a matrix (2 ** D * maps, 4 ** D) where it is one convolution, all blocks' convolutions,
        and the last one."""
        layers, n = list(self.trunk), self.per_block
        blocks = [
            [cast(*fold(layers[i + 3 * k], layers[i + 3 * k + 1]), kind) for k in range(n)]
            for i in range(0, len(layers) - 2, 3 * n + 1)
        ]
        stem = None
        if n == 1:
            weight, bias = fold(layers[0], layers[1])
            places = itertools.product((0, 1), repeat=self.ndim)
            moved = [F.pad(weight, [p for at in reversed(place) for p in (at, 1 - at)]) for place in places]
            stem = (torch.cat(moved).flatten(1).detach().to(kind), bias.detach().to(kind))
        end = layers[-2]
        return stem, blocks, cast(end.get_parameter("weight"), end.get_parameter("bias"), kind)


def distance_weighted_loss(
    votes: torch.Tensor, goal: torch.Tensor, defined: torch.Tensor, alpha: float
) -> torch.Tensor:
    """Squared error of votes (..., N, D) against true displacements, each weighted by ``exp(-|d| / alpha)`` of its
    true length, normalised by the sum of weights. ``defined`` (..., N): 0 = no truth. All lengths in one unit."""
    weight = torch.exp(-goal.norm(dim=-1) / alpha) * defined
    error = (votes - goal).square().sum(-1)
    return (weight * error).sum() / weight.sum().clamp(min=1e-6)


class BlockRegressor(nn.Module):
    """From blocks (B, 1, px, ..., px) to what each of their ``cells`` ^ D cells says of all landmarks.

    Convolutions of 4 with stride 2 (BN, ReLU), one for each of ``maps``, are shared by all cells and valid: a cell sees
    a patch of ``patch`` voxels, ``stride`` voxels from cell to cell. In that frame a cell always sees the same part
    of the anatomy, so the layer that reads its last maps (2 ^ D places of them) is each cell's own: without that the
    same error took more than twice the training. The layers after it are shared again. ``field``: each cell also says
    an affine field, which all landmarks share and teach.
    """

    def __init__(
        self,
        ndim: int,
        landmarks: int,
        cells: int,
        *,
        maps: Sequence[int] = (16, 32, 64),
        narrow: int = 96,
        hidden: int = 256,
        dropout: float = 0.2,
        field: bool = False,
    ):
        super().__init__()
        self.ndim, self.landmarks = ndim, landmarks
        self.stride = 2 ** len(maps)
        layers: list[nn.Module] = []
        before, patch, step = 1, 1, 1
        for width in maps:
            layers += conv_norm(ndim, before, width, 4, stride=2)
            before, patch, step = width, patch + 3 * step, 2 * step
        self.patch = patch + step
        self.px = self.patch + self.stride * (cells - 1)
        self.trunk = nn.Sequential(*layers)
        count, seen = cells**ndim, before * 2**ndim
        self.own = nn.Parameter(torch.randn(count, seen, narrow) * (2 / seen) ** 0.5)
        self.own_bias = nn.Parameter(torch.zeros(count, 1, narrow))
        self.mix = nn.Linear(narrow, hidden)
        self.place = nn.Parameter(torch.zeros(count, 1, hidden))
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden, landmarks * ndim)
        self.field = nn.Linear(hidden, ndim * (ndim + 1)) if field else None
        self.sure = nn.Linear(hidden, landmarks)
        self.sharpness = nn.Parameter(torch.zeros(landmarks))  # log; of the votes' weights, see ``weighted_vote``
        nn.init.normal_(self.out.weight, std=1e-3)
        if self.field is not None:
            nn.init.normal_(self.field.weight, std=1e-3)
            nn.init.zeros_(self.field.bias)
        for zero in (self.out.bias, self.sure.weight, self.sure.bias):
            nn.init.zeros_(zero)

    @property
    def centres(self) -> torch.Tensor:
        """(K, D) the cells' centres from the middle of the block, in voxels, in array order, x first."""
        line = torch.arange((self.px - self.patch) // self.stride + 1) * float(self.stride) + (self.patch - self.px) / 2
        return lattice([line] * self.ndim)

    def features(self, blocks: torch.Tensor) -> torch.Tensor:
        """(B, K, hidden) float32 of the K cells, in array order."""
        with plain_precision(blocks, self.training):
            x = self.trunk(blocks)
        x, d = x.float(), self.ndim
        for axis in range(2, 2 + d):
            x = x.unfold(axis, 2, 1)
        x = x.permute(*range(2, 2 + d), 0, 1, *range(2 + d, 2 + 2 * d)).flatten(0, d - 1).flatten(2)  # (K, B, seen)
        x = F.relu(torch.baddbmm(self.own_bias, x, self.own))
        mixed: torch.Tensor = self.dropout(F.relu(self.mix(x) + self.place))
        return mixed.transpose(0, 1)

    def votes(
        self, features: torch.Tensor, rows: slice | torch.Tensor = slice(None), at: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(B, K, n, D) what the cells say of the landmarks ``rows``, x first, from features (B, K, hidden); ``at``
        (K, n, D), where the field is read: the landmarks' mean places from the cells."""
        weight, bias = _output(self.out, self.ndim, rows)
        votes = F.linear(features, weight, bias).unflatten(2, (-1, self.ndim))
        if self.field is None or at is None:
            return votes
        field = self.field(features).unflatten(2, (self.ndim, self.ndim + 1))
        return votes + torch.einsum("bkde,kne->bknd", field, F.pad(at, (0, 1), value=1.0))

    def confidence(self, features: torch.Tensor, rows: slice | torch.Tensor = slice(None)) -> torch.Tensor:
        """(B, K, n) log weights of the votes."""
        return F.linear(features, self.sure.weight[rows], self.sure.bias[rows])


def _output(layer: nn.Linear, ndim: int, rows: slice | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight (n * D, hidden) and bias (n * D,) of a last layer for the landmarks ``rows``."""
    return layer.weight.unflatten(0, (-1, ndim))[rows].flatten(0, 1), layer.bias.view(-1, ndim)[rows].flatten()


def weighted_vote(
    votes: torch.Tensor, centres: torch.Tensor, sharpness: torch.Tensor, confidence: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Points (B, N, D) where the cells' absolute votes meet, and the covariance (B, N, D, D) of these votes.

    ``votes`` (B, K, N, D) displacements from ``centres`` (K, D) or (B, K, D) in one unit; a cell weighs the more the
    nearer it believes the landmark to be: softmax over the cells of ``-|vote| * sharpness`` (N,), plus ``confidence``
    (B, K, N). Some landmarks at a time, so that what is made on the way stays small.
    """
    b, k, n, d = votes.shape
    step = max(1, VOTES_AT_ONCE // max(1, b * k * d))
    at = centres.to(votes).expand(b, k, d).transpose(1, 2)
    parts = []
    for a in range(0, n, step):
        rows = slice(a, a + step)
        sure = None if confidence is None else confidence[:, :, rows].transpose(1, 2)
        parts.append(_vote(votes[:, :, rows].permute(0, 2, 3, 1), at, sharpness[rows, None], sure))
    return torch.cat([p[0] for p in parts], 1), torch.cat([p[1] for p in parts], 1)


def _vote(
    votes: torch.Tensor, centres: torch.Tensor, sharpness: torch.Tensor, confidence: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`weighted_vote` of votes (B, n, D, K), centres (B, D, K), sharpness (n, 1), confidence (B, n, K)."""
    logits = -votes.square().sum(2).clamp(min=1e-12).sqrt() * sharpness
    if confidence is not None:
        logits = logits + confidence
    weight = logits.softmax(2)
    # displacements and centres apart: a sum of large coordinates would round more
    points = torch.einsum("bnk,bndk->bnd", weight, votes) + torch.einsum("bnk,bdk->bnd", weight, centres)
    aside = votes + (centres[:, None] - points[..., None])
    return points, torch.einsum("bnik,bnjk->bnij", aside * weight[:, :, None], aside)


class JointLayers(nn.Module):
    """All coordinates corrected jointly: ``x + A relu(B (x - mean))`` through at most ``rank`` numbers, A zero at first
    so that training starts from the pure vote. Points (B, N, D) and the mean shape (N, D) in one unit. A landmark that
    another model does not know is neither moved nor looked at by that one's weights."""

    mean: torch.Tensor
    per_landmark: ClassVar[Mapping[str, PerLandmark]] = {
        "up.*": PerLandmark(new="zero"), "down.weight": PerLandmark(axis=1, new="zero"),
    }  # fmt: skip

    def __init__(self, mean: torch.Tensor, rank: int = 64, width: int = 128):
        super().__init__()
        size = mean.numel()
        rank = min(rank, size)
        self.register_buffer("mean", mean.flatten().float(), persistent=False)
        self.down = nn.Linear(size, rank)
        self.inner = nn.Sequential(nn.Linear(rank, width), nn.ReLU(), nn.Linear(width, rank))
        self.up = nn.Linear(rank, size)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        """Corrected points (B, N, D)."""
        low = self.down(points.flatten(1) - self.mean)
        out: torch.Tensor = points + self.up(low + self.inner(low)).view_as(points)
        return out


class ExtraLayers(nn.Module):
    """What the second stage adds to the patch regressor: each landmark's own ``alpha`` of the vote, and the joint
    layers. ``mean`` (N, D) and the first ``alpha`` in one unit."""

    def __init__(self, mean: torch.Tensor, alpha: float, rank: int = 64):
        super().__init__()
        self.log_alpha = nn.Parameter(torch.full((len(mean),), math.log(alpha)))
        self.joint = JointLayers(mean, rank)

    def sharpness(self) -> torch.Tensor:
        """(N,) 1 / alpha, positive."""
        return torch.exp(-self.log_alpha)
