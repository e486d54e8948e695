"""Landmarks written by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from anatomark.core.landmarks import Landmarks


def named(points: Mapping[str, Sequence[float]]) -> Landmarks:
    """Landmarks at ``{name: (x, y[, z])}``, world mm."""
    return Landmarks(tuple(points), list(points.values()))
