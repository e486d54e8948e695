"""The patch-based iterative network (PIN; Li et al., MICCAI 2018): its 2.5D input, orthogonal planes through positions,
cut without interpolation; the network (figure 2c); its targets, loss and update rules (eq. 1-2 and rules A-C).

B is the batch, n the number of components of a state (voxel coordinates or shape parameters). Classes are ordered
(1+, 1-, 2+, 2-, ..., n+, n-), logits accordingly (B, 2n). A displacement is truth minus current state.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from anatomark.methods.kit.layers import channels_last, device_of
from anatomark.methods.kit.precision import conv_dtype
from anatomark.methods.kit.targets import logged

Rule = Literal["A", "B", "C", "c-pair"]
Numbers = NDArray[Any]

MAPS = (32, 64, 128, 256, 512)
HIDDEN = 1024

Prepared = list[tuple[torch.Tensor, torch.Tensor]]


def plane_count(ndim: int) -> int:
    """Planes for each landmark: 3 in 3D, 1 in 2D."""
    return 3 if ndim == 3 else 1


def cut_planes(volume: Numbers, positions: Numbers, patch_px: int, out: Numbers | None = None) -> Numbers:
    """Planes through every position, of ``volume``'s dtype, channels last: (M, s, s, C), s = ``patch_px``.

    ``volume``: (z, y, x) or, in 2D, (y, x). ``positions``: (M, N, D) voxel coordinates in **x, y[, z]** order from the
    first voxel's centre, truncated towards zero. 3D: C = 3N, for each landmark the planes yz, xz, xy, with rows along
    the volume's slower axis: (z, y), (z, x), (y, x). 2D: C = N. The position lies at pixel s // 2. Outside the volume
    the value is 0, so a plane that lies wholly outside is all 0; a position that is not finite counts as outside.
    ``out``: an array to write into, for repeated calls. ``volume`` may have any strides (a flipped view, a memory map).
    """
    ndim = volume.ndim
    count, landmarks = positions.shape[:2]
    planes = plane_count(ndim)
    centre = np.trunc(np.nan_to_num(positions, nan=-1e6, posinf=-1e6, neginf=-1e6).clip(-1e6, 1e6))
    centre = centre.astype(np.int64)[..., ::-1]  # now in the array's order
    size = np.asarray(volume.shape)
    low = centre - patch_px // 2
    first, last = np.clip(low, 0, size), np.clip(low + patch_px, 0, size)
    if out is None:
        out = np.empty((count, patch_px, patch_px, planes * landmarks), dtype=volume.dtype)
    if (first > low).any() or (last < low + patch_px).any():
        out.fill(0)
    # plain lists: this loop is a tenth of a gather's time, and its overhead is what counts
    boxes = np.stack([centre, first, last, first - low, last - low], 2).tolist()
    seen = ((centre >= 0) & (centre < size)).tolist()
    one = _cut_3d if ndim == 3 else _cut_2d
    for m in range(count):
        target = out[m]
        for n in range(landmarks):
            one(volume, target, planes * n, boxes[m][n], seen[m][n])
    return out


def _cut_3d(volume: Numbers, out: Numbers, at: int, box: list[list[int]], seen: list[bool]) -> None:
    (z, y, x), (z0, y0, x0), (z1, y1, x1), (u0, v0, w0), (u1, v1, w1) = box
    if seen[2]:
        out[u0:u1, v0:v1, at] = volume[z0:z1, y0:y1, x]
    if seen[1]:
        out[u0:u1, w0:w1, at + 1] = volume[z0:z1, y, x0:x1]
    if seen[0]:
        out[v0:v1, w0:w1, at + 2] = volume[z, y0:y1, x0:x1]


def _cut_2d(volume: Numbers, out: Numbers, at: int, box: list[list[int]], seen: list[bool]) -> None:
    _, (y0, x0), (y1, x1), (v0, w0), (v1, w1) = box
    out[v0:v1, w0:w1, at] = volume[y0:y1, x0:x1]


class PaperNet(nn.Module):
    """Five (convolution 3x3 valid, ReLU, max-pool 2x2), then one fully connected branch for each task.

    ``channels`` input planes of ``patch_px`` x ``patch_px``; ``outputs`` n_o: the regression branch ends in n_o, the
    classification branch in 2 n_o values. Patches of 94 to 125 pixels end as 1 x 1 x 512 as published; smaller ones
    pass through as many levels as fit. Truncated normal initialisation with sd 0.1, biases 0.1; dropout after each
    hidden fully connected layer. Convolutions run in :func:`conv_dtype`, the branches in float32. Raises ValueError
    for patches below 4 pixels.
    """

    def __init__(self, channels: int, outputs: int, patch_px: int = 101, *, dropout: float = 0.5):
        super().__init__()
        sizes = feature_sizes(patch_px)
        if not sizes:
            raise ValueError(f"a patch of {patch_px} pixels is too small for a convolution and a pooling; at least 4")
        widths = (channels, *MAPS[: len(sizes)])
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3) for a, b in pairwise(widths))
        flat = widths[-1] * sizes[-1] ** 2
        self.regression = _branch(flat, outputs, dropout)
        self.classification = _branch(flat, 2 * outputs, dropout)
        self.apply(_initialise)

    def forward(self, patches: torch.Tensor, prepared: Prepared | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Displacements (B, n_o) and class logits (B, 2 n_o), float32, of patches (B, C, s, s) of any real dtype.

        ``prepared`` is what :meth:`prepare` gave, for repeated calls with unchanged weights.
        """
        if prepared is None:
            prepared = self.prepare()
        x = channels_last(patches.to(prepared[0][0].dtype))
        for weight, bias in prepared:
            # the same as pooling what is rectified, at a quarter of the rectifications
            x = F.relu(F.max_pool2d(F.conv2d(x, weight, bias), 2))
        features = x.flatten(1).float()
        return self.regression(features), self.classification(features)

    def prepare(self) -> Prepared:
        """The convolutions' weights and biases as the forward pass wants them: its dtype, channels last."""
        dtype = conv_dtype(device_of(self))
        pairs = [(conv.get_parameter("weight"), conv.get_parameter("bias")) for conv in self.convs]
        return [(w.to(dtype, memory_format=torch.channels_last), b.to(dtype)) for w, b in pairs]


