"""The networks of global-to-local localisation (Noothout et al., IEEE TMI 2020): one for the whole image, and one small
network for each landmark, all of these run as one grouped network.

In evaluation without gradients both run on folded weights: batch norms disappear into the convolutions before them or
the pooling before them, and convolutions take the type that :func:`conv_precision` chooses. The result is that of the
plain layers up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from anatomark.methods.kit.layers import Folded, affine, cast, channels_last, chunks, conv, convolve, fold, folded, norm
from anatomark.methods.kit.precision import conv_dtype, plain_precision

Maps = tuple[torch.Tensor, torch.Tensor]

STEM_CELLS = 4_000_000  # outputs of the first convolution at once: bounds memory, and keeps a slab in the cache
LANDMARKS_AT_ONCE = 32


class Block(nn.Module):
    """(conv 3 - BN - ReLU) twice plus the input, by a 1 x 1 convolution where widths differ; nothing after the sum."""

    def __init__(self, ndim: int, before: int, after: int):
        super().__init__()
        self.conv1 = conv(ndim)(before, after, 3, padding=1, bias=False)
        self.norm1 = norm(ndim)(after)
        self.conv2 = conv(ndim)(after, after, 3, padding=1, bias=False)
        self.norm2 = norm(ndim)(after)
        self.shortcut = conv(ndim)(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, before, *S) to (B, after, *S)."""
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        y = F.relu(self.norm2(self.conv2(y)), inplace=True)
        out: torch.Tensor = y + self.shortcut(x)
        return out


