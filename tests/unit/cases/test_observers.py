"""Several observers as one truth: habits go, errors are averaged, what is not known stays so."""

from __future__ import annotations

import numpy as np
import pytest

from anatomark.cases.observers import FEWEST, combined
from anatomark.core.landmarks import Landmarks, Status

NAMES = ("a", "b", "c")
HABITS = np.array([[3.0, 0.0], [0.0, -2.0], [1.5, 1.5]])  # the other's points minus the named one's
UNKNOWN = [np.nan, np.nan]


def marked(points: np.ndarray, names: tuple[str, ...] = NAMES) -> Landmarks:
    return Landmarks(names, points)


def truths(cases: int) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.uniform(0, 100, (3, 2)) for _ in range(cases)]


def points(made: list[Landmarks]) -> np.ndarray:
    return np.stack([m.points for m in made])


def test_a_pure_habit_is_removed_exactly_and_the_named_one_decides_where() -> None:
    places = truths(FEWEST)
    made = combined([marked(p) for p in places], [{"other": marked(p + HABITS)} for p in places])
    np.testing.assert_allclose(points(made), np.stack(places), atol=1e-9)


def test_errors_are_averaged_over_all_observers() -> None:
    places = truths(9)
    off = np.zeros((9, 3, 2))
    off[2, 0] = [0.6, -0.9]  # one slip each leaves the medians as they are
    off[4, 1] = [-1.2, 0.3]
    others = [
        {"junior": marked(p + HABITS + e), "third": marked(p - 2 * HABITS)} for p, e in zip(places, off, strict=True)
    ]
    made = combined([marked(p) for p in places], others)
    np.testing.assert_allclose(points(made) - np.stack(places), off / 3, atol=1e-9)


def test_two_equally_careful_observers_have_half_the_variance() -> None:
    rng, places = np.random.default_rng(0), truths(400)
    named = [marked(p + rng.normal(0, 1, p.shape)) for p in places]
    others = [{"other": marked(p + HABITS + rng.normal(0, 1, p.shape))} for p in places]
    left = points(combined(named, others)) - np.stack(places)
    assert np.abs(left.mean(0)).max() < 0.2  # no habit is left
    assert left.var() == pytest.approx(0.5, abs=0.05)


def test_what_an_observer_did_not_mark() -> None:
    places = truths(FEWEST + 2)
    named, others = [marked(p) for p in places], [{"other": marked(p + HABITS + 0.0)} for p in places]
    lost, slip = places[0].copy(), places[1] + HABITS
    lost[1] = UNKNOWN
    named[0] = marked(lost)
    slip[2] = UNKNOWN
    others[1] = {"other": marked(slip)}
    others[2] = {"other": marked((places[2] + HABITS)[[2, 0]], ("c", "a"))}  # another order, without b
    others[3] = {}
    named[4] = Landmarks(NAMES, places[4], (Status.DEFINED, Status.ABSENT, Status.DEFINED))
    made = combined(named, others)
    assert not made[0].defined[1] and made[0].defined[[0, 2]].all()  # the other's word alone makes no point
    assert made[4].status[1] is Status.ABSENT
    for got, own in zip(made, named, strict=True):
        assert got.names == NAMES and got.status == own.status
        np.testing.assert_allclose(got.points, own.points, atol=1e-9)


@pytest.mark.parametrize("known", [FEWEST - 1, FEWEST])
def test_with_too_few_cases_in_common_the_other_is_left_out(known: int) -> None:
    places = truths(8)
    slip = np.array([4.0, 0.0])
    others = []
    for i, p in enumerate(places):
        theirs = p + HABITS
        theirs[0] += slip * (i == 0)
        theirs[0] = UNKNOWN if i >= known else theirs[0]
        others.append({"other": marked(theirs)})
    made = combined([marked(p) for p in places], others)
    moved = made[0].points[0] - places[0][0]
    np.testing.assert_allclose(moved, slip / 2 if known == FEWEST else 0, atol=1e-9)
    np.testing.assert_allclose(points(made)[:, 1:], np.stack(places)[:, 1:], atol=1e-9)
