"""How far predictions lie from the truth: errors per case and landmark, and the figures made of them.

Definitions: the radial error is the distance in mm between prediction and truth. MRE, SD (n - 1), median and 95th
percentile pool landmark-case pairs and look at located ones; their number and the failures stand beside them. SDR at
t is the share of all annotated pairs with an error of at most t, so an undetected landmark is a failure. A case's
error is the mean over its located landmarks. Confidence intervals are percentile bootstraps over **cases**.

Absence: a prediction that gives a landmark no position says that it is absent. Recall is the share of the landmarks
that the truth calls absent, precision the share of those called absent in the truth's absent and annotated ones;
unannotated ones, and cases without any prediction, say nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anatomark.core.grid import Array
from anatomark.core.landmarks import Landmarks
from anatomark.core.shape import mean_shape, nanmean, procrustes
from anatomark.errors import InputError

THRESHOLDS_MM = (2.0, 2.5, 3.0, 4.0)
BOOTSTRAP = 2000
DRAWN_AT_ONCE = 10_000_000  # numbers of a bootstrap that are held
_TIE_MM = 1e-9  # coordinates are decimal, so an error of exactly 2 mm must not fail by rounding


class Outcome(StrEnum):
    """What became of one landmark in one case."""

    LOCATED = "located"  # annotated and predicted: has an error
    MISSED = "missed"  # annotated, but nothing was predicted in this case: a failure
    FALSE_ABSENCE = "false absence"  # annotated, but predicted without a position: a failure
    FALSE_PRESENCE = "false presence"  # known to be absent, but predicted
    ABSENT = "correctly absent"
    UNSCORED = "not annotated"  # nothing known of the truth: no metric


FAILURES = (Outcome.MISSED, Outcome.FALSE_ABSENCE)


@dataclass(frozen=True, eq=False)
class Errors:
    """Predictions against truth for M cases and N landmarks in D dimensions.

    ``offset`` (M, N, D) prediction minus truth in mm, NaN unless located; ``outcome`` (M, N) of :class:`Outcome`;
    ``score`` (M, N) in 0..1 and ``radius90`` (M, N) mm as predicted, NaN where not given.
    """

    cases: tuple[str, ...]
    names: tuple[str, ...]
    offset: Array
    outcome: NDArray[Any]
    score: Array
    radius90: Array

    @cached_property
    def error(self) -> Array:
        """(M, N) radial error in mm, NaN unless located."""
        return np.asarray(np.sqrt((self.offset**2).sum(-1)))

    @cached_property
    def annotated(self) -> NDArray[np.bool_]:
        """(M, N) True where the truth is defined: the pairs that count."""
        return np.isin(self.outcome, (Outcome.LOCATED, *FAILURES))

    @property
    def case_error(self) -> Array:
        """(M,) mean error in mm over each case's located landmarks; NaN where there is none."""
        return nanmean(self.error, 1)

    def count(self, case: int, *outcomes: Outcome) -> int:
        """How many landmarks of a case came out so."""
        return int(np.isin(self.outcome[case], outcomes).sum())

    def failures(self, case: int) -> int:
        """How many annotated landmarks of a case have no prediction."""
        return self.count(case, *FAILURES)

    def ranking(self) -> list[int]:
        """Cases with annotated landmarks from best to worst: fewest failures first, then the smallest case error."""
        error = self.case_error
        scored = [m for m in range(len(self.cases)) if self.annotated[m].any()]
        return sorted(scored, key=lambda m: (self.failures(m), error[m] if np.isfinite(error[m]) else np.inf))


@dataclass(frozen=True)
class Statistics:
    """Figures over a set of landmark-case pairs, named as in ``summary.json``; lengths in mm, None where there is
    nothing to compute them from.

    ``pairs`` annotated, ``located`` of them with a prediction, ``failures`` without. ``sdr`` by its threshold in mm as
    text. ``mre_ci95_mm`` is None, ``sdr_ci95`` empty for fewer than two cases. ``covered90`` is the share of located
    points within their predicted 90 % radius. ``absent``: landmarks that the truth calls absent in cases with a
    prediction, ``false_presences`` of them located; ``false_absences``: the failures that a prediction called absent;
    ``absence_recall`` and ``absence_precision`` are None where the truth calls none absent (precision: where none was
    called so either).
    """

    pairs: int
    located: int
    failures: int
    absent: int
    false_presences: int
    false_absences: int
    absence_recall: float | None
    absence_precision: float | None
    mre_mm: float | None
    mre_ci95_mm: tuple[float, float] | None
    sd_mm: float | None
    median_mm: float | None
    p95_mm: float | None
    max_mm: float | None
    sdr: dict[str, float]
    sdr_ci95: dict[str, tuple[float, float]]
    covered90: float | None

    def cells(self) -> dict[str, Any]:
        """As a row of a table: the interval in two columns, the SDR in one for each threshold."""
        low, high = self.mre_ci95_mm or (None, None)
        return {**vars(self), "ci_low_mm": low, "ci_high_mm": high, **{f"sdr_{t}": v for t, v in self.sdr.items()}}


