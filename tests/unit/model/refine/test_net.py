"""The refiner's local networks: one grouped call is as good as a network per landmark, and a chunk as good as all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from anatomark.methods.kit.precision import use_bf16
from anatomark.model.refine.net import LocalNet, Trunk

N, CHANNELS, PX = 5, 3, 16


@pytest.fixture(autouse=True, scope="module")
def float32() -> Iterator[None]:
    use_bf16(False)
    yield
    use_bf16(None)


def net_of(landmarks: int = N, trunk: Trunk = "grouped", planes: int = 1, seed: int = 0) -> LocalNet:
    """In eval mode, with weights and running statistics that look trained."""
    torch.manual_seed(seed)
    net = LocalNet(CHANNELS, planes, landmarks, 8, trunk).eval()
    for name, value in net.state_dict().items():
        if value.is_floating_point() and not name.startswith("convs."):
            value.copy_(torch.rand_like(value) + 0.5 if "running_var" in name else torch.randn_like(value) * 0.3)
    return net


def patches_of(batch: int = 2, landmarks: int = N) -> torch.Tensor:
    return torch.rand(batch, landmarks, CHANNELS, PX, PX, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def test_grouped_is_a_network_for_each_landmark() -> None:
    together, patches = net_of(), patches_of()
    logits, votes = together(patches)
    for i in range(N):
        alone = LocalNet(CHANNELS, 1, 1, 8).eval()
        own = {
            k: v.unflatten(0, (N, -1))[i] if v.ndim else v  # the landmark's rows
            for k, v in together.state_dict().items()
        }
        alone.load_state_dict(own)
        one_logits, one_votes = alone(patches[:, i : i + 1])
        torch.testing.assert_close(logits[:, i : i + 1], one_logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(votes[:, i : i + 1], one_votes, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("trunk", ["grouped", "shared"])
def test_a_chunk_is_a_part_of_the_whole(trunk: Trunk) -> None:
    net, patches = net_of(trunk=trunk), patches_of()
    whole = net(patches)
    for first, end in ((0, 2), (2, 4), (4, 5)):
        for part, all_ in zip(net(patches[:, first:end], first), whole, strict=True):
            torch.testing.assert_close(part, all_[:, first:end], rtol=1e-4, atol=1e-5)
    assert (whole[0][:, 0] - net(patches[:, :2], 1)[0][:, 0]).abs().max() > 1e-2  # another landmark's network


@pytest.mark.parametrize(("planes", "px"), [(1, 64), (1, 16), (3, 32)])
@pytest.mark.parametrize("trunk", ["grouped", "shared"])
def test_shapes(planes: int, px: int, trunk: Trunk) -> None:
    net = LocalNet(2 * planes, planes, 3, 8, trunk)
    logits, votes = net(torch.rand(4, 3, 2 * planes, px, px))
    k = px // 4
    assert logits.shape == (4, 3, planes, k * k + 1)
    assert votes.shape == (4, 3, planes, 2, k * k)
    (logits.sum() + votes.sum()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


@torch.no_grad()
def test_a_landmarks_network_sees_its_own_sub_image_only() -> None:
    net, patches = net_of().train(), patches_of(3)
    net.dropout = 0.0
    before = net(patches)[0]
    patches[:, 2] = patches[:, 2].flip(-1)
    changed = (net(patches)[0] - before).abs().amax((0, 2, 3)) > 1e-6
    assert changed.tolist() == [False, False, True, False, False]
