"""Radii that hold what they say: conformal calibration of predicted uncertainty (Vovk et al. 2005; normalised
residuals: Papadopoulos et al. 2002)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from anatomark.core.grid import Array
from anatomark.core.landmarks import Landmarks
from anatomark.errors import counted

LEVEL = 0.9  # share of errors that a radius is to cover
FEWEST_CASES = 5  # the errors of one case go together: fewer say little of the next one
ROUGH = 2.0  # so many cases' worth of doubt widens the radii of fewer
DRAWN = 2.0  # cases' worth of the common mean in a landmark's own


def sigma_of(covariance: Array | None, count: int) -> Array:
    """(N,) root mean variance in mm of covariances (N, D, D); NaN where there are none."""
    if covariance is None:
        return np.full(count, np.nan)
    return np.asarray(np.sqrt(np.trace(covariance, axis1=1, axis2=2) / covariance.shape[1]))


def conformal_quantile(values: Array, level: float = LEVEL) -> float:
    """The smallest of M values that the next one exceeds with a probability of at most 1 - ``level``, whatever their
    distribution; NaN where they are too few for that (below 9 at 90 %)."""
    rank = int(np.ceil((len(values) + 1) * level))
    return float(np.sort(values)[rank - 1]) if rank <= len(values) else float("nan")


def calibrated(errors: Array, predictions: Sequence[Landmarks], names: Sequence[str]) -> dict[str, Any]:
    """What independent errors (M, N) mm of predictions say of the radius within which a landmark lies with 90 %
    probability, pooled and per landmark, as ``calibration.json`` has it.

    ``scale90``: what to multiply sigma by, the root mean variance of the method's covariance, so that it covers 90 % of
    the errors; ``radius90_mm``: the same without sigma. A landmark's own are what it usually misses by, times a
    quantile that all landmarks share (:func:`shared_quantiles`), because few cases say little of one landmark's tail.
    A value that too few errors support is null. Fewer than five cases give the pooled radius alone, widened: whether
    sigma follows the errors, and from one model to the next, is not to be seen in so few.
    """
    sigma = np.stack([sigma_of(p.select(names).covariance, len(names)) for p in predictions])
    ratio = errors / np.where(sigma > 0, sigma, np.nan)
    radius, scale = shared_quantiles(errors), shared_quantiles(ratio)
    few = np.isfinite(errors).any(1).sum() < FEWEST_CASES
    of_sigma = None if few else _quantile(ratio)
    return {
        "pooled": {**_summary(errors), "radius90_mm": _quantile(errors), "scale90": of_sigma},
        "landmarks": {
            n: {**_summary(errors[:, k]), "radius90_mm": _number(radius[k]), "scale90": _number(scale[k])}
            for k, n in enumerate(names)
        },
    }


def shared_quantiles(values: Array, level: float = LEVEL) -> Array:
    """(N,) of values (M, N), NaN = unknown: each column's mean, drawn a little towards that of all, times the conformal
    quantile of all values over such means of the other rows. NaN where a column is empty, or values or rows are too
    few."""
    given = np.isfinite(values)
    x, n = np.where(given, values, 0.0), given.sum(0)
    if given.any(1).sum() < FEWEST_CASES:
        return np.full(values.shape[1], np.nan)
    common = x.sum() / given.sum()
    mean = (x.sum(0) + DRAWN * common) / (n + DRAWN)
    others = (x.sum(0) - x + DRAWN * common) / (n - 1 + DRAWN)
    shared = conformal_quantile((x / np.maximum(others, 1e-12))[given], level)
    return np.where(n > 0, mean * shared, np.nan)


def radii(landmarks: Landmarks, calibration: dict[str, Any]) -> Array | None:
    """(N,) mm within which each landmark lies with 90 % probability, as far as independent errors were seen in
    training: from the covariance scaled by the calibration, else from the errors themselves; NaN where unknown."""
    pooled = calibration.get("pooled") or {}
    own = calibration.get("landmarks") or {}
    sigma = sigma_of(landmarks.covariance, len(landmarks))
    out = np.full(len(landmarks), np.nan)
    for k, name in enumerate(landmarks.names):
        for facts in (own.get(name) or {}, pooled):
            if facts.get("scale90") is not None and sigma[k] > 0:  # of 0 no factor makes a radius
                out[k] = facts["scale90"] * sigma[k]
            elif facts.get("radius90_mm") is not None:
                out[k] = facts["radius90_mm"]
            if np.isfinite(out[k]):
                break
    out[~landmarks.defined] = np.nan
    return out if np.isfinite(out).any() else None


def _summary(errors: Array) -> dict[str, Any]:
    e = errors[np.isfinite(errors)]
    mean, median = (e.mean(), np.median(e)) if len(e) else (np.nan, np.nan)
    return {"n": len(e), "mean_mm": _number(mean), "median_mm": _number(median)}


def _quantile(values: Array) -> float | None:
    """Of values (M, N), with NaN; of few cases M' wider by 1 + 2 / M'; None where values are too few."""
    given = np.isfinite(values)
    cases = int(given.any(1).sum())
    if not cases:
        return None
    return _number(conformal_quantile(values[given]) * (1.0 if cases >= FEWEST_CASES else 1 + ROUGH / cases))


def described_radii(calibration: dict[str, Any]) -> str:
    """Whether radii are given and how far they rest on anything, one line."""
    cases = int(calibration.get("cases") or 0)
    if not cases:
        return "radii: none, because no case was held out; give more training cases, a val split or `folds`"
    held = counted(cases, "held-out case")
    if (calibration.get("pooled") or {}).get("radius90_mm") is None:
        return f"radii: none, too few landmarks in {held}; hold more out, or use `folds`"
    if cases < FEWEST_CASES:
        return f"radii: rough, learned from {held} and widened for that; hold more out, or use `folds`"
    return f"radii: learned from {cases} held-out cases"


def _number(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None
