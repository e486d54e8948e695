"""Deformable registration of two images of one kind of anatomy: cubic B-splines that maximise local correlation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from anatomark.core.grid import Array

LEVELS = ((8, 60, 4.0), (4, 60, 2.0), (2, 50, 1.0), (1, 25, 0.5))  # voxels a block, steps, voxels a step moves at most
KNOTS = 8.0  # voxels between knots at every level, in its own voxels
RADIUS = 2  # of the window of the local correlation, in the level's voxels
STIFFNESS = 3.0  # weight of the field's squared slopes against the mean correlation (-1 ... 1)
NOISE = 1e-3  # variance in a window (image values run from 0 to 1) below which correlation means nothing
FLAT = 1e-4  # windows of the fixed image with less variance have no say
LEAST = 0.1  # a field whose Jacobian falls below is smoothed until it does not


def deformation(fixed: Array, moving: Array) -> torch.Tensor:
    """Displacements (D, *shape) in voxels from ``fixed`` (*shape) to ``moving`` (*shape): voxel x of the fixed image
    looks like the moving one at x + u(x). Both are about 0 ... 1, on one grid and roughly aligned; NaN in ``moving`` is
    where nothing is known: no voxel of the fixed image that lies there has a say.

    Coarse to fine; at each level cubic B-splines (Rueckert 1999) descend, by Adam, the negative local correlation of
    Avants 2008 plus the mean squared slope of the field. Local correlation does not care how bright either image is,
    nor how unevenly. The field does not fold. About 10 s for 85 x 100 x 85 voxels on one core.
    """
    arrays = fixed, np.nan_to_num(moving, nan=0.0), np.isfinite(moving)
    images = [torch.from_numpy(np.array(x, dtype=np.float32))[None, None] for x in arrays]
    whole = tuple(images[0].shape[2:])
    mode = "bilinear" if len(whole) == 2 else "trilinear"
    field = torch.zeros(len(whole), *whole)
    for block, steps, rate in LEVELS:
        if block > 1 and min(whole) < 8 * block:
            continue
        coarse = _pool(field[None], block)[0] / block
        coarse = _level([_pool(x, block) for x in images], coarse, steps, rate / block)
        field = F.interpolate(coarse[None] * block, size=whole, mode=mode, align_corners=False)[0]
    return _unfolded(field)


def _level(images: Sequence[torch.Tensor], start: torch.Tensor, steps: int, rate: float) -> torch.Tensor:
    """``start`` (D, *shape) voxels, improved at this level."""
    fixed, moving, known = images
    shape, d = fixed.shape[2:], fixed.ndim - 2
    bases = [_basis(n, max(2, round((n - 1) / KNOTS))) for n in shape]
    knots = torch.zeros(d, *(b.shape[1] for b in bases), requires_grad=True)
    optimizer = torch.optim.Adam([knots], lr=rate)
    lattice = torch.stack(torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in shape), indexing="ij"))
    size = torch.tensor(shape, dtype=torch.float32).view(d, *(1,) * d)
    mean = _window(fixed)
    variance = (_window(fixed**2) - mean**2).clamp_min(0)
    weight = ((variance > FLAT) & (_window(known) > 1 - 1e-4)).float()
    with torch.enable_grad():
        for _ in range(steps):
            u = start + _splined(knots, bases)
            unit = ((lattice + u + 0.5) * 2 / size - 1).flip(0).movedim(0, -1)[None]
            seen = F.grid_sample(moving, unit, mode="bilinear", padding_mode="border", align_corners=False)
            other = _window(seen)
            spread = (_window(seen**2) - other**2).clamp_min(0)
            both = _window(fixed * seen) - mean * other
            local = both / torch.sqrt((variance + NOISE) * (spread + NOISE))
            correlation = (weight * local).sum() / weight.sum().clamp_min(1)
            slopes = sum((u.diff(dim=a + 1) ** 2).mean() for a in range(d))
            optimizer.zero_grad()
            (STIFFNESS * slopes - correlation).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return (start + _splined(knots, bases)).detach()


def _basis(nodes: int, knots: int) -> torch.Tensor:
    """(nodes, knots + 3) cubic B-spline weights of evenly spaced nodes over ``knots`` intervals."""
    offset = torch.linspace(0, knots, nodes)[:, None] - torch.arange(-1, knots + 2)
    x = offset.abs()
    near, far = 2 / 3 - x**2 + x**3 / 2, (2 - x).clamp_min(0) ** 3 / 6
    return torch.where(x < 1, near, far)


def _splined(knots: torch.Tensor, bases: Sequence[torch.Tensor]) -> torch.Tensor:
    """(D, *shape) displacements of B-spline weights (D, *knots)."""
    out = knots
    for basis in bases:  # the first axis behind the channels is expanded and goes to the end
        out = torch.tensordot(out, basis, dims=([1], [1]))
    return out


def _window(x: torch.Tensor) -> torch.Tensor:
    """Means over windows of 2 RADIUS + 1 voxels; at the border of those inside."""
    d = x.ndim - 2
    pool = F.avg_pool2d if d == 2 else F.avg_pool3d
    for a in range(d):
        size, pad = [1] * d, [0] * d
        size[a], pad[a] = 2 * RADIUS + 1, RADIUS
        x = pool(x, size, 1, pad, count_include_pad=False)
    return x


def _pool(x: torch.Tensor, block: int) -> torch.Tensor:
    return (F.avg_pool2d if x.ndim == 4 else F.avg_pool3d)(x, block, ceil_mode=True) if block > 1 else x


def _unfolded(u: torch.Tensor) -> torch.Tensor:
    """``u`` smoothed around the voxels where its Jacobian falls below ``LEAST``, ever further out, until none does."""
    rounds = 0
    while float((jacobian := _jacobian(u)).min()) < LEAST:
        near = (jacobian < LEAST).float()[None, None]
        for _ in range(3 + rounds // 4):
            near = (_window(near) > 0).float()
        near = _window(near)[0]
        u = torch.lerp(u, _window(u[:, None])[:, 0], near)
        rounds += 1
    return u


def _jacobian(u: torch.Tensor) -> torch.Tensor:
    """(*shape) determinants of x + u(x)."""
    d = len(u)
    slopes = torch.stack([torch.stack(torch.gradient(c), -1) for c in u], -2)
    return torch.det(slopes + torch.eye(d))
