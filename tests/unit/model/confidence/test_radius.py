"""Conformal radii cover what they promise; a ranking's area under the curve."""

from __future__ import annotations

import warnings
from fractions import Fraction
from math import ceil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anatomark.core.landmarks import Landmarks
from anatomark.model.confidence.radius import (
    calibrated,
    conformal_quantile,
    radii,
    shared_quantiles,
    sigma_of,
)

NAMES = ("a", "b")


def drawn(rng: np.random.Generator, cases: int) -> tuple[np.ndarray, list[Landmarks]]:
    """Errors (M, 2) mm of landmarks whose sigma says how large they are; b is five times as wide, scale unknown."""
    sigma = rng.uniform(0.5, 2.0, (cases, 2)) * [1, 5]
    errors = np.linalg.norm(rng.normal(size=(cases, 2, 3)) * 3.0 * sigma[..., None], axis=2)
    landmarks = [Landmarks(NAMES, np.zeros((2, 3)), covariance=np.eye(3) * s[:, None, None] ** 2) for s in sigma]
    return errors, landmarks


# ---------------------------------------------------------------------- the conformal quantile


@given(st.integers(1, 300), st.sampled_from([50, 80, 90, 95]))
def test_the_next_value_exceeds_the_quantile_as_rarely_as_promised(n: int, percent: int) -> None:
    # of n + 1 exchangeable values the next one has any rank with the same probability: rank / (n + 1) lie below
    rank = conformal_quantile(np.arange(1.0, n + 1), percent / 100)
    promised = Fraction(percent, 100)
    if promised * (n + 1) > n:
        assert np.isnan(rank)
    else:
        assert promised <= Fraction(int(rank), n + 1) < promised + Fraction(1, n + 1)


def test_the_quantile_covers_in_a_simulation() -> None:
    rng = np.random.default_rng(0)
    for n, exact in ((9, 0.9), (10, 10 / 11), (28, 27 / 29)):
        inside = [x[n] <= conformal_quantile(x[:n]) for x in rng.exponential(size=(6000, n + 1))]
        assert np.mean(inside) == pytest.approx(exact, abs=0.012)


def test_the_quantile_does_not_depend_on_the_order() -> None:
    assert conformal_quantile(np.array([5, 1, 9, 3, 2, 8, 7, 6, 4.0])) == 9
    assert np.isnan(conformal_quantile(np.arange(8.0)))


# ---------------------------------------------------------------------- landmarks that share a quantile


def one_by_one(values: np.ndarray) -> np.ndarray:
    """:func:`shared_quantiles` in plain loops."""
    rows, columns = values.shape
    known = [(m, k) for m in range(rows) for k in range(columns) if np.isfinite(values[m, k])]
    common = sum(values[m, k] for m, k in known) / len(known)
    ratios = []
    for m, k in known:
        rest = [values[i, k] for i, j in known if j == k and i != m]
        ratios.append(values[m, k] / ((sum(rest) + 2 * common) / (len(rest) + 2)))
    shared = sorted(ratios)[ceil(Fraction(9, 10) * (len(known) + 1)) - 1]
    own = [[values[i, k] for i, j in known if j == k] for k in range(columns)]
    return np.array([(sum(x) + 2 * common) / (len(x) + 2) * shared if x else np.nan for x in own])


