"""Random changes of training images: what a scanner or a patient might do, never what anatomy cannot."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from anatomark.core.grid import Array, Grid
from anatomark.core.shape import Pose
from anatomark.core.warp import Warp, random_warp

PointMap = Callable[[Array], Array]


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


class PooledWarps:
    """Random smooth warps and stretches of an anatomy in its model's frame, from a pool that is made as it is used.

    ``radius`` mm of the model; ``warp_mm`` the largest displacement. A draw depends on its generator alone.
    """

    POOL = 200

    def __init__(self, ndim: int, radius: float, warp_mm: float):
        self.ndim, self.radius, self.warp_mm = ndim, radius, warp_mm
        self._made: dict[int, Warp] = {}

    def draw(self, rng: np.random.Generator, pose: Pose) -> tuple[PointMap, PointMap]:
        """Two functions of world points (..., D) of an anatomy in ``pose``: output -> input, by which its image is
        read, and input -> output, by which its landmarks move (NaN stays NaN)."""
        k = int(rng.integers(self.POOL))
        if k not in self._made:
            self._made[k] = self._make(k)
        full = self._made[k]
        warp = Warp(full.grid, full.field * float(rng.uniform(0, 1)))
        stretch = np.exp(rng.normal(0, 0.06, self.ndim)) if rng.random() < 0.5 else np.ones(self.ndim)

        def read(world: Array) -> Array:
            return pose.apply(warp(pose.invert(world) * stretch))

        def move(points: Array) -> Array:
            return pose.apply(warp.inverse(pose.invert(points), tolerance_mm=1e-3 * self.radius / 10) / stretch)

        return read, move

    def _make(self, k: int) -> Warp:
        own = np.random.default_rng([77, k])
        box = Grid.centred((2,) * self.ndim, np.eye(self.ndim)[:, ::-1] * (2.6 * self.radius / 2), np.zeros(self.ndim))
        return random_warp(own, box, self.warp_mm, self.radius * own.uniform(0.5, 1.5), nodes=18)
