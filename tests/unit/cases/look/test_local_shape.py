"""The local shape model: long bent chains of alike parts, in which one part was marked elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from anatomark.cases.case import Case
from anatomark.cases.division import Division
from anatomark.cases.look.distrust import certain_errors, left_out_lines, remark, without_certain_errors
from anatomark.cases.look.local_shape import LocalShape, similarities
from anatomark.cases.look.medians import nanmedian
from anatomark.cases.look.suspects import suspects
from anatomark.core.landmarks import Landmarks
from anatomark.core.shape import procrustes, random_rotation

PARTS = 9
NAMES = tuple(f"V{i}-{c}" for i in range(PARTS) for c in "abcd")


def chains(count: int, seed: int = 0) -> np.ndarray:
    """(M, 36, 2) mm: nine vertebrae of four corners, 36 apart, along a curve that bends another way in each case."""
    rng = np.random.default_rng(seed)
    corners = np.array([[-20, -12], [20, -12], [-20, 12], [20, 12.0]])
    out = []
    for _ in range(count):
        turns = np.cumsum(rng.normal(size=PARTS) * 0.08) + rng.normal() * 0.2
        at = np.cumsum(36 * np.stack([np.sin(turns), np.cos(turns)], 1), 0)
        rotations = [np.array([[np.cos(t), np.sin(t)], [-np.sin(t), np.cos(t)]]) for t in turns]
        shape = np.concatenate([a + corners @ r.T for a, r in zip(at, rotations, strict=True)])
        out.append(shape * rng.uniform(0.9, 1.1) + rng.normal(size=shape.shape) + rng.normal(size=2) * 30)
    return np.stack(out)


def named(shapes: np.ndarray) -> dict[str, set[str]]:
    """The labels named of each case."""
    found = suspects([f"c{m}" for m in range(len(shapes))], [Landmarks(NAMES, s) for s in shapes]).suspects
    return {case: {n for s in found if s.case == case for n in s.labels} for case in {s.case for s in found}}


@pytest.mark.parametrize("count", [8, 60])
def test_a_vertebra_elsewhere_is_found_in_a_chain_that_bends(count: int) -> None:
    shapes = chains(count)
    shapes[2, -4:] -= [0, 250]  # the last one, up among the first
    shapes[5, 16:20] += [110, 0]
    found = named(shapes)
    assert found.pop("c2") == set(NAMES[-4:]) and found.pop("c5") == set(NAMES[16:20])
    assert len(found) <= count / 20


def test_a_vertebra_that_was_marked_twice_is_found() -> None:
    shapes = chains(40)
    shapes[7, 20:24] = shapes[7, 24:28] + np.random.default_rng(1).normal(size=(4, 2))
    found = named(shapes)
    assert found.pop("c7") & set(NAMES[20:28]) and len(found) <= 2
    at_one_place = LocalShape.learn(shapes).together(shapes)
    assert at_one_place[7, 20:28].any(1).all() and not np.delete(at_one_place, 7, 0).any()


def test_clean_chains_are_left_alone() -> None:
    assert sum(len(named(chains(count, seed))) for count, seed in ((5, 1), (10, 2), (40, 3))) <= 2


def test_certain_errors_are_the_gross_ones_alone() -> None:
    shapes = chains(30)
    shapes[4, 8:12] += [0, 150]
    shapes[9] = np.random.default_rng(0).permutation(shapes[9])
    shapes[11, 3] += [14, 0]  # suspect at best
    shapes[13, 2] = np.nan
    wrong = certain_errors(shapes)
    assert wrong[4].nonzero()[0].tolist() == [8, 9, 10, 11] and wrong[9].all()
    assert not np.delete(wrong, [4, 9], 0).any()


def test_too_few_cases_leave_nothing_out() -> None:
    shapes = chains(4)
    shapes[1, :4] += 400
    assert not certain_errors(shapes).any()


@pytest.mark.parametrize("d", [2, 3])
def test_similarities_agree_with_procrustes(d: int) -> None:
    rng = np.random.default_rng(d)
    source, weights = rng.normal(size=(7, d)), rng.uniform(0.1, 1, (5, 7))
    targets = np.stack([2 * source @ random_rotation(rng, d).T + rng.normal(size=(7, d)) for _ in range(5)])
    targets[1, 2] = np.nan
    poses = similarities(source, targets, weights)
    for one, target, w, applied in zip(poses.each(), targets, weights, poses.apply(source), strict=True):
        assert np.allclose(one.apply(source), procrustes(source, target, w).apply(source), atol=1e-9)
        assert np.allclose(one.apply(source), applied)
    assert np.allclose(poses.invert(poses.apply(source)), source)


def test_a_prediction_does_not_see_its_own_point() -> None:
    shapes = chains(12)
    model = LocalShape.learn(shapes)
    moved = shapes[:1].copy()
    moved[0, 13] += 500
    before, after = model.predict(shapes[:1])[0], model.predict(moved)[0]
    assert np.abs(before[13] - after[13]).max() < 1 and np.abs(before - after).max() < 8


def test_nanmedian_is_numpys() -> None:
    values = np.random.default_rng(0).normal(size=(5, 6, 4))
    values[np.random.default_rng(1).random(values.shape) < 0.3] = np.nan
    for axis in range(3):
        assert np.array_equal(nanmedian(values, axis), np.nanmedian(values, axis), equal_nan=True)
    assert np.isnan(nanmedian(np.full((2, 3), np.nan), 1)).all()


def division(shapes: np.ndarray, training: int) -> Division:
    cases = tuple(Case(f"c{m}", given=Landmarks(NAMES, shape)) for m, shape in enumerate(shapes))
    return Division(cases[:training], cases[training:], NAMES, "val split")


def test_a_division_without_its_certain_errors() -> None:
    shapes = chains(12)
    shapes[3, :4] += 300  # of training
    shapes[5] = np.random.default_rng(0).permutation(shapes[5])
    shapes[10, 8:10] += 200  # of validation
    kept = without_certain_errors(division(shapes, 9))
    assert {c: set(names) for c, names in kept.left_out_points.items()} == {
        "c3": set(NAMES[:4]),
        "c5": set(NAMES),
        "c10": set(NAMES[8:10]),
    }
    assert [c.id for c in kept.train] == ["c0", "c1", "c2", "c3", "c4", "c6", "c7", "c8"] and kept.left_out == ("c5",)
    assert kept.train[3].landmarks.defined.tolist() == [False] * 4 + [True] * 32
    assert kept.val[1].landmarks.defined.sum() == 34 and kept.val[0] is not kept.val[1]
    assert "42 points of 3 cases left out as certainly wrong" in kept.describe()
    assert left_out_lines(kept, 1)[0] == "left out as certainly wrong: c3: V0-a, V0-b, V0-c, V0-d"
    assert left_out_lines(kept, 1)[1] == "and points of 2 more cases"
    clean = division(chains(12), 9)
    assert without_certain_errors(clean).train == clean.train


def test_an_evaluation_remarks_on_what_is_certainly_wrong() -> None:
    shapes = chains(12)
    shapes[10, 8:10] += 200
    one = division(shapes, 9)
    assert (
        remark(one.val, one.train) == "2 points of 1 case (c10: V2-a, V2-b) lie far from where other cases have them."
    )
    assert remark(one.train, one.train) == "" and remark(one.val[:1], ()) == ""
