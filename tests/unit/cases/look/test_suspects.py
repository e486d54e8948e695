"""Suspect annotations: planted errors are found and named, clean data stay quiet."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from anatomark.cases.look.relabel import hungarian
from anatomark.cases.look.suspects import Suspect, Verdict, disagreements, suspects
from anatomark.core.grid import Grid
from anatomark.core.landmarks import Landmarks
from anatomark.core.shape import random_rotation

SIZES = [(8, 19, 2, 180.0), (12, 16, 3, 180.0), (16, 24, 3, 20.0)]


def _cohort(seed: int, cases: int, points: int, d: int, turned: float = 180.0) -> np.ndarray:
    """Synthetic shapes (M, N, D): a base, two modes of variation, noise of 0.6 mm, a similarity each."""
    rng = np.random.default_rng(seed)
    base, modes = rng.normal(size=(points, d)) * 30, rng.normal(size=(2, points, d))
    out = []
    for _ in range(cases):
        shape = base + np.tensordot(rng.normal(size=2) * 1.5, modes, 1) + rng.normal(size=(points, d)) * 0.6
        out.append(shape @ random_rotation(rng, d, turned).T * rng.uniform(0.85, 1.15) + rng.normal(size=d) * 20)
    return np.stack(out)


def _names(n: int) -> tuple[str, ...]:
    return tuple(f"p{i}" for i in range(n))


def _look(shapes: np.ndarray, **more: object) -> Verdict:
    marks = [Landmarks(_names(shapes.shape[1]), shape) for shape in shapes]
    return suspects([f"c{m}" for m in range(len(shapes))], marks, **more)  # type: ignore[arg-type]


def _of(verdict: Verdict, case: str, kind: str) -> list[Suspect]:
    return [s for s in verdict.suspects if s.case == case and s.kind == kind]


def test_clean_shapes_give_few_false_alarms() -> None:
    flagged = judged = 0
    for seed, size in itertools.product(range(3), SIZES):
        verdict = _look(_cohort(seed, *size))
        assert verdict.note == "" and np.isfinite(verdict.residual_mm).all()
        assert {s.kind for s in verdict.suspects} <= {"point"}
        flagged, judged = flagged + len(verdict.suspects), judged + verdict.residual_mm.size
    assert flagged / judged <= 0.01


@pytest.mark.parametrize("size", SIZES)
def test_a_displaced_point_is_found_with_its_place(size: tuple[int, int, int, float]) -> None:
    for seed in range(2):
        shapes = _cohort(seed, *size)
        shapes[3, 5] += np.eye(size[2])[0] * 25
        before = shapes[3, 5] - np.eye(size[2])[0] * 25
        (one,) = [s for s in _of(_look(shapes), "c3", "point") if s.labels == ("p5",)]
        assert one.found_mm == pytest.approx(25, abs=8) and one.typical_mm is not None and one.typical_mm < 6
        assert one.expected is not None and np.linalg.norm(np.array(one.expected) - before) < 8


@pytest.mark.parametrize("size", SIZES)
def test_two_swapped_labels_are_named(size: tuple[int, int, int, float]) -> None:
    for seed in range(2):
        shapes = _cohort(seed, *size)
        shapes[2, [4, 9]] = shapes[2, [9, 4]]
        verdict = _look(shapes)
        assert [s.labels for s in _of(verdict, "c2", "swap")] == [("p4", "p9")]
        assert not [s for s in _of(verdict, "c2", "point") if set(s.labels) & {"p4", "p9"}]
        assert np.nanmax(verdict.residual_mm[2]) < 15  # judged with the labels put right


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("how", ["shifted", "reversed", "shuffled", "sorted as text"])
def test_a_wrong_order_is_found_and_undone(size: tuple[int, int, int, float], how: str) -> None:
    shapes, n = _cohort(4, *size), size[1]
    order = {
        "shifted": np.roll(np.arange(n), 1),
        "reversed": np.arange(n)[::-1],
        "shuffled": np.random.default_rng(0).permutation(n),
        "sorted as text": np.array(sorted(range(n), key=str)),
    }[how]
    shapes[1] = shapes[1][order]
    verdict = _look(shapes)
    said = {label for s in verdict.suspects if s.case == "c1" and s.kind in ("order", "swap") for label in s.labels}
    wrong = {f"p{i}" for i in np.flatnonzero(order != np.arange(n))}
    assert said <= wrong and len(wrong - said) <= 1  # one of two points 4 mm apart may be taken for the other
    assert np.nanmedian(verdict.residual_mm[1]) < 3 * np.nanmedian(verdict.residual_mm)


def test_a_left_out_label_that_shifts_the_rest_is_an_order_error() -> None:
    shapes = _cohort(1, 12, 16, 3)
    shapes[5, 8:-1] = shapes[5, 9:].copy()
    shapes[5, -1] = np.nan
    (one,) = _of(_look(shapes), "c5", "order")
    assert set(one.labels) == {f"p{i}" for i in range(8, 16)} and "p8 is p9" in one.message


@pytest.mark.parametrize("size", SIZES)
def test_a_mirrored_case_is_found(size: tuple[int, int, int, float]) -> None:
    shapes = _cohort(2, *size)
    shapes[6, :, 0] *= -1
    verdict = _look(shapes)
    assert _of(verdict, "c6", "mirror") and not _of(verdict, "c6", "point")


def test_a_case_in_ras_is_found_where_all_others_stand_alike() -> None:
    shapes = _cohort(3, 10, 16, 3, turned=15.0)
    assert not [s for s in _look(shapes).suspects if s.kind == "frame"]
    shapes[7] *= [-1, -1, 1]
    assert [s.case for s in _look(shapes).suspects if s.kind == "frame"] == ["c7"]
    anyhow = _cohort(3, 10, 16, 3, turned=180.0)
    anyhow[7] *= [-1, -1, 1]
    assert not [s for s in _look(anyhow).suspects if s.kind == "frame"]  # nobody can tell


def test_a_case_that_lies_the_other_way_in_its_image_is_no_wrong_frame() -> None:
    shapes = _cohort(3, 10, 16, 3, turned=15.0)
    shapes[7] *= [-1, -1, 1]
    away = np.array([400.0, 400, 0])
    grids = [Grid.centred((80, 80, 80), np.eye(3) * 5, tuple(at)) for at in np.zeros((10, 3)) + away]
    assert not [s for s in _look(shapes + away, grids=grids).suspects if s.kind == "frame"]
    grids = [Grid.centred((80, 80, 80), np.eye(3) * 5, (0.0, 0, 0))] * 10  # either way inside: it may be the frame
    assert [s.case for s in _look(shapes, grids=grids).suspects if s.kind == "frame"] == ["c7"]


def test_points_outside_the_image_that_ras_puts_inside() -> None:
    shapes = _cohort(0, 2, 10, 3, turned=0.1)
    grids = [Grid.centred((60, 60, 60), np.eye(3) * 5, (400.0, 400, 0))] * 2
    shapes[0] += [400, 400, 0]
    shapes[1] += [-400, -400, 0]
    verdict = _look(shapes, grids=grids)
    assert [(s.case, s.kind) for s in verdict.suspects] == [("c1", "frame")] and "too few" in verdict.note


def test_one_place_under_two_labels_and_one_file_for_two_cases() -> None:
    shapes = _cohort(5, 9, 16, 3)
    shapes[1, 3] = shapes[1, 10]
    shapes[8] = shapes[4]
    verdict = _look(shapes)
    (one,) = _of(verdict, "c1", "duplicate")
    assert one.labels == ("p3", "p10")
    assert "as c4" in _of(verdict, "c8", "copy")[0].message
    assert [s.kind for s in verdict.suspects].count("duplicate") == 1


def test_labels_that_always_coincide_are_no_error() -> None:
    shapes = _cohort(5, 9, 16, 3)
    shapes[:, 3] = shapes[:, 10]
    assert not [s for s in _look(shapes).suspects if s.kind == "duplicate"]


def test_a_label_that_is_placed_anyhow_is_named() -> None:
    shapes = _cohort(6, 14, 20, 3)
    shapes[:, 7] += np.random.default_rng(0).normal(size=(14, 3)) * 12
    assert ("p7",) in [s.labels for s in _look(shapes).suspects if s.kind == "landmark"]


@pytest.mark.parametrize("cases", [1, 2, 3, 4])
def test_few_cases_are_not_judged_but_duplicates_are_seen(cases: int) -> None:
    shapes = _cohort(7, cases, 12, 3)
    shapes[0, 2] += 200
    shapes[-1, 4] = shapes[-1, 5]
    verdict = _look(shapes)
    assert "too few to judge" in verdict.note and np.isnan(verdict.residual_mm).all()
    assert [(s.case, s.kind, s.labels) for s in verdict.suspects] == [(f"c{cases - 1}", "duplicate", ("p4", "p5"))]


def test_missing_points_do_not_disturb() -> None:
    shapes = _cohort(8, 12, 16, 3)
    gone = np.random.default_rng(0).random(shapes.shape[:2]) < 0.15
    gone[3, 5] = False
    shapes[gone] = np.nan
    shapes[:, 11] = np.nan  # nobody marked it
    shapes[9, 3:] = np.nan  # too few points to pose this case
    shapes[3, 5, 0] += 40
    verdict = _look(shapes)
    assert [s.labels for s in _of(verdict, "c3", "point")] == [("p5",)]
    assert np.isnan(verdict.residual_mm[:, 11]).all() and np.isnan(verdict.residual_mm[9]).all()
    assert len(verdict.suspects) <= 3


def test_disagreeing_observers_are_told_by_landmark() -> None:
    rng = np.random.default_rng(0)
    cases = []
    for shape in _cohort(9, 20, 10, 2):
        other = shape + rng.normal(size=shape.shape)
        other[6] += 9
        cases.append([Landmarks(_names(10), shape), Landmarks(_names(10), other)])
    mean, found = disagreements(cases)
    assert mean["p6"] == pytest.approx(9 * np.sqrt(2), abs=1) and mean["p1"] < 2
    assert [(s.kind, s.labels) for s in found] == [("observers", ("p6",))]
    assert disagreements([case[:1] for case in cases]) == ({}, [])


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="2 case names"):
        suspects(["a", "b"], [Landmarks(("x",), [[0, 0]])])


@pytest.mark.parametrize("seed", range(20))
def test_hungarian_finds_the_least_cost(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = int(rng.integers(1, 6))
    cost = rng.integers(0, 9, (rows, rows + int(rng.integers(0, 3)))).astype(float)
    best = min(
        sum(cost[i, j] for i, j in enumerate(columns)) for columns in itertools.permutations(range(cost.shape[1]), rows)
    )
    found = hungarian(cost)
    assert len(set(found.tolist())) == rows and cost[np.arange(rows), found].sum() == best