class GlobalFCNN(nn.Module):
    """The ResNet-34-like network that sees the whole image.

    A convolution of 7 and stride 2 to half as many maps as the first width, BN, ReLU; groups of residual blocks; before
    group k, where ``pools[k]``, average pooling by 2, BN, ReLU; two heads (posteriors, displacements) of 1 x 1
    convolutions, two hidden layers of the last width each. ``stride`` q = 2 ** (1 + number of pools): the side of a
    cell. Heads run in float32.
    """

    def __init__(
        self,
        ndim: int,
        landmarks: int,
        pools: Sequence[bool] = (True, True, True, True),
        *,
        widths: Sequence[int] = (32, 64, 128, 256),
        blocks: Sequence[int] = (3, 4, 6, 3),
    ):
        super().__init__()
        self.ndim, self.landmarks, self.pools = ndim, landmarks, tuple(pools)
        self.stride = 2 ** (1 + sum(self.pools))
        stem = max(1, widths[0] // 2)
        self.stem = conv(ndim)(1, stem, 7, stride=2, padding=3, bias=False)
        self.stem_norm = norm(ndim)(stem)
        befores = (stem, *widths[:-1])
        self.pool_norms = nn.ModuleList(
            norm(ndim)(w) if pool else nn.Identity() for w, pool in zip(befores, self.pools, strict=True)
        )
        self.groups = nn.ModuleList(
            nn.Sequential(*(Block(ndim, before if i == 0 else after, after) for i in range(count)))
            for before, after, count in zip(befores, widths, blocks, strict=True)
        )
        self.classify = _head(ndim, widths[-1], landmarks)
        self.regress = _head(ndim, widths[-1], landmarks * ndim)
        self.apply(_initialise)

    def forward(self, image: torch.Tensor) -> Maps:
        """Logits (B, N, *cells) and displacements (B, N, D, *cells), float32, D in the order of the array's axes.

        ``image`` (B, 1, *S) of any real dtype; S multiples of ``stride``. Displacements are as learned: logarithmic.
        Raises ValueError for other sizes.
        """
        if any(n % self.stride for n in image.shape[2:]):
            raise ValueError(f"sizes {tuple(image.shape[2:])} are not multiples of the output stride {self.stride}")
        if self.training or torch.is_grad_enabled():
            features = self.plain_features(image)
            logits, displacement = self.classify(features), self.regress(features)
        else:
            cells = self.fast_features(image).movedim(1, -1)
            logits, displacement = (_by_cell(head, cells) for head in (self.classify, self.regress))
        return logits, displacement.unflatten(1, (self.landmarks, self.ndim))

    def plain_features(self, image: torch.Tensor) -> torch.Tensor:
        """The last group's maps (B, widths[-1], *cells), layer by layer as the paper has them; float32."""
        pool = F.avg_pool2d if self.ndim == 2 else F.avg_pool3d
        x = channels_last(image.float())
        with plain_precision(x, self.training):
            x = F.relu(self.stem_norm(self.stem(x)), inplace=True)
            for pooled, pool_norm, group in zip(self.pools, self.pool_norms, self.groups, strict=True):
                if pooled:
                    # 3D average pooling has no bf16 kernel on the CPU
                    x = F.relu(pool_norm(pool(x.float() if self.ndim == 3 else x, 2)), inplace=True)
                x = group(x)
        return x.float()

    def fast_features(self, image: torch.Tensor) -> torch.Tensor:
        """The same on folded weights, the first layers in slabs."""
        kind = conv_dtype(image.device)
        stem, groups = folded(self, kind, self._fold)
        x = self._fast_stem(image.to(kind), stem, groups[0][0])
        convolution = convolve(self.ndim)
        for k, (pool, blocks) in enumerate(groups):
            if k and pool is not None:
                x = _pool(x, pool)
            for first, second, shortcut in blocks:
                y = convolution(x, *first, padding=1).relu_()
                y = convolution(y, *second, padding=1).relu_()
                x = y.add_(x if shortcut is None else convolution(x, *shortcut))
        return x.float()

    def _fast_stem(self, image: torch.Tensor, stem: Folded, pool: Folded | None) -> torch.Tensor:
        """Stem and first pooling. Pairs of voxels become channels (2 ** D of them), which leaves a convolution of 4
        without stride: what a convolution of 7 with stride 2 does, but on more than one channel."""
        padded = F.pad(image, (3, 3) * self.ndim)
        convolution = convolve(self.ndim)
        half = image.shape[2] // 2
        rows = max(2, STEM_CELLS // (image[0, 0, 0].numel() // 2 ** (self.ndim - 1) * stem[0].shape[0])) // 2 * 2
        slabs = []
        for a in range(0, half, rows):
            part = _paired(padded[:, :, 2 * a : 2 * min(a + rows, half) + 6])
            x = convolution(part, *stem).relu_()
            slabs.append(x if pool is None else _pool(x, pool))
        return slabs[0] if len(slabs) == 1 else torch.cat(slabs, 2)

    def _fold(self, kind: torch.dtype) -> tuple[Folded, list[Any]]:
        stem, bias = fold(self.stem, self.stem_norm)
        stem = F.pad(stem, (0, 1) * self.ndim)
        stem = _paired(stem)
        groups = []
        for pooled, pool_norm, group in zip(self.pools, self.pool_norms, self.groups, strict=True):
            pool = None
            if pooled:
                scale, shift = affine(pool_norm)
                pool = cast((scale / 2**self.ndim).view(-1, 1, *(1,) * self.ndim).repeat(1, 1, *(2,) * self.ndim),
                            shift, kind)  # fmt: skip
            blocks = []
            for b in group:  # type: ignore[attr-defined]
                short = None if isinstance(b.shortcut, nn.Identity) else cast(b.shortcut.weight, b.shortcut.bias, kind)
                blocks.append((cast(*fold(b.conv1, b.norm1), kind), cast(*fold(b.conv2, b.norm2), kind), short))
            groups.append((pool, blocks))
        return cast(stem, bias, kind), groups


class LocalFCNNs(nn.Module):
    """N landmarks' local networks as one grouped network; group n is landmark n's own.

    Each: 4 x (conv 3 - BN - ReLU) with 32 maps, average pooling by 2, 2 x (conv 3 - BN - ReLU) with 64 maps, two heads
    of 1 x 1 convolutions with two hidden layers of 64. Cells have a side of ``stride`` = 2. Heads run in float32.
    """

    stride = 2

    def __init__(self, ndim: int, landmarks: int, *, widths: tuple[int, int] = (32, 64)):
        super().__init__()
        self.ndim, self.landmarks = ndim, landmarks
        n, (narrow, wide) = landmarks, widths
        sizes = [1, narrow, narrow, narrow, narrow, wide, wide]
        self.convs = nn.ModuleList(
            conv(ndim)(n * a, n * b, 3, padding=1, groups=n, bias=False) for a, b in pairwise(sizes)
        )
        self.norms = nn.ModuleList(norm(ndim)(n * b) for b in sizes[1:])
        self.classify = _head(ndim, n * wide, n, groups=n)
        self.regress = _head(ndim, n * wide, n * ndim, groups=n)
        self.apply(_initialise)

    def forward(self, images: torch.Tensor) -> Maps:
        """Logits (B, N, *cells) and displacements (B, N, D, *cells), float32, of sub-images (B, N, *S), S even, of any
        real dtype. Logarithmic displacements, D in the order of the array's axes."""
        if not self.training and not torch.is_grad_enabled():
            kind = conv_dtype(images.device)
            images, weights = images.to(kind), folded(self, kind, self._fold)
            parts = [self._fast(images, some, *weights) for some in chunks(self.landmarks, LANDMARKS_AT_ONCE)]
            return torch.cat([logits for logits, _ in parts], 1), torch.cat([moves for _, moves in parts], 1)
        x = channels_last(images.float())
        pool = F.avg_pool2d if self.ndim == 2 else F.avg_pool3d
        with plain_precision(x, self.training):
            for i, (c, batch_norm) in enumerate(zip(self.convs, self.norms, strict=True)):
                x = F.relu(batch_norm(c(x)), inplace=True)
                if i == 3:
                    x = pool(x.float() if self.ndim == 3 else x, 2)
        x = x.float()
        return self.classify(x), self.regress(x).unflatten(1, (self.landmarks, self.ndim))

    def _fast(self, images: torch.Tensor, some: slice, layers: list[Folded], heads: list[list[Folded]]) -> Maps:
        """Maps of some landmarks on folded weights."""
        x = channels_last(images[:, some])
        n = x.shape[1]
        for i, layer in enumerate(layers):
            rows = (t.unflatten(0, (self.landmarks, -1))[some].flatten(0, 1) for t in layer)
            x = convolve(self.ndim)(x, *rows, padding=1, groups=n).relu_()
            if i == 3:  # 3D average pooling has no bf16 kernel on the CPU
                x = F.avg_pool2d(x, 2) if self.ndim == 2 else F.avg_pool3d(x.float(), 2).to(x.dtype)
        # (B, n, cells, wide): one small matrix product for each landmark
        features = x.flatten(2).unflatten(1, (n, -1)).transpose(2, 3).float()
        out = []
        for head in heads:
            h = features
            for k, (weight, bias) in enumerate(head):
                h = torch.matmul(h, weight[some]) + bias[some]
                h = h.relu_() if k < 2 else h
            out.append(h.transpose(2, 3).unflatten(3, x.shape[2:]))
        return out[0][:, :, 0], out[1]

    def _fold(self, kind: torch.dtype) -> tuple[list[Folded], list[list[Folded]]]:
        """Convolutions, and the heads' layers as matrices (N, in, out) and biases (N, 1, out)."""
        layers = [cast(*fold(c, m), kind) for c, m in zip(self.convs, self.norms, strict=True)]
        n = self.landmarks
        heads = [
            [
                (m.weight.flatten(1).unflatten(0, (n, -1)).transpose(1, 2).contiguous(), m.bias.view(n, 1, -1))
                for m in head
                if isinstance(m, nn.Conv2d | nn.Conv3d) and m.bias is not None
            ]
            for head in (self.classify, self.regress)
        ]
        return layers, heads


def _head(ndim: int, before: int, outputs: int, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        conv(ndim)(before, before, 1, groups=groups),
        nn.ReLU(inplace=True),
        conv(ndim)(before, before, 1, groups=groups),
        nn.ReLU(inplace=True),
        conv(ndim)(before, outputs, 1, groups=groups),
    )


def _by_cell(head: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    """A head's maps (B, outputs, *cells) of features (B, *cells, maps): 1 x 1 convolutions as matrix products."""
    for layer in head:
        x = F.linear(x, layer.weight.flatten(1), layer.bias) if hasattr(layer, "weight") else x.relu_()  # type: ignore[operator, arg-type]
    return x.movedim(-1, 1)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Conv3d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _paired(x: torch.Tensor) -> torch.Tensor:
    """(B, 1, *S), S even, to (B, 2 ** D, *S / 2), channels last: each block of 2 ** D voxels becomes channels."""
    d, kind = x.ndim - 2, x.dtype
    # two neighbours in a row stay neighbours, so they are moved as one number of twice the size
    x = x.view({2: torch.int32, 4: torch.int64}[x.element_size()])
    for axis in range(1, d):
        x = x.unflatten(2 * axis, (-1, 2))
    order = [0, *range(2, 2 * d, 2), 2 * d, *range(3, 2 * d, 2), 1]
    return x.permute(order).flatten(d + 1).contiguous().view(kind).movedim(-1, 1)


def _pool(x: torch.Tensor, weights: Folded) -> torch.Tensor:
    """Average pooling by 2 with the batch norm after it, then ReLU: one depth-wise convolution."""
    return convolve(x.ndim - 2)(x, *weights, stride=2, groups=x.shape[1]).relu_()
