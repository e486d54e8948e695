"""The agents' network: each head answers for itself, and one by one as in a batch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from anatomark.methods.dqn.net import QNet
from anatomark.methods.kit.precision import use_bf16


@pytest.fixture(autouse=True)
def float32() -> Iterator[None]:
    use_bf16(False)
    yield
    use_bf16(None)


def net(ndim: int, pooled: bool = False) -> QNet:
    torch.manual_seed(0)
    return QNet(ndim, 9, 4, heads=5, layers=[(4, 5), (8, 4 if pooled else 3)], pooled=pooled, hidden=12, narrow=6)


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("ndim", [2, 3])
def test_a_batch_answers_as_its_parts_do(ndim: int, pooled: bool) -> None:
    made = net(ndim, pooled)
    frames, head = torch.randn(6, 4, *(9,) * ndim), torch.tensor([0, 4, 4, 2, 1, 0])
    q = made(frames, head)
    assert q.shape == (6, 2 * ndim)
    for i in range(6):
        torch.testing.assert_close(made(frames[i : i + 1], head[i : i + 1])[0], q[i])


def test_only_the_head_that_answered_learns() -> None:
    made = net(2)
    made(torch.randn(3, 4, 9, 9), torch.tensor([1, 3, 1])).square().sum().backward()
    for parameter in (made.first, made.first_bias, made.last, made.last_bias):
        assert parameter.grad is not None
        moved = parameter.grad.flatten(1).abs().sum(1) > 0
        assert moved.tolist() == [False, True, False, True, False]


def test_patches_that_vanish_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be halved 3 times"):
        QNet(2, 7, 4, heads=1, layers=[(4, 3)] * 4, pooled=True, hidden=4, narrow=4)
