"""Thin-plate splines: the smoothest map of space that takes given points to given points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike

from anatomark.core.grid import Array, Grid
from anatomark.core.image import Image
from anatomark.core.resample import as_tensor, low_pass, sample_index

_PAIRS_AT_ONCE = 4_000_000  # distances in memory at a time


@dataclass(frozen=True, eq=False)
class ThinPlate:
    """``f(x) = affine(x) + sum_i c_i U(|x - x_i|)`` in D = 2 or 3, ``U`` = r^2 log r in 2D, -r in 3D (Bookstein 1989,
    Duchon 1977; these signs make the kernel positive definite beside an affine part, which smoothing needs).

    Made by :meth:`fit`. ``centres`` (N, D) and ``linear`` (D+1, D) count in the frame ``(x - origin) / scale``;
    ``bending`` (N, D) are the c_i in mm. ``left_out`` (N, D): target minus prediction, mm, for each point of a spline
    of the same stiffness without it; NaN where the others do not determine one.
    """

    centres: Array
    bending: Array
    linear: Array
    origin: Array
    scale: float
    left_out: Array

    @classmethod
    def fit(cls, source: Array, target: Array, weights: Array | None = None, *, residual_mm: float = 0.0) -> ThinPlate:
        """The spline that takes ``source`` (N, D) to ``target`` (N, D), mm.

        It minimises ``sum w_i |y_i - f(x_i)|^2 + stiffness * bending energy`` (Wahba 1990). The stiffness is 0 at
        ``residual_mm`` = 0: the spline then goes through its points; else it is the one that leaves this root mean
        square distance, weighted, at the points (Reinsch 1967); never more than the affine fit leaves. Raises
        ValueError for fewer than D + 1 points, or points that lie on a plane (2D: line) or upon each other.
        """
        n, d = source.shape
        if n < d + 1:
            raise ValueError(f"a thin-plate spline in {d}D needs {d + 1} points, not {n}")
        origin = source.mean(0)
        scale = float(np.sqrt(((source - origin) ** 2).sum(1).mean())) or 1.0
        x = (source - origin) / scale
        noise = np.ones(n) if weights is None else weights.mean() / weights
        q, r = np.linalg.qr(np.column_stack([np.ones(n), x]), mode="complete")
        plain, bent, r = q[:, : d + 1], q[:, d + 1 :], r[: d + 1]
        if np.abs(np.diag(r)).min() < 1e-9 * np.abs(np.diag(r)).max():
            raise ValueError("the points of a thin-plate spline lie on a plane or line")
        kernel = _kernel(_distances(x, x), d).numpy()
        stiffness = _stiffness(bent, kernel, noise, target, residual_mm) if residual_mm > 0 and n > d + 1 else 0.0
        kernel = kernel + stiffness * np.diag(noise)
        try:
            inverse = bent @ np.linalg.solve(bent.T @ kernel @ bent, bent.T)
        except np.linalg.LinAlgError:
            raise ValueError("two points of a thin-plate spline lie at one place") from None
        bending = inverse @ target
        linear = np.linalg.solve(r, plain.T @ (target - kernel @ bending))
        own = np.diag(inverse)[:, None]
        needed = own <= 1e-9 * max(float(own.max()), 1e-300)
        left_out = np.where(needed, np.nan, bending / np.where(needed, 1.0, own))
        return cls(x, bending, linear, origin, scale, left_out)

    def __call__(self, points: ArrayLike) -> Array:
        """Where the spline takes points (..., D), mm."""
        given = np.asarray(points, dtype=np.float64)
        flat = (given.reshape(-1, given.shape[-1]) - self.origin) / self.scale
        out = self.linear[0] + flat @ self.linear[1:]
        bending = torch.from_numpy(np.ascontiguousarray(self.bending))
        step = max(1, _PAIRS_AT_ONCE // len(self.centres))
        for first in range(0, len(flat), step):
            distance = _distances(flat[first : first + step], self.centres)
            out[first : first + step] += (_kernel(distance, given.shape[-1]) @ bending).numpy()
        return np.asarray(out.reshape(given.shape))

    def displacements(self, grid: Grid) -> Array:
        """(*grid.shape, D) mm: where the spline takes each voxel centre of ``grid``, less the centre itself."""
        out = np.empty((*grid.shape, grid.ndim))
        for first in range(grid.shape[0]):
            points = _slab(grid, first)
            out[first] = self(points) - points
        return out

    def resample(self, image: Image, grid: Grid, *, fill: float = 0.0) -> Image:
        """``image`` on ``grid``: at each voxel centre x the value, float32, that ``image`` has at ``f(x)``, linear
        between its voxels, ``fill`` outside; low-passed first where the target is coarser."""
        turn = self.linear[1:].T / self.scale
        step = np.abs(np.linalg.inv(image.grid.axes) @ turn @ grid.axes).max(1)
        source = low_pass(image, step)
        reach = np.asarray(image.grid.shape) / np.round(source.grid.spacing / image.grid.spacing)
        tensor = as_tensor(source)
        out = np.empty((len(tensor), *grid.shape), dtype=np.float32)
        for first in range(grid.shape[0]):
            index = torch.from_numpy(source.grid.to_index(self(_slab(grid, first))))
            out[:, first] = sample_index(tensor, index, fill, reach=reach).numpy()
        return Image(out, grid, image.meta)


def folded_share(displacements: Array, grid: Grid) -> float:
    """Share of ``grid``'s nodes where ``x + displacements`` (*shape, D) turns space inside out (Jacobian <= 0), by
    central differences."""
    d = grid.ndim
    slopes = np.stack([np.gradient(displacements, axis=a) for a in range(d)], -1)  # (*shape, D, index axis)
    return float((np.linalg.det(np.eye(d) + slopes @ np.linalg.inv(grid.axes)) <= 0).mean())


def _slab(grid: Grid, first: int) -> Array:
    """(*shape[1:], D) world positions of the centres whose first index is ``first``."""
    rest = np.meshgrid(*(np.arange(n) for n in grid.shape[1:]), indexing="ij")
    return grid.to_world(np.stack([np.full(grid.shape[1:], first), *rest], -1))


def _distances(one: Array, two: Array) -> torch.Tensor:
    # torch's faster way by products loses half of the digits
    exact = "donot_use_mm_for_euclid_dist"
    return torch.cdist(torch.from_numpy(np.ascontiguousarray(one)), torch.from_numpy(two), compute_mode=exact)


def _kernel(distance: torch.Tensor, d: int) -> torch.Tensor:
    """Overwrites ``distance``."""
    return torch.xlogy(distance**2, distance) if d == 2 else distance.neg_()


def _stiffness(bent: Array, kernel: Array, noise: Array, target: Array, residual_mm: float) -> float:
    """The stiffness that leaves ``residual_mm``: with C = bent' diag(noise) bent = L L', the eigenvalues e of
    L^-1 bent' kernel bent L^-T and z = V' L^-1 bent' target, it leaves sqrt(sum (s z / (e + s))^2 / N)."""
    factor = np.linalg.cholesky((bent.T * noise) @ bent)
    whitened = np.linalg.solve(factor, np.linalg.solve(factor, bent.T @ kernel @ bent).T)
    values, vectors = np.linalg.eigh((whitened + whitened.T) / 2)
    power = ((vectors.T @ np.linalg.solve(factor, bent.T @ target)) ** 2).sum(1)
    low, high = np.log(1e-9 * values.max()), np.log(1e9 * values.max())
    for _ in range(60):
        middle = np.exp((low + high) / 2)
        left = np.sqrt((power * (middle / (values + middle)) ** 2).sum() / len(target))
        low, high = (np.log(middle), high) if left < residual_mm else (low, np.log(middle))
    return float(np.exp(low))
