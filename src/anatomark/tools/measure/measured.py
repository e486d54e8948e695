"""Measurements of cases, with the uncertainty that follows from the landmarks'."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anatomark.core.grid import Array
from anatomark.core.landmarks import Landmarks, Status, common_names
from anatomark.errors import InputError, listed, nearest
from anatomark.tools.measure.geometry import evaluate
from anatomark.tools.measure.schema import Measurement, Measurements

Bools = NDArray[np.bool_]
Z90_BOTH = 1.6448536269514722  # 90 % of a normal variable lie within +- this many sd
Z90_BELOW = 1.2815515655446004  # and 90 % below this many
STEP_MM = 1e-4
DRAWS, BATCH = 512, 32  # of landmarks within their uncertainty, and how many are looked at together
CASES = 500  # whose derivatives are held at once
STRAY = 0.05  # as many values beyond either end of a 90 % interval
OPEN = "its points lie in one place or on one line, which leaves it open"
SIGN_OPEN = "its sign is open within the uncertainty"
UNPROVEN = "the model is unproven, its uncertainty is not known"
LARGE = "its uncertainty is too large beside its distances for an interval"
COLUMNS = ("case", "measurement", "value", "unit", "sd", "low90", "high90", "class", "class_p", "reason")


@dataclass(frozen=True, eq=False)
class Measured:
    """K measurements of M cases.

    ``values``, ``sd`` (M, K) in the measurements' units: NaN where not defined, or the uncertainty is not known.
    ``reasons``: by case and measurement, why a value, or the ``sd`` of landmarks with covariances, is not there; empty
    where they are.
    """

    definition: Measurements
    cases: tuple[str, ...]
    values: Array
    sd: Array
    reasons: tuple[tuple[str, ...], ...]

    @property
    def names(self) -> tuple[str, ...]:
        return self.definition.shown

    @property
    def interval90(self) -> tuple[Array, Array]:
        """(M, K) ends of the 90 % interval of the normal approximation."""
        return self.values - Z90_BOTH * self.sd, self.values + Z90_BOTH * self.sd

    def classes(self) -> list[list[str]]:
        """The class of each value, by case and measurement; empty where it has none."""
        kinds = [self.definition.measurements[n] for n in self.names]
        return [[m.class_of(v) for m, v in zip(kinds, row, strict=True)] for row in self.values]

    def rows(self) -> Iterator[dict[str, str]]:
        """The tidy table, a row for each case and measurement, with the keys ``COLUMNS``; blank where not known."""
        low, high = self.interval90
        classes = self.classes()
        for i, case in enumerate(self.cases):
            for k, name in enumerate(self.names):
                value, sd, of = self.values[i, k], self.sd[i, k], classes[i][k]
                p = class_probability(self.definition.measurements[name], value, sd).get(of, np.nan)
                cells = (case, name, _text(value), self.definition.unit(name), _text(sd), _text(low[i, k]),
                         _text(high[i, k]), of, _text(p), self.reasons[i][k])  # fmt: skip
                yield dict(zip(COLUMNS, cells, strict=True))

    def summary(self) -> dict[str, dict[str, Any]]:
        """By measurement: unit, n, mean and sd over the cases, median propagated sd, number of cases by class."""
        classes, out = self.classes(), {}
        for k, name in enumerate(self.names):
            known = self.values[np.isfinite(self.values[:, k]), k]
            own = self.sd[np.isfinite(self.sd[:, k]), k]
            counted = {
                c.name: sum(row[k] == c.name for row in classes) for c in self.definition.measurements[name].classes
            }
            out[name] = {
                "unit": self.definition.unit(name),
                "n": len(known),
                "mean": number(known.mean()) if len(known) else None,
                "sd": number(known.std(ddof=1)) if len(known) > 1 else None,
                "median_propagated_sd": number(np.median(own)) if len(own) else None,
                "classes": counted,
            }
        return out


def measure_landmarks(cases: Mapping[str, Landmarks] | Landmarks, definition: Measurements) -> Measured:
    """Take the measurements of a definition in landmarks (world mm, all 2D or all 3D), by case, or of one case.

    The landmarks' covariances, brought to their conformal radius (:func:`scaled_to_radius`), are propagated to first
    order, landmarks being taken as independent of each other. Raises InputError where a label is in no case (naming the
    nearest), the cases mix 2D and 3D, or a plane is asked of 2D landmarks.
    """
    return measure_parts([{"": cases} if isinstance(cases, Landmarks) else cases], definition)


def measure_parts(parts: Iterable[Mapping[str, Landmarks]], definition: Measurements) -> Measured:
    """:func:`measure_landmarks` of cases that come in parts, of which one is held at a time."""
    labels = tuple(dict.fromkeys(k for n in definition.shown for k in definition.labels(n)))
    known: dict[str, None] = {}
    dimensions: set[int] = set()
    made: list[Measured] = []
    for cases in parts:
        known |= dict.fromkeys(common_names(cases.values()))
        dimensions |= {one.ndim for one in cases.values()}
        if len(dimensions) > 1:
            raise InputError("some cases have 2D and some 3D landmarks; measure one kind at a time")
        if definition.solid and dimensions == {2}:
            raise InputError("the definition uses a plane, but the landmarks are 2D; use a line")
        made += [_part(some, definition, labels) for some in _at_once(cases)]
    if unknown := next((k for k in labels if k not in known), None):
        there = f"they have {listed(list(known), quote=True)}" if known else "they have no landmark"
        raise InputError(f"landmark {unknown!r} is in none of the cases{nearest(unknown, tuple(known))}; {there}")
    return Measured(
        definition,
        tuple(case for one in made for case in one.cases),
        np.concatenate([one.values for one in made]),
        np.concatenate([one.sd for one in made]),
        tuple(row for one in made for row in one.reasons),
    )


def _at_once(cases: Mapping[str, Landmarks]) -> Iterator[Mapping[str, Landmarks]]:
    """As many cases as are looked at together."""
    names = list(cases)
    return ({n: cases[n] for n in names[k : k + CASES]} for k in range(0, len(names), CASES))


def _part(cases: Mapping[str, Landmarks], definition: Measurements, labels: tuple[str, ...]) -> Measured:
    given = list(cases.values())
    chosen = [one.select(labels) for one in given]
    points = np.stack([one.points for one in chosen])
    values = evaluate(definition, labels, points)
    reasons = [[_missing(one, definition.labels(n)) for n in definition.shown] for one in given]
    values[np.array([[bool(r) for r in row] for row in reasons])] = np.nan
    reasons = [
        [r or ("" if np.isfinite(v) else OPEN) for r, v in zip(row, own, strict=True)]
        for row, own in zip(reasons, values, strict=True)
    ]
    covariance = np.stack([_covariance(one) for one in chosen])
    for case, one in enumerate(given):
        if unproven(one):
            covariance[case] = np.nan
            reasons[case] = [reason or UNPROVEN for reason in reasons[case]]
    sd, either = propagated(definition, labels, points, covariance)
    certain = np.asarray(np.isfinite(covariance).all((2, 3)))
    for k, name in enumerate(definition.shown):
        used = [labels.index(label) for label in definition.labels(name)]
        for i in np.flatnonzero(certain[:, used].all(1) & np.isfinite(values[:, k]) & np.isnan(sd[:, k])):
            reasons[i][k] = SIGN_OPEN if either[i, k] else LARGE
    said = tuple(tuple(row) for row in reasons)
    return Measured(definition, tuple(cases), values, np.where(np.isfinite(values), sd, np.nan), said)


def propagated(
    definition: Measurements, labels: Sequence[str], points: Array, covariance: Array
) -> tuple[Array, Bools]:
    """(M, K) standard deviations, J C J^T to first order, of independent ``points`` (M, N, D) mm with ``covariance``
    (M, N, D, D) mm^2; J by central differences. And (M, K) whether the sign is open: points that lie within the
    uncertainty give values of both signs, and the first order does not tell of it.

    The sd is NaN where a covariance that counts is, and where no first order describes the measurement: at a kink or
    jump (an unsigned angle of exactly 0, a signed one that turns over), or where of points drawn from their Gaussians
    more than 5 % give a value that the first order misses by more than the sd.
    """
    at = evaluate(definition, labels, points)
    forward, backward = (np.empty((*points.shape[1:], *at.shape)) for _ in range(2))
    for n, d in np.ndindex(points.shape[1:]):
        moved = points.copy()
        moved[:, n, d] += STEP_MM
        forward[n, d] = (evaluate(definition, labels, moved) - at) / STEP_MM
        moved[:, n, d] -= 2 * STEP_MM
        backward[n, d] = (at - evaluate(definition, labels, moved)) / STEP_MM
    slope, variance = (forward + backward) / 2, np.empty_like(at)
    for k, name in enumerate(definition.shown):
        used = [labels.index(label) for label in definition.labels(name)]
        there, back, along = forward[used, ..., k], backward[used, ..., k], slope[used, ..., k]
        variance[:, k] = np.einsum("nam,mnab,nbm->m", along, covariance[:, used], along)
        steepest = np.maximum(np.abs(there), np.abs(back)).max((0, 1))
        smooth = np.abs(there - back).max((0, 1)) <= 0.01 * steepest + 1e-6
        variance[~smooth, k] = np.nan
    sd = np.sqrt(np.maximum(variance, 0))
    strays, both = _strays(definition, labels, points, covariance, slope, sd)
    return np.where(strays, np.nan, sd), strays & both


def _strays(
    definition: Measurements, labels: Sequence[str], points: Array, covariance: Array, slope: Array, sd: Array
) -> tuple[Bools, Bools]:
    """(M, K) of points drawn from their Gaussians: whether too many stray from the first order, ``slope`` (N, D, M, K),
    by more than ``sd`` (M, K); and whether values of both signs occur. The draws are the same each time and case."""
    at, root = evaluate(definition, labels, points), _root(covariance)
    strays, above, below = (np.zeros(at.shape, dtype=int) for _ in range(3))
    if not root.any():
        return np.zeros(at.shape, dtype=bool), np.zeros(at.shape, dtype=bool)
    rng = np.random.default_rng(0)
    for _ in range(DRAWS // BATCH):
        moves = np.einsum("mnij,snj->smni", root, rng.normal(size=(BATCH, *points.shape[1:])))
        drawn = evaluate(definition, labels, points + moves)
        expected = at + np.einsum("smnd,ndmk->smk", moves, np.nan_to_num(slope))
        strays += (~(np.abs(drawn - expected) <= sd + 1e-6)).sum(0)
        above, below = above + (drawn > 0).sum(0), below + (drawn < 0).sum(0)
    return strays > STRAY * DRAWS, (above > 0) & (below > 0)


def scaled_to_radius(covariance: Array, radius90: Array) -> Array:
    """Covariances (..., D, D) mm^2, scaled so that 90 % of the Gaussian lie within ``radius90`` (...) mm of its middle.

    A method's covariance says how its votes or starts spread, not how far it errs; the conformal radius says that.
    Unchanged where the radius is NaN, and round (isotropic) where only the radius is known. The Gaussian's radius: its
    squared distance as a scaled chi-square of the same mean and variance (Satterthwaite 1946), with the quantile of
    Wilson and Hilferty 1931; within 1.5 % of the truth in 2D and 3D.
    """
    d = covariance.shape[-1]
    shape = np.where(np.all(np.isfinite(covariance), axis=(-1, -2))[..., None, None], covariance, np.eye(d))
    trace = np.trace(shape, axis1=-1, axis2=-2)
    square = np.einsum("...ab,...ba->...", shape, shape)
    with np.errstate(invalid="ignore", divide="ignore"):
        freedom = trace**2 / square
        quantile = square / trace * freedom * (1 - 2 / (9 * freedom) + Z90_BELOW * np.sqrt(2 / (9 * freedom))) ** 3
        scaled = shape * (radius90**2 / quantile)[..., None, None]
    return np.where(np.isfinite(radius90)[..., None, None], scaled, covariance)


def class_probability(measurement: Measurement, value: float, sd: float) -> dict[str, float]:
    """Of each class, the probability that a normal variable with this mean and sd lies in it; empty without an sd."""
    if not (np.isfinite(value) and np.isfinite(sd)):
        return {}
    if sd == 0:
        return {c.name: float(c.at_least <= value < c.below) for c in measurement.classes}
    return {c.name: _below((c.below - value) / sd) - _below((c.at_least - value) / sd) for c in measurement.classes}


def number(value: float) -> float | None:
    """For JSON: None instead of NaN."""
    return round(float(value), 5) if np.isfinite(value) else None


def _below(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2))


def _text(value: float) -> str:
    return f"{value:.6g}" if np.isfinite(value) else ""


def _covariance(one: Landmarks) -> Array:
    """(N, D, D) mm^2, brought to the radii where there are any; NaN where neither is known."""
    plain = np.full((len(one), one.ndim, one.ndim), np.nan) if one.covariance is None else one.covariance
    return plain if one.radius90 is None else scaled_to_radius(plain, one.radius90)


def unproven(one: Landmarks) -> str:
    """Why the model that predicted these landmarks is not to be believed, as its files say; empty where nothing is."""
    facts = one.meta.get("json")
    return str(facts.get("unproven") or "") if isinstance(facts, Mapping) else ""


def _root(covariance: Array) -> Array:
    """Matrices whose product with their transpose is the covariance (..., D, D); 0 where that is not known."""
    known = np.isfinite(covariance).all((-1, -2), keepdims=True)
    size, axes = np.linalg.eigh(np.where(known, covariance, 0.0))
    return np.asarray(axes * np.sqrt(np.maximum(size, 0))[..., None, :])


def _missing(one: Landmarks, labels: Sequence[str]) -> str:
    """Why a measurement of these labels is not there; empty where all are."""
    state = dict(zip(one.names, one.status, strict=True))
    said = []
    for label in labels:
        if label not in state:
            said.append(f"{label} is not in the file")
        elif state[label] is not Status.DEFINED:
            said.append(f"{label} is {'absent' if state[label] is Status.ABSENT else 'not annotated'}")
    return "; ".join(said)
