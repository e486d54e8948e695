"""Warps: invertible, zero at the border, smooth."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from anatomark.core.grid import Grid
from anatomark.core.shape import random_rotation
from anatomark.core.warp import Warp, random_warp


def _grid(seed: int, d: int) -> Grid:
    rng = np.random.default_rng(seed)
    shape = rng.integers(30, 60, d).tolist()
    return Grid.centred(shape, random_rotation(rng, d) * rng.uniform(0.8, 3, d), rng.normal(size=d) * 50)


CASES = [(d, seed, amplitude) for d in (2, 3) for seed in range(4) for amplitude in (0.03, 0.08, 0.3)]


@pytest.mark.parametrize(("d", "seed", "amplitude"), CASES)
def test_there_and_back_is_within_a_micrometre(d: int, seed: int, amplitude: float) -> None:
    rng, grid = np.random.default_rng(seed), _grid(seed, d)
    extent = float(grid.extent_mm.max())
    warp = random_warp(rng, grid, amplitude * extent, 0.7 * extent)
    points = grid.to_world(rng.uniform(-0.5, np.array(grid.shape) - 0.5, (200, d)))
    points[3] = np.nan
    out = warp.inverse(points)
    assert np.isnan(out[3]).all()
    known = np.arange(len(points)) != 3
    np.testing.assert_allclose(warp(out[known]), points[known], atol=1e-3)
    np.testing.assert_allclose(warp.inverse(warp(points[known])), points[known], atol=1e-3)


@pytest.mark.parametrize(("d", "seed", "amplitude"), CASES)
def test_the_jacobian_is_positive_everywhere(d: int, seed: int, amplitude: float) -> None:
    rng, grid = np.random.default_rng(seed), _grid(seed, d)
    extent = float(grid.extent_mm.max())
    warp = random_warp(rng, grid, amplitude * extent, 0.7 * extent)
    assert warp.jacobian_minimum() > 0.25
    at = grid.to_world(rng.uniform(-5, np.array(grid.shape) + 5, (2000, d)))
    step = 1e-2 * grid.spacing.min()
    columns = [(warp(at + step * e) - warp(at - step * e)) / (2 * step) for e in np.eye(d)]
    assert np.linalg.det(np.stack(columns, -1)).min() > 0


@pytest.mark.parametrize("d", [2, 3])
def test_the_largest_displacement_is_the_amplitude_and_the_outside_stays(d: int) -> None:
    grid = _grid(7, d)
    extent = float(grid.extent_mm.max())
    warp = random_warp(np.random.default_rng(0), grid, 0.02 * extent, 0.7 * extent)
    nodes = warp.grid.points()
    assert np.linalg.norm(warp(nodes) - nodes, axis=-1).max() == pytest.approx(0.02 * extent, rel=1e-3)
    far = grid.to_world(np.array([[2.0] * d, [-1.0] * d]) * grid.shape)
    np.testing.assert_allclose(warp(far), far)


def test_a_folding_field_is_told_and_no_convergence_is_an_error() -> None:
    grid = Grid.from_axes((8, 8), np.eye(2) * 10, (0, 0))
    field = np.zeros((2, 8, 8), np.float32)
    field[:, 4, 4] = 100
    warp = Warp(grid, torch.from_numpy(field))
    assert warp.jacobian_minimum() < 0
    with pytest.raises(RuntimeError, match="in 3 steps; its field may fold"):
        warp.inverse(grid.to_world(np.random.default_rng(0).uniform(3, 5, (50, 2))), most=3)


def test_no_amplitude_is_no_warp() -> None:
    grid = _grid(1, 3)
    warp = random_warp(np.random.default_rng(0), grid, 0.0, 50.0)
    points = grid.to_world(np.random.default_rng(1).uniform(0, 20, (5, 3)))
    np.testing.assert_array_equal(warp(points), points)
