"""What errors go with: the weights, what they foretell, and how many good cases are flagged."""

from __future__ import annotations

import json

import numpy as np
import pytest

from anatomark.model.confidence.review import Usual
from anatomark.model.confidence.risk import FEWEST, Risk


def cases(count: int, seed: int = 0) -> tuple[list[dict[str, float]], np.ndarray]:
    """Cases whose error grows with ``score``, not with ``noise``."""
    rng = np.random.default_rng(seed)
    score, noise = rng.normal(0, 1, count), rng.normal(0, 1, count)
    errors = np.exp(0.5 + 0.8 * score + 0.2 * rng.normal(0, 1, count))
    return [{"score": a, "noise": b} for a, b in zip(score, noise, strict=True)], errors


def test_only_what_goes_with_errors_has_weight() -> None:
    risk = Risk.learned(*cases(200))
    assert risk is not None
    assert risk.weights["score"] == pytest.approx(0.8, abs=0.06)
    assert risk.weights.get("noise", 0.0) < 0.05
    assert risk.of({"score": 1.0}) - risk.of({"score": 0.0}) == pytest.approx(risk.weights["score"])


def test_no_measure_speaks_for_a_smaller_error() -> None:
    measures, errors = cases(200)
    risk = Risk.learned([{"score": -m["score"]} for m in measures], errors)
    assert risk is None  # there is nothing left


def test_new_bad_cases_are_found_and_few_good_ones_flagged() -> None:
    risk = Risk.learned(*cases(60))
    assert risk is not None
    measures, errors = cases(2000, seed=1)
    foretold = np.array([risk.of(m) for m in measures])
    bad = errors > np.quantile(errors, 0.9)
    assert (foretold[~bad] > risk.limit).mean() < 0.1
    assert (foretold[bad] > risk.limit).mean() > 0.6


def test_few_cases_teach_nothing_and_a_gap_is_no_error() -> None:
    measures, errors = cases(FEWEST)
    assert Risk.learned(measures[:-1], errors[:-1]) is None
    errors[0] = np.nan
    assert Risk.learned(measures, errors) is None
    assert Risk.learned([*measures, *measures], np.concatenate([errors, errors])) is not None


def test_what_lies_far_off_or_is_missing_does_not_run_away() -> None:
    risk = Risk({"score": 1.0}, 0.0, 1.0)
    assert risk.of({"score": 1e9}) == risk.of({"score": 6.0}) == 6.0
    assert risk.of({"score": float("nan")}) == risk.of({}) == 0.0


def test_suspicion_follows_the_risk_until_a_case_is_odd_beyond_the_usual() -> None:
    usual = Usual(
        {"score": 0.0, "noise": 0.0}, {"score": 1.0, "noise": 1.0}, 4.0, 9, 30, Risk({"score": 1.0}, 0.0, 1.0)
    )
    assert usual.suspicion({"score": 1.0, "noise": 3.9}) == pytest.approx(4.0)  # at the limit, however noisy
    assert usual.suspicion({"score": 2.0, "noise": 0.0}) > 4.0 > usual.suspicion({"score": 0.9, "noise": 3.9})
    assert usual.suspicion({"score": 0.0, "noise": 9.0}) == pytest.approx(9.0)
    back = Usual.from_json(json.loads(json.dumps(usual.to_json())))
    assert back == usual
