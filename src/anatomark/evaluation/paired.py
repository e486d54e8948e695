"""Comparing methods on the same cases: paired differences, the signed-rank test, correction for many comparisons.

Two methods are compared on the landmark-case pairs that both located, so that leaving out a difficult landmark wins
nothing. A case's error is the mean over these landmarks; the errors of several seeds are averaged before. The test is
Wilcoxon's signed-rank test (Wilcoxon 1945), two-sided, over cases; p values are corrected by Holm's method (1979).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import erfc, sqrt
from typing import NamedTuple

import numpy as np

from anatomark.core.grid import Array
from anatomark.core.shape import nanmean
from anatomark.evaluation.metrics import BOOTSTRAP, Errors, interval

EXACT_UP_TO = 400  # cases from which on the normal approximation differs by nothing that matters


@dataclass(frozen=True)
class SignedRank:
    """``statistic``: sum of the ranks of the positive differences; ``n`` differences that are not zero; ``p``
    two-sided, 1 where all are zero; ``exact``: from the distribution itself, not a normal approximation."""

    statistic: float
    n: int
    p: float
    exact: bool


@dataclass(frozen=True)
class Paired:
    """``method`` against another on ``cases`` cases and ``pairs`` landmark-case pairs.

    ``difference_mm``: mean over cases of the method's case error minus the other's, ``ratio``: its mean case error over
    the other's, each with its 95 % bootstrap interval over cases (``ci_low_mm`` to ``ci_high_mm``, ``ratio_low`` to
    ``ratio_high``; None for fewer than two cases). ``p`` of the signed-rank test, ``p_holm`` corrected for all
    comparisons of the same call; None for fewer than two cases.
    """

    method: str
    against: str
    cases: int
    pairs: int
    difference_mm: float
    ci_low_mm: float | None
    ci_high_mm: float | None
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    p: float | None
    p_holm: float | None
    exact: bool


def midranks(values: Array) -> Array:
    """Ranks from 1, equal values sharing the mean of theirs."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(count) - (count - 1) / 2)[place])


def signed_rank(differences: Sequence[float] | Array, exact_up_to: int = EXACT_UP_TO) -> SignedRank:
    """Wilcoxon's signed-rank test that ``differences`` are symmetric about zero, two-sided.

    Zeros are dropped, ties get midranks. Up to ``exact_up_to`` differences p comes from the permutation distribution of
    these very ranks, so it is exact with ties too; beyond from a normal approximation with the ties' variance and
    continuity correction.
    """
    d = np.asarray(differences, dtype=np.float64)
    d = d[np.isfinite(d) & (d != 0)]
    n = len(d)
    if n == 0:
        return SignedRank(0.0, 0, 1.0, True)
    ranks = midranks(np.abs(d))
    plus = float(ranks[d > 0].sum())
    low = min(plus, float(ranks.sum()) - plus)
    if n <= exact_up_to:
        return SignedRank(plus, n, min(1.0, 2 * _share_at_most(ranks, low)), True)
    sd = np.sqrt((ranks**2).sum() / 4)  # with ties in it: the usual formula minus its correction
    z = (ranks.sum() / 2 - low - 0.5) / sd
    return SignedRank(plus, n, min(1.0, erfc(z / sqrt(2))), False)


def _share_at_most(ranks: Array, low: float) -> float:
    """Probability that the ranks with a random sign + sum to ``low`` or less."""
    doubled = np.rint(2 * ranks).astype(int)  # midranks are halves
    share = np.zeros(doubled.sum() + 1)
    share[0] = 1.0
    for r in doubled:
        share[r:] = share[r:] + share[:-r]  # the right side is whole before it is stored
        share /= 2  # the sign is + or -, each with probability 1/2
    return float(share[: round(2 * low) + 1].sum())


def holm(values: Sequence[float | None]) -> list[float | None]:
    """p values corrected for their number by Holm's step-down method; None (no test) stays and does not count."""
    tested = sorted((p, i) for i, p in enumerate(values) if p is not None)
    out: list[float | None] = [None] * len(values)
    largest = 0.0
    for k, (p, i) in enumerate(tested):
        largest = max(largest, min(1.0, p * (len(tested) - k)))
        out[i] = largest
    return out


class Mean(NamedTuple):
    """Errors (M, N) in mm of one method for its cases and landmarks, the mean over seeds; NaN where one of the seeds
    located nothing."""

    cases: Sequence[str]
    names: Sequence[str]
    error: Array

    def picked(self, cases: Sequence[str], names: Sequence[str]) -> Array:
        rows, columns = [self.cases.index(c) for c in cases], [self.names.index(n) for n in names]
        return np.asarray(self.error[np.ix_(rows, columns)])


def averaged(runs: Sequence[Errors]) -> Mean:
    """One method's errors, the mean over its ``runs`` (seeds), of the cases and landmarks that are in all of them."""
    cases = tuple(c for c in runs[0].cases if all(c in r.cases for r in runs))
    names = tuple(n for n in runs[0].names if all(n in r.names for r in runs))
    parts = [Mean(r.cases, r.names, r.error).picked(cases, names) for r in runs]
    return Mean(cases, names, np.asarray(np.mean(parts, axis=0)))


def compare_methods(methods: Mapping[str, Sequence[Errors]], seed: int = 0) -> list[Paired]:
    """Every two methods against each other, in the order of ``methods`` (runs of each by name), Holm-corrected over all
    of these comparisons. Methods without a common case and landmark are left out."""
    means = {name: averaged(runs) for name, runs in methods.items() if runs}
    pairs = [p for a, b in combinations(means, 2) if (p := _paired(a, b, means[a], means[b], seed)) is not None]
    return [replace(p, p_holm=q) for p, q in zip(pairs, holm([p.p for p in pairs]), strict=True)]


def _paired(method: str, against: str, one: Mean, other: Mean, seed: int) -> Paired | None:
    cases = [c for c in one.cases if c in other.cases]
    names = [n for n in one.names if n in other.names]
    errors = np.stack([one.picked(cases, names), other.picked(cases, names)])
    both = np.all(np.isfinite(errors), axis=0)
    if not both.any():
        return None
    x, y = nanmean(np.where(both, errors, np.nan), 2)[:, np.any(both, axis=1)]
    # of one case no samples, so no intervals
    drawn = np.random.default_rng(seed).integers(len(x), size=(BOOTSTRAP if len(x) > 1 else 0, len(x)))
    mean_x, mean_y = x[drawn].mean(1), y[drawn].mean(1)
    low, high = interval(mean_x - mean_y) or (None, None)
    ratio_low, ratio_high = (interval(mean_x / mean_y) if (mean_y > 0).all() else None) or (None, None)
    tested = signed_rank(x - y) if len(x) > 1 else None
    return Paired(
        method=method,
        against=against,
        cases=len(x),
        pairs=int(both.sum()),
        difference_mm=float((x - y).mean()),
        ci_low_mm=low,
        ci_high_mm=high,
        ratio=float(x.mean() / y.mean()) if y.mean() > 0 else None,
        ratio_low=ratio_low,
        ratio_high=ratio_high,
        p=None if tested is None else tested.p,
        p_holm=None,
        exact=tested is None or tested.exact,
    )
