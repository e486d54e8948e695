"""The networks of the recommended PIN: one that finds a pose from a coarse block, one that reads landmark patches."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import nn

from anatomark.nets.precision import conv_precision


def _norm(ndim: int, channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels) if ndim == 2 else nn.BatchNorm3d(channels)


class ContextNet(nn.Module):
    """A coarse block (B, 1, px, ..., px) to all landmarks (B, N, D), in units of the block's half width."""

    def __init__(self, ndim: int, px: int, landmarks: int, width: int = 16):
        super().__init__()
        conv = nn.Conv2d if ndim == 2 else nn.Conv3d
        widths = [width, 2 * width, 4 * width, 8 * width]
        layers: list[nn.Module] = []
        before, size = 1, px
        for w in widths:
            layers += [conv(before, w, 3, stride=2, padding=1), _norm(ndim, w), nn.ReLU(inplace=True)]
            if w != widths[0]:
                layers += [conv(w, w, 3, padding=1), _norm(ndim, w), nn.ReLU(inplace=True)]
            before, size = w, (size + 1) // 2
        self.body = nn.Sequential(*layers)
        self.ndim, self.landmarks = ndim, landmarks
        self.head = nn.Sequential(
            nn.Flatten(), nn.Dropout(0.2), nn.Linear(before * size**ndim, 384), nn.ReLU(), nn.Linear(384, landmarks * ndim)
        )

    def forward(self, block: torch.Tensor) -> torch.Tensor:
        """(B, N, D)."""
        # torch 2.13's bf16 weight gradient of small 3D convolutions is garbage now and then on the CPU (inf, NaN)
        unsafe = self.training and self.ndim == 3 and block.device.type == "cpu"
        with nullcontext() if unsafe else conv_precision(block.device):
            features = self.body(block)
        points: torch.Tensor = self.head(features.float())
        return points.view(-1, self.landmarks, self.ndim)


class PatchNet(nn.Module):
    """Patches of all landmarks to a joint update of the state and a free update of each landmark.

    Input (B, N, C, px, px). One trunk serves all landmarks; per-landmark scales and shifts (FiLM, Perez et al. 2018) and
    per-landmark output layers let it know which one it reads. Outputs: ``joint`` (B, n_o) and ``joint_logits``
    (B, 2 n_o) where ``outputs`` > 0; ``free`` (B, N, D) in half widths of the finest patch, ``free_logits`` (B, N, 2 D).
    """

    def __init__(self, ndim: int, channels: int, px: int, landmarks: int, outputs: int, width: int = 32):
        super().__init__()
        self.ndim, self.landmarks, self.outputs = ndim, landmarks, outputs
        widths = [width, 2 * width, 3 * width, 4 * width]
        self.convs = nn.ModuleList()
        self.norms = nn.ModuleList()
        self.films = nn.ParameterList()
        before, size = channels, px
        for w in widths:
            self.convs.append(nn.Conv2d(before, w, 3, padding=1, bias=False))
            self.norms.append(nn.BatchNorm2d(w))
            self.films.append(nn.Parameter(torch.zeros(landmarks, 2 * w)))
            before, size = w, size // 2
        flat = before * size * size
        self.squeeze = nn.Linear(flat, 192)
        self.free_weight = nn.Parameter(torch.randn(landmarks, 192, 3 * ndim) * 0.02)
        self.free_bias = nn.Parameter(torch.zeros(landmarks, 3 * ndim))
        if outputs:
            self.narrow = nn.Linear(192, 32)
            self.joint_trunk = nn.Sequential(nn.Linear(32 * landmarks, 256), nn.ReLU(), nn.Dropout(0.2))
            self.joint_d = nn.Linear(256, outputs)
            self.joint_p = nn.Linear(256, 2 * outputs)

    def forward(self, patches: torch.Tensor) -> dict[str, torch.Tensor]:
        """See the class."""
        b, n = patches.shape[:2]
        x = patches.reshape(b * n, *patches.shape[2:]).contiguous(memory_format=torch.channels_last)
        with conv_precision(patches.device):
            for conv, norm, film in zip(self.convs, self.norms, self.films, strict=True):
                x = nn.functional.max_pool2d(conv(x), 2)
                x = norm(x)
                gain, shift = film.to(x.dtype).repeat(b, 1)[:, :, None, None].chunk(2, 1)
                x = torch.relu(torch.addcmul(x + shift, x, gain))
            x = torch.relu(self.squeeze(x.flatten(1)))
        features = x.float().view(b, n, -1)
        free = torch.einsum("bnf,nfo->bno", features, self.free_weight) + self.free_bias
        out = {"free": free[..., : self.ndim], "free_logits": free[..., self.ndim :]}
        if self.outputs:
            joint = self.joint_trunk(torch.relu(self.narrow(features)).flatten(1))
            out["joint"], out["joint_logits"] = self.joint_d(joint), self.joint_p(joint)
        return out
