"""The coarse network: sizes, independence of landmarks, and what its cells are told by the whole block."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from anatomark.methods.global_to_local.net import CoarseNet, block_cells
from anatomark.methods.kit.precision import use_bf16

PER_LANDMARK = ("head", "offset", "sharpness", "nowhere.weight", "nowhere.bias")


@pytest.fixture(autouse=True)
def float32() -> Iterator[None]:
    torch.manual_seed(0)
    use_bf16(False)
    yield
    use_bf16(None)


@pytest.mark.parametrize(("ndim", "px"), [(2, 16), (2, 48), (3, 16)])
def test_every_cell_says_something_of_every_landmark(ndim: int, px: int) -> None:
    votes = CoarseNet(ndim, px, 5, width=4)(torch.randn(2, 1, *(px,) * ndim))
    cells = (px // 4) ** ndim
    assert votes.points.shape == (2, 5, ndim)
    assert votes.logits.shape == (2, 5, cells + 1)
    assert votes.correction.shape == (2, 5, cells, ndim)


def test_a_block_must_come_down_to_the_bottleneck() -> None:
    with pytest.raises(ValueError, match="multiple of 16"):
        CoarseNet(2, 40, 3)


@pytest.mark.parametrize("ndim", [2, 3])
def test_cells_are_counted_as_arrays_are_and_measured_in_the_order_of_axes(ndim: int) -> None:
    centres = block_cells(ndim, 4)
    assert centres.shape == (4**ndim, ndim)
    torch.testing.assert_close(centres.mean(0), torch.zeros(ndim))
    steps = [centres[4**a] - centres[0] for a in range(ndim)]  # the fastest axis is x
    torch.testing.assert_close(torch.stack(steps), torch.eye(ndim))


def test_chosen_landmarks_vote_as_they_do_among_all() -> None:
    net, x = CoarseNet(2, 32, 6, width=4).eval(), torch.randn(3, 1, 32, 32)
    every, some = net(x), net(x, torch.tensor([4, 1]))
    torch.testing.assert_close(some.points, every.points)
    torch.testing.assert_close(some.logits, every.logits[:, [4, 1]])
    torch.testing.assert_close(some.correction, every.correction[:, [4, 1]])


def test_landmarks_are_told_apart_by_their_own_rows_only() -> None:
    net, same = CoarseNet(3, 16, 3, width=4).eval(), CoarseNet(3, 16, 3, width=4).eval()
    order = [2, 0, 1]
    state = {k: v[order] if k in PER_LANDMARK else v for k, v in net.state_dict().items()}
    for key in ("direct.weight", "direct.bias"):
        state[key] = state[key].unflatten(0, (3, 3))[order].flatten(0, 1)
    same.load_state_dict(state)
    x = torch.randn(2, 1, 16, 16, 16)
    for ours, theirs in zip(same(x), net(x), strict=True):
        torch.testing.assert_close(ours, theirs[:, order])


def test_cells_near_the_direct_point_are_the_probable_ones_at_first() -> None:
    net = CoarseNet(2, 48, 2, width=4).eval()
    votes = net(torch.zeros(1, 1, 48, 48))
    far = (votes.points[:, :, None] - net.centres).norm(dim=-1)
    best = votes.logits[..., :-1].argmax(-1, keepdim=True)
    assert (far.gather(2, best) < 2).all()


@pytest.mark.parametrize("ndim", [2, 3])
def test_everything_is_learned(ndim: int) -> None:
    net = CoarseNet(ndim, 16, 3, width=4).train()
    sum(x.square().sum() for x in net(torch.randn(4, 1, *(16,) * ndim))).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name
