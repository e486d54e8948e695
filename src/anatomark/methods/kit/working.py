"""What methods read of an image: all of it on an isotropic grid along its own axes, or only those parts of a large one
that are looked at, normalised and thinned, each read once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anatomark.core.grid import Array, Grid
from anatomark.core.image import Image
from anatomark.core.intensity import bounds, normalise
from anatomark.core.resample import block_mean, resample
from anatomark.methods.base import Method
from anatomark.methods.kit.anatomy import block_for

Indices = NDArray[np.int64]
AS_READ = ("uint8", "int16", "float32")  # dtypes that patches are cut from directly


def working_grid(canonical: Grid, spacing_mm: float) -> Grid:
    """The isotropic grid of a spacing; the canonical grid itself where it has that spacing (to 0.1 %)."""
    same = np.allclose(canonical.spacing, spacing_mm, rtol=1e-3, atol=0)
    return canonical if same else canonical.isotropic(spacing_mm)


def working_image(image: Image, spacing_mm: float, rule: Mapping[str, Any] | None = None) -> Image:
    """(1, *S) in canonical order on :func:`working_grid`: the channels' mean, normalised by the rule of intensities;
    without one a view in the file's dtype where the image lies on that grid."""
    image = image.canonical()
    if image.array.shape[0] > 1:
        image = Image(image.array.mean(0, keepdims=True, dtype=np.float32), image.grid, image.meta)
    grid = working_grid(image.grid, spacing_mm)
    if grid is not image.grid:
        image = resample(image, grid)
    if rule is not None:
        return normalise(image, rule)
    if image.array.dtype.name not in AS_READ:
        image = Image(image.array.astype(np.float32), grid, image.meta)
    return image


def cut(array: NDArray[Any], first: Indices, side: int) -> NDArray[Any]:
    """Blocks (M, side, ..., side) of an array (*S) from the voxels ``first`` (M, D) on; zeros outside."""
    out = np.zeros((len(first), *(side,) * array.ndim), dtype=array.dtype)
    for block, begin in zip(out, first.tolist(), strict=True):
        ends = [min(b + side, n) for b, n in zip(begin, array.shape, strict=True)]
        source = tuple(slice(max(b, 0), max(e, 0)) for b, e in zip(begin, ends, strict=True))
        if all(s.start < s.stop for s in source):
            target = tuple(slice(s.start - b, s.stop - b) for s, b in zip(source, begin, strict=True))
            block[target] = array[source]
    return out


class VoxelMethod(Method):
    """A method that reads voxels of the working image, ``facts.spacing_mm`` apart; ``config.intensity`` ``study``
    normalises them by the training set's rule."""

    def __init__(self, config: Any, facts: Any):
        super().__init__()
        self.config, self.facts = config, facts
        self.names, self.ndim = tuple(facts.names), facts.ndim

    def working_images(self, image: Image) -> dict[str, Image]:
        """``work``: one channel on the working grid; see :func:`working_image`."""
        rule = self.facts.intensity if self.config.intensity == "study" else None
        return {"work": working_image(image, self.facts.spacing_mm, rule)}


@dataclass(frozen=True)
class _Part:
    """The voxels ``first`` (D,) up to ``end`` (D,), as a normalised image of block means."""

    first: Indices
    end: Indices
    image: Image


class Parts:
    """Working images of the surroundings of points. The intensity bounds come from the whole image, whatever part is
    read; a part that covers what is asked for serves again."""

    def __init__(self, image: Image, rule: Mapping[str, Any]):
        low, high = bounds(image, rule)
        self.image, self.rule = image, {"kind": "window", "low": low, "high": high}
        self._read: dict[tuple[int, ...], _Part] = {}

    def whole(self, spacing_mm: float) -> Image:
        """All of the image, normalised, as block means towards a spacing."""
        return normalise(block_mean(self.image, block_for(self.image, spacing_mm)), self.rule)

    def around(self, spacing_mm: float, world: Array, reach_mm: float, room_mm: float = 0.0) -> Image:
        """What lies up to ``reach_mm`` around points (N, D) mm, normalised, as block means towards a spacing. Where it
        must be read, so is ``room_mm`` more, that it may serve again when the points have moved."""
        image, block = self.image, block_for(self.image, spacing_mm)
        first, end = _extent(image, world, reach_mm, block)
        part = self._read.get(block)
        if part is None or (first < part.first).any() or (end > part.end).any():
            first, end = _extent(image, world, reach_mm + room_mm, block)
            cut = (slice(None), *(slice(a, b) for a, b in zip(first, end, strict=True)))
            grid = Grid.from_axes((end - first).tolist(), image.grid.axes, image.grid.to_world(first))
            raw = Image(image.array[cut], grid, image.meta)
            part = _Part(first, end, normalise(block_mean(raw, block) if max(block) > 1 else raw, self.rule))
            self._read[block] = part
        return part.image


def _extent(image: Image, world: Array, reach_mm: float, block: tuple[int, ...]) -> tuple[Indices, Indices]:
    """First and end index (D,) of what lies up to ``reach_mm`` around points (N, D), in whole blocks."""
    index = image.grid.to_index(world)
    margin = reach_mm / image.grid.spacing
    size = np.asarray(block)
    whole = -(-np.asarray(image.grid.shape) // size)  # blocks, the last one maybe cut short
    first = np.clip(np.floor((index.min(0) - margin) / size), 0, whole - 1).astype(int)
    last = np.clip(np.ceil((index.max(0) + margin) / size), first + 1, whole).astype(int)
    return first * size, np.minimum(last * size, image.grid.shape)
