"""The published network: sizes, parameters, initialisation, precision."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from anatomark.methods.kit.precision import use_bf16
from anatomark.methods.pin.paper_net import PaperNet, feature_sizes


@pytest.mark.parametrize("patch", [94, 101, 125])
def test_published_sizes_end_as_one_pixel_of_512_maps(patch: int) -> None:
    net = PaperNet(3, 3, patch)
    assert feature_sizes(patch)[-1] == 1
    assert len(net.convs) == 5
    assert net.regression[0].in_features == 512
    d, logits = net(torch.randn(2, 3, patch, patch))
    assert d.shape == (2, 3)
    assert logits.shape == (2, 6)


def test_sizes_beyond_the_published_ones() -> None:
    assert feature_sizes(93) == [45, 21, 9, 3]
    assert feature_sizes(126)[-1] == 2
    assert PaperNet(1, 2, 126).regression[0].in_features == 4 * 512
    with pytest.raises(ValueError, match="too small"):
        PaperNet(1, 2, 3)


def test_thirty_channels_have_the_published_number_of_parameters() -> None:
    count = sum(p.numel() for p in PaperNet(30, 15, 101).parameters())
    assert round(count / 1e6, 1) == 4.8


def test_initialisation_is_the_published_one() -> None:
    torch.manual_seed(0)
    net = PaperNet(30, 15, 101)
    for name, p in net.named_parameters():
        if name.endswith("bias"):
            assert (p == 0.1).all()
        else:
            assert p.abs().max() <= 0.2
    assert net.convs[4].weight.std().item() == pytest.approx(0.088, abs=0.002)  # sd 0.1 cut at two sd


def test_pooling_before_rectifying_is_the_published_order() -> None:
    net = PaperNet(3, 3, 22).eval()
    x = torch.randn(2, 3, 22, 22)
    use_bf16(False)
    try:
        got = net(x)
    finally:
        use_bf16(None)
    y = x
    for conv in net.convs:
        y = F.max_pool2d(F.relu(conv(y)), 2)
    torch.testing.assert_close(got[0], net.regression(y.flatten(1)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got[1], net.classification(y.flatten(1)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32])
def test_bf16_is_close_to_float32_and_only_in_the_convolutions(dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    net = PaperNet(3, 3, 40).eval()
    x = torch.randint(0, 255, (4, 3, 40, 40)).to(dtype)
    outputs = []
    for force in (True, False):
        use_bf16(force)
        try:
            assert net.prepare()[0][0].dtype == (torch.bfloat16 if force else torch.float32)
            outputs.append(net(x, net.prepare()))
        finally:
            use_bf16(None)
    for low, full in zip(*outputs, strict=True):
        assert low.dtype == full.dtype == torch.float32
        assert (low - full).abs().max() < 0.02 * full.abs().max()


def test_training_reaches_every_parameter() -> None:
    net = PaperNet(3, 3, 22)
    d, logits = net(torch.randn(4, 3, 22, 22))
    (d.square().mean() + logits.square().mean()).backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert p.grad.dtype == torch.float32
        assert p.grad.abs().sum() > 0, name
