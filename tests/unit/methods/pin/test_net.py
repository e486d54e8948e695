"""The networks of the recommended PIN: sizes, independence of landmarks, precision, names of the weights."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from anatomark.methods.kit.precision import conv_precision, fast_bf16, use_bf16
from anatomark.methods.pin.net import ContextNet, PatchNet


@pytest.fixture(autouse=True)
def float32() -> Iterator[None]:
    torch.manual_seed(0)
    use_bf16(False)
    yield
    use_bf16(None)


def _patch_net(landmarks: int = 3, channels: int = 6, planes: int = 3) -> PatchNet:
    net = PatchNet(channels, planes, landmarks, width=8).eval()
    for film in net.films:  # as after some training
        nn.init.normal_(film, std=0.3)
    nn.init.normal_(net.bias)
    return net


@pytest.mark.parametrize(("ndim", "px"), [(2, 16), (2, 33), (3, 16), (3, 24)])
def test_context_net_gives_a_point_for_each_landmark(ndim: int, px: int) -> None:
    assert ContextNet(ndim, px, 4)(torch.randn(2, 1, *(px,) * ndim)).shape == (2, 4, ndim)


@pytest.mark.parametrize("px", [8, 16, 32])
def test_patch_net_gives_a_map_of_half_size_for_each_plane(px: int) -> None:
    assert _patch_net()(torch.randn(2, 3, 6, px, px)).shape == (2, 3, 3, px // 2, px // 2)


def test_a_landmarks_maps_come_from_its_own_patches() -> None:
    net, x = _patch_net(), torch.randn(1, 3, 6, 16, 16)
    other = x.clone()
    other[:, 1] = torch.randn(6, 16, 16)
    before, after = net(x), net(other)
    torch.testing.assert_close(after[:, [0, 2]], before[:, [0, 2]])
    assert (after[:, 1] - before[:, 1]).abs().max() > 0.01


def test_landmarks_are_told_apart_by_their_own_rows_only() -> None:
    net, same = _patch_net(), _patch_net()
    order = [2, 0, 1]
    state = net.state_dict()
    per_landmark = [k for k in state if k.startswith("films.") or k in ("weight", "bias")]
    same.load_state_dict({k: v[order] if k in per_landmark else v for k, v in state.items()})
    x = torch.randn(2, 3, 6, 16, 16)
    torch.testing.assert_close(same(x[:, order]), net(x)[:, order])
    alike = torch.randn(1, 1, 6, 16, 16).expand(1, 3, 6, 16, 16)
    assert (net(alike)[0, 0] - net(alike)[0, 1]).abs().max() > 0.01


def test_a_batch_is_what_its_examples_are_one_by_one() -> None:
    net, x = _patch_net(), torch.randn(3, 3, 6, 16, 16)
    torch.testing.assert_close(net(x), torch.cat([net(x[i : i + 1]) for i in range(3)]), rtol=1e-4, atol=1e-5)
    context, block = ContextNet(3, 16, 4).eval(), torch.randn(3, 1, 16, 16, 16)
    one_by_one = torch.cat([context(block[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(context(block), one_by_one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ndim", [2, 3])
def test_training_reaches_every_parameter(ndim: int) -> None:
    planes = 1 if ndim == 2 else 3
    context, patch = ContextNet(ndim, 16, 3), PatchNet(2 * planes, planes, 3, 8)
    context(torch.randn(4, 1, *(16,) * ndim)).square().mean().backward()
    patch(torch.randn(2, 3, 2 * planes, 16, 16)).logsumexp((-1, -2)).square().mean().backward()
    for net in (context, patch):
        for name, p in net.named_parameters():
            assert p.grad is not None, name
            assert p.grad.abs().sum() > 0, name


def test_bf16_is_close_to_float32_and_comes_back_as_float32() -> None:
    nets = [
        (_patch_net(), torch.randn(2, 3, 6, 16, 16)),
        (ContextNet(2, 16, 4).eval(), torch.randn(2, 1, 16, 16)),
        (ContextNet(3, 16, 4).eval(), torch.randn(2, 1, 16, 16, 16)),
    ]
    for net, x in nets:
        full = net(x)
        use_bf16(True)
        low = net(x)
        use_bf16(False)
        assert low.dtype == full.dtype == torch.float32
        assert 0 < (low - full).abs().max() < 0.03 * full.abs().max()


@pytest.mark.parametrize(
    ("ndim", "training", "want"), [(3, True, "float32"), (3, False, "bfloat16"), (2, True, "bfloat16")]
)
def test_only_the_training_of_3d_blocks_keeps_out_of_bf16(ndim: int, training: bool, want: str) -> None:
    net = ContextNet(ndim, 16, 2).train(training)
    seen: list[torch.dtype] = []
    net.body[0].register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    use_bf16(True)
    net(torch.randn(2, 1, *(16,) * ndim))
    assert seen == [getattr(torch, want)]


def test_precision_follows_the_machine_unless_forced() -> None:
    x = torch.randn(1, 1, 4, 4)
    conv = nn.Conv2d(1, 1, 3)
    use_bf16(None)
    with conv_precision(x.device):
        assert conv(x).dtype == (torch.bfloat16 if fast_bf16() else torch.float32)
    for force, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        use_bf16(force)
        with conv_precision(x.device):
            assert conv(x).dtype == dtype
    assert conv(x).dtype == torch.float32


def test_names_and_sizes_of_the_weights_stay_as_trained_models_have_them() -> None:
    patch = {k: tuple(v.shape) for k, v in PatchNet(6, 3, 32).state_dict().items() if "num_batches" not in k}
    context = {k: tuple(v.shape) for k, v in ContextNet(3, 32, 32).state_dict().items() if "num_batches" not in k}
    assert len(patch) == 4 + 5 * 4 + 4 + 4 + 1 + 2
    assert {k: patch[k] for k in ("convs.0.weight", "films.3", "up.1.bias", "mix.weight", "weight", "bias")} == {
        "convs.0.weight": (24, 6, 3, 3),
        "films.3": (32, 192),
        "up.1.bias": (48,),
        "mix.weight": (48, 48, 3, 3),
        "weight": (32, 48, 3),
        "bias": (32, 3),
    }
    assert {k: v for k, v in context.items() if k.startswith("head") or k == "body.0.weight"} == {
        "body.0.weight": (16, 1, 3, 3, 3),
        "head.2.weight": (384, 1024),
        "head.2.bias": (384,),
        "head.4.weight": (96, 384),
        "head.4.bias": (96,),
    }
