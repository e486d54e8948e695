"""The networks of the recommended PIN: one finds a pose from a coarse block, one reads landmark patches. Where a patch
sees its landmark is a distribution over the cells of each plane: how it is learned and read.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from anatomark.core.grid import Array
from anatomark.methods.kit.layers import channels_last, conv_norm, filmed
from anatomark.methods.kit.precision import conv_precision, plain_precision
from anatomark.methods.kit.targets import across_planes, average, logged, on_planes

REGRESSION_WEIGHT = 20.0  # brings the Huber term, in half widths, to the size of the cross entropy


class ContextNet(nn.Module):
    """A coarse block (B, 1, px, ..., px) to all landmarks (B, N, D), in units of the block's half width."""

    def __init__(self, ndim: int, px: int, landmarks: int, width: int = 16):
        super().__init__()
        layers: list[nn.Module] = []
        before, size = 1, px
        for w in (width, 2 * width, 4 * width, 8 * width):
            layers += conv_norm(ndim, before, w, bias=True, stride=2, padding=1)
            if w != width:
                layers += conv_norm(ndim, w, w, bias=True, padding=1)
            before, size = w, (size + 1) // 2
        self.body = nn.Sequential(*layers)
        self.ndim, self.landmarks = ndim, landmarks
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(before * size**ndim, 384),
            nn.ReLU(),
            nn.Linear(384, landmarks * ndim),
        )

    def forward(self, block: torch.Tensor) -> torch.Tensor:
        """Blocks (B, 1, *size) to the landmarks' places in them (B, L, D)."""
        with plain_precision(block, self.training):
            features = self.body(block)
        points: torch.Tensor = self.head(features.float())
        return points.view(-1, self.landmarks, self.ndim)


class PatchNet(nn.Module):
    """Patches of all landmarks to where each landmark lies in them.

    Input (B, N, C, px, px), px a multiple of 8. One trunk serves all landmarks; per-landmark scales and shifts (FiLM,
    Perez et al. 2018) and per-landmark output layers let it know which one it reads. Output: logits (B, N, P, k, k)
    over k = px / 2 cells a side, one map for each of the P planes: the probability that the landmark, seen along the
    plane's normal, lies in that cell of the finest patch.
    """

    def __init__(self, channels: int, planes: int, landmarks: int, width: int = 24):
        super().__init__()
        w = width
        self.landmarks, self.planes = landmarks, planes
        widths = (w, 2 * w, 3 * w, 4 * w)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in pairwise((channels, *widths)))
        self.norms = nn.ModuleList(nn.BatchNorm2d(a) for a in widths)
        self.films = nn.ParameterList(nn.Parameter(torch.zeros(landmarks, 2 * a)) for a in widths)
        self.up = nn.ModuleList([nn.Conv2d(4 * w, 3 * w, 1), nn.Conv2d(3 * w, 2 * w, 1)])
        self.mix = nn.Conv2d(2 * w, 2 * w, 3, padding=1, bias=False)
        self.mix_norm = nn.BatchNorm2d(2 * w)
        self.weight = nn.Parameter(torch.randn(landmarks, 2 * w, planes) * 0.05)
        self.bias = nn.Parameter(torch.zeros(landmarks, planes))

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """As said of the class."""
        b, n = patches.shape[:2]
        x = channels_last(patches.flatten(0, 1))
        levels = []
        with conv_precision(patches.device):
            for i, (layer, normed, film) in enumerate(zip(self.convs, self.norms, self.films, strict=True)):
                x = layer(F.max_pool2d(x, 2) if i > 1 else x)
                x = torch.relu(filmed(normed(F.max_pool2d(x, 2) if i == 0 else x), film))
                levels.append(x)
            for layer, skip in zip(self.up, (levels[2], levels[1]), strict=True):
                x = torch.relu(skip + F.interpolate(layer(x), scale_factor=2, mode="nearest"))
            x = torch.relu(self.mix_norm(self.mix(x)))
        k = x.shape[-1]
        features = x.float().permute(0, 2, 3, 1).reshape(b, n, k * k, -1)
        maps = torch.einsum("bncf,nfp->bnpc", features, self.weight) + self.bias[..., None]
        return maps.view(b, n, self.planes, k, k)


def cell_centres(k: int, device: torch.device) -> torch.Tensor:
    """(k,) centres of k cells over -1 ... 1, where -1 and 1 are the first and last pixel centres of 2 k pixels."""
    px = 2 * k
    return (torch.arange(k, device=device) * 2 + 0.5) * (2 / (px - 1)) - 1


def plane_means(p: torch.Tensor, k: int) -> torch.Tensor:
    """(..., 2) mean (column, row) position of distributions (..., k * k)."""
    cells = cell_centres(k, p.device)
    square = p.view(*p.shape[:-1], k, k)
    return torch.stack([(square.sum(-2) * cells).sum(-1), (square.sum(-1) * cells).sum(-1)], -1)


def vote_loss(
    logits: torch.Tensor, target: torch.Tensor, mask: torch.Tensor, *, alpha: float, cell_sigma: float
) -> dict[str, torch.Tensor]:
    """Classification and regression together (Li et al. 2018, eq. 2), per plane and landmark.

    ``logits`` (B, N, P, k, k); ``target`` (B, N, D) in half widths; ``mask`` (B, N), 0 = not annotated. Cross entropy
    against a Gaussian of ``cell_sigma`` cells at the landmark, and Huber loss of the distribution's mean. A landmark
    seen beyond a plane's border gives no loss there.
    """
    k = logits.shape[-1]
    flat = logits.flatten(-2)
    cells = cell_centres(k, flat.device)
    mean = plane_means(flat.softmax(-1), k)
    seen = on_planes(target)  # (B, N, P, 2)
    learned = mask[..., None] * (seen.abs() < 1).all(-1)
    sigma = cell_sigma * 2 / k
    near = [torch.exp(-0.5 * ((cells - seen[..., a, None]) / sigma) ** 2) for a in (0, 1)]
    goal = (near[1][..., :, None] * near[0][..., None, :]).flatten(-2)
    goal = goal / goal.sum(-1, keepdim=True).clamp(min=1e-12)
    cross = -(goal * flat.log_softmax(-1)).sum(-1)
    miss = F.smooth_l1_loss(mean, seen, reduction="none", beta=0.02).mean(-1)
    classification, regression = average(cross, learned), average(miss, learned)
    loss = alpha * classification + (1 - alpha) * REGRESSION_WEIGHT * regression
    return logged(loss, classification=classification, regression=regression)


def read_votes(logits: torch.Tensor, ndim: int) -> tuple[Array, Array]:
    """Mean displacement and variance (M, N, D) in half widths of logits (M, N, P, k, k), from all planes that see an
    axis."""
    k = logits.shape[-1]
    p = logits.flatten(-2).softmax(-1)
    mean = plane_means(p, k)
    cells = cell_centres(k, p.device)
    rows, columns = p.view(*p.shape[:-1], k, k).sum(-1), p.view(*p.shape[:-1], k, k).sum(-2)
    square = torch.stack([(columns * cells**2).sum(-1), (rows * cells**2).sum(-1)], -1)
    variance = (square - mean**2).clamp(min=(0.2 / k) ** 2)
    points, total = across_planes(mean, variance, ndim)
    return points.double().numpy(), (1 / total).double().numpy()