def feature_sizes(patch_px: int) -> list[int]:
    """Side of the feature map after each level, at most five levels and as many as leave at least one pixel."""
    sizes: list[int] = []
    while len(sizes) < len(MAPS) and (patch_px - 2) // 2 >= 1:
        patch_px = (patch_px - 2) // 2
        sizes.append(patch_px)
    return sizes


def _branch(inputs: int, outputs: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, HIDDEN),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(HIDDEN, HIDDEN),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(HIDDEN, outputs),
    )


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.1, a=-0.2, b=0.2)
        if module.bias is not None:
            nn.init.constant_(module.bias, 0.1)


def targets(displacement: torch.Tensor) -> torch.Tensor:
    """Eq. 1: class index (B,) int64 of displacements (B, n): the largest component by magnitude, and its sign."""
    component = displacement.abs().argmax(1)
    value = displacement.gather(1, component[:, None])[:, 0]
    return 2 * component + (value <= 0).long()


def pin_loss(
    d_pred: torch.Tensor,
    logits: torch.Tensor,
    d_true: torch.Tensor,
    alpha: float,
    huber: float | None = None,
    weight: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """Eq. 2: ``(1 - alpha)`` mean squared error over components and batch ``+ alpha`` cross entropy.

    ``d_pred``, ``d_true`` (B, n), ``logits`` (B, 2n). ``huber``: the deviation from which the error grows linearly
    (None: squared throughout, as published). ``weight`` (B,): 0 for an example without truth. Gives ``loss``,
    ``regression`` and ``classification``; a term whose share is 0 is reported but passes no gradient.
    """
    if huber is None:
        error = (d_pred - d_true).square()
    else:
        # twice torch's Huber loss, so that both agree where deviations are small
        error = 2 * F.huber_loss(d_pred, d_true, reduction="none", delta=huber)
    share = torch.ones(len(d_true), device=d_true.device) if weight is None else weight
    total = share.sum().clamp_min(1e-12)
    regression = (error.mean(1) * share).sum() / total
    classification = (F.cross_entropy(logits, targets(d_true), reduction="none") * share).sum() / total
    terms = [part * value for part, value in ((1 - alpha, regression), (alpha, classification)) if part > 0]
    return logged(sum(terms[1:], terms[0]), regression=regression, classification=classification)


def update(rule: str, d: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """The step (B, n) from predicted displacements (B, n) and logits (B, 2n).

    A: one unit along the most probable class. B: d. C: d weighted by max(P+, P-), the softmax taken over all 2n
    classes. c-pair (ours): d weighted by max(P+, P-) / (P+ + P-), so that rare classes can move too. Raises ValueError
    for another rule.
    """
    if rule == "A":
        best = logits.argmax(1, keepdim=True)
        sign = (1 - 2 * (best % 2)).to(d.dtype)
        return torch.zeros_like(d).scatter_(1, best // 2, sign)
    if rule == "B":
        return d
    pairs = logits.unflatten(1, (-1, 2))
    if rule == "C":
        return logits.softmax(1).view_as(pairs).amax(2) * d
    if rule == "c-pair":
        return (pairs[..., 0] - pairs[..., 1]).abs().sigmoid() * d
    raise ValueError(f"unknown update rule {rule!r}; known: A, B, C, c-pair")
