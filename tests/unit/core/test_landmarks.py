"""Landmarks: what is known of a point, names as identity."""

from __future__ import annotations

import numpy as np
import pytest

from anatomark.core.landmarks import Landmarks, Status, common_names
from anatomark.errors import InputError

NAN = float("nan")


def test_status_follows_from_the_points() -> None:
    marks = Landmarks(("a", "b", "c"), [[1, 2], [NAN, 3], [np.inf, 0]])
    assert marks.status == (Status.DEFINED, Status.UNANNOTATED, Status.UNANNOTATED)
    assert marks.defined.tolist() == [True, False, False]
    assert np.isnan(marks.points[1:]).all() and marks.ndim == 2 and len(marks) == 3


def test_a_point_that_is_not_defined_has_no_position() -> None:
    marks = Landmarks(("a", "b", "c"), np.ones((3, 3)), ("absent", "unannotated", "defined"))
    assert marks.absent.tolist() == [True, False, False]
    assert marks.defined.tolist() == [False, False, True]
    assert marks.status == (Status.ABSENT, Status.UNANNOTATED, Status.DEFINED)
    assert np.isnan(marks.points[:2]).all() and marks["c"].tolist() == [1, 1, 1]


def test_a_defined_point_needs_a_position() -> None:
    with pytest.raises(ValueError, match="'a' is marked defined"):
        Landmarks(("a",), [[1, NAN, 2]], ("defined",))


def test_names_are_distinct() -> None:
    with pytest.raises(InputError, match="'b' appears more than once"):
        Landmarks(("a", "b", "b"), np.zeros((3, 2)))


@pytest.mark.parametrize(
    ("names", "points", "more"),
    [
        (("a",), np.zeros((2, 3)), {}),
        (("a",), np.zeros((1, 4)), {}),
        (("a",), np.zeros(3), {}),
        (("a", "b"), np.zeros((2, 3)), {"status": ("defined",)}),
        (("a", "b"), np.zeros((2, 3)), {"status": ("defined", "lost")}),
        (("a", "b"), np.zeros((2, 3)), {"score": np.zeros(3)}),
        (("a", "b"), np.zeros((2, 3)), {"covariance": np.zeros((2, 2, 2))}),
        (("a", "b"), np.zeros((2, 3)), {"radius90": np.zeros((2, 1))}),
        (("a", "b"), np.zeros((2, 3)), {"descriptions": ("one",)}),
    ],
)
def test_what_does_not_fit_together_is_refused(names: tuple[str, ...], points: np.ndarray, more: dict) -> None:
    with pytest.raises(ValueError):
        Landmarks(names, points, **more)


def test_select_orders_by_name_and_marks_the_unknown() -> None:
    marks = Landmarks(
        ("a", "b", "c"),
        [[1, 2], [NAN, NAN], [5, 6]],
        ("defined", "absent", "defined"),
        score=np.array([0.1, 0.2, 0.3]),
        covariance=np.stack([np.eye(2) * k for k in (1, 2, 3)]),
        radius90=np.array([1.0, 2, 3]),
        descriptions=("A", "B", "C"),
        meta={"unit": "mm"},
    )
    some = marks.select(("c", "z", "b"))
    assert some.names == ("c", "z", "b") and some.descriptions == ("C", "", "B") and some.meta == {"unit": "mm"}
    assert some.status == (Status.DEFINED, Status.UNANNOTATED, Status.ABSENT)
    np.testing.assert_equal(some.points, [[5, 6], [NAN, NAN], [NAN, NAN]])
    np.testing.assert_equal(some.score, [0.3, NAN, 0.2])
    np.testing.assert_equal(some.radius90, [3, NAN, 2])
    np.testing.assert_equal(some.covariance[0], np.eye(2) * 3)
    assert len(marks.select(())) == 0 and marks.select(()).ndim == 2


def test_an_unknown_name_names_its_neighbour() -> None:
    marks = Landmarks(("nasion", "sella"), np.zeros((2, 2)))
    with pytest.raises(KeyError, match="did you mean 'nasion'"):
        marks["nasoin"]


def test_errors_go_by_name_and_skip_what_is_unknown() -> None:
    found = Landmarks(("a", "b", "c", "d"), [[0, 0, 0], [1, 1, 1], [2, 2, 2], [NAN] * 3])
    truth = Landmarks(("d", "c", "a"), [[9, 9, 9], [NAN] * 3, [3, 4, 0]], ("defined", "absent", "defined"))
    np.testing.assert_equal(found.errors_to(truth), [5, NAN, NAN, NAN])


def test_the_callers_array_is_not_shared() -> None:
    points = np.zeros((2, 2))
    marks = Landmarks(("a", "b"), points, ("defined", "absent"))
    assert np.isfinite(points).all()
    points[:] = 7
    assert marks["a"].tolist() == [0, 0]


def test_with_points_and_common_names() -> None:
    one = Landmarks(("b", "a"), [(1, 2), (3, 4)])
    assert one.names == ("b", "a") and one.with_points([[0, 0], [1, 1]])["a"].tolist() == [1, 1]
    two = Landmarks(("c", "a"), [(1, 2), (3, 4)])
    assert common_names([one, two]) == ("b", "a", "c")
