"""The networks of global-to-local: their fast forms are the plain ones, and grouped is the same as one by one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from anatomark.methods.global_to_local import paper_net as nets
from anatomark.methods.global_to_local.paper_net import GlobalFCNN, LocalFCNNs
from anatomark.methods.kit.precision import use_bf16

SMALL = {"widths": (6, 8, 10, 12), "blocks": (1, 2, 1, 1)}
POOLS = {2: (True, True, True, True), 3: (True, True, False, False)}


@pytest.fixture(autouse=True)
def float32() -> Iterator[None]:
    use_bf16(False)
    yield
    use_bf16(None)


def settled(net: nn.Module, x: torch.Tensor) -> nn.Module:
    """In evaluation, with running statistics and affine parameters as training leaves them."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    net.train()
    with torch.no_grad():
        for _ in range(5):
            net(x * 2 + torch.randn_like(x) + 1)
    return net.eval()


def global_net(ndim: int, size: tuple[int, ...] | None = None) -> tuple[GlobalFCNN, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(2, 1, *(size or ((96, 64) if ndim == 2 else (24, 16, 32))))
    net = settled(GlobalFCNN(ndim, 3, POOLS[ndim], **SMALL), x)
    assert isinstance(net, GlobalFCNN)
    return net, x


@pytest.mark.parametrize("ndim", [2, 3])
def test_folded_is_plain(ndim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = global_net(ndim)
    logits, moves = net(x)  # with gradients: layer by layer
    assert moves.requires_grad
    for cells in (10**9, 500):  # the first layers at once, and in slabs
        monkeypatch.setattr(nets, "STEM_CELLS", cells)
        with torch.no_grad():
            fast = net(x)
        assert torch.allclose(fast[0], logits, atol=1e-4) and torch.allclose(fast[1], moves, atol=1e-4)
    assert logits.shape == (2, 3, *(n // net.stride for n in x.shape[2:]))
    assert moves.shape == (2, 3, ndim, *logits.shape[2:])


@pytest.mark.parametrize("ndim", [2, 3])
def test_bf16_is_near(ndim: int) -> None:
    net, x = global_net(ndim)
    with torch.no_grad():
        exact = net(x)[1]
        use_bf16(True)
        rough = net(x)[1]
    assert 0 < (rough - exact).abs().max() < 0.05 * exact.abs().max()


def test_folded_weights_follow_the_weights() -> None:
    net, x = global_net(2)
    with torch.inference_mode():
        before = net(x)[0]
        assert torch.equal(net(x)[0], before)
    with torch.no_grad():
        net.groups[1][0].norm1.bias.add_(1.0)
        changed = net(x)[0]
    assert (changed - before).abs().max() > 1e-3
    state = {k: v + 0.1 if k.endswith("running_mean") else v for k, v in net.state_dict().items()}
    net.load_state_dict(state)
    with torch.no_grad():
        assert (net(x)[0] - changed).abs().max() > 1e-3


@pytest.mark.parametrize("ndim", [2, 3])
def test_cells_move_with_the_image(ndim: int) -> None:
    """A crop that begins on a cell's border sees in its inner cells what the whole image gives there."""
    torch.manual_seed(1)
    pools = (True, False, False, False)
    net = GlobalFCNN(ndim, 2, pools, widths=(4, 4, 4, 4), blocks=(1, 0, 0, 0))
    q = net.stride
    whole = torch.randn(1, 1, *(12 * q,) * ndim)
    settled(net, whole)
    begin, cells = 3, 8
    crop = whole[(..., *(slice(begin * q, (begin + cells) * q),) * ndim)]
    with torch.no_grad():
        a, b = net(whole)[0], net(crop)[0]
    inner = (..., *(slice(3, cells - 3),) * ndim)
    there = a[(..., *(slice(begin, begin + cells),) * ndim)]
    assert torch.allclose(there[inner], b[inner], atol=1e-4)
    assert not torch.allclose(there, b, atol=1e-4)  # at the crop's border it cannot be the same


def test_published_sizes() -> None:
    with torch.device("meta"):
        ceph, ccta = GlobalFCNN(2, 19, POOLS[2]), GlobalFCNN(3, 8, POOLS[3])
        crop = ceph.train()(torch.empty(1, 1, 992, 992))
    assert (ceph.stride, ccta.stride) == (32, 8)
    assert crop[0].shape == (1, 19, 31, 31) and crop[1].shape == (1, 19, 2, 31, 31)
    convolutions = [m for m in ccta.groups.modules() if isinstance(m, nn.Conv3d) and m.kernel_size == (3, 3, 3)]
    assert len(convolutions) == 2 * (3 + 4 + 6 + 3) and ccta.stem.weight.shape == (16, 1, 7, 7, 7)
    with pytest.raises(ValueError, match="multiples"):
        ccta(torch.zeros(1, 1, 12, 16, 16))


def separate(net: LocalFCNNs, n: int) -> LocalFCNNs:
    """Landmark n's network by itself."""
    alone = LocalFCNNs(net.ndim, 1, widths=(8, 12))
    state = {}
    for key, value in net.state_dict().items():
        state[key] = value.unflatten(0, (net.landmarks, -1))[n] if value.ndim else value
    alone.load_state_dict(state)
    return alone.eval()


@pytest.mark.parametrize("ndim", [2, 3])
def test_grouped_is_one_by_one(ndim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    x = torch.randn(2, 5, *(16,) * ndim)
    net = settled(LocalFCNNs(ndim, 5, widths=(8, 12)), x)
    assert isinstance(net, LocalFCNNs)
    with torch.no_grad():
        ones = [separate(net, n)(x[:, n : n + 1]) for n in range(5)]
    logits, moves = (torch.cat([one[k] for one in ones], 1) for k in (0, 1))
    assert logits.shape == (2, 5, *(8,) * ndim) and moves.shape == (2, 5, ndim, *(8,) * ndim)
    plain = net(x)
    assert torch.allclose(plain[0], logits, atol=1e-4) and torch.allclose(plain[1], moves, atol=1e-4)
    for chunk in (32, 2):
        monkeypatch.setattr(nets, "LANDMARKS_AT_ONCE", chunk)
        with torch.no_grad():
            fast = net(x)
        assert torch.allclose(fast[0], logits, atol=1e-4) and torch.allclose(fast[1], moves, atol=1e-4)


def test_networks_learn_apart() -> None:
    """The gradient of one landmark's loss reaches no other landmark's network."""
    net = LocalFCNNs(2, 3, widths=(4, 6)).train()
    net(torch.randn(2, 3, 16, 16))[0][:, 1].sum().backward()
    for parameter in net.convs.parameters():
        mine = parameter.grad.unflatten(0, (3, -1)).abs().flatten(1).sum(1)
        assert mine[1] > 0 and mine[0] == mine[2] == 0
