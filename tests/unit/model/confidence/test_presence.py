"""Presence: what is outside the image, without a point or below the threshold is absent."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from anatomark.core.grid import Grid
from anatomark.core.landmarks import Landmarks, Status
from anatomark.model.confidence.presence import presence_scores, with_absent

CUBE = Grid.from_axes((10, 10, 10), np.eye(3)[:, ::-1], np.zeros(3))
ABSENT, DEFINED, UNKNOWN = Status.ABSENT, Status.DEFINED, Status.UNANNOTATED


def test_presence_scores_are_scores_within_the_image_and_half_a_voxel_more() -> None:
    points = [[5, 5, 5], [-0.9, 5, 5], [-1.1, 5, 5], [5, 5, 9.9], [5, 10.1, 5], [5, 5, -1.0], [10, 5, 5], [np.nan] * 3]
    score = np.array([0.3, 1.2, 0.9, np.nan, 0.9, -0.1, 0.9, 0.9])
    prediction = Landmarks(tuple("abcdefgh"), np.array(points), score=score)
    assert presence_scores(prediction, CUBE).tolist() == [0.3, 1, 0, 1, 0, 0, 0.9, 0]
    assert presence_scores(replace(prediction, score=None), CUBE).tolist() == [1, 1, 0, 1, 0, 1, 1, 0]


def test_a_prediction_below_the_threshold_is_absent_and_keeps_its_score() -> None:
    points = np.array([[5.0, 5, 5], [5, 5, 5], [50, 5, 5], [np.nan] * 3])
    prediction = Landmarks(
        tuple("abcd"), points, (DEFINED, DEFINED, DEFINED, UNKNOWN), np.array([0.5, 0.2, 0.9, 0.1]),
        np.stack([np.eye(3)] * 4), np.ones(4),
    )  # fmt: skip
    assert with_absent(prediction, CUBE, {}) is prediction
    for says_nothing in (None, {}, {"threshold": None}, {"threshold": 0.0}):
        border = with_absent(prediction, CUBE, {"presence": says_nothing})
        assert border.status == (DEFINED, DEFINED, ABSENT, ABSENT)
    low = with_absent(prediction, CUBE, {"presence": {"threshold": 0.5}})
    assert low.status == (DEFINED, ABSENT, ABSENT, ABSENT)
    assert low.score is not None and low.covariance is not None and low.radius90 is not None
    np.testing.assert_array_equal(low.score, prediction.score)
    assert np.isnan(low.points[1:]).all() and np.isnan(low.covariance[1:]).all() and np.isnan(low.radius90[1:]).all()
    np.testing.assert_array_equal(low.points[0], points[0])
    assert (low.covariance[0] == np.eye(3)).all() and low.radius90[0] == 1
    bare = with_absent(Landmarks(tuple("abcd"), points), CUBE, {"presence": {"threshold": 0.5}})
    assert bare.status == (DEFINED, DEFINED, ABSENT, ABSENT)
    assert bare.score is None and bare.covariance is None and bare.radius90 is None


def test_a_prediction_that_is_all_there_is_left_as_it_is() -> None:
    prediction = Landmarks(("a",), np.full((1, 3), 5.0), score=np.array([0.7]), meta={"x": 1})
    assert with_absent(prediction, CUBE, {"presence": {"threshold": 0.7}}) is prediction
