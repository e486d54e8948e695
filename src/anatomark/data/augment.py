"""Random changes of training images: what a scanner or a patient might do, never what anatomy cannot."""

from __future__ import annotations

import numpy as np
import torch


def random_intensity(patches: torch.Tensor, rng: np.random.Generator, strength: float = 1.0) -> torch.Tensor:
    """The same random change of contrast for all values of one image (any shape, about 0 ... 1), with noise.

    Gamma, gain, offset and a smooth monotone bend; noise is drawn from ``rng`` through a torch generator.
    """
    if strength <= 0:
        return patches
    gamma = float(np.exp(rng.normal(0, 0.25 * strength)))
    gain = float(np.exp(rng.normal(0, 0.15 * strength)))
    offset = float(rng.normal(0, 0.05 * strength))
    bend = float(rng.uniform(-0.15, 0.15) * strength)
    x = patches.clamp(0, 1.5)
    x = x**gamma
    x = x + bend * torch.sin(2 * np.pi * x.clamp(0, 1)) * 0.5
    x = x * gain + offset
    sigma = float(abs(rng.normal(0, 0.04 * strength)))
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    return x + sigma * torch.randn(x.shape, generator=generator)
