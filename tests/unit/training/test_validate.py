"""Augmented copies of training cases to validate on."""

from __future__ import annotations

import numpy as np
import pytest

import tiny
from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.training.validate import augmented_copy


@pytest.mark.parametrize("ndim", [2, 3])
def test_landmarks_of_an_augmented_copy_stay_on_their_structures(ndim: int) -> None:
    grid = Grid.from_axes((40,) * ndim, np.diag([1.5, 1.2, 1.0][:ndim])[:, ::-1], np.arange(ndim) * 10.0)
    points = grid.to_world(np.array([[12, 14, 20], [28, 12, 18], [20, 28, 25]])[:, :ndim])
    world = grid.points()
    array = np.stack([np.exp(-((world - p) ** 2).sum(-1) / 8) for p in points]).astype(np.float32)
    marks = Landmarks(("a", "b", "c"), points)
    copy, moved = augmented_copy(Image(array, grid), marks, np.random.default_rng(3))
    where = copy.grid.points()
    for channel, point in zip(copy.array, moved.points, strict=True):
        centre = (where * channel[..., None]).reshape(-1, ndim).sum(0) / channel.sum()
        assert np.linalg.norm(centre - point) < 0.3
    assert np.linalg.norm(moved.points - marks.points, axis=1).max() > 0.5
    assert copy.grid.shape == grid.shape


def test_an_unknown_landmark_stays_unknown_in_a_copy() -> None:
    image, marks = tiny.blobs(1)
    partial = Landmarks(marks.names, np.where(np.arange(3)[:, None] == 1, np.nan, marks.points))
    _, moved = augmented_copy(image, partial, np.random.default_rng(0))
    assert moved.defined.tolist() == [True, False, True]
