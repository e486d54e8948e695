"""Paired comparisons: the signed-rank test against published values and enumeration, Holm, and what is compared."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from anatomark.evaluation.metrics import Errors, Outcome
from anatomark.evaluation.paired import averaged, compare_methods, holm, midranks, signed_rank


def _errors(values: list[list[float]], cases: str = "", names: str = "") -> Errors:
    """Errors along x; NaN is missed."""
    x = np.array(values, dtype=float)
    offset = np.stack([x, np.zeros_like(x)], axis=-1)
    outcome = np.where(np.isfinite(x), Outcome.LOCATED, Outcome.MISSED).astype(object)
    offset[~np.isfinite(x)] = np.nan
    none = np.full(x.shape, np.nan)
    rows, columns = cases or "abcdefghij"[: x.shape[0]], names or "klmnop"[: x.shape[1]]
    return Errors(tuple(rows), tuple(columns), offset, outcome, none, none)


def test_signed_rank_of_darwins_maize() -> None:
    # heights of crossed against self-fertilised plants; exact p as in Hollander & Wolfe
    found = signed_rank([6, 8, 14, 16, 23, 24, 28, 29, 41, -48, 49, 56, 60, -67, 75])
    assert found.statistic == 96 and found.n == 15 and found.exact
    assert found.p == pytest.approx(0.041259765625, abs=1e-12)


@pytest.mark.parametrize("count", [1, 2, 6, 10])
def test_all_of_one_sign_is_the_smallest_p(count: int) -> None:
    assert signed_rank(np.arange(1, count + 1)).p == pytest.approx(min(1.0, 2 * 0.5**count))


@pytest.mark.parametrize("seed", range(5))
def test_exact_p_is_that_of_enumerated_signs_ties_included(seed: int) -> None:
    d = np.random.default_rng(seed).integers(-4, 5, 10).astype(float)
    kept = d[d != 0]
    ranks = midranks(np.abs(kept))
    half = ranks.sum() / 2
    seen = abs(ranks[kept > 0].sum() - half)
    sums = [abs(ranks[np.array(s, dtype=bool)].sum() - half) for s in product((0, 1), repeat=len(kept))]
    assert signed_rank(d).p == pytest.approx(np.mean(np.array(sums) >= seen - 1e-9))
    assert signed_rank(-d).p == pytest.approx(signed_rank(d).p)


def test_many_cases_use_a_normal_approximation_that_agrees_with_the_exact_test() -> None:
    d = np.round(np.random.default_rng(0).normal(0.15, 1, 300), 1)
    exact, normal = signed_rank(d), signed_rank(d, exact_up_to=0)
    assert exact.exact and not normal.exact
    assert 0.001 < exact.p < 0.5
    assert normal.p == pytest.approx(exact.p, rel=0.01)


def test_no_difference_is_no_evidence() -> None:
    assert signed_rank([0.0, 0.0, np.nan]).p == 1.0


def test_holm_steps_down_and_keeps_order() -> None:
    assert holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]


def test_only_what_both_located_is_compared() -> None:
    nan = float("nan")
    easy = _errors([[1, nan], [1, nan], [1, nan]])  # leaves out the hard landmark
    brave = _errors([[1, 9], [1, 9], [1, 9]])
    (found,) = compare_methods({"easy": [easy], "brave": [brave]})
    assert (found.method, found.against, found.cases, found.pairs) == ("easy", "brave", 3, 3)
    assert found.difference_mm == 0 and found.ratio == 1 and found.p == 1


def test_cases_and_landmarks_are_matched_by_name_and_seeds_averaged() -> None:
    one = [_errors([[1, 2], [3, 4]]), _errors([[3, 2], [3, 4]])]
    other = _errors([[8, 7], [5, 5], [4, 4]], cases="bac", names="lk")
    (found,) = compare_methods({"one": one, "other": [other]})
    assert averaged(one).error.tolist() == [[2, 2], [3, 4]]
    assert found.cases == 2 and found.pairs == 4
    assert found.difference_mm == pytest.approx((2 + 3.5) / 2 - (5 + 7.5) / 2)
    assert found.ratio == pytest.approx(5.5 / 12.5)


def test_intervals_hold_the_difference_and_p_is_corrected_for_all_pairs() -> None:
    rng = np.random.default_rng(0)
    base = rng.gamma(4, 0.5, (40, 6))
    runs = {n: [_named(base * f + rng.normal(0, 0.05, base.shape))] for n, f in (("a", 1), ("b", 1.3), ("c", 1.31))}
    found = {(p.method, p.against): p for p in compare_methods(runs)}
    assert list(found) == [("a", "b"), ("a", "c"), ("b", "c")]
    clear, near = found["a", "b"], found["b", "c"]
    assert clear.ci_low_mm is not None and clear.ci_high_mm is not None
    assert clear.ratio_low is not None and clear.ratio_high is not None
    assert clear.ci_low_mm < clear.difference_mm < clear.ci_high_mm < 0
    assert clear.ratio_low < 1 / 1.3 < clear.ratio_high
    assert clear.p is not None and clear.p_holm is not None and near.p_holm is not None
    assert clear.p < 1e-6 and clear.p < clear.p_holm <= 3 * clear.p
    assert near.p_holm > clear.p_holm


def _named(error: np.ndarray) -> Errors:
    wide = _errors(error.tolist(), cases="x" * len(error), names="klmnop")
    return Errors(tuple(map(str, range(len(error)))), wide.names, wide.offset, wide.outcome, wide.score, wide.radius90)


def test_one_case_gives_a_difference_and_no_test() -> None:
    (found,) = compare_methods({"a": [_errors([[1.0]])], "b": [_errors([[2.0]])]})
    assert found.difference_mm == -1
    assert found.ci_low_mm is found.ci_high_mm is found.ratio_low is found.ratio_high is found.p is found.p_holm is None


def test_methods_without_a_common_case_are_not_compared() -> None:
    assert compare_methods({"a": [_errors([[1.0]], cases="a")], "b": [_errors([[1.0]], cases="b")]}) == []
