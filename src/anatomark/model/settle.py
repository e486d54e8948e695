"""What a model answers where its own points are no better than the mean shape: something between the two, or the mean
shape alone, placed by these points (shrinkage: James and Stein 1961). ``training/baselines.py`` says where."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from anatomark.core.grid import Array
from anatomark.core.landmarks import Landmarks
from anatomark.core.shape import robust_pose
from anatomark.methods.base import Coordinate, Stored


class SettleFacts(Stored):
    """``mean_shape`` (N, D) mm, and the ``weight`` of the method's own points against it, placed by them."""

    mean_shape: list[list[Coordinate]]
    weight: float = Field(ge=0, lt=1)


def settled(landmarks: Landmarks, facts: SettleFacts) -> Landmarks:
    """Landmarks drawn towards the mean shape in their pose; what is not located stays so."""
    return landmarks.with_points(drawn(landmarks.points, np.asarray(facts.mean_shape), facts.weight))


def drawn(points: Array, mean: Array, weight: float) -> Array:
    """``weight`` of points (N, D), the rest of ``mean`` (N, D) in their pose; NaN stays NaN."""
    return np.asarray(weight * points + (1 - weight) * robust_pose(mean, points).apply(mean) + 0 * points)
