"""An alignment maps landmarks and images into a template's world and back."""

from __future__ import annotations

import numpy as np
import pytest

import phantom
from anatomark.core.alignment import Alignment
from anatomark.core.landmarks import Landmarks, Status


def some_alignment(ndim: int) -> Alignment:
    rng = np.random.default_rng(ndim)
    affine = np.eye(ndim + 1)
    affine[:-1] = rng.normal(size=(ndim, ndim + 1))
    affine[:ndim, :ndim] += 2 * np.eye(ndim)
    return Alignment(affine, 1.2, 0.0)


@pytest.mark.parametrize("ndim", [2, 3])
def test_landmarks_there_and_back(ndim: int) -> None:
    alignment = some_alignment(ndim)
    rng = np.random.default_rng(4)
    root = rng.normal(size=(5, ndim, ndim))
    points = rng.normal(size=(5, ndim)) * 40
    points[2] = np.nan
    status = tuple(Status.ABSENT if i == 2 else Status.DEFINED for i in range(5))
    marks = Landmarks(phantom.NAMES, points, status, np.linspace(0, 1, 5), root @ root.transpose(0, 2, 1), np.arange(5))
    there = alignment.to_template(marks)
    assert there.status == status
    np.testing.assert_array_equal(there.score, marks.score)
    back = alignment.from_template(there)
    np.testing.assert_allclose(back.points, marks.points, atol=1e-9)
    np.testing.assert_allclose(back.covariance, marks.covariance, atol=1e-9)
    np.testing.assert_allclose(back.radius90, marks.radius90, atol=1e-9)
    j = alignment.affine[:ndim, :ndim]
    np.testing.assert_allclose(alignment.from_template(marks).covariance, j @ marks.covariance @ j.T)
    ratio = np.abs(np.linalg.det(j)) ** (1 / ndim)
    np.testing.assert_allclose(alignment.from_template(marks).radius90, ratio * marks.radius90)
    assert alignment.to_template(Landmarks(marks.names, points, status)).covariance is None


@pytest.mark.parametrize("ndim", [2, 3])
def test_moved_is_the_same_voxels_elsewhere(ndim: int) -> None:
    alignment = some_alignment(ndim)
    image, _ = phantom.phantom(1, ndim)
    there = alignment.moved(image)
    assert there.array is image.array
    index = np.array([3.0, 7, 5])[:ndim]
    world = there.grid.to_world(index) @ alignment.affine[:ndim, :ndim].T + alignment.affine[:ndim, ndim]
    np.testing.assert_allclose(world, image.grid.to_world(index), atol=1e-9)
