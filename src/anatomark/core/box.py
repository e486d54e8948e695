"""Boxes of whole voxels around points, cut out of an image and put back."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anatomark.core.grid import Array, Grid
from anatomark.core.image import Image
from anatomark.core.resample import resample


@dataclass(frozen=True)
class Box:
    """Voxels ``lower`` ... ``upper`` - 1 along each array axis (index order) of a grid; beyond it where padded."""

    lower: tuple[int, ...]
    upper: tuple[int, ...]

    def grid(self, grid: Grid) -> Grid:
        """The box as a grid of its own: the same voxels at the same world positions."""
        shape = [u - v for v, u in zip(self.lower, self.upper, strict=True)]
        return Grid.from_axes(shape, grid.axes, grid.to_world(self.lower))

    def corners(self, grid: Grid) -> Array:
        """(2**D, D) world positions of the box's outer corners (voxel borders)."""
        ends = zip(self.lower, self.upper, strict=True)
        return grid.to_world(list(itertools.product(*((v - 0.5, u - 0.5) for v, u in ends))))

    def within(self, grid: Grid) -> Box:
        """The part inside the image. Raises ValueError where there is none."""
        lower = tuple(max(0, v) for v in self.lower)
        upper = tuple(min(n, u) for n, u in zip(grid.shape, self.upper, strict=True))
        if any(u <= v for v, u in zip(lower, upper, strict=True)):
            raise ValueError("the box lies outside the image")
        return Box(lower, upper)


def box_around(grid: Grid, points: ArrayLike, margin_mm: float) -> Box:
    """The smallest box of whole voxels along the grid's own axes that holds ``points`` (N, D), world mm, and
    ``margin_mm`` on every side."""
    index = grid.to_index(np.atleast_2d(points))
    margin = margin_mm / grid.spacing
    # a position within rounding of a voxel's border belongs to the voxel on the inner side
    lower = np.floor(index.min(0) - margin + 0.5 + 1e-6).astype(int)
    upper = np.maximum(np.ceil(index.max(0) + margin + 0.5 - 1e-6).astype(int), lower + 1)
    return Box(tuple(lower.tolist()), tuple(upper.tolist()))


def box_of_size(grid: Grid, centre: ArrayLike, size_mm: ArrayLike) -> Box:
    """A box of at least ``size_mm`` (D,) along x, y[, z], the grid's axes that run nearest to them, whose middle lies
    within half a voxel of ``centre`` (D,), world mm. Its shape depends on size and spacing alone."""
    order, _ = grid._canonical_axes()  # array axes along z, y, x
    wanted = np.empty(grid.ndim)
    wanted[order] = np.asarray(size_mm, dtype=np.float64)[::-1]
    shape = np.maximum(1, np.ceil(wanted / grid.spacing - 1e-4)).astype(int)
    lower = np.floor(grid.to_index(centre) - (shape - 1) / 2 + 0.5).astype(int)
    return Box(tuple(lower.tolist()), tuple((lower + shape).tolist()))


def cut_out(image: Image, box: Box, fill: float = 0.0) -> Image:
    """The voxels of ``box``, unchanged, in the image's dtype and at their world positions; beyond the image ``fill``.

    Raises ValueError where the dtype cannot hold ``fill``.
    """
    array: NDArray[np.generic] = image.array
    grid = box.grid(image.grid)
    with np.errstate(invalid="ignore", over="ignore"):
        held = np.asarray(fill).astype(array.dtype)
    if held != fill and not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"{array.dtype} cannot hold the value {fill:g}")
    out = np.full((len(array), *grid.shape), held, dtype=array.dtype)
    source, target = [slice(None)], [slice(None)]
    for lower, upper, n in zip(box.lower, box.upper, image.grid.shape, strict=True):
        first, last = max(lower, 0), max(min(upper, n), max(lower, 0))
        source.append(slice(first, last))
        target.append(slice(first - lower, last - lower))
    out[tuple(target)] = array[tuple(source)]
    return Image(out, grid, image.meta)


def paste(part: Image, original: Grid, fill: float = 0.0) -> Image:
    """A crop, or a segmentation made of it, put back into the ``original`` image's grid: every voxel where it was, the
    dtype kept, ``fill`` around; what lies beyond the original (padding) is dropped.

    Raises ValueError where the part's voxels are not voxels of the original grid (it was resampled).
    """
    ends = np.array(list(itertools.product(*((0, n - 1) for n in part.grid.shape))))
    index = original.to_index(part.grid.to_world(ends))
    if part.ndim != original.ndim or np.abs(index - index[0] - ends).max() > 0.05:
        raise ValueError("the part has other axes or spacing than the original; it was resampled since it was cut out")
    first = np.round(index[0])
    if np.abs(index[0] - first).max() > 0.05:
        raise ValueError("the part's voxels lie between those of the original; it was resampled since it was cut out")
    exact = Grid.from_axes(part.grid.shape, original.axes, original.to_world(first))
    return resample(Image(part.array, exact, part.meta), original, fill=fill, order=0)
