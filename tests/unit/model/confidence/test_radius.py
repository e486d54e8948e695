"""Conformal radii cover what they promise; a ranking's area under the curve."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anatomark.core.landmarks import Landmarks
from anatomark.model.confidence.radius import (
    area_under_roc,
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
    marks = [Landmarks(NAMES, np.zeros((2, 3)), covariance=np.eye(3) * s[:, None, None] ** 2) for s in sigma]
    return errors, marks


def test_calibrated_radii_cover_nine_of_ten() -> None:
    rng = np.random.default_rng(0)
    errors, marks = drawn(rng, 300)
    known = calibrated(errors, marks, NAMES)
    fresh, others = drawn(rng, 2000)
    said = np.stack([radii(m, known) for m in others])
    assert (fresh <= said).mean() == pytest.approx(0.9, abs=0.03)
    assert said[:, 1].mean() > 4 * said[:, 0].mean()  # wide where the method is unsure
    sure = said[:, 0] < np.median(said[:, 0])
    assert (fresh[sure, 0] <= said[sure, 0]).mean() == pytest.approx(0.9, abs=0.05)


def test_few_cases_know_what_is_hard_and_none_know_nothing() -> None:
    errors, marks = drawn(np.random.default_rng(1), 6)
    errors[:, 1] *= 3  # the method does not know that b is hard
    known = calibrated(errors, marks, NAMES)
    said = radii(marks[0], known)
    ratio = said / sigma_of(marks[0].covariance, 2)
    assert 1.5 < ratio[1] / ratio[0] < 4.5
    assert radii(marks[0], {}) is None
    fewer = calibrated(errors[:4], marks[:4], NAMES)
    assert fewer["landmarks"]["a"]["scale90"] is None and fewer["pooled"]["scale90"] is None
    bare = Landmarks(NAMES, np.zeros((2, 3)))
    assert radii(bare, known) == pytest.approx([known["landmarks"][n]["radius90_mm"] for n in NAMES])


def test_a_landmark_without_any_error_takes_the_pooled_scale() -> None:
    errors, marks = drawn(np.random.default_rng(2), 12)
    errors[:, 1] = np.nan
    known = calibrated(errors, marks, NAMES)
    assert known["landmarks"]["b"]["scale90"] is None
    assert radii(marks[0], known)[1] == pytest.approx(
        known["pooled"]["scale90"] * sigma_of(marks[0].covariance, 2)[1], rel=1e-3
    )


def test_the_shared_quantile_covers_with_ten_cases() -> None:
    rng = np.random.default_rng(3)
    inside = []
    for _ in range(60):
        values = rng.gamma(2.0, 1.0, (11, 15)) * np.linspace(1, 4, 15)
        inside.append(values[10] <= shared_quantiles(values[:10]))
    assert np.mean(inside) == pytest.approx(0.9, abs=0.04)


@given(st.lists(st.floats(0, 100), min_size=9, max_size=60))
def test_the_quantile_is_one_of_the_values_and_covers_its_share(values: list[float]) -> None:
    q = conformal_quantile(np.array(values))
    assert q in values
    assert np.mean(np.array(values) <= q) >= 0.9


def test_too_few_values_have_no_quantile() -> None:
    assert np.isnan(conformal_quantile(np.arange(8.0)))


def test_area_under_the_curve() -> None:
    bad = np.array([False, False, True, True])
    assert area_under_roc(np.array([1, 2, 3, 4.0]), bad) == 1
    assert area_under_roc(np.array([4, 3, 2, 1.0]), bad) == 0
    assert area_under_roc(np.array([1, 1, 1, 1.0]), bad) == 0.5
    assert area_under_roc(np.array([1, 3, 2, np.inf]), bad) == 0.75
    assert area_under_roc(np.array([np.inf, np.inf, 1, 1]), np.array([True, False, True, False])) == 0.5
    assert np.isnan(area_under_roc(np.arange(4.0), np.zeros(4, bool)))


def test_no_spread_at_all_is_no_certainty() -> None:
    errors, marks = drawn(np.random.default_rng(4), 12)
    known = calibrated(errors, marks, NAMES)
    sure = Landmarks(NAMES, np.zeros((2, 3)), covariance=np.zeros((2, 3, 3)))
    assert radii(sure, known) == pytest.approx([known["landmarks"][n]["radius90_mm"] for n in NAMES])


def test_many_landmarks_of_few_cases_give_no_radii() -> None:
    rng = np.random.default_rng(5)
    assert np.isnan(shared_quantiles(rng.gamma(2.0, 1.0, (4, 40)))).all()
    assert np.isfinite(shared_quantiles(rng.gamma(2.0, 1.0, (5, 40)))).all()
