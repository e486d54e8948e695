"""The working image of the published presets: its grid, its values, and that nothing is copied without need."""

from __future__ import annotations

import numpy as np
import pytest

from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.methods.kit.working import working_grid, working_image

GRID = Grid.from_axes((6, 8), np.eye(2)[:, ::-1] * 2.0, (3.0, 4.0))


def test_an_image_at_the_spacing_is_a_view_in_its_own_type() -> None:
    array = np.arange(48, dtype=np.int16).reshape(1, 6, 8)
    work = working_image(Image(array, GRID), 2.001)
    assert work.array.dtype == np.int16
    assert np.shares_memory(work.array, array)
    assert work.grid is GRID or np.array_equal(work.grid.affine, GRID.affine)
    assert working_image(Image(array.astype(np.float64), GRID), 2.0).array.dtype == np.float32


def test_another_spacing_is_an_isotropic_grid_over_the_same_place() -> None:
    work = working_image(Image(np.ones((1, 6, 8), np.float32), GRID), 1.0)
    assert work.grid.spacing == pytest.approx([1.0, 1.0])
    np.testing.assert_allclose(work.grid.centre, GRID.centre)
    assert working_grid(GRID, 2.001) is GRID
    assert working_grid(GRID, 2.01) is not GRID


def test_channels_become_their_mean_and_a_rule_normalises_it() -> None:
    array = np.stack([np.full((6, 8), 10), np.full((6, 8), 30)]).astype(np.uint8)
    plain = working_image(Image(array, GRID), 2.0)
    assert plain.array.shape == (1, 6, 8)
    assert (plain.array == 20).all()
    ruled = working_image(Image(array, GRID), 2.0, {"kind": "window", "low": 0.0, "high": 40.0})
    np.testing.assert_allclose(ruled.array, 0.5)
