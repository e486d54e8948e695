"""T2DL's block regressor: a cell is its patch through the cell's own layer; sizes, places and gradients by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from anatomark.methods.kit.precision import use_bf16
from anatomark.methods.t2dl.net import BlockRegressor

CASES = [(2, (4, 6, 8)), (3, (4, 6, 8)), (2, (5, 7)), (3, (3, 4))]


@pytest.fixture(autouse=True)
def float32() -> Iterator[None]:
    use_bf16(False)
    yield
    use_bf16(None)


def regressor(ndim: int, cells: int = 3, maps: tuple[int, ...] = (4, 6, 8), **settings: Any) -> BlockRegressor:
    """In evaluation, with running statistics, affine parameters and heads as training leaves them."""
    torch.manual_seed(0)
    net = BlockRegressor(ndim, 3, cells, maps=maps, narrow=7, hidden=10, **settings)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.momentum = 1.0
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    for parameter in (net.out.weight, net.sure.weight, net.place, net.own_bias):
        nn.init.normal_(parameter)
    with torch.no_grad():
        net.train().features(torch.randn(4, 1, *(net.px,) * ndim) + 1)
    return net.eval()


@pytest.mark.parametrize(("ndim", "maps"), CASES)
def test_a_cell_is_its_patch_through_the_cells_own_layer(ndim: int, maps: tuple[int, ...]) -> None:
    """By hand from each patch alone: the convolutions do not know where in the block they are, own layers do."""
    net = regressor(ndim, maps=maps)
    block = torch.randn(2, 1, *(net.px,) * ndim)
    features = net.features(block)
    assert features.shape == (2, 3**ndim, 10)
    for k, cell in enumerate(np.ndindex(*(3,) * ndim)):
        box = tuple(slice(net.stride * i, net.stride * i + net.patch) for i in cell)
        seen = net.trunk(block[(slice(None), slice(None), *box)])
        assert seen.shape[2:] == (2,) * ndim
        own = F.relu(seen.flatten(1) @ net.own[k] + net.own_bias[k])
        alone = F.relu(net.mix(own) + net.place[k])
        assert torch.allclose(alone, features[:, k], atol=1e-4)


@pytest.mark.parametrize(("ndim", "maps"), CASES)
def test_a_cell_sees_its_patch_and_nothing_else(ndim: int, maps: tuple[int, ...]) -> None:
    net = regressor(ndim, maps=maps)
    block = torch.randn(1, 1, *(net.px,) * ndim, requires_grad=True)
    net.votes(net.features(block))[0, 3**ndim // 2].square().sum().backward()
    assert block.grad is not None
    seen = block.grad[0, 0].nonzero()
    assert seen.min(0).values.tolist() == [net.stride] * ndim
    assert seen.max(0).values.tolist() == [net.stride + net.patch - 1] * ndim


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_patch_moved_to_the_next_cell_is_seen_alike_there(ndim: int) -> None:
    """With the own layers of all cells alike the network is a plain convolution: patch == cell, wherever it lies."""
    net = regressor(ndim)
    with torch.no_grad():
        for own in (net.own, net.own_bias, net.place):
            own.copy_(own[:1].expand_as(own))
    block = torch.randn(1, 1, *(net.px + net.stride,) * ndim)
    first = net.votes(net.features(block[(slice(None), slice(None), *(slice(0, net.px),) * ndim)]))
    moved = net.votes(net.features(block[(slice(None), slice(None), *(slice(net.stride, None),) * ndim)]))
    shape = (3,) * ndim
    a = first[0].unflatten(0, shape)[(slice(1, None),) * ndim]
    b = moved[0].unflatten(0, shape)[(slice(0, -1),) * ndim]
    assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("ndim", [2, 3])
def test_sides_and_centres(ndim: int) -> None:
    net = regressor(ndim)
    assert (net.patch, net.stride, net.px) == (30, 8, 46)
    assert regressor(ndim, cells=1).centres.tolist() == [[0.0] * ndim]
    by_hand = np.array([[*cell][::-1] for cell in np.ndindex(*(3,) * ndim)]) * 8.0 - 8  # x is the fastest axis
    np.testing.assert_array_equal(net.centres, by_hand)


def test_rows_are_those_of_all() -> None:
    net = regressor(3, cells=2)
    features = net.features(torch.randn(2, 1, 38, 38, 38))
    votes, sure = net.votes(features), net.confidence(features)
    assert votes.shape == (2, 8, 3, 3) and sure.shape == (2, 8, 3)
    assert torch.allclose(net.votes(features, slice(1, 3)), votes[:, :, 1:])
    assert torch.allclose(net.confidence(features, slice(0, 1)), sure[..., :1])


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_gradient_reaches_everything(ndim: int) -> None:
    net = regressor(ndim, cells=2, dropout=0.0).train()
    features = net.features(torch.randn(8, 1, *(net.px,) * ndim))
    weight = (net.confidence(features) * net.sharpness.exp()).softmax(1)[..., None]
    (weight * net.votes(features)).sum(1).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
        assert parameter.grad.isfinite().all(), name
    assert net.own.grad is not None and (net.own.grad.flatten(1).abs().max(1).values > 0).all()  # each cell's


def test_it_begins_near_nothing() -> None:
    net = BlockRegressor(2, 3, 2).eval()
    features = net.features(torch.rand(2, 1, net.px, net.px))
    assert features.std() > 0.01
    assert net.votes(features).abs().max() < 0.1
    assert net.confidence(features).abs().max() == 0


def test_bf16_is_float32_but_for_rounding() -> None:
    net = regressor(3, cells=2)
    block = torch.randn(1, 1, 38, 38, 38)
    with torch.inference_mode():
        exact = net.votes(net.features(block))
        use_bf16(True)
        rounded = net.votes(net.features(block))
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().mean() < 0.05 * exact.std()


def test_training_in_3d_on_a_cpu_stays_float32() -> None:
    """Decision 0003: bf16 gradients of small 3D convolutions are garbage now and then."""
    use_bf16(True)
    kinds = {}
    for ndim in (2, 3):
        net = regressor(ndim, cells=2).train()
        net.trunk[-3].register_forward_hook(lambda m, i, out, d=ndim: kinds.update({d: out.dtype}))
        net.features(torch.randn(2, 1, *(net.px,) * ndim))
    assert kinds == {2: torch.bfloat16, 3: torch.float32}


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_field_is_affine_about_each_cell(ndim: int) -> None:
    """By hand: a matrix and a shift from the cell's features, the same for every landmark."""
    net = regressor(ndim, field=True)
    assert net.field is not None
    nn.init.normal_(net.field.weight)
    features, at = torch.randn(2, 4, 10), torch.randn(4, 3, ndim)
    own, both = net.votes(features), net.votes(features, at=at)
    field = net.field(features).view(2, 4, ndim, ndim + 1)
    for b, k, n in np.ndindex(2, 4, 3):
        there = field[b, k, :, :-1] @ at[k, n] + field[b, k, :, -1]
        torch.testing.assert_close(both[b, k, n], own[b, k, n] + there, atol=1e-4, rtol=1e-4)
    rows = torch.tensor([2, 0])
    torch.testing.assert_close(net.votes(features, rows, at[:, rows]), both[:, :, rows], atol=1e-4, rtol=1e-4)
