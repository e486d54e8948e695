"""Heatmap networks: their maps' places, the losses against their definitions, and exact peaks of exact Gaussians."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from anatomark.methods.heatmap.net import (
    FOREGROUND,
    HeatmapNet,
    cell_line,
    cross_entropy,
    gaussian_lines,
    peaks,
    squared_error,
)
from anatomark.methods.kit.precision import use_bf16

CELLS = {2: 24, 3: 16}
SIGMA = torch.tensor([1.2, 1.5, 2.0])


@pytest.fixture(autouse=True)
def float32() -> Iterator[None]:
    torch.manual_seed(0)
    use_bf16(False)
    yield
    use_bf16(None)


def places(ndim: int) -> torch.Tensor:
    """(cells^D, D) the cells' centres, x first, by hand."""
    line = (np.arange(CELLS[ndim]) - (CELLS[ndim] - 1) / 2).tolist()
    grids = np.meshgrid(*[line] * ndim, indexing="ij")
    return torch.from_numpy(np.stack([g.ravel() for g in grids[::-1]], -1)).float()


def gaussians(target: torch.Tensor, sigma: torch.Tensor = SIGMA) -> torch.Tensor:
    """(B, N, *S) 1 at the peak, by hand."""
    d = target.shape[-1]
    away = (places(d) - target[:, :, None]).square().sum(-1)
    return torch.exp(-away / (2 * sigma[:, None] ** 2)).view(*target.shape[:2], *(CELLS[d],) * d)


def targets(ndim: int) -> torch.Tensor:
    return (torch.rand(2, 3, ndim) - 0.5) * (CELLS[ndim] - 14)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("stem", [1, 2, 4])