@given(st.integers(0, 10_000), st.integers(5, 12), st.integers(5, 8))
def test_each_value_is_held_against_the_other_cases(seed: int, rows: int, columns: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.gamma(1.0, 1.0, (rows, columns)) * rng.uniform(0.2, 5, columns)
    values[:, 3:][rng.random((rows, columns - 3)) < 0.2] = np.nan
    values[:, 0] = np.nan
    values[0, 1] = 1e3  # what is left out of its own mean stands out
    values[:, 2] = np.where(np.arange(rows) == 1, 3.0, np.nan)  # a single case
    np.testing.assert_allclose(shared_quantiles(values), one_by_one(values), rtol=1e-9)


def test_a_landmark_of_one_case_is_held_against_all() -> None:
    values = np.ones((5, 3))
    values[3:, 1] = values[1:, 2] = np.nan
    values[0, 2] = 5.0  # the largest of nine ratios
    np.testing.assert_allclose(shared_quantiles(values), one_by_one(values), rtol=1e-12)


@pytest.mark.parametrize("sd", [0.0, 0.6])
def test_the_shared_quantile_covers_with_few_cases(sd: float) -> None:
    """Landmarks of their own difficulty, and (with sd) cases of theirs."""
    rng, inside = np.random.default_rng(3), []
    for _ in range(150):
        values = rng.gamma(2.0, 1.0, (7, 12)) * np.linspace(1, 4, 12) * np.exp(rng.normal(0, sd, (7, 1)))
        inside.append(values[6] <= shared_quantiles(values[:6]))
    assert np.mean(inside) == pytest.approx(0.9, abs=0.025 if sd == 0 else 0.045)


def test_many_landmarks_of_few_cases_give_no_radii() -> None:
    rng = np.random.default_rng(5)
    values = rng.gamma(2.0, 1.0, (5, 40))
    assert np.isnan(shared_quantiles(values[:4])).all()
    values[2:, 1:] = np.nan  # a case counts from one landmark on
    assert np.isfinite(shared_quantiles(values)).all()
    values[3] = np.nan
    assert np.isnan(shared_quantiles(values)).all()


# ---------------------------------------------------------------------- what stands in calibration.json


def test_sigma_is_the_root_mean_variance() -> None:
    covariance = np.stack([np.diag([1.0, 4.0, 4.0]), np.full((3, 3), 9.0)])
    np.testing.assert_allclose(sigma_of(covariance, 2), [np.sqrt(3), 3])
    np.testing.assert_allclose(sigma_of(np.diag([1.0, 9.0])[None], 1), [np.sqrt(5)])
    assert np.isnan(sigma_of(None, 3)).tolist() == [True] * 3


def test_what_the_calibration_says() -> None:
    errors = np.array([[1, 4], [2, 8], [3, 12], [4, 16], [5, np.nan], [10, np.nan]])
    sigma = np.array([[0.5, 2], [1, 2], [2, 0], [2, 8], [5, 1], [2, 1]])
    landmarks = [Landmarks(NAMES, np.zeros((2, 2)), covariance=np.eye(2) * s[:, None, None] ** 2) for s in sigma]
    swapped = [x.select(("b", "a")) for x in landmarks]  # in any order
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        said = calibrated(errors, swapped, NAMES)
    assert said == calibrated(errors, landmarks, NAMES)
    assert list(said["landmarks"]) == ["a", "b"]
    assert said["pooled"] == {"n": 10, "mean_mm": 6.5, "median_mm": 4.5, "radius90_mm": 16.0, "scale90": 5.0}
    ratio = np.array([[2, 2], [2, 4], [1.5, np.nan], [2, 2], [1, np.nan], [5, np.nan]])  # a sigma of 0 says nothing
    a, b = said["landmarks"]["a"], said["landmarks"]["b"]
    assert (a["n"], a["mean_mm"], a["median_mm"]) == (6, 4.1667, 3.5)
    assert (b["n"], b["mean_mm"], b["median_mm"]) == (4, 10.0, 10.0)
    assert [a["radius90_mm"], b["radius90_mm"]] == shared_quantiles(errors).round(4).tolist()
    assert [a["scale90"], b["scale90"]] == shared_quantiles(ratio).round(4).tolist()
    assert said["landmarks"]["a"]["scale90"] != round(a["scale90"], 3)


def test_a_landmark_without_errors_has_no_figures() -> None:
    errors, landmarks = drawn(np.random.default_rng(6), 12)
    errors[:, 1] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        said = calibrated(errors, landmarks, NAMES)
    assert said["landmarks"]["b"] == dict.fromkeys(("mean_mm", "median_mm", "radius90_mm", "scale90")) | {"n": 0}


def test_few_cases_widen_the_radius_that_they_share_and_give_no_landmark_its_own() -> None:
    names = tuple("abcdef")
    errors = np.random.default_rng(7).gamma(2.0, 1.0, (5, 6))
    landmarks = [Landmarks(names, np.zeros((6, 2)), covariance=np.stack([np.eye(2)] * 6))] * 5
    enough = calibrated(errors, landmarks, names)["pooled"]
    assert enough["radius90_mm"] is not None and enough["scale90"] is not None
    few = calibrated(errors[:4], landmarks[:4], names)
    exact = float(np.sort(errors[:4].ravel())[int(np.ceil(25 * 0.9)) - 1])
    assert few["pooled"]["radius90_mm"] == pytest.approx(1.5 * exact, abs=1e-3)
    assert few["landmarks"]["a"]["radius90_mm"] is None
    assert few["pooled"]["scale90"] is None  # what sigma is worth is not to be seen in so few
    assert calibrated(errors[:1], landmarks[:1], names)["pooled"]["radius90_mm"] is None  # six errors say too little


# ---------------------------------------------------------------------- radii of a prediction


def test_calibrated_radii_cover_nine_of_ten() -> None:
    rng = np.random.default_rng(0)
    errors, landmarks = drawn(rng, 300)
    known = calibrated(errors, landmarks, NAMES)
    fresh, others = drawn(rng, 2000)
    said = np.stack([radii(m, known) for m in others])
    assert (fresh <= said).mean() == pytest.approx(0.9, abs=0.03)
    assert said[:, 1].mean() > 4 * said[:, 0].mean()  # wide where the method is unsure
    sure = said[:, 0] < np.median(said[:, 0])
    assert (fresh[sure, 0] <= said[sure, 0]).mean() == pytest.approx(0.9, abs=0.05)


def test_few_cases_know_what_is_hard() -> None:
    errors, landmarks = drawn(np.random.default_rng(1), 6)
    errors[:, 1] *= 3  # the method does not know that b is hard
    said = radii(landmarks[0], calibrated(errors, landmarks, NAMES))
    ratio = said / sigma_of(landmarks[0].covariance, 2)
    assert 1.5 < ratio[1] / ratio[0] < 4.5


def test_a_radius_comes_from_the_best_figure_there_is() -> None:
    calibration = {
        "pooled": {"scale90": 3.0, "radius90_mm": 7.0},
        "landmarks": {
            "own": {"scale90": 2.0, "radius90_mm": 5.0}, "mm": {"scale90": None, "radius90_mm": 4.0},
            "pooled": {"scale90": None, "radius90_mm": None}, "zero": {"scale90": 2.0, "radius90_mm": 6.0},
            "absent": {"scale90": 2.0, "radius90_mm": 5.0},
        },
    }  # fmt: skip
    names = (*calibration["landmarks"], "unheard")
    sigma = np.array([0.5, 0.5, 0.5, 0.0, 0.5, 0.5])
    landmarks = Landmarks(
        names, np.zeros((6, 2)), ["absent" if n == "absent" else "defined" for n in names],
        covariance=np.eye(2) * sigma[:, None, None] ** 2,
    )  # fmt: skip
    np.testing.assert_allclose(radii(landmarks, calibration), [1.0, 4.0, 1.5, 6.0, np.nan, 1.5])
    bare = Landmarks(names, np.zeros((6, 2)))
    np.testing.assert_allclose(radii(bare, calibration), [5.0, 4.0, 7.0, 6.0, 5.0, 7.0])
    only = radii(bare, {"pooled": None, "landmarks": calibration["landmarks"]})
    np.testing.assert_allclose(only, [5.0, 4.0, np.nan, 6.0, 5.0, np.nan])
    assert radii(bare, {}) is None
    nothing = Landmarks(("own",), np.full((1, 2), np.nan))
    assert radii(nothing, calibration) is None
