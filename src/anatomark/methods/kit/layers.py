"""Layers by dimension; and convolutions with the batch norms after them as one weight and bias, for evaluation without
gradients: what the plain layers give, up to rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn import functional as F

Folded = tuple[torch.Tensor, torch.Tensor]  # weight and bias

_FOLDED: WeakKeyDictionary[nn.Module, tuple[Any, Any]] = WeakKeyDictionary()


def conv(ndim: int) -> type[nn.Conv2d] | type[nn.Conv3d]:
    """The convolution layer of a dimension."""
    return nn.Conv2d if ndim == 2 else nn.Conv3d


def norm(ndim: int) -> type[nn.BatchNorm2d] | type[nn.BatchNorm3d]:
    """The batch norm of a dimension."""
    return nn.BatchNorm2d if ndim == 2 else nn.BatchNorm3d


def convolve(ndim: int) -> Callable[..., torch.Tensor]:
    """The convolution function of a dimension."""
    return F.conv2d if ndim == 2 else F.conv3d


def conv_norm(
    ndim: int, before: int, after: int, kernel: int = 3, *, bias: bool = False, **how: Any
) -> list[nn.Module]:
    """A convolution, batch norm and ReLU; ``how``: the convolution's stride, padding, groups."""
    return [conv(ndim)(before, after, kernel, bias=bias, **how), norm(ndim)(after), nn.ReLU(inplace=True)]


def filmed(x: torch.Tensor, film: torch.Tensor) -> torch.Tensor:
    """Maps (B * N, C, h, w) scaled and shifted by each landmark's own ``film`` (N, 2 C): FiLM, Perez et al. 2018."""
    gain, shift = film.to(x.dtype).repeat(len(x) // len(film), 1)[:, :, None, None].chunk(2, 1)
    return torch.addcmul(x + shift, x, gain)


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """``x`` (B, C, *S) with the channels fastest in memory."""
    layout = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    return x.contiguous(memory_format=layout)  # type: ignore[call-overload,no-any-return]


def chunks(count: int, step: int) -> list[slice]:
    """``count`` things, ``step`` at a time."""
    return [slice(a, min(a + step, count)) for a in range(0, count, step)]


def device_of(module: nn.Module) -> torch.device:
    """Where a module's parameters lie."""
    return next(module.parameters()).device


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """In evaluation mode inside, and in the mode of before afterwards."""
    was = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was)


def lattice(lines: Sequence[torch.Tensor]) -> torch.Tensor:
    """(K, D) the points of a lattice in array order, x first, whose places along the array's axes are ``lines``."""
    return torch.stack(torch.meshgrid(*lines, indexing="ij")[::-1], -1).reshape(-1, len(lines))


def fold(layer: nn.Module, batch_norm: nn.Module) -> Folded:
    """Weight and bias of a convolution without bias with the batch norm after it."""
    scale, shift = affine(batch_norm)
    weight = layer.get_parameter("weight")
    return weight * scale.view(-1, *(1,) * (weight.ndim - 1)), shift


def affine(batch_norm: nn.Module) -> Folded:
    """What a batch norm does in evaluation: x * scale + shift."""
    assert isinstance(batch_norm, nn.BatchNorm2d | nn.BatchNorm3d) and batch_norm.running_var is not None
    assert batch_norm.running_mean is not None
    scale = batch_norm.weight * torch.rsqrt(batch_norm.running_var + batch_norm.eps)
    return scale, batch_norm.bias - batch_norm.running_mean * scale


def cast(weight: torch.Tensor, bias: torch.Tensor | None, kind: torch.dtype) -> Folded:
    """Both in ``kind``, the weight with channels last."""
    assert bias is not None
    return channels_last(weight.detach().to(kind)), bias.detach().to(kind)


def folded(module: nn.Module, kind: torch.dtype, build: Callable[[torch.dtype], Any]) -> Any:
    """``build(kind)``, kept until a weight of the module changes. Kept outside the module: it is neither copied nor
    saved with it."""
    tensors = [*module.parameters(), *module.buffers()]
    if any(t.is_inference() for t in tensors):
        return build(kind)  # such tensors do not tell whether they were changed
    key = (kind, *((t.data_ptr(), t._version) for t in tensors))
    cached = _FOLDED.get(module)
    if cached is None or cached[0] != key:
        with torch.no_grad():
            cached = (key, build(kind))
        _FOLDED[module] = cached
    return cached[1]
