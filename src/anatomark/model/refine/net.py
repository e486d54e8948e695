"""Local networks of the refiner: sub-images around all landmarks to where each landmark lies in its own.

Their cells vote by joint classification and regression, as in Noothout et al. 2020, in each plane. Positions are in
cells from the sub-image's centre, (column, row). Each cell says how probable it is that the landmark lies in it, and
where from its own centre the landmark lies; the landmark is the posterior-weighted mean of these votes. Ours: one
softmax over the cells and "not in here" instead of a sigmoid for each cell; the error of the mean itself is part of the
loss.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from anatomark.core.grid import Array
from anatomark.methods.kit.layers import channels_last, filmed
from anatomark.methods.kit.posed import planes
from anatomark.methods.kit.precision import conv_precision
from anatomark.methods.kit.targets import across_planes, average, logged, on_planes

Trunk = Literal["shared", "grouped"]
NEAR = 2.0  # cells: a cell's own vote counts by a Gaussian of this width around the landmark
BLUR = 0.7  # cells: width of the classification target
LEAST_VARIANCE = 0.02  # cells^2: no plane is surer than this
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
        x = channels_last(patches.reshape(*shape, *patches.shape[3:]))
        with conv_precision(patches.device):
            x = self._run((0, 1, 2), x, some)
            quarter = self._run((3, 4), F.max_pool2d(x, 2), some)
            eighth = self._run((5,), F.max_pool2d(quarter, 2), some)
            deepest = self._run((6,), F.max_pool2d(eighth, 2), some)
            deepest = F.dropout2d(deepest, self.dropout, self.training)
            x = self._run((7,), eighth + F.interpolate(deepest, scale_factor=2, mode="nearest"), some)
            x = self._run((8, 9), quarter + F.interpolate(x, scale_factor=2, mode="nearest"), some)
        x = F.dropout2d(x, self.dropout, self.training)
        p, k = self.planes, x.shape[-1]
        features = x.float().reshape(b, n, -1, k * k)
        maps = torch.einsum("bnfc,nfp->bnpc", features, self.weight[some]) + self.bias[some][..., None]
        pooled = deepest.float().mean((2, 3)).view(b, n, -1)
        none = torch.einsum("bnf,nfp->bnp", pooled, self.elsewhere[some]) + self.elsewhere_bias[some]
        logits = torch.cat([maps[:, :, :p], none[..., None]], -1)
        return logits, maps[:, :, p:].reshape(b, n, p, 2, k * k)

    def _run(self, layers: Iterable[int], x: torch.Tensor, some: slice) -> torch.Tensor:
        """Convolution, batch norm, FiLM where shared, ReLU; of the landmarks ``some``."""
        for i in layers:
            conv, norm = self.convs[i], self.norms[i]
            if self.grouped and some.stop - some.start < self.landmarks:
                x = _part_of(conv, norm, x, some, self.landmarks)
            else:
                x = norm(conv(x))
            x = torch.relu(x if self.grouped else filmed(x, self.films[i][some]))
        return x


def _part_of(conv: Any, norm: Any, x: torch.Tensor, some: slice, landmarks: int) -> torch.Tensor:
    """A grouped convolution and its batch norm (eval) for the groups ``some`` only."""
    size = len(conv.weight) // landmarks
    rows = slice(some.start * size, some.stop * size)
    x = F.conv2d(x, conv.weight[rows], None, conv.stride, conv.padding, groups=some.stop - some.start)
    return F.batch_norm(
        x, norm.running_mean[rows], norm.running_var[rows], norm.weight[rows], norm.bias[rows], eps=norm.eps
    )


def cell_centres(k: int) -> torch.Tensor:
    """(2, k * k) column and row of the centres of k x k cells, row by row, from the middle."""
    steps = torch.arange(k) - (k - 1) / 2
    return torch.stack([steps.repeat(k), steps.repeat_interleave(k)])


def vote_loss(
    logits: torch.Tensor, votes: torch.Tensor, target: torch.Tensor, mask: torch.Tensor, *, alpha: float
) -> dict[str, torch.Tensor]:
    """Cross entropy of the cells, distance of the votes near the landmark, distance of their weighted mean.

    ``logits`` (B, N, P, k * k + 1), ``votes`` (B, N, P, 2, k * k), ``target`` (B, N, D) in cells along the model's
    axes, ``mask`` (B, N) 0 = not annotated. A landmark beyond a plane's border belongs to the class "not in here".
    """
    k = round((logits.shape[-1] - 1) ** 0.5)
    seen = on_planes(target)  # (B, N, P, 2)
    inside = (seen.abs() < k / 2).all(-1)
    centres = cell_centres(k).to(logits.device)
    square = (centres - seen[..., None]).pow(2).sum(-2)  # (B, N, P, k * k)
    goal = torch.exp(-0.5 * square / BLUR**2)
    goal = goal / goal.sum(-1, keepdim=True).clamp(min=1e-9) * inside[..., None]
    goal = torch.cat([goal, (~inside)[..., None].float()], -1)
    learned = mask[..., None].expand(inside.shape)
    cross = -(goal * logits.log_softmax(-1)).sum(-1)
    absolute = centres + votes
    near = torch.exp(-0.5 * square / NEAR**2)
    own = (_length(absolute - seen[..., None], -2) * near).sum(-1) / near.sum(-1).clamp(min=1e-6)
    p = logits[..., :-1].softmax(-1)
    mean = _length((p[..., None, :] * absolute).sum(-1) - seen, -1)
    classification, regression = average(cross, learned), average(own + mean, learned * inside)
    loss = alpha * classification + (1 - alpha) * regression
    return logged(loss, classification=classification, regression=regression)


def _length(x: torch.Tensor, axis: int) -> torch.Tensor:
    """Euclidean length, smooth at zero."""
    return torch.sqrt(x.pow(2).sum(axis) + 1e-4)


def read_votes(logits: torch.Tensor, votes: torch.Tensor, ndim: int) -> tuple[Array, Array, Array]:
    """Posterior-weighted mean (M, N, D) and covariance (M, N, D, D) in cells of the vote clouds, and the posterior mass
    (M, N) that lies in the sub-image."""
    k = round((logits.shape[-1] - 1) ** 0.5)
    p = logits.softmax(-1)
    mass = p[..., :-1].sum(-1).mean(-1)
    p = F.normalize(p[..., :-1].clamp(min=1e-12), p=1, dim=-1)
    absolute = cell_centres(k).to(logits.device) + votes
    mean = (p[..., None, :] * absolute).sum(-1)  # (M, N, P, 2)
    off = absolute - mean[..., None]
    cloud = torch.einsum("mnpc,mnpic,mnpjc->mnpij", p, off, off)
    cloud = cloud + LEAST_VARIANCE * torch.eye(2, device=p.device)
    if ndim == 2:
        out = mean[:, :, 0], cloud[:, :, 0], mass
    else:
        sd = torch.diagonal(cloud, dim1=-2, dim2=-1).sqrt()
        place, total = across_planes(mean, sd**2, ndim)
        correlation = cloud.new_zeros(*place.shape, ndim)
        for i, (u, v) in enumerate(planes(ndim)):
            correlation[..., u, v] = correlation[..., v, u] = cloud[:, :, i, 0, 1] / (sd[:, :, i, 0] * sd[:, :, i, 1])
        # the two looks at an axis are not independent: their mean variance, not half of it
        spread = (2 / total).sqrt()
        correlation = 0.5 * correlation + torch.eye(ndim, device=p.device)  # halved: stays positive definite
        out = place, spread[..., :, None] * correlation * spread[..., None, :], mass
    points, covariance, within = (x.cpu().double().numpy() for x in out)
    return points, covariance, within
