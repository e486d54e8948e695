"""Random changes of training images: what a scanner or a patient might do, never what anatomy cannot."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from anatomark.core.grid import Array, Grid
from anatomark.core.shape import Pose, procrustes
from anatomark.core.warp import Warp, random_warp

PointMap = Callable[[Array], Array]


def random_intensity(patches: torch.Tensor, rng: np.random.Generator, strength: float = 1.0) -> torch.Tensor:
    """The same random change of contrast for all values of one image (any shape, about 0 ... 1), with noise.

    Gamma, gain, offset and a smooth monotone bend; noise is drawn from ``rng`` through a torch generator. A tensor
    (1, *shape) with 2 or 3 axes behind the first is one whole image: its gain varies over it as :func:`random_bias`
    says. Patches have no common place, so theirs does not.
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
    x = x * gain
    sigma = float(abs(rng.normal(0, 0.04 * strength)))
    seed = int(rng.integers(2**31))
    generator = torch.Generator().manual_seed(seed)
    if x.ndim in (3, 4) and x.shape[0] == 1:
        x = x * random_bias(x.shape[1:], np.random.default_rng(seed), strength)
    return x + offset + sigma * torch.randn(x.shape, generator=generator)


def random_bias(shape: Sequence[int], rng: np.random.Generator, strength: float = 1.0) -> torch.Tensor:
    """A smooth positive field (*shape) float32 about 1 to multiply an image with: a coil's or a plate's uneven gain.

    The exponential of a random sum of cosines, of up to one and a half waves along an axis. The standard deviation of
    the logarithm over the field is drawn from 0 to 0.15 times ``strength``.
    """
    d, orders = len(shape), 4
    order = np.indices((orders,) * d).sum(0)
    weights = np.where((order > 0) & (order < orders), rng.normal(size=order.shape) / np.maximum(order, 1), 0.0)
    # a cosine's mean square is 1/2 along every axis in which it is none
    power = float((weights**2 * 0.5 ** (np.indices(order.shape) > 0).sum(0)).sum())
    weights *= 0.15 * strength * rng.uniform() / max(np.sqrt(power), 1e-9)
    field = torch.from_numpy(weights.astype(np.float32))
    for n in shape:  # the first axis of what is left is summed up; its samples go to the end
        at = (torch.arange(n) + 0.5) / n
        field = torch.tensordot(field, torch.cos(np.pi * torch.arange(orders)[:, None] * at), dims=([0], [0]))
    return torch.exp(field)


class PooledWarps:
    """Random smooth warps and stretches of an anatomy in its model's frame, from a pool that is made as it is used.

    ``radius`` mm of the model; ``warp_mm`` the largest displacement. A draw depends on its generator alone.
    """

    POOL = 200

    def __init__(self, ndim: int, radius: float, warp_mm: float):
        self.ndim, self.radius, self.warp_mm = ndim, radius, warp_mm
        self._made: dict[int, Warp] = {}

    def draw(self, rng: np.random.Generator, pose: Pose, most: float = 1.0) -> tuple[PointMap, PointMap]:
        """Two functions of world points (..., D) of an anatomy in ``pose``: output -> input, by which its image is
        read, and input -> output, by which its landmarks move (NaN stays NaN). ``most``: of the full size."""
        k, d = int(rng.integers(self.POOL)), self.ndim
        if k not in self._made:
            own = np.random.default_rng([77, k])
            box = Grid.centred((2,) * d, np.eye(d)[:, ::-1] * (1.3 * self.radius), np.zeros(d))
            self._made[k] = random_warp(own, box, self.warp_mm, self.radius * own.uniform(0.5, 1.5), nodes=18)
        full = self._made[k]
        # mirrored along random axes: one warp makes 2 ** D
        signs = rng.choice([-1.0, 1.0], d)
        field = full.field.flip([d - i for i, sign in enumerate(signs) if sign < 0])  # x is the last axis
        field = field * torch.from_numpy(signs).to(field).view(-1, *(1,) * d)
        warp = Warp(full.grid, field * float(rng.uniform(0, most)))
        stretch = np.exp(rng.normal(0, 0.06 * most, d)) if rng.random() < 0.5 else np.ones(d)

        def read(world: Array) -> Array:
            return pose.apply(warp(pose.invert(world) * stretch))

        def move(points: Array) -> Array:
            return pose.apply(warp.inverse(pose.invert(points), tolerance_mm=1e-3 * self.radius / 10) / stretch)

        return read, move

    def warped(
        self, rng: np.random.Generator, mean: Array, truth: Array, share: float
    ) -> tuple[PointMap | None, Array, Pose]:
        """By what a case's image is read (None: as it is), its landmarks (N, D) in that view, and the pose that
        ``mean`` (N, D) has in them; a ``share`` of the draws are warps."""
        pose = procrustes(mean, truth)
        if rng.random() >= share:
            return None, truth, pose
        read, move = self.draw(rng, pose)
        truth = move(truth)
        return read, truth, procrustes(mean, truth)