def compare(truth: Mapping[str, Landmarks], predicted: Mapping[str, Landmarks | None], names: Sequence[str]) -> Errors:
    """Errors of ``predicted`` against ``truth``, both by case, for the landmarks ``names``.

    A case without prediction is missed where the truth has points, and not scored where it calls them absent; a
    landmark that a prediction does not define counts as called absent; an unannotated truth gives no metric. Raises
    InputError where a prediction has another dimension than its truth.
    """
    d = next(iter(truth.values())).ndim if truth else 3
    shape = (len(truth), len(names))
    offset = np.full((*shape, d), np.nan)
    outcome = np.full(shape, Outcome.UNSCORED, dtype=object)
    score, radius = np.full(shape, np.nan), np.full(shape, np.nan)
    for m, (case, points) in enumerate(truth.items()):
        guess = predicted.get(case)
        for which, given in (("truth", points), ("prediction", guess)):
            if given is not None and given.ndim != d:
                raise InputError(f"case {case}: the {which} is {given.ndim}D, expected {d}D landmarks")
        true = points.select(names)
        if guess is None:
            outcome[m, true.defined] = Outcome.MISSED
            continue
        guess = guess.select(names)
        offset[m] = guess.points - true.points
        score[m] = np.nan if guess.score is None else guess.score
        radius[m] = np.nan if guess.radius90 is None else guess.radius90
        outcome[m, true.defined] = Outcome.FALSE_ABSENCE
        outcome[m, true.defined & guess.defined] = Outcome.LOCATED
        outcome[m, true.absent] = Outcome.ABSENT
        outcome[m, true.absent & guess.defined] = Outcome.FALSE_PRESENCE
    return Errors(tuple(truth), tuple(names), offset, outcome, score, radius)


def check_thresholds(thresholds: Sequence[float]) -> None:
    """Raises ValueError unless these are distances in mm, whose figures have names of their own (``sdr_2.5``)."""
    if not thresholds or not all(0 < t < float("inf") for t in thresholds):
        raise ValueError("give one or more positive distances in mm, such as 2 2.5 3 4")
    names = [f"{t:g}" for t in thresholds]
    if twice := next((n for n in names if names.count(n) > 1), None):
        raise ValueError(f"two of them are written {twice}; give distances that differ in their first six digits")


def statistics(
    errors: Errors,
    names: Sequence[str] | None = None,
    *,
    thresholds: Sequence[float] = THRESHOLDS_MM,
    samples: int = BOOTSTRAP,
    seed: int = 0,
) -> Statistics:
    """Figures over all landmarks, or over ``names``; ``samples`` bootstrap draws over cases, the same for one seed."""
    columns = [errors.names.index(n) for n in (errors.names if names is None else names)]
    error, annotated, outcome = errors.error[:, columns], errors.annotated[:, columns], errors.outcome[:, columns]
    located = np.isfinite(error) & annotated
    pool, pairs = error[located], int(annotated.sum())
    hits = {f"{t:g}": located & (error <= t + _TIE_MM) for t in thresholds}
    radius = errors.radius90[:, columns]
    within = (error <= radius)[located & np.isfinite(radius)]
    # a case without annotated pair says nothing, so it is not drawn
    seen = annotated.any(1)
    sums = [
        (np.where(located, error, 0.0)[seen].sum(1), located[seen].sum(1)),
        *((h[seen].sum(1), annotated[seen].sum(1)) for h in hits.values()),
    ]
    parts = [[ratios(drawn, *pair) for pair in sums] for drawn in draws_in_parts(int(seen.sum()), samples, seed)]
    mean, *rates = (interval(np.concatenate(part)) for part in zip(*parts, strict=True))
    intervals = dict(zip(hits, rates, strict=True))
    right, false_presences, false_absences = (
        int((outcome == o).sum()) for o in (Outcome.ABSENT, Outcome.FALSE_PRESENCE, Outcome.FALSE_ABSENCE)
    )
    absent, called = right + false_presences, right + false_absences
    return Statistics(
        pairs=pairs,
        located=pool.size,
        failures=pairs - pool.size,
        absent=absent,
        false_presences=false_presences,
        false_absences=false_absences,
        absence_recall=right / absent if absent else None,
        absence_precision=right / called if absent and called else None,
        mre_mm=figure_of(pool),
        mre_ci95_mm=mean,
        sd_mm=float(pool.std(ddof=1)) if pool.size > 1 else None,
        median_mm=figure_of(pool, np.median),
        p95_mm=float(np.percentile(pool, 95)) if pool.size else None,
        max_mm=figure_of(pool, np.max),
        sdr={t: float(h.sum() / pairs) for t, h in hits.items()} if pairs else {},
        sdr_ci95={t: i for t, i in intervals.items() if i is not None},
        covered90=figure_of(within.astype(float)),
    )


