"""The network of T2DL's recommended preset: a lean patch regressor for blocks in the anatomy's frame."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from anatomark.methods.kit.layers import conv, lattice, norm
from anatomark.methods.kit.precision import plain_precision


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
            layers += [conv(ndim)(before, width, 4, stride=2, bias=False), norm(ndim)(width), nn.ReLU(inplace=True)]
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
        weight = self.out.weight.view(self.landmarks, self.ndim, -1)[rows].flatten(0, 1)
        bias = self.out.bias.view(self.landmarks, self.ndim)[rows].flatten()
        votes = F.linear(features, weight, bias).unflatten(2, (-1, self.ndim))
        if self.field is None or at is None:
            return votes
        field = self.field(features).unflatten(2, (self.ndim, self.ndim + 1))
        return votes + torch.einsum("bkde,kne->bknd", field, F.pad(at, (0, 1), value=1.0))

    def confidence(self, features: torch.Tensor, rows: slice | torch.Tensor = slice(None)) -> torch.Tensor:
        """(B, K, n) log weights of the votes."""
        return F.linear(features, self.sure.weight[rows], self.sure.bias[rows])
