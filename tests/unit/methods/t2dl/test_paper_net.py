"""The networks of T2DL: a patch's output is the map's cell, plain or folded; loss, vote and joint layers by hand."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from anatomark.methods.kit.precision import use_bf16
from anatomark.methods.t2dl import net as nets
from anatomark.methods.t2dl.net import (
    STRIDE,
    ExtraLayers,
    JointLayers,
    PatchRegressor,
    distance_weighted_loss,
    weighted_vote,
)

PATCH = {1: 30, 2: 44}
CASES = [(2, 1), (2, 2), (3, 1), (3, 2)]


@pytest.fixture(autouse=True)
def float32() -> Iterator[None]:
    use_bf16(False)
    yield
    use_bf16(None)


def regressor(ndim: int, per_block: int = 1) -> PatchRegressor:
    """In evaluation, with running statistics and affine parameters as training leaves them."""
    torch.manual_seed(0)
    net = PatchRegressor(ndim, 3, maps=(4, 6, 8), hidden=10, per_block=per_block)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.momentum = 1.0
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    nn.init.normal_(net.out.weight)
    with torch.no_grad():
        net.train().features(torch.randn(4, 1, *(PATCH[per_block],) * ndim) + 1)
    return net.eval()


@pytest.mark.parametrize(("ndim", "per_block"), CASES)
@pytest.mark.parametrize("gradients", [True, False])
def test_a_patch_gives_what_the_map_gives_in_its_cell(ndim: int, per_block: int, gradients: bool) -> None:
    """Layer by layer (with gradients) and on folded weights; the image is no whole number of cells large."""
    net, p = regressor(ndim, per_block), PATCH[per_block]
    assert net.patch == p
    size = [p + 19, p + 8, p + 13][:ndim]
    image = torch.randn(1, 1, *size)
    with torch.set_grad_enabled(gradients):
        maps = net.votes(net.features(image))
        cells = net.cells(size)
        assert cells == (3, 2, 2)[:ndim] and maps.shape == (1, np.prod(cells), 3, ndim)
        assert maps.requires_grad == gradients
        for k, (cell, centre) in enumerate(zip(np.ndindex(*cells), net.centres(size).tolist(), strict=True)):
            box = tuple(slice(STRIDE * i, STRIDE * i + p) for i in cell)
            alone = net.votes(net.features(image[(slice(None), slice(None), *box)]))
            assert torch.allclose(alone[0, 0], maps[0, k], atol=1e-4)
            assert centre == [s.start + (p - 1) / 2 for s in box][::-1]


@pytest.mark.parametrize(("ndim", "per_block"), CASES)
def test_folded_and_in_slabs_is_plain(ndim: int, per_block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    net = regressor(ndim, per_block)
    image = torch.randn(2, 1, *[PATCH[per_block] + n for n in (17, 9, 3)[:ndim]])
    plain = net.trunk(image).detach()
    for voxels in (10**9, 1, 9000):
        monkeypatch.setattr(nets, "STEM_VOXELS", voxels)
        assert torch.allclose(net._plain(image), plain, atol=1e-5)
        with torch.no_grad():
            assert torch.allclose(net._fast(image), plain, atol=1e-4)
    use_bf16(True)
    with torch.no_grad():
        rounded = net._fast(image)
    assert rounded.dtype == torch.bfloat16
    assert 0 < (rounded.float() - plain).abs().mean() < 0.02 * plain.std()


def test_folded_weights_follow_the_weights() -> None:
    net, image = regressor(2), torch.randn(1, 1, 38, 38)
    with torch.no_grad():
        before = net.features(image)
        net.trunk[0].weight.mul_(2)
        assert not torch.allclose(net.features(image), before)


def test_slabs_have_the_gradients_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    net, image = regressor(3), torch.randn(1, 1, 46, 38, 38)
    found = []
    for features in (lambda: net.trunk(image), lambda: net._plain(image)):
        net.zero_grad()
        monkeypatch.setattr(nets, "STEM_VOXELS", 1)
        features().square().sum().backward()
        found.append([p.grad.clone() for p in net.trunk.parameters() if p.grad is not None])
    assert len(found[0]) == len(found[1]) > 6
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(*found, strict=True))


def test_rows_are_those_of_all() -> None:
    net, image = regressor(2), torch.randn(2, 1, 46, 38)
    features = net.features(image)
    assert features.shape == (2, 6, 10)
    assert torch.allclose(net.votes(features, slice(1, 3)), net.votes(features)[:, :, 1:], atol=1e-5)
    with pytest.raises(ValueError, match="smaller than a patch of 30"):
        net.cells((29, 40))


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_loss_is_the_formula(ndim: int) -> None:
    rng = np.random.default_rng(0)
    votes, goal = rng.normal(size=(4, 5, ndim)), rng.normal(size=(4, 5, ndim))
    defined, alpha = rng.integers(0, 2, (4, 5)).astype(float), 0.7
    total = weights = 0.0
    for v, d, k in zip(votes.reshape(-1, ndim), goal.reshape(-1, ndim), defined.ravel(), strict=True):
        w = k * np.exp(-np.sqrt((d**2).sum()) / alpha)
        total, weights = total + w * ((v - d) ** 2).sum(), weights + w
    found = distance_weighted_loss(*(torch.from_numpy(x) for x in (votes, goal, defined)), alpha)
    assert float(found) == pytest.approx(total / weights, rel=1e-6)


@pytest.mark.parametrize("at_once", [10**9, 1])
def test_the_vote_is_the_formula(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nets, "VOTES_AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    votes, centres = rng.normal(size=(2, 7, 4, 3)), rng.uniform(0, 9, (7, 3))
    sharp, sure = rng.uniform(0.5, 4, 4), rng.normal(size=(2, 7, 4))
    for confidence in (None, sure):
        logits = -np.linalg.norm(votes, axis=-1) * sharp + (0 if confidence is None else confidence)
        weight = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        places = votes + centres[:, None]
        mean = (weight[..., None] * places).sum(1)
        aside = places - mean[:, None]
        cloud = np.einsum("bkn,bkni,bknj->bnij", weight, aside, aside)
        given = [torch.from_numpy(x) for x in (votes, centres, sharp)]
        points, covariance = weighted_vote(*given, None if confidence is None else torch.from_numpy(confidence))
        assert np.allclose(points, mean) and np.allclose(covariance, cloud)


def test_one_sure_cell_decides_alone() -> None:
    """Also far from the origin, where float32 is coarse: the cloud has no extent, and nothing overflows."""
    votes = torch.full((1, 5, 2, 2), 30.0)
    votes[0, 3, 0] = torch.tensor([0.25, 0.5])
    votes[0, 1, 1] = torch.tensor([0.0, 0.0])
    centres = torch.arange(10.0).view(5, 2) + 2000
    points, covariance = weighted_vote(votes.requires_grad_(), centres, torch.tensor([1e3, 1e3]))
    assert points[0].tolist() == [[2006.25, 2007.5], [2002, 2003]]
    assert covariance.abs().max() < 1e-6
    points.sum().backward()
    assert votes.grad is not None and torch.isfinite(votes.grad).all()


def test_joint_layers_begin_as_nothing_and_learn() -> None:
    torch.manual_seed(0)
    mean = torch.randn(40, 3)
    layers = JointLayers(mean, 64)
    points = mean + torch.randn(6, 40, 3)
    assert torch.equal(layers(points), points)
    assert layers.down.out_features == 64 and JointLayers(torch.zeros(4, 2), 64).down.out_features == 8
    (layers(points) - mean).square().sum().backward()
    assert layers.up.weight.grad is not None and layers.up.weight.grad.abs().max() > 0
    extra = ExtraLayers(mean, 0.2)
    assert torch.allclose(extra.sharpness(), torch.full((40,), 5.0))
