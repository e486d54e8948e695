"""Metrics: definitions on small cases done by hand, and what must not change them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anatomark.core.landmarks import Landmarks, Status
from anatomark.core.shape import Pose, random_rotation
from anatomark.errors import InputError
from anatomark.evaluation import metrics
from anatomark.evaluation.metrics import (
    Outcome,
    area_under_roc,
    between_observers,
    compare,
    mean_shape_baselines,
    statistics,
)

NAMES = ("a", "b", "c")


def landmarks(points: list[list[float] | None], status: tuple[Status, ...] = (), **more: object) -> Landmarks:
    filled = [[np.nan] * 3 if p is None else p for p in points]
    return Landmarks(NAMES[: len(points)], np.array(filled, float), status, **more)  # type: ignore[arg-type]


def moved(one: Landmarks, distances: list[float]) -> Landmarks:
    return one.with_points(one.points + np.array(distances)[:, None] * [[1.0, 0.0, 0.0]])


TRUTH = landmarks([[0, 0, 0], [10, 0, 0], [0, 10, 0]])


def test_figures_by_hand() -> None:
    truth = {"p": TRUTH, "q": TRUTH}
    errors = compare(truth, {"p": moved(TRUTH, [1, 2, 3]), "q": moved(TRUTH, [2, 4, 8])}, NAMES)
    found = statistics(errors, thresholds=(2, 4))
    pool = [1, 2, 3, 2, 4, 8]
    assert found.mre_mm == pytest.approx(20 / 6)
    assert found.sd_mm == pytest.approx(np.std(pool, ddof=1))
    assert found.median_mm == pytest.approx(2.5)
    assert found.p95_mm == pytest.approx(np.percentile(pool, 95))
    assert found.max_mm == pytest.approx(8)
    assert found.sdr == {"2": pytest.approx(3 / 6), "4": pytest.approx(5 / 6)}
    assert errors.case_error.tolist() == pytest.approx([2, 14 / 3])
    assert statistics(errors, ["b"]).mre_mm == pytest.approx(3)
    assert errors.ranking() == [0, 1]


def test_an_error_on_the_threshold_is_a_success_in_spite_of_rounding() -> None:
    truth = landmarks([[0.1, 0.2, 0.3]])
    guess = landmarks([[0.1 + 2.0, 0.2, 0.3]])
    assert float(guess.errors_to(truth)[0]) >= 2.0
    assert statistics(compare({"p": truth}, {"p": guess}, ["a"])).sdr["2"] == 1


def test_states_of_truth_and_prediction() -> None:
    d, a, u = Status.DEFINED, Status.ABSENT, Status.UNANNOTATED
    point: list[float] = [1, 1, 1]
    truth = {
        "defined": landmarks([point, point, point]),
        "absent": landmarks([None, None, None], (a, a, a)),
        "unknown": landmarks([None, None, None], (u, u, u)),
    }
    guess = landmarks([point, None, None], (d, a, u))
    errors = compare(truth, dict.fromkeys(truth, guess), NAMES)
    assert errors.outcome[0].tolist() == [Outcome.LOCATED, Outcome.FALSE_ABSENCE, Outcome.FALSE_ABSENCE]
    assert errors.outcome[1].tolist() == [Outcome.FALSE_PRESENCE, Outcome.ABSENT, Outcome.ABSENT]
    assert set(errors.outcome[2].tolist()) == {Outcome.UNSCORED}
    found = statistics(errors)
    assert (found.pairs, found.located, found.failures, found.false_presences) == (3, 1, 2, 1)
    assert found.mre_mm == 0 and found.sdr["2"] == pytest.approx(1 / 3)
    assert (found.absent, found.false_absences, errors.failures(0)) == (3, 2, 2)
    assert found.absence_recall == pytest.approx(2 / 3) and found.absence_precision == pytest.approx(2 / 4)


def test_a_case_without_prediction_says_nothing_of_absence() -> None:
    truth = {
        "p": landmarks([[1, 1, 1], None, None], (Status.DEFINED, Status.ABSENT, Status.UNANNOTATED)),
        "q": landmarks([None, [1, 1, 1], [2, 2, 2]], (Status.ABSENT, Status.DEFINED, Status.DEFINED)),
    }
    found = compare(truth, {"p": landmarks([[1, 1, 1], None, None]), "q": None}, NAMES)
    assert found.outcome[1].tolist() == [Outcome.UNSCORED, Outcome.MISSED, Outcome.MISSED]
    figures = statistics(found)
    assert (figures.absent, figures.false_absences, figures.failures) == (1, 0, 2)
    assert (figures.absence_recall, figures.absence_precision) == (1, 1)
    present = statistics(compare({"p": TRUTH}, {"p": landmarks([[0, 0, 0], None, None])}, NAMES))
    assert (present.absence_recall, present.absence_precision, present.false_absences) == (None, None, 2)


def test_a_case_or_name_without_prediction_is_a_failure() -> None:
    errors = compare({"p": TRUTH, "q": TRUTH}, {"p": TRUTH.select(["b"]), "q": None}, NAMES)
    found = statistics(errors)
    assert (found.pairs, found.failures, found.mre_mm) == (6, 5, 0)
    assert np.isnan(errors.case_error[1]) and errors.ranking() == [0, 1]


def test_nothing_located_gives_no_figures_but_failures() -> None:
    found = statistics(compare({"p": TRUTH}, {"p": None}, NAMES))
    assert found.mre_mm is None and found.median_mm is None and found.mre_ci95_mm is None and found.sdr["2"] == 0


def test_order_of_names_does_not_matter() -> None:
    guess = moved(TRUTH, [1, 2, 3])
    assert compare({"p": TRUTH}, {"p": guess.select(["c", "a", "b"])}, NAMES).error[0].tolist() == [1, 2, 3]


def test_another_dimension_is_refused() -> None:
    with pytest.raises(InputError, match="case p: the prediction is 2D, expected 3D"):
        compare({"p": TRUTH}, {"p": Landmarks(("a",), np.zeros((1, 2)))}, NAMES)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_common_rigid_motion_changes_no_metric(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = {c: landmarks(rng.normal(size=(3, 3)).tolist()) for c in "pqr"}
    guess = {c: t.with_points(t.points + rng.normal(size=(3, 3))) for c, t in truth.items()}
    pose = Pose(random_rotation(rng, 3), rng.normal(0, 100, 3))

    def carried(group: dict[str, Landmarks]) -> dict[str, Landmarks]:
        return {c: one.with_points(pose.apply(one.points)) for c, one in group.items()}

    before, after = compare(truth, guess, NAMES), compare(carried(truth), carried(guess), NAMES)
    assert np.allclose(before.error, after.error, atol=1e-9)
    assert statistics(before, samples=50).mre_ci95_mm == pytest.approx(
        statistics(after, samples=50).mre_ci95_mm, abs=1e-9
    )


def test_bootstrap_draws_cases_not_pairs() -> None:
    # within a case all errors agree, so the interval must be that of 8 values, not of 8 x 3
    rng = np.random.default_rng(1)
    truth = {str(i): TRUTH for i in range(8)}
    levels = rng.gamma(2, 1, 8)
    errors = compare(truth, {str(i): moved(TRUTH, [levels[i]] * 3) for i in range(8)}, NAMES)
    low, high = statistics(errors).mre_ci95_mm or (0, 0)
    again = statistics(errors).mre_ci95_mm
    direct = np.random.default_rng(5).choice(levels, (20_000, 8)).mean(1)
    assert (low, high) == again
    assert low == pytest.approx(np.percentile(direct, 2.5), rel=0.06)
    assert high == pytest.approx(np.percentile(direct, 97.5), rel=0.06)
    assert statistics(errors, seed=1).mre_ci95_mm != again


def test_one_case_has_no_interval() -> None:
    found = statistics(compare({"p": TRUTH}, {"p": moved(TRUTH, [1, 1, 1])}, NAMES))
    assert found.mre_ci95_mm is None and found.sdr_ci95 == {}


def test_share_inside_the_predicted_radius() -> None:
    guess = landmarks(moved(TRUTH, [1, 2, 3]).points.tolist(), radius90=np.array([1.5, 1.5, np.nan]))
    assert statistics(compare({"p": TRUTH}, {"p": guess}, NAMES)).covered90 == 0.5


def test_mean_shape_baselines() -> None:
    rng = np.random.default_rng(0)
    shape = rng.normal(0, 20, (3, 3))
    train = [landmarks((shape + shift).tolist()) for shift in (0, 2, 4)]
    pose = Pose(random_rotation(rng, 3), np.array([100.0, 50.0, 0.0]))
    truth = {"rigid": landmarks(pose.apply(shape).tolist()), "scaled": landmarks((1.5 * pose.apply(shape)).tolist())}
    found = mean_shape_baselines(train, truth)
    assert np.allclose(found["mean position"]["rigid"].points, shape + 2)
    rigid = compare(truth, found["mean shape, perfect rigid pose"], NAMES).case_error
    similar = compare(truth, found["mean shape, perfect similarity"], NAMES).case_error
    assert rigid[0] < 1e-6 and rigid[1] > 1 and similar.max() < 1e-6
    assert mean_shape_baselines([], truth) == {}


def test_mean_position_leaves_out_what_is_not_annotated() -> None:
    train = [landmarks([[0, 0, 0], None]), landmarks([[2, 0, 0], [5, 5, 5]])]
    found = mean_shape_baselines(train, {"p": TRUTH})["mean position"]["p"]
    assert found["a"].tolist() == [1, 0, 0] and found["b"].tolist() == [5, 5, 5] and found.names == ("a", "b")


def test_between_observers() -> None:
    other = moved(TRUTH, [1, 2, 3]).select(["a", "b"])
    pairs = between_observers({"p": {"senior": TRUTH, "junior": other}, "q": {"senior": TRUTH}}, NAMES)
    assert list(pairs) == ["senior - junior"]
    found = statistics(pairs["senior - junior"])
    assert (found.pairs, found.failures, found.mre_mm) == (2, 0, pytest.approx(1.5))


def test_area_under_the_curve() -> None:
    bad = np.array([False, False, True, True])
    assert area_under_roc(np.array([1, 2, 3, 4.0]), bad) == 1
    assert area_under_roc(np.array([4, 3, 2, 1.0]), bad) == 0
    assert area_under_roc(np.array([1, 1, 1, 1.0]), bad) == 0.5
    assert area_under_roc(np.array([1, 3, 2, np.inf]), bad) == 0.75
    assert area_under_roc(np.array([np.inf, np.inf, 1, 1]), np.array([True, False, True, False])) == 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(area_under_roc(np.arange(4.0), np.zeros(4, bool)))
        assert np.isnan(area_under_roc(np.arange(4.0), np.ones(4, bool)))


def test_a_bootstrap_in_parts_is_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    for cases in (0, 1, 2, 7):
        whole = metrics.draws(cases, 50, seed=3)
        for numbers in (1, 20, 10_000):
            monkeypatch.setattr(metrics, "DRAWN_AT_ONCE", numbers)
            parts = [*metrics.draws_in_parts(cases, 50, seed=3)]
            assert np.array_equal(np.concatenate(parts), whole)
            assert max(part.size for part in parts) <= max(numbers, cases)


def test_ties_count_half_in_the_area_under_the_curve() -> None:
    rng = np.random.default_rng(0)
    suspicion, bad = rng.integers(0, 5, 60).astype(float), rng.random(60) < 0.3
    pairs = [(x > y) + 0.5 * (x == y) for x in suspicion[bad] for y in suspicion[~bad]]
    assert metrics.area_under_roc(suspicion, bad) == pytest.approx(np.mean(pairs))
