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


def test_two_points_turn_no_habits() -> None:
    mean, offset = np.array([[0.0, 0], [10, 0], [0, 10], [10, 10]]), np.array([[1.0, 2]] * 4)
    points = np.where([[True], [True], [False], [False]], mean @ np.array([[0.0, 1], [-1, 0]]), np.nan)
    facts = SettleFacts(mean_shape=mean.tolist(), weight=1, offset_mm=offset.tolist())
    found = settled(Landmarks(tuple("abcd"), points), facts, Grid.centred((8, 8), np.eye(2)[:, ::-1], np.zeros(2)))
    assert np.allclose(found.points[:2], points[:2] + offset[:2])


def test_habits_are_added_to_what_was_drawn_to_the_mean_shape() -> None:
    rng = np.random.default_rng(0)
    mean, offset = rng.normal(0, 30, (6, 2)), rng.normal(0, 2, (6, 2))
    marks = Landmarks(tuple("abcdef"), mean + rng.normal(0, 3, (6, 2)))
    grid = Grid.centred((8, 8), np.eye(2)[:, ::-1], np.zeros(2))
    plain = settled(marks, SettleFacts(mean_shape=mean.tolist(), weight=0.5), grid).points
    moved = settled(marks, SettleFacts(mean_shape=mean.tolist(), weight=0.5, offset_mm=offset.tolist()), grid).points
    assert np.allclose(moved - plain, offset, atol=0.5) and not np.allclose(plain, marks.points)


def test_the_mean_position_believes_nothing_of_what_the_method_saw() -> None:
    seen = Landmarks(("a", "b"), np.array([[1.0, 2], [np.nan, np.nan]]), score=np.array([0.9, 0.01]))
    grid = Grid.centred((8, 8), np.eye(2)[:, ::-1], np.array([3.0, 4]))
    found = settled(seen, SettleFacts(mean_shape=[[0.0, 1], [2, 0]], weight=0, centred=True), grid)
    assert np.array_equal(found.points, [[3, 5], [5, 4]]) and found.defined.all() and found.covariance is None


def test_habits_of_a_mean_position_are_refused() -> None:
    with pytest.raises(ValueError, match="offset_mm"):
        SettleFacts(mean_shape=[[0.0, 0]], weight=0, centred=True, offset_mm=[[0.0, 1]])


def test_habits_of_other_landmarks_are_refused() -> None:
    with pytest.raises(ValueError, match="offset_mm"):
        SettleFacts(mean_shape=[[0.0, 0], [1, 1]], weight=1, offset_mm=[[0.0, 1]])
