"""One function for every crop, flip, resize, rotation, patch, oblique plane and registration result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from anatomark.core.grid import Array, Grid
from anatomark.core.image import Image

_ALIGNED = 1e-4  # index units: below this a target voxel centre counts as lying on a source voxel centre
_POINTS_AT_ONCE = 4_000_000  # a large target is filled in slabs, so that its coordinates need not all be in memory


def resample(image: Image, grid: Grid, *, fill: float = 0.0, order: int = 1) -> Image:
    """The image's values on another grid.

    ``order`` 1 interpolates linearly and gives float32; 0 takes the nearest voxel and keeps the dtype (label maps).
    Where the target is coarser than the source, the source is low-passed first (order 1). Outside the source's
    borders (-0.5 ... n-0.5) the value is ``fill``; between border and first centre the edge value counts.
    A target whose centres all fall on source centres with the same axes is cut by slicing, without arithmetic and in
    the source's dtype (float32 where that cannot hold ``fill``). Raises ValueError for grids of different dimension.
    """
    if image.ndim != grid.ndim:
        raise ValueError(f"a {image.ndim}D image cannot be resampled onto a {grid.ndim}D grid")
    cut = _aligned_cut(image, grid, fill)
    if cut is not None:
        return Image(cut, grid, image.meta)
    source = image if order == 0 else low_pass(image, _target_step(image.grid, grid))
    # a thinned source covers its last block in full; the image ends where it ended
    reach = np.asarray(image.grid.shape) / np.round(source.grid.spacing / image.grid.spacing)
    to_index = source.grid.inverse @ grid.affine
    tensor = None if order == 0 else as_tensor(source)
    slabs = []
    rows = max(1, _POINTS_AT_ONCE // int(np.prod(grid.shape[1:])))
    for first in range(0, grid.shape[0], rows):
        points = _lattice((min(rows, grid.shape[0] - first), *grid.shape[1:]), to_index, first)
        if tensor is None:
            slabs.append(_gather_nearest(source, points, fill))
        else:
            slabs.append(sample_index(tensor, points, fill, reach=reach).numpy())
    return Image(slabs[0] if len(slabs) == 1 else np.concatenate(slabs, 1), grid, image.meta)


def sample(image: Image, points: Array | torch.Tensor, *, fill: float = 0.0) -> torch.Tensor:
    """Linear interpolation at world points (..., D) mm: float32 tensor (C, ...). No low-pass."""
    index = image.grid.to_index(np.asarray(points))
    return sample_index(as_tensor(image), torch.from_numpy(index), fill)


def as_tensor(image: Image) -> torch.Tensor:
    """The image's array as a float32 tensor (C, *shape); no copy where it is float32 already."""
    return torch.from_numpy(np.ascontiguousarray(image.array, dtype=np.float32))


def sample_index(
    array: torch.Tensor, index: torch.Tensor, fill: float = 0.0, *, reach: Sequence[float] | Array | None = None
) -> torch.Tensor:
    """Linear interpolation of ``array`` (C, *shape) float32 at continuous array indices ``index`` (..., D).

    Returns (C, ...) float32. Points outside -0.5 ... n-0.5 give ``fill``; in the outer half voxel the edge counts.
    ``reach`` (D,) stands in for n in that rule where the last voxel of an axis is covered in part only.
    """
    shape, d = array.shape[1:], array.ndim - 1
    size = torch.tensor(shape, dtype=index.dtype)
    unit = ((index + 0.5) * (2 / size) - 1).to(torch.float32)  # -1 ... 1 between the outer borders
    flat = unit.reshape(-1, d).flip(-1)
    # torch's kernel runs in parallel over the batch only, so the points are dealt into two batches of one image
    batches = 2 if flat.shape[0] > 4096 else 1
    short = -flat.shape[0] % batches
    dealt = F.pad(flat, (0, 0, 0, short)).view(batches, -1, *(1,) * (d - 1), d)
    inputs = array[None].expand(batches, *array.shape)
    out = F.grid_sample(inputs, dealt, mode="bilinear", padding_mode="border", align_corners=False)
    values = out.transpose(0, 1).reshape(array.shape[0], -1)[:, : flat.shape[0]]
    ends = unit.new_tensor([1.0] * d if reach is None else 2 * np.asarray(reach) / np.asarray(shape) - 1).flip(0)
    outside = ((flat < -1 - 1e-6) | (flat > ends + 1e-6)).any(-1)
    if bool(outside.any()):
        values = torch.where(outside, torch.tensor(fill, dtype=values.dtype), values)
    return values.reshape(array.shape[0], *index.shape[:-1])


def low_pass(image: Image, step: Sequence[float] | Array) -> Image:
    """The image smoothed, and thinned by whole blocks, for sampling every ``step`` voxels (D,) along its axes.

    Block means of ``floor(step)`` voxels do most of the work at the cost of one pass; a Gaussian makes up the rest.
    Axes with step <= 1 are left alone. Float32 unless nothing was to be done.
    """
    step = np.maximum(np.asarray(step, dtype=np.float64), 1.0)
    block = np.minimum(np.floor(step + 1e-6), image.grid.shape).astype(int)
    out = block_mean(image, block.tolist())
    rest = step / block
    for axis in np.flatnonzero(rest > 1.05):
        out = _gaussian(out, int(axis), 0.6 * float(np.sqrt(rest[axis] ** 2 - 1)))
    return out


