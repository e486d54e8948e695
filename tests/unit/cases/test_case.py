"""One case: what it is when it went to another process, and where a single slice becomes 2D."""

from __future__ import annotations

import pickle
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

import tiny
from anatomark.cases.case import Case, in_plane, of_dimension
from anatomark.cases.manifest import read_manifest
from anatomark.core.alignment import Alignment
from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.errors import InputError


def check_same(one: Case, other: Case) -> None:
    """Two cases say the same of everything."""
    for name in ("id", "path", "source", "split", "spacing", "row", "reading", "aligned"):
        assert getattr(one, name) == getattr(other, name), name
    assert one.landmarks.names == other.landmarks.names
    np.testing.assert_array_equal(one.landmarks.points, other.landmarks.points)
    np.testing.assert_array_equal(one.image().array, other.image().array)
    assert one.image().grid == other.image().grid
    assert list(one.images) == list(other.images)
    assert (one.alignment is None) == (other.alignment is None)
    if one.alignment is not None and other.alignment is not None:
        np.testing.assert_array_equal(one.alignment.affine, other.alignment.affine)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("read_before", [False, True])
def test_a_case_of_a_manifest_pickles(tmp_path: Path, ndim: int, read_before: bool) -> None:
    case = read_manifest(tiny.write_study(tmp_path, 2, ndim, ["val"])).cases[0]
    if read_before:
        assert case.landmarks.ndim == case.image().ndim == case.grid(ndim).ndim == ndim
    check_same(pickle.loads(pickle.dumps(case)), case)


def test_what_is_in_hand_goes_along() -> None:
    image, truth = tiny.blobs(0)
    affine = np.eye(4)
    affine[:3, 3] = 3, 4, 5
    case = Case("x", given=truth, held=image, images={"work": image}, alignment=Alignment(affine, 1.5, 0.1))
    assert {f.name for f in fields(Case)} >= {"given", "held", "images", "alignment"}
    check_same(pickle.loads(pickle.dumps(case)), case)
    check_same(pickle.loads(pickle.dumps(case.in_template())), case.in_template())


def test_in_a_template_image_and_landmarks_move_together_and_once() -> None:
    image, truth = tiny.blobs(0)
    affine = np.eye(4)
    affine[:3, 3] = 3, 4, 5
    case = Case("x", given=truth, held=image, alignment=Alignment(affine))
    moved = case.in_template()
    np.testing.assert_allclose(moved.landmarks.points, truth.points - [3, 4, 5])
    index = image.grid.to_index(truth.points)
    np.testing.assert_allclose(moved.image().grid.to_world(index), moved.landmarks.points)
    assert moved.in_template() is moved
    plain = Case("x", given=truth, held=image)
    assert plain.in_template() is plain
    np.testing.assert_array_equal(case.image().grid.affine, image.grid.affine)  # not moved until it is asked


# ---------------------------------------------------------------------- a single slice


def slice_of(first: int, *, axis: int = 0) -> Image:
    shape = [5, 6, 7]
    shape[axis] = first
    return Image(np.arange(np.prod(shape), dtype=np.float32).reshape(1, *shape), Grid(tuple(shape), np.eye(4)))


def test_a_single_slice_is_2d_where_landmarks_are() -> None:
    one = slice_of(1)
    assert of_dimension(one, 2).ndim == 2 and of_dimension(one, 2).array.shape == (1, 6, 7)
    assert of_dimension(one, 3) is one
    for other in (slice_of(5), slice_of(1, axis=1), slice_of(1, axis=2)):
        assert of_dimension(other, 2) is other  # only the slowest axis counts
    flat, _ = tiny.blobs(0, 2)
    assert of_dimension(flat, 2) is flat and of_dimension(flat, 3) is flat


def test_a_case_reads_its_slice_as_its_landmarks_are() -> None:
    truth = Landmarks(("a",), np.array([[1.0, 2]]))
    assert Case("x", given=truth, held=slice_of(1)).image().ndim == 2
    assert Case("x", held=slice_of(1)).image().ndim == 3
    with pytest.raises(InputError, match=r"case 'x': its landmarks are 2D but its image is 3D"):
        Case("x", given=truth, held=slice_of(5)).image()
    with pytest.raises(InputError, match=r"'x': only landmarks were given, an image is needed"):
        Case("x", given=truth).image()


def test_landmarks_lie_in_the_plane_where_z_is_0_throughout() -> None:
    points = np.array([[1.0, 2, 0], [3, 4, 0], [np.nan] * 3])
    flat = Landmarks(("a", "b", "c"), points, covariance=np.stack([np.eye(3)] * 3), score=np.array([0.1, 0.2, np.nan]))
    made = in_plane(flat)
    np.testing.assert_array_equal(made.points, points[:, :2])
    assert made.status == flat.status and made.covariance is None
    np.testing.assert_array_equal(made.score, flat.score)
    assert in_plane(made) is made
    raised = flat.with_points(np.where(np.isfinite(points), points + [0, 0, 1e-6], np.nan))
    assert in_plane(raised) is raised
    assert replace(flat, covariance=None).ndim == 3
