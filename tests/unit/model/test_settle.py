"""An observer's habits are added in the pose that the points have."""

from __future__ import annotations

import numpy as np
import pytest

from anatomark.core.grid import Grid
from anatomark.core.landmarks import Landmarks
from anatomark.core.shape import Pose, random_rotation
from anatomark.model.settle import SettleFacts, settled


@pytest.mark.parametrize("ndim", [2, 3])
def test_habits_turn_and_grow_with_the_anatomy(ndim: int) -> None:
    rng = np.random.default_rng(ndim)
    mean, offset = rng.normal(0, 30, (6, ndim)), rng.normal(0, 2, (6, ndim))
    pose = Pose(random_rotation(rng, ndim, 120), rng.normal(0, 50, ndim), 1.3)
    points = pose.apply(mean)
    points[2] = np.nan
    facts = SettleFacts(mean_shape=mean.tolist(), weight=1, offset_mm=offset.tolist())
    grid = Grid.centred((8,) * ndim, np.eye(ndim)[:, ::-1], np.zeros(ndim))
    found = settled(Landmarks(tuple("abcdef"), points), facts, grid).points
    assert np.isnan(found[2]).all()
    kept = [0, 1, 3, 4, 5]
    assert np.allclose(found[kept], pose.apply(mean + offset)[kept], atol=1e-9)


def test_habits_of_other_landmarks_are_refused() -> None:
    with pytest.raises(ValueError, match="offset_mm"):
        SettleFacts(mean_shape=[[0.0, 0], [1, 1]], weight=1, offset_mm=[[0.0, 1]])
