"""The isotropic working image of methods that read voxels along the image's own axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.intensity import normalise
from anatomark.core.resample import resample

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