def figure_of(values: Array, figure: Callable[[Array], Any] = np.mean) -> float | None:
    """The mean, or another ``figure``, of the finite values; None where there are none."""
    finite = values[np.isfinite(values)]
    return float(figure(finite)) if finite.size else None


def draws(cases: int, samples: int = BOOTSTRAP, seed: int = 0) -> NDArray[np.int64]:
    """(samples, cases) how often a bootstrap draws each case; no samples of fewer than two cases."""
    if cases < 2:
        return np.zeros((0, cases), dtype=np.int64)
    return np.random.default_rng(seed).multinomial(cases, np.full(cases, 1 / cases), size=samples)


def draws_in_parts(cases: int, samples: int = BOOTSTRAP, seed: int = 0) -> Iterator[NDArray[np.int64]]:
    """The rows of :func:`draws`, as many at a time as fit into little memory; at least one part."""
    rng, at_once = np.random.default_rng(seed), max(1, DRAWN_AT_ONCE // max(cases, 1))
    left = samples if cases > 1 else 0
    while True:
        now = min(left, at_once)
        none = np.zeros((0, cases), dtype=np.int64)
        yield rng.multinomial(cases, np.full(cases, 1 / cases), size=now) if now else none
        left -= now
        if not left:
            return


def ratios(draws: NDArray[np.int64], total: Array, count: Array) -> Array:
    """(samples,) sum(total) / sum(count) over the cases drawn; NaN where these count nothing."""
    drawn = draws @ count
    return np.where(drawn > 0, (draws @ total) / np.maximum(drawn, 1), np.nan)


def interval(values: Array) -> tuple[float, float] | None:
    """95 % percentile interval of bootstrap samples; None where none is finite."""
    finite = values[np.isfinite(values)]
    return (float(np.percentile(finite, 2.5)), float(np.percentile(finite, 97.5))) if finite.size else None


def area_under_roc(suspicion: Array, bad: NDArray[np.bool_]) -> float:
    """Probability that a bad case (M,) is more suspicious than a good one, ties counting half; NaN without both."""
    x, wrong = np.asarray(suspicion, dtype=np.float64), np.asarray(bad)
    if wrong.all() or not wrong.any():
        return float("nan")
    of_bad, of_good = x[wrong], np.sort(x[~wrong])
    below, above = (np.searchsorted(of_good, of_bad, side) for side in ("left", "right"))
    return float((below + 0.5 * (above - below)).sum() / (len(of_bad) * len(of_good)))


def mean_shape_baselines(train: Sequence[Landmarks], truth: Mapping[str, Landmarks]) -> dict[str, dict[str, Landmarks]]:
    """What knowing the mean of the training landmarks alone would give, by name of the baseline and case.

    ``mean position``: the mean of the training points in world mm, the same in every case. ``mean shape, perfect rigid
    pose`` and ``mean shape, perfect similarity``: the Procrustes mean laid onto the case's own truth (least squares):
    what a flawless pose without any further look at the image leaves; not of one or two landmarks, which are all pose.
    Empty without training landmarks.
    """
    names = tuple(dict.fromkeys(n for one in train for n, d in zip(one.names, one.defined, strict=True) if d))
    if not names:
        return {}
    # a case without any point says nothing of the shape
    shapes = np.stack([s for s in (one.select(names).points for one in train) if np.isfinite(s).any()])
    mean = Landmarks(names, nanmean(shapes))
    baselines = {"mean position": dict.fromkeys(truth, mean)}
    posed = (("mean shape, perfect rigid pose", False), ("mean shape, perfect similarity", True))
    for label, scale in posed if len(names) > 2 else ():
        shape, _ = mean_shape(shapes, scale=scale)
        baselines[label] = {
            case: Landmarks(names, procrustes(shape, points.select(names).points, scale=scale).apply(shape))
            for case, points in truth.items()
        }
    return baselines


def between_observers(observers: Mapping[str, Mapping[str, Landmarks]], names: Sequence[str]) -> dict[str, Errors]:
    """Distances between every two observers who marked the same cases, as ``{"senior - junior": errors}``.

    ``observers``: by case, then by observer's name. A point that only one of the two marked is left out.
    """
    people = tuple(dict.fromkeys(person for by_observer in observers.values() for person in by_observer))
    pairs = {}
    for one, other in combinations(people, 2):
        both = {case: by for case, by in observers.items() if one in by and other in by}
        if both:
            errors = compare({c: by[one] for c, by in both.items()}, {c: by[other] for c, by in both.items()}, names)
            errors.outcome[errors.outcome != Outcome.LOCATED] = Outcome.UNSCORED
            pairs[f"{one} - {other}"] = errors
    return pairs
