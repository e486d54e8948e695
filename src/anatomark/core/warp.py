"""Smooth invertible warps: a displacement field that maps output world to input world."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike

from anatomark.core.grid import Array, Grid
from anatomark.core.resample import sample_index


@dataclass(frozen=True, eq=False)
class Warp:
    """Output world -> input world, ``x + u(x)``, with u (D, *grid.shape) mm on a coarse ``grid``, linear in between.

    An image is warped by sampling it at ``warp(points)``; its landmarks move by :meth:`inverse`. The field fades to
    zero at its grid's border, so nothing jumps there.
    """

    grid: Grid
    field: torch.Tensor

    def __call__(self, points: ArrayLike | torch.Tensor) -> Array:
        """Input world (..., D) mm of output world points (..., D) mm."""
        p = np.asarray(points, dtype=np.float64)
        u = sample_index(self.field, torch.from_numpy(self.grid.to_index(p)))
        return np.asarray(p + u.movedim(0, -1).numpy())

    def inverse(self, points: ArrayLike, *, tolerance_mm: float = 1e-4, most: int = 200) -> Array:
        """Output world of input world points (..., D): where landmarks go. Damped fixed-point iteration, NaN stays NaN.

        Raises RuntimeError where it does not converge in ``most`` steps (a folding field).
        """
        target = np.asarray(points, dtype=np.float64)
        finite = np.isfinite(target).all(-1)
        goal = target[finite]
        x, before, damping = goal.copy(), np.full((len(goal), 1), np.inf), np.ones((len(goal), 1))
        for _ in range(most):
            step = goal - self(x)
            size = np.linalg.norm(step, axis=1, keepdims=True)
            # where the field stretches more than twofold a full step overshoots, though nothing folds
            damping = np.where(size > 0.95 * before, np.maximum(damping / 2, 1 / 32), damping)
            x, before = x + damping * step, size
            if step.size == 0 or np.abs(step).max() < tolerance_mm:
                out = np.full_like(target, np.nan)
                out[finite] = x
                return out
        raise RuntimeError(f"a warp could not be inverted in {most} steps; its field may fold")

    def jacobian_minimum(self) -> float:
        """Smallest determinant of the Jacobian at the corners of the field's cells, from inside each cell, where the
        field is linear along every axis; positive for an invertible warp."""
        d = self.grid.ndim
        u = self.field.numpy().astype(np.float64)
        to_index = np.linalg.inv(self.grid.axes)
        steps = [np.diff(u, axis=a + 1) for a in range(d)]
        least = np.inf
        for corner in itertools.product((0, 1), repeat=d):
            # along its own axis a difference belongs to the cell; along the others it lies at the corner
            slopes = [
                steps[a][(slice(None), *(slice(c, n - 1 + c) if b != a else slice(None)
                                         for b, (c, n) in enumerate(zip(corner, self.grid.shape, strict=True))))]
                for a in range(d)
            ]  # fmt: skip
            world = np.moveaxis(np.stack(slopes, 1), (0, 1), (-2, -1)) @ to_index  # du_c / d index a, then mm
            least = min(least, float(np.linalg.det(np.eye(d) + world).min()))
        return least


def random_warp(
    rng: np.random.Generator, grid: Grid, amplitude_mm: float, wavelength_mm: float, *, nodes: int = 24
) -> Warp:
    """A smooth random warp over the extent of ``grid``.

    Cubic B-spline noise with knots ``wavelength_mm`` / 2 apart, whose largest displacement is ``amplitude_mm``, scaled
    down where needed until the Jacobian stays above 0.25 everywhere.
    """
    d = grid.ndim
    axes = grid.axes / grid.spacing
    extent = grid.extent_mm * 1.2
    knots = np.maximum(2, np.ceil(extent / (wavelength_mm / 2))).astype(int)
    field = rng.normal(size=(d, *(knots + 3)))
    coarse = Grid.centred((nodes,) * d, axes * (extent / (nodes - 1)), grid.centre)
    for a in range(d):
        basis = _bspline_basis(nodes, int(knots[a]))
        field = np.moveaxis(np.tensordot(basis, field, (1, a + 1)), 0, a + 1)
    fade = np.ones((nodes,) * d)
    ramp = np.clip(np.minimum(np.arange(nodes), np.arange(nodes)[::-1]) / 2, 0, 1)
    for a in range(d):
        fade *= ramp.reshape([-1 if b == a else 1 for b in range(d)])
    field = field * fade
    field *= amplitude_mm / max(1e-9, np.sqrt((field**2).sum(0)).max())
    while True:
        warp = Warp(coarse, torch.from_numpy(field.astype(np.float32)))
        if warp.jacobian_minimum() > 0.25 or amplitude_mm <= 0:
            return warp
        field = field * 0.8


def _bspline_basis(nodes: int, knots: int) -> Array:
    """(nodes, knots + 3) cubic B-spline weights of evenly spaced nodes over ``knots`` intervals."""
    at = np.linspace(0, knots, nodes)
    cell = np.minimum(at.astype(int), knots - 1)
    t = at - cell
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], 1) / 6
    basis = np.zeros((nodes, knots + 3))
    for k in range(4):
        basis[np.arange(nodes), cell + k] += weights[:, k]
    return basis