@pytest.mark.parametrize("spatial", [None, 4])
@pytest.mark.parametrize("log", [True, False])
def test_maps_lie_where_the_image_does(ndim: int, stem: int, spatial: int | None, log: bool) -> None:
    net = HeatmapNet(ndim, 3, maps=[8, 8], stem=stem, spatial=spatial, log=log).eval()
    assert net.whole == stem * (4 if spatial else 2)
    px = net.whole * (8 // stem) * 2
    block = torch.zeros(2, 1, *(px,) * ndim, requires_grad=True)
    maps = net(block)
    assert maps.shape == (2, 3, *(px // stem,) * ndim)
    assert maps.dtype == torch.float32
    with torch.no_grad():
        dark = net.stem[0](torch.zeros_like(block))
        at = (3,) * ndim
        point = torch.zeros_like(block)
        point[(0, 0, *(stem * a + stem // 2 for a in at))] = 1
        bright = (net.stem[0](point) - dark)[0].abs().sum(0)
    assert bright[at] > 0  # the voxel in a cell's middle is seen by this cell
    maps.square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


def test_widths_need_not_be_multiples_of_eight() -> None:
    net = HeatmapNet(2, 3, maps=[28, 44, 5], stem=2).eval()
    assert net(torch.zeros(1, 1, 32, 32)).shape == (1, 3, 16, 16)
    groups = [m.num_groups for level in net.down for m in level.modules() if isinstance(m, torch.nn.GroupNorm)]
    assert groups == [2, 4, 4, 1, 1]  # channels of one group: 14, 11, 5
    assert HeatmapNet(2, 3, maps=[32, 48], stem=2).stem[1].num_groups == 4


def test_the_spatial_branch_begins_with_no_say() -> None:
    for log in (True, False):
        net = HeatmapNet(2, 3, maps=[8, 8], stem=2, spatial=4, log=log).eval()
        assert net.spatial is not None
        with torch.no_grad():
            net.head.weight.mul_(100)
            block = torch.randn(1, 1, 32, 32)
            whole = net(block)
            net.spatial[-1].weight.zero_()
            silent = net(block)
            net.spatial[-1].bias.fill_(2.0)
            louder = net(block)
        torch.testing.assert_close(whole, silent, atol=0.02, rtol=0.02)
        torch.testing.assert_close(louder, silent + 2 if log else silent * 2, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("ndim", [2, 3])
def test_target_lines_multiply_to_the_gaussian(ndim: int) -> None:
    target = targets(ndim)
    lines = gaussian_lines(target, SIGMA, (CELLS[ndim],) * ndim)
    product = lines[0]
    for line in lines[1:]:
        product = torch.einsum("bn...,bnx->bn...x", product, line)
    torch.testing.assert_close(product, gaussians(target))
    assert cell_line(4).tolist() == [-1.5, -0.5, 0.5, 1.5]


@pytest.mark.parametrize("ndim", [2, 3])
def test_cross_entropy_is_the_divergence(ndim: int) -> None:
    target = targets(ndim)
    maps = torch.randn(2, 3, *(CELLS[ndim],) * ndim)
    goal = gaussians(target).flatten(2)
    goal = goal / goal.sum(-1, keepdim=True)
    wanted = F.kl_div(maps.flatten(2).log_softmax(-1), goal, reduction="none").sum(-1)
    torch.testing.assert_close(cross_entropy(maps, target, SIGMA), wanted, atol=1e-4, rtol=1e-4)
    perfect = cross_entropy(gaussians(target).clamp(min=1e-30).log(), target, SIGMA)
    assert perfect.abs().max() < 1e-3


@pytest.mark.parametrize("ndim", [2, 3])
def test_squared_error_is_a_share_of_empty_maps(ndim: int) -> None:
    target, sigma, first = targets(ndim), torch.full((3,), 1.5), 1.5
    goal = gaussians(target, sigma)
    assert squared_error(goal, target, sigma, first).abs().max() < 1e-6
    empty = squared_error(torch.zeros_like(goal), target, sigma, first)
    torch.testing.assert_close(empty, torch.ones_like(empty), atol=0.02, rtol=0)
    off = goal + 0.1
    extra = (0.01 * (1 + FOREGROUND * goal)).flatten(2).sum(-1) / ((1 + FOREGROUND * goal) * goal**2).flatten(2).sum(-1)
    torch.testing.assert_close(squared_error(off, target, sigma, first), extra, atol=1e-3, rtol=0.02)
    wide = squared_error(torch.zeros_like(goal), target, 2 * sigma, first)
    assert (wide < empty).all()  # equal mass: a wider target is lower


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("log", [True, False])
def test_peaks_of_gaussians_are_exact(ndim: int, log: bool) -> None:
    target = targets(ndim)
    heights = gaussians(target)
    found = peaks(heights.clamp(min=1e-30).log() if log else heights, SIGMA, log=log)
    assert (found.points - target).norm(dim=-1).max() < (0.01 if log else 0.03)
    expected = (SIGMA**2)[None, :, None, None] * torch.eye(ndim)
    share = found.covariance / SIGMA[None, :, None, None] ** 2
    assert (found.covariance - expected).abs().max() < 0.4 * SIGMA.max() ** 2  # less the tails
    assert (share.diagonal(dim1=-2, dim2=-1) > 0.5).all()
    assert (found.score > 0.85).all()
    assert (found.score <= 1).all()


def test_a_second_mode_moves_no_point_but_is_told() -> None:
    target = torch.tensor([[[-6.3, 2.1]]])
    other = torch.tensor([[[6.0, 2.1]]])
    sigma = torch.tensor([1.3])
    one = gaussians(target, sigma)
    two = one + 0.5 * gaussians(other, sigma)
    alone, both = (peaks(m.clamp(min=1e-30).log(), sigma, log=True) for m in (one, two))
    assert (both.points - target).norm() < 0.02
    assert both.score < 0.75 * alone.score
    assert both.covariance[0, 0, 0, 0] > 20 * alone.covariance[0, 0, 0, 0]
    assert both.covariance[0, 0, 1, 1] < 2 * alone.covariance[0, 0, 1, 1]


def test_an_empty_map_has_a_point_and_no_score() -> None:
    found = peaks(torch.zeros(1, 1, 16, 16), torch.tensor([1.5]), log=False)
    assert torch.isfinite(found.points).all()
    assert found.score.item() == 0
    flat = peaks(torch.zeros(1, 1, 16, 16), torch.tensor([1.5]), log=True)
    assert flat.score < 0.3
