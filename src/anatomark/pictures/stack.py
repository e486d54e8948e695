"""Pieces of an image for a page that scrolls: voxels around some points as one JPEG, and slices through the whole."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import ArrayLike, NDArray

from anatomark.core.grid import Array, Grid
from anatomark.core.image import Image
from anatomark.core.resample import resample
from anatomark.pictures.window import Window

MOST = {2: 640**2, 3: 64**3}  # voxels of a stack
MARGIN_VOXELS, MARGIN_EXTENT = {2: 240, 3: 30}, 0.07  # around the points: so many voxels, or that share of the image
QUALITY = 80


@dataclass(frozen=True)
class Stack:
    """Voxels of an image on ``grid``, array order (z, y, x) or (y, x), as ``jpeg``: the slices along z from left to
    right and from top to bottom, ``columns`` in a row."""

    grid: Grid
    columns: int
    jpeg: bytes


@dataclass(frozen=True)
class Plane:
    """A slice through a whole volume as ``jpeg``. World mm: ``corner`` (3,), the outer corner of its first pixel;
    ``across`` and ``down`` (3,), from there along its whole upper and left side."""

    jpeg: bytes
    corner: Array
    across: Array
    down: Array


def stack_around(image: Image, window: Window, points: ArrayLike) -> Stack:
    """The voxels around world ``points`` (K, D) mm, K at least 1: the image's own, or coarser where these are many."""
    image = image.canonical()
    near = _cut(image, np.asarray(points, dtype=np.float64))
    near = resample(near, _thinned(near.grid, MOST[image.ndim]))
    shades = _bytes(near.array, window)
    if image.ndim == 2:
        return Stack(near.grid, 1, _jpeg(shades))
    slices, height, width = near.grid.shape
    columns = int(np.ceil(np.sqrt(slices)))
    sheet = np.zeros((-(-slices // columns), height, columns, width), np.uint8)
    for k in range(slices):
        sheet[k // columns, :, k % columns] = shades[0, k]
    return Stack(near.grid, columns, _jpeg(sheet.reshape(1, -1, columns * width)))


def planes_through(image: Image, window: Window, point: ArrayLike, most: int = 144) -> list[Plane]:
    """The axial, coronal and sagittal slice of a volume next to a world ``point`` (3,) mm, sides of at most ``most``
    pixels."""
    image = image.canonical()
    grid = image.grid
    at = np.clip(np.rint(grid.to_index(point)), 0, np.asarray(grid.shape) - 1).astype(int)
    planes = []
    for fixed in range(3):
        row, column = (a for a in range(3) if a != fixed)
        shades = _bytes(image.array.take(at[fixed], axis=fixed + 1), window)[0]
        size = np.array([grid.extent_mm[column], grid.extent_mm[row]])
        pixels = np.maximum(1, np.rint(size / max(size.max() / most, grid.spacing.min()))).astype(int)
        small = PIL.Image.fromarray(shades).resize((int(pixels[0]), int(pixels[1])), PIL.Image.Resampling.BOX)
        corner = np.full(3, -0.5)
        corner[fixed] = at[fixed]
        across, down = grid.axes[:, column] * grid.shape[column], grid.axes[:, row] * grid.shape[row]
        planes.append(Plane(_jpeg(np.asarray(small)[None]), grid.to_world(corner), across, down))
    return planes


def _cut(image: Image, points: Array) -> Image:
    """The box around the points, with a margin, as far as it lies in the image."""
    grid = image.grid
    margin = max(MARGIN_EXTENT * grid.extent_mm.max(), MARGIN_VOXELS[image.ndim] * grid.spacing.min()) / grid.spacing
    index, last = grid.to_index(points), np.asarray(grid.shape) - 1
    first = np.clip(np.floor(index.min(0) - margin), 0, last).astype(int)
    end = np.clip(np.ceil(index.max(0) + margin), first, last).astype(int) + 1
    box = tuple(slice(int(a), int(b)) for a, b in zip(first, end, strict=True))
    return Image(
        image.array[(slice(None), *box)], Grid.from_axes((end - first).tolist(), grid.axes, grid.to_world(first))
    )


def _thinned(grid: Grid, most: int) -> Grid:
    """The grid, or one over the same box whose finest axes are so much coarser that it has at most ``most`` voxels."""
    step, shape = grid.spacing, np.asarray(grid.shape)
    while np.prod(shape) > most:
        step = np.maximum(step, 1.05 * step.min())
        shape = np.maximum(1, np.rint(grid.extent_mm / step)).astype(int)
    if np.array_equal(step, grid.spacing):
        return grid
    axes = grid.axes / grid.spacing * step
    return Grid.from_axes(
        shape.tolist(), axes, grid.to_world(np.full(grid.ndim, -0.5)) + axes @ np.full(grid.ndim, 0.5)
    )


def _bytes(values: NDArray[Any], window: Window) -> NDArray[np.uint8]:
    return np.asarray(np.rint(255 * np.nan_to_num(window.shades(values))), dtype=np.uint8)


def _jpeg(shades: NDArray[np.uint8]) -> bytes:
    """Of an array (C, rows, columns), in colour where C is 3."""
    memory = io.BytesIO()
    pixels = shades.transpose(1, 2, 0) if shades.shape[0] == 3 else shades[0]
    PIL.Image.fromarray(pixels).save(memory, "JPEG", quality=QUALITY, optimize=True)
    return memory.getvalue()
