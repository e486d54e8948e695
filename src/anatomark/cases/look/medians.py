"""Distances and medians of points of which some are missing."""

from __future__ import annotations

import numpy as np

from anatomark.core.grid import Array


def distance(a: Array, b: Array) -> Array:
    """(...) distances in mm of points (..., D)."""
    return np.asarray(np.linalg.norm(np.asarray(a) - b, axis=-1))


def nanmedian(values: Array, axis: int) -> Array:
    """Median over ``axis`` of what is not NaN; NaN where nothing is left."""
    values = np.moveaxis(np.asarray(values, dtype=np.float64), axis, -1)
    count = (~np.isnan(values)).sum(-1, keepdims=True)
    ordered = np.sort(values, -1)  # NaN last
    low, high = (
        np.take_along_axis(ordered, np.maximum(at, 0), -1) for at in ((count - 1) // 2, count // 2 - (count == 0))
    )
    return np.asarray(((low + high) / 2)[..., 0])
