"""Uncertainty, reasons, classes and agreement of measurements."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from anatomark.core.landmarks import Landmarks, Status
from anatomark.errors import InputError
from anatomark.tools.measure.agreement import NOT_MEASURED, compare
from anatomark.tools.measure.geometry import evaluate
from anatomark.tools.measure.measured import (
    LARGE,
    OPEN,
    SIGN_OPEN,
    class_probability,
    measure_landmarks,
    scaled_to_radius,
)
from anatomark.tools.measure.schema import Measurements

KINDS: dict[str, dict[str, Any]] = {
    "distance": {"distance": ["a", {"b": 1, "c": 2}]},
    "angle": {"angle": ["a", "b", "c"]},
    "turn": {"angle_between": [["a", "b"], ["c", "d"]], "towards": ["a", "d"]},
    "ratio": {"ratio": [["a", "b"], ["b", "c"]]},
    "projection": {"projection": {"line": ["a", "b"], "along": ["c", "d"]}},
    "line": {"point_line": {"point": "a", "line": ["b", "c"]}, "side": "d"},
    "sum": {"sum": ["angle", "turn"]},
    "plane": {"point_plane": {"point": "a", "plane": ["b", "c", "d"]}},
}
POINTS = np.array([[0, 0, 0], [60, 5, -8], [33, 50, 10], [-10, 42, -39]], dtype=np.float64)


def _define(**measurements: Any) -> Measurements:
    return Measurements.model_validate({"measurements": measurements})


LENGTH = _define(
    length={"distance": ["a", "b"], "classes": [{"name": "short", "below": 10}, {"name": "long", "at_least": 10}]}
)


def _pair(length: float, **given: Any) -> Landmarks:
    return Landmarks(("a", "b"), np.array([[0, 0], [length, 0]], dtype=np.float64), **given)


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_propagated_sd_is_that_of_drawn_landmarks(ndim: int) -> None:
    rng = np.random.default_rng(0)
    definition = _define(**{k: v for k, v in KINDS.items() if ndim == 3 or k != "plane"})
    points, root = POINTS[:, :ndim], rng.normal(0, 0.3, (4, ndim, ndim))
    covariance = root @ root.transpose(0, 2, 1)
    found = measure_landmarks(Landmarks(tuple("abcd"), points, covariance=covariance), definition)
    drawn = points + np.einsum("nij,mnj->mni", root, rng.normal(size=(40_000, 4, ndim)))
    spread = evaluate(definition, "abcd", drawn).std(0)
    np.testing.assert_allclose(found.sd[0], spread, rtol=0.03)
    low, high = found.interval90
    np.testing.assert_allclose(high - low, 2 * 1.645 * found.sd, rtol=1e-3)


def test_a_sum_knows_that_its_terms_share_landmarks() -> None:
    twice = _define(once={"distance": ["a", "b"]}, nothing={"difference": ["once", "once"]})
    found = measure_landmarks(_pair(10, covariance=np.stack([np.eye(2)] * 2)), twice)
    assert found.sd[0] == pytest.approx([np.sqrt(2), 0], abs=1e-6)


def test_no_covariance_no_sd_and_no_sd_at_a_kink() -> None:
    assert np.isnan(measure_landmarks(_pair(10), LENGTH).sd).all()
    one = np.stack([np.eye(2), np.full((2, 2), np.nan)])
    assert np.isnan(measure_landmarks(_pair(10, covariance=one), LENGTH).sd).all()
    kinked = measure_landmarks(_pair(0, covariance=np.stack([np.eye(2)] * 2)), LENGTH)
    assert kinked.values[0, 0] == 0
    assert np.isnan(kinked.sd[0, 0])


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("stretch", [1, 3, 30])
def test_covariances_are_brought_to_the_radius(ndim: int, stretch: float) -> None:
    rng = np.random.default_rng(1)
    turn = np.linalg.qr(rng.normal(size=(ndim, ndim)))[0]
    covariance = turn @ np.diag(np.r_[stretch, np.ones(ndim - 1)]) @ turn.T
    scaled = scaled_to_radius(covariance[None], np.array([2.5]))[0]
    assert scaled / scaled[0, 0] == pytest.approx(covariance / covariance[0, 0])
    drawn = rng.multivariate_normal(np.zeros(ndim), scaled, 100_000)
    assert np.quantile(np.linalg.norm(drawn, axis=1), 0.9) == pytest.approx(2.5, rel=0.02)


def test_a_radius_alone_is_a_round_covariance_and_none_changes_nothing() -> None:
    unknown, own = np.full((2, 2), np.nan), np.diag([1.0, 4.0])
    scaled = scaled_to_radius(np.stack([unknown, own]), np.array([2.146, np.nan]))
    assert scaled[0] == pytest.approx(np.eye(2), rel=0.02)
    assert scaled[1] == pytest.approx(own)


def test_what_is_not_there_has_a_reason_and_no_value() -> None:
    nowhere = np.array([[0.0, 0.0], [np.nan, np.nan]])
    cases = {
        "whole": _pair(12),
        "absent": Landmarks(("a", "b"), nowhere, (Status.DEFINED, Status.ABSENT)),
        "unknown": Landmarks(("a", "b"), nowhere),
        "shorter": Landmarks(("a",), nowhere[:1]),
    }
    found = measure_landmarks(cases, LENGTH)
    assert [r for (r,) in found.reasons] == ["", "b is absent", "b is not annotated", "b is not in the file"]
    rows = [*found.rows()]
    assert [row["value"] for row in rows] == ["12", "", "", ""]
    assert [row["class"] for row in rows] == ["long", "", "", ""]
    ratio = _define(r={"ratio": [["a", "b"], ["a", "c"]]})
    one = Landmarks(("a", "b", "c"), np.array([[0, 0], [1, 0], [0, 0]], dtype=np.float64))
    assert measure_landmarks(one, ratio).reasons == ((OPEN,),)
    assert measure_landmarks(cases, LENGTH).summary()["length"]["n"] == 1


def test_bad_landmarks_are_refused() -> None:
    with pytest.raises(InputError, match=r"'b' is in none of the cases \(did you mean 'bb'\?\); they have '"):
        measure_landmarks(Landmarks(("a", "bb"), np.zeros((2, 2))), LENGTH)
    with pytest.raises(InputError, match="some cases have 2D and some 3D"):
        measure_landmarks({"x": _pair(1), "y": Landmarks(("a", "b"), np.zeros((2, 3)))}, LENGTH)
    plane = _define(p={"point_plane": {"point": "a", "plane": ["b", "c", "d"]}})
    with pytest.raises(InputError, match="uses a plane, but the landmarks are 2D"):
        measure_landmarks(Landmarks(tuple("abcd"), POINTS[:, :2]), plane)


def test_class_probabilities() -> None:
    one = LENGTH.measurements["length"]
    assert class_probability(one, 10, 2) == pytest.approx({"short": 0.5, "long": 0.5})
    assert class_probability(one, 12, 2)["long"] == pytest.approx(0.8413, abs=1e-4)
    assert class_probability(one, 12, 0) == {"short": 0, "long": 1}
    assert class_probability(one, np.nan, 2) == {}
    assert class_probability(one, 12, np.nan) == {}
    assert one.class_of(10) == "long"


def test_agreement_by_hand() -> None:
    true = {"p": 8.0, "q": 9.0, "r": 12.0, "s": 14.0}
    got = {"p": 9.0, "q": 11.0, "r": 12.0}
    certain = {"covariance": np.stack([np.eye(2) * 0.5] * 2)}  # sd 1 of the length: +- 1.645
    found = {k: _pair(v, **certain) for k, v in got.items()}
    found["s"] = Landmarks(("a", "b"), np.array([[0, 0], [np.nan, np.nan]]), (Status.DEFINED, Status.ABSENT))
    truth = measure_landmarks({k: _pair(true[k]) for k in found}, LENGTH)
    (a,) = compare(measure_landmarks(found, LENGTH), truth)
    assert (a.n, a.missing, a.with_interval, a.classified) == (3, 1, 3, 4)
    assert a.mean_absolute == pytest.approx(1)
    assert a.bias == pytest.approx(1)
    assert a.sd == pytest.approx(1)
    assert (a.loa_low, a.loa_high) == pytest.approx((-0.96, 2.96))
    assert a.coverage90 == pytest.approx(2 / 3, abs=1e-5)
    assert a.confusion == {("short", "short"): 1, ("short", "long"): 1, ("long", "long"): 1, ("long", NOT_MEASURED): 1}
    assert a.success == 0.5
    assert a.success_by_class == 0.5
    with pytest.raises(ValueError, match="other cases"):
        compare(measure_landmarks({"z": _pair(1)}, LENGTH), truth)


def test_a_perfect_side_agrees() -> None:
    cases = {str(i): _pair(5.0 + i) for i in range(9)}
    measured = measure_landmarks(cases, LENGTH)
    (a,) = compare(measured, measured)
    assert (a.mean_absolute, a.bias, a.success, a.success_by_class) == (0, 0, 1, 1)
    assert a.coverage90 is None


def _incisors(overjet: float, overbite: float, sd: float) -> Landmarks:
    """Lower and upper edge, sella and nasion, of a face that looks along x."""
    points = np.array([[0, 0], [overjet, overbite], [-80, -70], [-10, -70]], dtype=np.float64)
    return Landmarks(tuple("abcd"), points, covariance=np.stack([sd**2 * np.eye(2)] * 4))


@pytest.mark.parametrize(("overjet", "open_"), [(0.0, True), (0.3, True), (1.0, True), (1.8, False), (4.0, False)])
def test_a_sign_that_is_open_within_the_uncertainty_has_no_sd(overjet: float, open_: bool) -> None:
    """Of normal points the sign turns in 7.9 % at 1 mm, in 0.5 % at 1.8 mm."""
    classes = [{"name": "crossbite", "below": 0}, {"name": "normal", "at_least": 0}]
    signed = _define(mw={"distance": ["a", "b"], "towards": ["c", "d"], "classes": classes})
    found = measure_landmarks(_incisors(overjet, 3.0, 0.5), signed)
    (row,) = found.rows()
    assert float(row["value"]) == pytest.approx(np.hypot(overjet, 3), rel=1e-5)
    assert row["class"] == "normal"
    assert (row["reason"] == SIGN_OPEN) == open_
    assert [row[k] == "" for k in ("sd", "low90", "high90", "class_p")] == [open_] * 4
    if not open_:
        assert float(row["sd"]) == pytest.approx(np.sqrt(0.5), rel=1e-4)


def test_an_unsigned_distance_within_the_uncertainty_of_nought_has_no_sd_but_a_reason() -> None:
    near = measure_landmarks(_pair(0.5, covariance=np.stack([np.eye(2)] * 2)), LENGTH)
    assert np.isnan(near.sd[0, 0]) and near.reasons == ((LARGE,),)
    assert measure_landmarks(_pair(0.5), LENGTH).reasons == (("",),)  # no covariance was given: nothing to say
    far = measure_landmarks(_pair(20, covariance=np.stack([np.eye(2)] * 2)), LENGTH)
    assert far.sd[0, 0] == pytest.approx(np.sqrt(2)) and far.reasons == (("",),)
