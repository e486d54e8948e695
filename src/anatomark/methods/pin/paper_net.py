"""The network of the patch-based iterative network (PIN; Li et al., MICCAI 2018, figure 2c)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from anatomark.methods.kit.precision import conv_dtype

MAPS = (32, 64, 128, 256, 512)
HIDDEN = 1024

Prepared = list[tuple[torch.Tensor, torch.Tensor]]


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
        x = patches.to(prepared[0][0].dtype).contiguous(memory_format=torch.channels_last)
        for weight, bias in prepared:
            # the same as pooling what is rectified, at a quarter of the rectifications
            x = F.relu(F.max_pool2d(F.conv2d(x, weight, bias), 2))
        features = x.flatten(1).float()
        return self.regression(features), self.classification(features)

    def prepare(self) -> Prepared:
        """The convolutions' weights and biases as the forward pass wants them: its dtype, channels last."""
        dtype = conv_dtype(next(self.parameters()).device)
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
