"""The networks of the recommended PIN: one that finds a pose from a coarse block, one that reads landmark patches."""

from __future__ import annotations

import torch
from torch import nn

from anatomark.methods.kit.layers import conv, norm
from anatomark.methods.kit.precision import conv_precision, plain_precision


class ContextNet(nn.Module):
    """A coarse block (B, 1, px, ..., px) to all landmarks (B, N, D), in units of the block's half width."""

    def __init__(self, ndim: int, px: int, landmarks: int, width: int = 16):
        super().__init__()
        layer, normed = conv(ndim), norm(ndim)
        widths = [width, 2 * width, 4 * width, 8 * width]
        layers: list[nn.Module] = []
        before, size = 1, px
        for w in widths:
            layers += [layer(before, w, 3, stride=2, padding=1), normed(w), nn.ReLU(inplace=True)]
            if w != widths[0]:
                layers += [layer(w, w, 3, padding=1), normed(w), nn.ReLU(inplace=True)]
            before, size = w, (size + 1) // 2
        self.body = nn.Sequential(*layers)
        self.ndim, self.landmarks = ndim, landmarks
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(before * size**ndim, 384),
            nn.ReLU(),
            nn.Linear(384, landmarks * ndim),
        )

    def forward(self, block: torch.Tensor) -> torch.Tensor:
        """Blocks (B, 1, *size) to the landmarks' places in them (B, L, D)."""
        with plain_precision(block, self.training):
            features = self.body(block)
        points: torch.Tensor = self.head(features.float())
        return points.view(-1, self.landmarks, self.ndim)


class PatchNet(nn.Module):
    """Patches of all landmarks to where each landmark lies in them.

    Input (B, N, C, px, px), px a multiple of 8. One trunk serves all landmarks; per-landmark scales and shifts (FiLM,
    Perez et al. 2018) and per-landmark output layers let it know which one it reads. Output: logits (B, N, P, k, k)
    over k = px / 2 cells a side, one map for each of the P planes: the probability that the landmark, seen along the
    plane's normal, lies in that cell of the finest patch.
    """

    def __init__(self, channels: int, planes: int, landmarks: int, width: int = 24):
        super().__init__()
        w = width
        self.landmarks, self.planes = landmarks, planes
        self.convs = nn.ModuleList(
            [
                nn.Conv2d(channels, w, 3, padding=1, bias=False),
                nn.Conv2d(w, 2 * w, 3, padding=1, bias=False),
                nn.Conv2d(2 * w, 3 * w, 3, padding=1, bias=False),
                nn.Conv2d(3 * w, 4 * w, 3, padding=1, bias=False),
            ]
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(c * w) for c in (1, 2, 3, 4))
        self.films = nn.ParameterList(nn.Parameter(torch.zeros(landmarks, 2 * c * w)) for c in (1, 2, 3, 4))
        self.up = nn.ModuleList([nn.Conv2d(4 * w, 3 * w, 1), nn.Conv2d(3 * w, 2 * w, 1)])
        self.mix = nn.Conv2d(2 * w, 2 * w, 3, padding=1, bias=False)
        self.mix_norm = nn.BatchNorm2d(2 * w)
        self.weight = nn.Parameter(torch.randn(landmarks, 2 * w, planes) * 0.05)
        self.bias = nn.Parameter(torch.zeros(landmarks, planes))

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """As said of the class."""
        b, n = patches.shape[:2]
        x = patches.reshape(b * n, *patches.shape[2:]).contiguous(memory_format=torch.channels_last)
        levels = []
        with conv_precision(patches.device):
            for i, (layer, normed, film) in enumerate(zip(self.convs, self.norms, self.films, strict=True)):
                if i != 1:
                    x = nn.functional.max_pool2d(layer(x), 2) if i == 0 else layer(nn.functional.max_pool2d(x, 2))
                else:
                    x = layer(x)
                x = normed(x)
                gain, shift = film.to(x.dtype).repeat(b, 1)[:, :, None, None].chunk(2, 1)
                x = torch.relu(torch.addcmul(x + shift, x, gain))
                levels.append(x)
            for layer, skip in zip(self.up, (levels[2], levels[1]), strict=True):
                x = torch.relu(skip + nn.functional.interpolate(layer(x), scale_factor=2, mode="nearest"))
            x = torch.relu(self.mix_norm(self.mix(x)))
        k = x.shape[-1]
        features = x.float().permute(0, 2, 3, 1).reshape(b, n, k * k, -1)
        maps = torch.einsum("bncf,nfp->bnpc", features, self.weight) + self.bias[..., None]
        return maps.view(b, n, self.planes, k, k)