def block_mean(image: Image, block: Sequence[int]) -> Image:
    """Means over blocks of ``block`` (D,) voxels; a last block that is cut short repeats its last voxel. Float32."""
    shape = tuple(-(-n // b) for n, b in zip(image.grid.shape, block, strict=True))
    array: NDArray[Any] = image.array
    # bytes are added up as short integers where these hold the sum: half the memory traffic, and exact
    small = image.array.dtype == np.uint8 and int(np.prod(block)) <= 257
    kind: Any = np.uint16 if small else np.float32
    # the slowest axis first: whole planes are added, so later axes have less to do
    for a, b in enumerate(block, start=1):
        if b == 1:
            continue
        n, last = array.shape[a], shape[a - 1] - 1
        total: NDArray[Any] = np.array(array[_along(a, array.ndim, slice(0, n, b))], dtype=kind)
        for offset in range(1, b):
            part = array[_along(a, array.ndim, slice(offset, n, b))]
            np.add(total[_along(a, array.ndim, slice(0, part.shape[a]))], part,
                   out=total[_along(a, array.ndim, slice(0, part.shape[a]))], casting="unsafe")  # fmt: skip
            if part.shape[a] <= last:
                total[_along(a, array.ndim, slice(last, None))] += array[_along(a, array.ndim, slice(n - 1, None))]
        array = total if small else np.multiply(total, np.float32(1 / b), out=total)
    first = (np.asarray(block, dtype=np.float64) - 1) / 2
    grid = Grid.from_axes(shape, image.grid.axes * np.asarray(block), image.grid.to_world(first))
    mean = np.multiply(array, np.float32(1 / np.prod(block)), dtype=np.float32) if small else array
    return Image(np.asarray(mean, dtype=np.float32), grid, image.meta)


def _along(axis: int, ndim: int, cut: slice) -> tuple[slice, ...]:
    return tuple(cut if a == axis else slice(None) for a in range(ndim))


def _gaussian(image: Image, axis: int, sigma: float) -> Image:
    radius = max(1, int(np.ceil(3 * sigma)))
    x = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (x / sigma) ** 2)
    kernel = (kernel / kernel.sum()).view(1, 1, -1)
    lines = as_tensor(image).movedim(axis + 1, -1)
    flat = lines.reshape(-1, 1, lines.shape[-1])
    out = F.conv1d(F.pad(flat, (radius, radius), mode="replicate"), kernel)
    return Image(out.reshape(lines.shape).movedim(-1, axis + 1).numpy(), image.grid, image.meta)


def _target_step(source: Grid, target: Grid) -> Array:
    """(D,) how many source voxels one target step advances along each source axis, at most over the target axes."""
    d = source.ndim
    move = np.abs(source.inverse[:d, :d] @ target.axes)
    return np.asarray(move.max(1))


def _lattice(shape: tuple[int, ...], affine: Array, first: int = 0) -> torch.Tensor:
    """Indices (*shape, D), float64, of a lattice mapped by ``affine``; its first axis starts at ``first``."""
    d = len(shape)
    out = torch.tensor(affine[:d, d] + first * affine[:d, 0]).expand(*shape, d).clone()
    for a, n in enumerate(shape):
        view = [1] * d + [d]
        view[a] = n
        out += (torch.arange(n, dtype=torch.float64)[:, None] * torch.tensor(affine[:d, a].copy())).view(view)
    return out


def _gather_nearest(image: Image, points: torch.Tensor, fill: float) -> NDArray[Any]:
    index = np.floor(points.numpy() + 0.5).astype(np.int64)
    size = np.asarray(image.grid.shape)
    inside = ((index >= 0) & (index < size)).all(-1)
    index = np.clip(index, 0, size - 1)
    values = image.array[(slice(None), *np.moveaxis(index, -1, 0))]
    return np.where(inside, values, np.asarray(fill, dtype=_holding(values.dtype, fill)))


def _holding(dtype: np.dtype[Any], fill: float) -> np.dtype[Any]:
    """``dtype``, or float32 where it cannot hold ``fill``."""
    with np.errstate(invalid="ignore", over="ignore"):
        fits = dtype.kind == "f" or bool(np.asarray(fill).astype(dtype) == fill)
    return dtype if fits else np.dtype(np.float32)


def _aligned_cut(image: Image, grid: Grid, fill: float) -> NDArray[Any] | None:
    """The slicing fast path: the target's axes are the source's (same order, maybe flipped) with equal spacing and its
    first centre on a source centre. None where that does not hold."""
    d = grid.ndim
    relative = image.grid.inverse @ grid.affine
    steps, start = relative[:d, :d], relative[:d, d]
    signs = np.round(np.diag(steps))
    reach = np.max(grid.shape)
    if not (np.abs(signs) == 1).all() or np.abs(steps - np.diag(signs)).max() * reach > _ALIGNED:
        return None
    first = np.round(start)
    if np.abs(start - first).max() > _ALIGNED:
        return None
    out = np.full((image.array.shape[0], *grid.shape), fill, dtype=_holding(image.array.dtype, fill))
    source, target = [slice(None)], [slice(None)]
    for n, m, s, f in zip(image.grid.shape, grid.shape, signs.astype(int), first.astype(int), strict=True):
        at = f + s * np.arange(m)
        inside = np.flatnonzero((at >= 0) & (at < n))
        if inside.size == 0:
            return out
        target.append(slice(int(inside[0]), int(inside[-1]) + 1))
        lo, hi = int(at[inside[0]]), int(at[inside[-1]])
        source.append(slice(lo, hi + 1) if s > 0 else slice(lo, hi - 1 if hi > 0 else None, -1))
    out[tuple(target)] = image.array[tuple(source)]
    return out
