"""The working images of published T2DL, and how patches are read from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from anatomark.core.grid import Array, Grid
from anatomark.core.image import Image
from anatomark.core.intensity import normalise, otsu
from anatomark.core.resample import resample
from anatomark.methods.kit.augment import PointMap
from anatomark.methods.kit.posed import sampled, unit_coordinates
from anatomark.methods.kit.working import working_grid

LONGEST_PX = 220  # of the working image, about: a brain at 1 mm
HEAD_MM = (200.0, 450.0)  # diagonals of 3D images that are as large as a head
OF_HEADS = {"displacement_mm": 50.0, "alpha_mm": 40.0}
ALPHA = 0.2  # of the image's diagonal, else
LEAST_SD = 0.01  # of the foreground's values: an image of one value has none
NODE_PX = 8  # a warp is smooth: it is evaluated so many voxels apart, linear in between


def default_spacing(grids: Sequence[Grid]) -> float:
    """mm: the median of the grids' finest spacings, times the whole number that leaves about 220 voxels along the
    longer side (1 where there are fewer)."""
    finest = float(np.median([g.spacing.min() for g in grids]))
    longest = float(np.median([g.extent_mm.max() for g in grids]))
    return finest * max(1, round(longest / finest / LONGEST_PX))


def default_lengths(grids: Sequence[Grid], shapes: Array) -> dict[str, float]:
    """S and alpha, mm, where the settings leave them open, of images and their landmarks (M, N, D): those of a head,
    else the median distance of a landmark from a place in its image, and 0.2 diagonals."""
    d = grids[0].ndim
    diagonal = float(np.median([np.linalg.norm(g.extent_mm) for g in grids]))
    if d == 3 and HEAD_MM[0] < diagonal < HEAD_MM[1]:
        return dict(OF_HEADS)
    places = (np.indices((6,) * d).reshape(d, -1).T + 0.5) / 6
    ways = [g.to_world(places * g.shape - 0.5) - s[:, None] for g, s in zip(grids, shapes, strict=True)]
    median = float(np.nanmedian(np.linalg.norm(np.stack(ways), axis=-1)))
    return {"displacement_mm": median, "alpha_mm": ALPHA * diagonal}


def clipped_image(image: Image, spacing_mm: float, rule: Mapping[str, Any], least_px: int) -> Image:
    """(1, *S) float32 on an isotropic grid along the image's own axes, in canonical order: 0 ... 1 between the rule's
    robust bounds, clipped. Dark voxels are added at the far end up to ``least_px`` a side. ``meta`` holds ``mean`` and
    ``sd`` of the foreground, for :func:`z_score`, and its lower bound ``foreground`` (Otsu's threshold)."""
    image = image.canonical()
    grid = working_grid(image.grid, spacing_mm)
    image = image if grid is image.grid else resample(image, grid)
    work = normalise(image, rule)
    array, grid, values = np.clip(work.array, 0, 1, out=work.array), work.grid, work.subsample()
    level = otsu(values)
    bright = values[values > level] if (values > level).any() else values
    meta = {"foreground": level, "mean": float(bright.mean()), "sd": max(float(bright.std()), LEAST_SD)}
    short = [max(0, least_px - n) for n in grid.shape]
    if any(short):
        array = np.pad(array, [(0, 0), *((0, s) for s in short)])
        grid = Grid(array.shape[1:], grid.affine)
    return Image(array, grid, {**image.meta, **meta})


def z_score(values: torch.Tensor, work: Image) -> torch.Tensor:
    """Values of a working image less its foreground's mean, in its standard deviations."""
    return (values - float(work.meta["mean"])).mul_(1 / float(work.meta["sd"]))


def along(grid: Grid) -> Array:
    """(D, D) unit vectors of a canonical grid's axes as columns, x first."""
    return np.asarray(grid.axes[:, ::-1] / grid.spacing[::-1])


def bright_points(work: Image, count: int, rng: np.random.Generator) -> Array:
    """World mm (count, D) of voxels anywhere in the foreground; others stand in where hardly any is met."""
    tried = rng.integers(0, np.asarray(work.grid.shape), (32 * count, work.ndim))
    dark = work.array[(0, *tried.T)] <= float(work.meta["foreground"])
    return work.grid.to_world(tried[np.argsort(dark, kind="stable")[:count]])


def first_voxels(grid: Grid, centres: Array, side: int) -> NDArray[np.int64]:
    """(M, D) where patches of ``side`` voxels about world points (M, D) begin, moved into the image."""
    first = np.round(grid.to_index(centres) - (side - 1) / 2).astype(np.int64)
    return np.asarray(np.clip(first, 0, np.asarray(grid.shape) - side))


def read_warped(work: Image, read: PointMap) -> torch.Tensor:
    """(1, *S) the whole image read through a map of world points from output to input; 0 outside."""
    shape = work.grid.shape
    nodes = [np.linspace(0, n - 1, -(-n // NODE_PX) + 1) for n in shape]
    world = read(work.grid.to_world(np.stack(np.meshgrid(*nodes, indexing="ij"), -1)))
    coarse = unit_coordinates(work.grid, world).movedim(-1, 0)[None]
    mode = "bilinear" if work.ndim == 2 else "trilinear"
    return sampled(work, F.interpolate(coarse, size=shape, mode=mode, align_corners=True).movedim(1, -1))[0]
