"""What cells are taught and how they vote."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anatomark.core.grid import Grid
from anatomark.core.shape import random_rotation
from anatomark.methods.global_to_local.net import FARTHEST, displacement, log_displacement
from anatomark.methods.global_to_local.paper import cell_centres, decode, targets, vote_loss


@given(st.floats(-9000, 9000))
def test_displacements_return(d: float) -> None:
    value = torch.tensor(d, dtype=torch.float64)
    assert displacement(log_displacement(value)).item() == pytest.approx(d, rel=1e-9, abs=1e-9)


def test_log_displacement_is_the_published_one() -> None:
    assert log_displacement(torch.tensor([9.0, -99.0, 0.0])).tolist() == pytest.approx([1.0, -2.0, 0.0])
    assert displacement(torch.tensor([50.0, -torch.inf])).tolist() == [10**FARTHEST - 1, 1 - 10**FARTHEST]


def test_cells_tile_the_image() -> None:
    """The mean of the voxels of a cell is its centre; a landmark belongs to the cell that covers it."""
    centres = cell_centres((2, 3), 4)
    assert centres[:, 1, 2].tolist() == [np.mean([4, 5, 6, 7]), np.mean([8, 9, 10, 11])]
    points = torch.tensor([[[3.4, 7.6], [3.6, -0.4], [-0.6, 2.0], [7.4, 11.4], [7.6, 3.0]]])
    occupied, towards = targets(points, (2, 3), 4)
    assert occupied[0, 0].nonzero().tolist() == [[0, 2]]
    assert occupied[0, 1].nonzero().tolist() == [[1, 0]]
    assert occupied[0, 3].nonzero().tolist() == [[1, 2]]
    assert not occupied[0, [2, 4]].any()  # outside
    assert torch.allclose(displacement(towards[0, 0]) + centres, points[0, 0].view(2, 1, 1).expand(2, 2, 3), atol=1e-4)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("vote", ["posterior", "positive"])
def test_perfect_maps_give_the_point(ndim: int, vote: str) -> None:
    """On an anisotropic, turned grid, in world mm."""
    rng = np.random.default_rng(ndim)
    cells, stride = (6, 5, 4)[:ndim], 8
    axes = random_rotation(rng, ndim, 180)[:, ::-1] * np.array([0.5, 1.5, 3.0])[:ndim]
    grid = Grid.from_axes([n * stride for n in cells], axes, rng.normal(0, 50, ndim))
    world = grid.to_world(rng.uniform(1, 31, (7, ndim)))
    points = torch.from_numpy(grid.to_index(world))[None].float()
    occupied, towards = targets(points, cells, stride)
    votes = decode((occupied - 0.4) * 20, towards, stride, vote)  # type: ignore[arg-type]
    assert np.abs(grid.to_world(votes.points[0].numpy()) - world).max() < 1e-3
    spread = votes.covariance[0].nan_to_num(0)
    assert spread.abs().max() < 1e-6
    assert torch.allclose(votes.score, torch.tensor(12.0).double().sigmoid())


def maps() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of 1 x 4 cells of stride 2, displacements, and each cell's vote along the last axis."""
    logits = torch.tensor([2.0, 0.5, -1.0, -3.0]).view(1, 1, 1, 4)
    votes = torch.tensor([3.0, 5.0, 0.0, 40.0])
    centres = cell_centres((1, 4), 2)
    moves = log_displacement(torch.stack([torch.zeros(1, 4), votes.view(1, 4) - centres[1]]))[None, None]
    return logits, moves, votes


def test_every_cell_votes_by_its_posterior() -> None:
    logits, moves, votes = maps()
    out = decode(logits, moves, 2)
    p = torch.sigmoid(logits.flatten().double())
    mean = (p * votes).sum() / p.sum()
    assert out.points[0, 0].tolist() == pytest.approx([0.5, mean.item()], rel=1e-5)
    assert out.mass.item() == pytest.approx(p.sum().item()) and out.score.item() == pytest.approx(p.max().item())
    variance = (p * (votes - mean) ** 2).sum() / p.sum()
    assert out.covariance[0, 0].numpy() == pytest.approx(np.diag([0, variance.item()]), abs=1e-4)


def test_positive_cells_vote_alike() -> None:
    logits, moves, _ = maps()
    assert decode(logits, moves, 2, "positive").points[0, 0, 1].item() == pytest.approx(4.0, rel=1e-5)
    none = decode(logits - 10, moves, 2, "positive")
    assert none.points[0, 0, 1].item() == pytest.approx(3.0, rel=1e-5)  # the most probable cell's vote
    assert none.covariance.isnan().all()


def test_without_any_mass_the_best_cell_decides() -> None:
    logits, moves, _ = maps()
    out = decode(logits - 1e4, moves, 2)
    assert out.points[0, 0, 1].item() == pytest.approx(3.0, rel=1e-5) and out.mass.item() < 1e-6
    wild = decode(logits, torch.full_like(moves, 1e6), 2)
    assert torch.isfinite(wild.points).all()


def test_covariance_is_a_world_matrix() -> None:
    """Votes that spread along one array axis spread along that axis' world direction."""
    logits = torch.zeros(1, 1, 8, 1)
    moves = torch.zeros(1, 1, 2, 8, 1)
    votes = decode(logits, moves, 2)
    turn = random_rotation(np.random.default_rng(0), 2, 180)
    world = turn @ votes.covariance[0, 0].numpy() @ turn.T
    values, vectors = np.linalg.eigh(world)
    assert values == pytest.approx([0, np.var(np.arange(8) * 2)], abs=1e-9)
    assert abs(vectors[:, 1] @ turn[:, 0]) == pytest.approx(1)


def random_maps(n: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(3, n, 4, 4, requires_grad=True), torch.randn(3, n, 2, 4, 4, requires_grad=True)


def test_loss_is_the_published_one() -> None:
    logits, moves = random_maps()
    points, ones = torch.rand(3, 2, 2) * 30, torch.ones(3, 2)
    occupied, towards = targets(points, (4, 4), 8)
    loss = vote_loss((logits, moves), points, ones, ones, stride=8, weight=20)
    p = logits.sigmoid()
    cross = -(occupied * p.log() + (1 - occupied) * (1 - p).log()).mean()
    assert loss["loss"].item() == pytest.approx(((moves - towards).abs().mean() + 20 * cross).item(), rel=1e-5)
    own = [
        vote_loss((logits[:, k : k + 1], moves[:, k : k + 1]), points[:, k : k + 1], ones[:, :1], ones[:, :1],
                  stride=8, weight=1)["loss"].item()
        for k in range(2)
    ]  # fmt: skip
    apart = vote_loss((logits, moves), points, ones, ones, stride=8, weight=1, separate=True)["loss"].item()
    assert apart == pytest.approx(sum(own), rel=1e-5)


@pytest.mark.parametrize("separate", [False, True])
def test_what_is_not_annotated_is_not_learned(separate: bool) -> None:
    logits, moves = random_maps()
    points = torch.rand(3, 2, 2) * 30
    defined = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    judged = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])  # the second case's first landmark is absent
    points[defined == 0] = torch.nan
    vote_loss((logits, moves), points, defined, judged, stride=8, weight=2, separate=separate)["loss"].backward()
    assert logits.grad is not None and moves.grad is not None
    assert torch.isfinite(logits.grad).all() and torch.isfinite(moves.grad).all()
    assert not logits.grad[:, 1].any() and not moves.grad[:, 1].any()
    assert (logits.grad[1, 0] > 0).all() and not moves.grad[1, 0].any()  # pushed down everywhere
    assert moves.grad[0, 0].any()
