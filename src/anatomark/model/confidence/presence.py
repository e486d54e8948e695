"""Presence: a landmark that is not in an image is reported absent.

A landmark's presence score is its method's score, and 0 where the predicted point lies outside the image; below a
threshold, which training has chosen (``presence_trials.py``), the landmark is absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anatomark.core.grid import Array, Grid
from anatomark.core.landmarks import Landmarks, Status

OUTSIDE_VOXELS = 0.5  # a point farther than this from the image's border is outside


def presence_scores(prediction: Landmarks, grid: Grid) -> Array:
    """(N,) presence scores in 0..1 of a prediction in an image on ``grid``: the score (1 where the method gives none),
    and 0 for a point that is not defined or lies more than half a voxel outside."""
    score = np.ones(len(prediction)) if prediction.score is None else np.nan_to_num(prediction.score, nan=1.0)
    return np.where(_inside(prediction, grid), np.clip(score, 0, 1), 0.0)


def with_absent(prediction: Landmarks, grid: Grid, calibration: Mapping[str, Any]) -> Landmarks:
    """A prediction in which landmarks below the threshold, outside the image or without a point are ``absent``: no
    position, no covariance, no radius, their score kept.

    Unchanged for a calibration that says nothing of presence (models of older versions); with null the image's border
    alone decides.
    """
    if "presence" not in calibration:
        return prediction
    threshold = (calibration["presence"] or {}).get("threshold") or 0.0
    absent = ~_inside(prediction, grid) | (presence_scores(prediction, grid) < threshold)
    if not absent.any():
        return prediction
    covariance, radius90 = prediction.covariance, prediction.radius90
    return replace(
        prediction,
        status=tuple(Status.ABSENT if a else s for a, s in zip(absent, prediction.status, strict=True)),
        covariance=None if covariance is None else np.where(absent[:, None, None], np.nan, covariance),
        radius90=None if radius90 is None else np.where(absent, np.nan, radius90),
    )


def _inside(prediction: Landmarks, grid: Grid) -> NDArray[np.bool_]:
    index = grid.to_index(prediction.points)  # NaN compares as outside
    reach = 0.5 + OUTSIDE_VOXELS
    return np.asarray(((index >= -reach) & (index <= np.array(grid.shape) - 1 + reach)).all(-1))
