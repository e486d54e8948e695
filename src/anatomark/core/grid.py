"""The only geometry: an index grid and its affine into world millimetres."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Grid:
    """Shape plus index-to-world affine, in D = 2 or 3 dimensions.

    Index order is the array's: an image on this grid is an array ``(C, *shape)`` and index ``(i, j, k)`` addresses
    ``array[:, i, j, k]``. Files read by SimpleITK give ``(z, y, x)`` in 3D and ``(row, column) = (y, x)`` in 2D, so the
    affine's first column is then the step of the slowest axis. World coordinates are always ``(x, y[, z])``: LPS mm in
    3D; x right, y down, mm in 2D. An integer index is a voxel **centre**; the image spans -0.5 ... n-0.5.

    ``shape``: D ints >= 1. ``affine``: (D+1, D+1) float64, last row 0...0 1, invertible.
    Raises ValueError for anything else.
    """

    shape: tuple[int, ...]
    affine: Array

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        affine = np.array(self.affine, dtype=np.float64)
        d = len(shape)
        if d not in (2, 3) or min(shape) < 1:
            raise ValueError(f"a grid's shape is 2 or 3 positive numbers, not {shape}")
        if affine.shape != (d + 1, d + 1) or not np.isfinite(affine).all():
            raise ValueError(f"a {d}D grid's affine is a finite {d + 1} x {d + 1} matrix, not {affine.shape}")
        if not np.array_equal(affine[d], np.eye(d + 1)[d]):
            raise ValueError(f"an affine's last row is 0 ... 0 1, not {affine[d].tolist()}")
        steps = np.sqrt((affine[:d, :d] ** 2).sum(0))
        if steps.min() == 0 or abs(np.linalg.det(affine[:d, :d] / steps)) < 1e-9:
            raise ValueError("the affine is singular: two index axes point the same way, or a spacing is zero")
        affine.setflags(write=False)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    @classmethod
    def from_axes(cls, shape: Sequence[int], axes: ArrayLike, origin: ArrayLike) -> Grid:
        """Grid from ``axes`` (D, D), column a = world step in mm of array axis a, and ``origin`` (D,), the world
        position of index 0."""
        axes = np.asarray(axes, dtype=np.float64)
        d = len(shape)
        affine = np.eye(d + 1)
        affine[:d, :d], affine[:d, d] = axes, np.asarray(origin, dtype=np.float64)
        return cls(tuple(shape), affine)

    @classmethod
    def centred(cls, shape: Sequence[int], axes: ArrayLike, centre: ArrayLike) -> Grid:
        """Grid whose middle (index (n-1)/2) lies at the world point ``centre``."""
        axes = np.asarray(axes, dtype=np.float64)
        middle = (np.asarray(shape, dtype=np.float64) - 1) / 2
        return cls.from_axes(shape, axes, np.asarray(centre, dtype=np.float64) - axes @ middle)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def axes(self) -> Array:
        """(D, D): column a is the world step in mm along array axis a."""
        return self.affine[: self.ndim, : self.ndim]

    @property
    def origin(self) -> Array:
        """(D,) world position of index 0."""
        return self.affine[: self.ndim, self.ndim]

    @cached_property
    def spacing(self) -> Array:
        """(D,) mm between neighbours along each array axis."""
        return np.asarray(np.sqrt((self.axes**2).sum(0)))

    @cached_property
    def inverse(self) -> Array:
        """(D+1, D+1) world-to-index affine."""
        return np.asarray(np.linalg.inv(self.affine), dtype=np.float64)

    @property
    def centre(self) -> Array:
        """(D,) world position of the grid's middle."""
        return self.to_world((np.asarray(self.shape) - 1) / 2)

    @property
    def extent_mm(self) -> Array:
        """(D,) size in mm along each array axis, voxel borders included."""
        return np.asarray(self.spacing * np.asarray(self.shape))

    def to_world(self, index: ArrayLike) -> Array:
        """World mm (..., D) of continuous array indices (..., D)."""
        return np.asarray(index, dtype=np.float64) @ self.axes.T + self.origin

    def to_index(self, world: ArrayLike) -> Array:
        """Continuous array index (..., D) of world points (..., D) in mm."""
        d = self.ndim
        return np.asarray(world, dtype=np.float64) @ self.inverse[:d, :d].T + self.inverse[:d, d]

    def contains(self, world: ArrayLike) -> NDArray[np.bool_]:
        """(...) True where a world point lies within the image's borders (-0.5 ... n-0.5)."""
        index = self.to_index(world)
        inside = (index >= -0.5) & (index <= np.asarray(self.shape) - 0.5)
        return np.asarray(inside.all(-1))

    def points(self) -> Array:
        """World position (*shape, D) of every voxel centre."""
        index = np.stack(np.meshgrid(*(np.arange(n) for n in self.shape), indexing="ij"), -1)
        return self.to_world(index)

    def canonical(self) -> Grid:
        """The same voxels with axes permuted and flipped so that array axis order is (z, y, x) (2D: (y, x)), each
        pointing as nearly as possible along the positive world axis."""
        order, signs = self._canonical_axes()
        shape = [self.shape[a] for a in order]
        axes = self.axes[:, order] * signs
        corner = np.zeros(self.ndim)
        for a, s in zip(order, signs, strict=True):
            corner[a] = self.shape[a] - 1 if s < 0 else 0
        return Grid.from_axes(shape, axes, self.to_world(corner))

    def _canonical_axes(self) -> tuple[list[int], Array]:
        import itertools

        cosines = self.axes / self.spacing
        d = self.ndim
        # world axis w belongs to array axis order[w]; choose the permutation with the largest total |cosine|
        best = max(itertools.permutations(range(d)), key=lambda p: sum(abs(cosines[w, p[w]]) for w in range(d)))
        order = [best[w] for w in reversed(range(d))]
        signs = np.array([1.0 if cosines[w, best[w]] >= 0 else -1.0 for w in reversed(range(d))])
        return order, signs

    def isotropic(self, spacing_mm: float) -> Grid:
        """Isotropic grid over the same extent with the same axis directions; the first voxel border stays in place,
        and at least the whole image is covered."""
        shape = np.maximum(1, np.ceil(self.extent_mm / spacing_mm - 1e-6)).astype(int)
        directions = self.axes / self.spacing
        border = self.to_world(np.full(self.ndim, -0.5))
        origin = border + directions @ np.full(self.ndim, 0.5 * spacing_mm)
        return Grid.from_axes(shape.tolist(), directions * spacing_mm, origin)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grid) and self.shape == other.shape and np.array_equal(self.affine, other.affine)

    def __hash__(self) -> int:
        return hash((self.shape, self.affine.tobytes()))
