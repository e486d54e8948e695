"""What a model answers where its own points are no better than what costs nothing: something between them and the mean
shape placed by them (shrinkage: James and Stein 1961), that shape alone, or the mean position in the image.
``training/baselines.py`` says which. And where its points are moved into the habits of somebody whose points it did not
learn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from pydantic import Field, model_validator

from anatomark.core.grid import Array, Grid
from anatomark.core.landmarks import Landmarks
from anatomark.core.shape import Pose, robust_pose
from anatomark.methods.base import Coordinate, Stored

FEWEST = 4  # located landmarks that tell in which pose habits are added; with fewer they are along the image's axes


class SettleFacts(Stored):
    """``mean_shape`` (N, D) mm, and the ``weight`` of the method's own points against it, placed by them; ``centred``:
    it is the answer as it stands, from the image's centre. ``offset_mm`` (N, D) mm in the frame of the mean shape is
    added in the end: an observer's habits."""

    mean_shape: list[list[Coordinate]]
    weight: float = Field(ge=0, le=1)
    centred: bool = False
    offset_mm: list[list[Coordinate]] | None = None

    @model_validator(mode="after")
    def _of_one_shape(self) -> SettleFacts:
        if self.offset_mm is not None and self.centred:
            raise ValueError("offset_mm: a mean position has no habits; give it with weight")
        if self.offset_mm is not None and [len(o) for o in self.offset_mm] != [len(p) for p in self.mean_shape]:
            raise ValueError("offset_mm: is not of the points of mean_shape")
        return self


def settled(landmarks: Landmarks, facts: SettleFacts, grid: Grid) -> Landmarks:
    """Landmarks of an image on ``grid``, drawn towards the mean shape in their pose; what is not located stays so. Or
    all of them at the mean position, without covariances: where the method saw something, or nothing, is not believed;
    scores stay, though no threshold is learned for them."""
    mean = np.asarray(facts.mean_shape)
    if facts.centred:
        return replace(landmarks, points=mean + grid.centre, status=(), covariance=None, radius90=None, meta={})
    points = landmarks.points if facts.weight == 1 else drawn(landmarks.points, mean, facts.weight)
    if facts.offset_mm is not None:
        enough = np.isfinite(points).all(1).sum() >= FEWEST
        pose = robust_pose(mean, points) if enough else Pose.identity(points.shape[1])  # two points do not tell a turn
        points = points + pose.apply(np.asarray(facts.offset_mm)) - pose.translation
    return landmarks.with_points(points)


def drawn(points: Array, mean: Array, weight: float) -> Array:
    """``weight`` of points (N, D), the rest of ``mean`` (N, D) in their pose; NaN stays NaN."""
    return np.asarray(weight * points + (1 - weight) * robust_pose(mean, points).apply(mean) + 0 * points)
