"""The grid and the voxel coordinates that published PIN works in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from anatomark.core.grid import Array, Grid

LONGEST_PX = 500  # ours: 2D images above three times this are thinned to about this many pixels


def default_spacing(grids: Sequence[Grid]) -> float:
    """Median spacing in mm; a whole multiple of it for 2D images of more than 1500 pixels, to leave about 500."""
    spacing = float(np.median([g.spacing for g in grids]))
    longest = float(np.median([max(g.shape) for g in grids]))
    if grids[0].ndim == 2 and longest > 3 * LONGEST_PX:
        spacing *= int(np.ceil(longest / LONGEST_PX))
    return spacing


def working_grid(canonical: Grid, spacing_mm: float) -> Grid:
    """The isotropic grid that PIN works on; the canonical grid itself where it has that spacing (to 0.1 %)."""
    same = np.allclose(canonical.spacing, spacing_mm, rtol=1e-3, atol=0)
    return canonical if same else canonical.isotropic(spacing_mm)


def to_voxels(grid: Grid, points: Array) -> Array:
    """Voxel coordinates (N, D), x, y[, z], of world points (N, D) on a canonical grid."""
    return np.asarray(grid.to_index(points)[..., ::-1])
