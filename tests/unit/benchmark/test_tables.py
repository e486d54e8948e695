"""Tables of a benchmark: what the interval of several seeds is of."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from anatomark.benchmark.results import Result
from anatomark.benchmark.tables import NOTES, markdown, method_rows
from anatomark.core.grid import Array
from anatomark.evaluation.metrics import Errors, Outcome, statistics

THRESHOLDS = [2.0, 4.0]
SUITE: Any = SimpleNamespace(baseline=None, data={"study": SimpleNamespace(thresholds=THRESHOLDS)})


def _result(error: Array, annotated: NDArray[np.bool_] | None = None) -> Result:
    """A seed with these errors (cases, landmarks) in mm; NaN: missed, or not annotated where that is said."""
    located = np.isfinite(error)
    outcome = np.where(located, Outcome.LOCATED, Outcome.MISSED).astype(object)
    if annotated is not None:
        outcome[~annotated] = Outcome.UNSCORED
    offset = np.stack([error, np.where(located, 0.0, np.nan)], axis=-1)
    cases, names = (tuple(f"{word}{i}" for i in range(n)) for word, n in zip(("c", "l"), error.shape, strict=True))
    unknown = np.full(error.shape, np.nan)
    errors = Errors(cases, names, offset, outcome, unknown, unknown)
    cell: Any = SimpleNamespace(data="study", method="m", seed=0, split="test", thresholds=THRESHOLDS)
    known: dict[str, Any] = dict.fromkeys(("seconds", "train_seconds", "steps", "train_gb", "predict_gb", "parameters"))
    figures = statistics(errors, thresholds=THRESHOLDS)
    return Result(cell=cell, errors=errors, figures=figures, truth="t", case_seconds={}, course=(), machine="", **known)


def _row(*seeds: Result) -> dict[str, Any]:
    return method_rows(SUITE, {"m": seeds}, [])[0]


def _interval(*seeds: Result) -> tuple[float, float]:
    row = _row(*seeds)
    return row["ci_low_mm"], row["ci_high_mm"]


def test_identical_seeds_have_the_interval_of_one() -> None:
    rng = np.random.default_rng(3)
    error = rng.gamma(2, 1, (12, 5))
    error[rng.uniform(size=error.shape) < 0.3] = np.nan  # cases differ in how many landmarks they count
    annotated = np.isfinite(error)
    annotated[0, 0], annotated[5] = True, False
    error[0, 0], error[5] = np.nan, np.nan
    one = _result(error, annotated)
    assert one.figures.mre_ci95_mm == _interval(one)
    assert _interval(one, one) == pytest.approx(one.figures.mre_ci95_mm, abs=1e-12)
    assert _interval(one, one, _result(np.full_like(error, np.nan), annotated)) == _interval(one, one)


def test_what_one_seed_misses_counts_in_the_interval_too() -> None:
    error = np.tile([1.0, 1.1, 20.0], (20, 1)) + np.random.default_rng(0).uniform(0, 0.1, (20, 3))
    missed = error.copy()
    missed[:, 2] = np.nan  # only the other seed locates the difficult one
    row = _row(_result(error), _result(missed))
    assert row["mre_mm"] == pytest.approx(np.mean([error.mean(), np.nanmean(missed)]))
    assert row["ci_low_mm"] < row["mre_mm"] < row["ci_high_mm"]


def test_one_case_has_no_interval() -> None:
    one = _result(np.array([[1.0, 2.0]]))
    assert _interval(one, one) == (None, None)


def test_notes_on_results_stand_below_the_tables() -> None:
    assert markdown(SUITE, {}, {}, ["A scores 2 of 3 landmarks."])[2:] == ["A scores 2 of 3 landmarks.", "", *NOTES, ""]
    assert markdown(SUITE, {}, {})[2:] == [*NOTES, ""]


def test_what_is_not_done_is_named_where_its_data_set_was_begun() -> None:
    rows = {"study": [_row(_result(np.ones((3, 2))))], "other": []}
    states = {"study/m/seed0": "finished", "study/n/seed0": "new", "other/m/seed0": "failed", "other/n/seed0": "new"}
    text = "\n".join(markdown(SUITE, rows, states))
    assert "Not in the tables: study/n/seed0 (new), other/m/seed0 (failed)." in text
    assert "Not begun in other data sets: 1." in text
