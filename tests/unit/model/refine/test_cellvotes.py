"""Votes of cells: right votes give the right place, whatever the posterior; the loss knows what is not to be seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anatomark.methods.kit.posed import planes
from anatomark.model.refine.net import LEAST_VARIANCE, cell_centres, read_votes, vote_loss

K = 6


def right(target: torch.Tensor, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (B, N, P, K * K + 1) of some posterior and votes that all say ``target`` (B, N, D) cells."""
    seen = torch.stack([target[..., list(p)] for p in planes(target.shape[-1])], -2)
    votes = seen[..., None] - cell_centres(K)
    logits = torch.randn(*seen.shape[:-1], K * K + 1, generator=torch.Generator().manual_seed(seed))
    logits[..., -1] = -20
    return logits, votes


def loss_of(logits: torch.Tensor, votes: torch.Tensor, target: torch.Tensor, known: bool = True) -> float:
    mask = torch.full(target.shape[:2], float(known))
    return float(vote_loss(logits, votes, target, mask, alpha=0.5)["loss"])


def test_cell_centres() -> None:
    centres = cell_centres(4).view(2, 4, 4)
    assert centres[0, 0].tolist() == [-1.5, -0.5, 0.5, 1.5]  # columns
    assert centres[1, :, 0].tolist() == [-1.5, -0.5, 0.5, 1.5]  # rows


@given(st.lists(st.floats(-2.9, 2.9), min_size=6, max_size=6), st.sampled_from([2, 3]), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_right_votes_give_the_position(values: list[float], ndim: int, seed: int) -> None:
    target = torch.tensor(values[: 2 * ndim]).view(1, 2, ndim)
    mean, covariance, mass = read_votes(*right(target, seed), ndim)
    np.testing.assert_allclose(mean, target.numpy(), atol=1e-4)
    np.testing.assert_allclose(covariance, np.broadcast_to(np.eye(ndim) * LEAST_VARIANCE, covariance.shape), atol=1e-4)
    assert (mass > 0.999).all()


@given(st.integers(0, 10**6), st.floats(0.1, 30), st.floats(0, 10), st.sampled_from([2, 3]))
@settings(max_examples=40, deadline=None)
def test_covariance_is_positive_definite(seed: int, sharp: float, spread: float, ndim: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    p = len(planes(ndim))
    logits = torch.randn(2, 3, p, K * K + 1, generator=generator) * sharp
    votes = torch.randn(2, 3, p, 2, K * K, generator=generator) * spread
    mean, covariance, mass = read_votes(logits, votes, ndim)
    assert np.isfinite(mean).all()
    np.testing.assert_allclose(covariance, np.swapaxes(covariance, -1, -2), atol=1e-5 * covariance.max())
    assert np.linalg.eigvalsh(covariance).min() > 0.3 * LEAST_VARIANCE
    assert ((mass >= 0) & (mass <= 1 + 1e-6)).all()


def test_covariance_is_that_of_the_cloud() -> None:
    logits = torch.full((1, 1, 1, K * K + 1), -30.0)
    logits[..., [0, K * K - 1]] = 0.0  # two cells, far apart on the diagonal
    mean, covariance, _ = read_votes(logits, torch.zeros(1, 1, 1, 2, K * K), 2)
    np.testing.assert_allclose(mean, 0, atol=1e-5)
    half = (K - 1) / 2
    np.testing.assert_allclose(covariance[0, 0], half**2 + LEAST_VARIANCE * np.eye(2), atol=1e-3)


def test_in_3d_the_surer_plane_counts_more() -> None:
    target = torch.zeros(1, 1, 3)
    logits, votes = right(target)
    votes[:, :, 2, 0] += 1.0  # the xy plane sees x one cell further, and is unsure of it
    votes[:, :, 2, 0] += torch.randn(K * K, generator=torch.Generator().manual_seed(0)) * 3
    mean, _, _ = read_votes(logits, votes, 3)
    assert abs(mean[0, 0, 0]) < 0.05  # the xz plane (1) says 0
    np.testing.assert_allclose(mean[0, 0, 1:], 0, atol=1e-4)


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_landmark_beyond_the_border_belongs_to_its_own_class(ndim: int) -> None:
    beyond = torch.full((1, 2, ndim), K / 2 + 0.1)
    logits, votes = right(torch.zeros(1, 2, ndim))
    seen = loss_of(logits, votes, beyond)
    logits[..., -1] = 20
    assert loss_of(logits, votes, beyond) < 0.01 < seen
    assert (read_votes(logits, votes, ndim)[2] < 1e-6).all()
    assert loss_of(logits, votes + 5, beyond) == loss_of(logits, votes, beyond)  # its votes are free
    assert loss_of(logits, votes, torch.zeros(1, 2, ndim)) > 5  # but not where it is there


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_loss_falls_towards_the_truth(ndim: int) -> None:
    target = torch.full((1, 1, ndim), 0.7)
    logits, votes = right(target)
    losses = [loss_of(logits, votes + off, target) for off in (3.0, 1.0, 0.3, 0.0)]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > 2 * losses[-1]
    square = (cell_centres(K) - 0.7).pow(2).sum(0)
    losses = [loss_of(torch.cat([-w * square, torch.tensor([-20.0])]).expand_as(logits), votes, target) for w in (0, 1)]
    assert losses[1] < losses[0]


def test_descent_finds_the_position() -> None:
    torch.manual_seed(0)
    target = torch.tensor([[[1.3, -0.8], [4.0, 0.0]]])  # the second lies beyond
    logits = torch.zeros(1, 2, 1, K * K + 1, requires_grad=True)
    votes = torch.zeros(1, 2, 1, 2, K * K, requires_grad=True)
    optimiser = torch.optim.Adam([logits, votes], lr=0.1)
    for _ in range(150):
        loss = vote_loss(logits, votes, target, torch.ones(1, 2), alpha=0.5)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    mean, _, mass = read_votes(logits.detach(), votes.detach(), 2)
    np.testing.assert_allclose(mean[0, 0], [1.3, -0.8], atol=0.05)
    assert mass[0, 0] > 0.95
    assert mass[0, 1] < 0.05


def test_what_is_not_annotated_carries_no_loss() -> None:
    target = torch.zeros(1, 2, 2)
    logits, votes = right(target)
    logits.requires_grad_()
    mask = torch.tensor([[1.0, 0.0]])
    found = vote_loss(logits, votes + 1, target, mask, alpha=0.5)
    found["loss"].backward()
    assert logits.grad is not None
    assert logits.grad[:, 0].abs().max() > 0
    assert logits.grad[:, 1].abs().max() == 0
    one = vote_loss(logits[:, :1], votes[:, :1] + 1, target[:, :1], mask[:, :1], alpha=0.5)
    torch.testing.assert_close(found["loss"], one["loss"])
    assert loss_of(logits.detach(), votes, target, known=False) == 0
