"""ITK transform files between world frames, LPS mm: affine maps (.tfm, .txt, .h5, .mat) and displacement fields (.h5).

As ITK resamples, a transform maps the fixed image's points to the moving image's. SimpleITK's transform reader knows no
thin-plate spline ("Could not create an instance of ThinPlateSplineKernelTransform"), so a spline is written as a field.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from anatomark.core.grid import Grid
from anatomark.errors import InputError
from anatomark.io.atomic import Where, atomic_path
from anatomark.io.files import check_name
from anatomark.io.itk import condensed, quiet, toolkit

ENDINGS = (".tfm", ".txt", ".h5", ".hdf5", ".mat", ".xfm")


def write_affine(matrix: ArrayLike, path: Where) -> None:
    """Write a (D+1, D+1) world-to-world matrix, D = 2 or 3, as an ITK AffineTransform, atomically. Raises ValueError
    for another shape, InputError for an unknown ending or a disk that refuses."""
    path, values = Path(path), np.asarray(matrix, dtype=np.float64)
    d = len(values) - 1
    if d not in (2, 3) or values.shape != (d + 1, d + 1) or not np.array_equal(values[d], np.eye(d + 1)[d]):
        raise ValueError(f"an affine is 3 x 3 or 4 x 4 with last row 0 ... 0 1, not {values.shape}")
    if path.suffix.lower() not in ENDINGS:
        raise InputError(f"{path}: transforms are written as {', '.join(ENDINGS)}")
    transform = toolkit().AffineTransform(d)
    transform.SetMatrix(values[:d, :d].ravel().tolist())
    transform.SetTranslation(values[:d, d].tolist())
    _write(transform, path)


def write_displacements(field: ArrayLike, grid: Grid, path: Where) -> None:
    """Write displacements ``field`` (*grid.shape, D) float64, mm along x, y[, z], on ``grid`` as an ITK
    DisplacementFieldTransform (.h5), atomically. ITK interpolates linearly, and moves nothing outside the grid.

    Raises ValueError for another shape or sheared axes, InputError for an unknown ending or a disk that refuses.
    """
    path, values = Path(path), np.ascontiguousarray(field, dtype=np.float64)
    if values.shape != (*grid.shape, grid.ndim):
        raise ValueError(f"a field of shape {values.shape} does not fit a grid of shape {grid.shape}")
    direction = grid.axes[:, ::-1] / grid.spacing[::-1]
    if np.abs(direction.T @ direction - np.eye(grid.ndim)).max() > 1e-4:
        raise ValueError("a displacement field's axes must be at right angles")
    if path.suffix.lower() not in (".h5", ".hdf5"):
        raise InputError(f"{path}: displacement fields are written as .h5")
    image = toolkit().GetImageFromArray(values, isVector=True)
    image.SetSpacing(grid.spacing[::-1].tolist())
    image.SetDirection(direction.ravel().tolist())
    image.SetOrigin(grid.origin.tolist())
    _write(toolkit().DisplacementFieldTransform(image), path)


def _write(transform: Any, path: Path) -> None:
    check_name(path)
    with atomic_path(path) as temporary:
        try:
            with quiet():
                toolkit().WriteTransform(transform, str(temporary))
        except RuntimeError as error:
            raise InputError(f"{path}: cannot be written: {condensed(error)}") from None
