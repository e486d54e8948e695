"""Transforms between two images from the landmarks they share: weighted, robust, with their leave-one-out error.

Direction, everywhere: as ITK resamples, a transform maps points of the **fixed** image to points of the **moving** one
(world mm). Residuals and errors are therefore mm in the moving image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from anatomark.core.grid import Array
from anatomark.core.landmarks import Landmarks
from anatomark.errors import InputError
from anatomark.tools.register.kind import Kind
from anatomark.tools.register.linear_fit import Bools, Linear, chi_radius, fit_linear, inliers
from anatomark.tools.register.thin_plate import ThinPlate

FLAT = 1e-3  # points whose spread along an axis is less than this share of their longest count as lying on a plane
INTERPOLATED_MM = 1e-6


@dataclass(frozen=True, eq=False)
class Registration:
    """A transform from landmarks, and how far to trust it.

    ``transform`` maps fixed to moving points (..., D). For the N shared landmarks ``names``: ``used`` (N,); ``weights``
    (N,) with mean 1 over the used (0: rejected); ``residuals`` (N,) mm; ``limits`` (N,) mm beyond which a landmark is
    rejected (``tps``: from the affine fit; NaN: not tested); ``left_out`` (N,) mm, the distance by which the transform
    of the *other* used landmarks misses this one (target registration error by leave-one-out), NaN for rejected ones
    and where the others determine none. ``basis`` says what the weights are made of; ``notes`` what a user must know.
    """

    kind: Kind
    transform: Linear | ThinPlate
    names: tuple[str, ...]
    used: Bools
    weights: Array
    residuals: Array
    limits: Array
    left_out: Array
    basis: str
    notes: tuple[str, ...] = ()

    @property
    def rejected(self) -> tuple[str, ...]:
        """Names of the landmarks that were left out as outliers."""
        return tuple(n for n, used in zip(self.names, self.used, strict=True) if not used)

    def facts(self) -> dict[str, Any]:
        """Plain JSON: kind, basis, notes, FRE (over the used), TRE by leave-one-out, and each landmark."""
        keys = ("used", "weight", "residual_mm", "limit_mm", "leave_one_out_mm")
        columns = (v.tolist() for v in (self.used, self.weights, self.residuals, self.limits, self.left_out))
        rows = ([v if np.isfinite(v) else None for v in row] for row in zip(*columns, strict=True))
        each = {name: dict(zip(keys, row, strict=True)) for name, row in zip(self.names, rows, strict=True)}
        return {
            "kind": str(self.kind),
            "weights": self.basis,
            "fre_mm": summarised(self.residuals[self.used]),
            "tre_leave_one_out_mm": summarised(self.left_out),
            "rejected": list(self.rejected),
            "notes": list(self.notes),
            "landmarks": each,
        }


def register_landmarks(
    fixed: Landmarks,
    moving: Landmarks,
    kind: Kind | str = Kind.RIGID,
    *,
    smooth_mm: float = 0.0,
    equal_weights: bool = False,
    keep_all: bool = False,
) -> Registration:
    """The transform of ``kind`` that takes ``fixed`` to ``moving`` best, from the landmarks defined in both.

    Linear kinds: weighted least squares (rigid and similarity: Umeyama 1991), never a mirrored rotation. ``tps``: a
    thin-plate spline through the points, or one that leaves ``smooth_mm`` (root mean square) at them.

    Weights (unless ``equal_weights``) are 1 / (s_i^2 + t^2): s_i is the landmark's own standard deviation per axis,
    from ``radius90``, else ``covariance``, of both files together; t what the fit leaves beyond it at the used
    landmarks (Paule and Mandel 1982), so that a very sure landmark does not rule where the anatomies differ. Without
    either: the scores.

    Outliers (unless ``keep_all``) are found with the linear kind (``tps``: affine): the better half of the landmarks by
    least trimmed squares (Rousseeuw and Van Driessen 2006), then a forward search (Atkinson, Riani and Cerioli 2004).
    A landmark is rejected where it lies farther from the fit of the used ones than an F test allows, set so that 1 %
    of cases with normal errors lose any (in simulations 0 to 2 %, from 6 to 45 landmarks). Never more than half;
    nothing with fewer than two landmarks more than the kind needs.

    Raises InputError: too few shared landmarks, landmarks on a line or plane, or at one place (``tps``).
    """
    kind = Kind(kind)
    a, b, variance, score, names, basis = _shared(fixed, moving, kind, equal_weights)
    linear = Kind.AFFINE if kind is Kind.TPS else kind
    used, limits, weights = inliers(linear, a, b, variance, score, keep_all)
    for points, where in ((a, "fixed"), (b, "moving")):
        _check_spread(kind, points[used], where)
    weights = np.where(used, weights / weights[used].mean(), 0.0)
    kept = [name for name, good in zip(names, used, strict=True) if good]
    transform, left_out = _fitted(kind, a[used], b[used], weights[used], smooth_mm, kept)
    notes = []
    left = np.full(len(names), np.nan)
    left[used] = left_out
    base = transform.matrix if isinstance(transform, Linear) else fit_linear(linear, a[used], b[used], weights[used])
    if np.linalg.det(base[:-1, :-1]) < 0:
        notes.append("the transform mirrors: are left and right landmarks swapped in one of the files?")
    if used.sum() == kind.least(a.shape[1]):
        notes.append("no landmark more than needed: errors cannot be estimated")
    residuals = np.linalg.norm(b - transform(a), axis=1)
    return Registration(kind, transform, names, used, weights, residuals, limits, left, basis, tuple(notes))


def summarised(values: Array) -> dict[str, float | int] | None:
    """Count, root mean square, mean, median, 95th percentile and maximum of the finite values; None without any."""
    v = values[np.isfinite(values)]
    if not v.size:
        return None
    return {
        "count": int(v.size), "rms": float(np.sqrt((v**2).mean())), "mean": float(v.mean()),
        "median": float(np.median(v)), "p95": float(np.percentile(v, 95)), "max": float(v.max()),
    }  # fmt: skip


# ---------------------------------------------------------------------- the fit


def _fitted(
    kind: Kind, a: Array, b: Array, weights: Array, smooth_mm: float, names: Sequence[str]
) -> tuple[Linear | ThinPlate, Array]:
    """The transform, and by how much each point is missed without it (N,)."""
    if kind is not Kind.TPS:
        return Linear(fit_linear(kind, a, b, weights)), _left_out(kind, a, b, weights)
    try:
        spline = ThinPlate.fit(a, b, weights, residual_mm=smooth_mm)
        through = smooth_mm > 0 or float(np.abs(spline(a) - b).max()) <= INTERPOLATED_MM
    except ValueError:
        through = False
    if not through:
        distance = np.linalg.norm(a[:, None] - a[None], axis=-1) + np.diag(np.full(len(a), np.inf))
        i, j = divmod(int(distance.argmin()), len(a))
        raise InputError(
            f"landmarks {names[i]!r} and {names[j]!r} lie {distance[i, j]:.2g} mm apart in the fixed image; no spline "
            "goes through both: leave one out, or give a smoothing in mm"
        )
    return spline, np.asarray(np.linalg.norm(spline.left_out, axis=1))


def _left_out(kind: Kind, a: Array, b: Array, weights: Array) -> Array:
    n, d = a.shape
    out = np.full(n, np.nan)
    if n <= kind.least(d):
        return out
    if kind is Kind.AFFINE:  # residual / (1 - leverage)
        root = np.sqrt(weights)[:, None]
        q, _ = np.linalg.qr(root * np.column_stack([np.ones(n), a - a.mean(0)]))
        free = 1 - (q**2).sum(1)
        miss = np.linalg.norm(b - Linear(fit_linear(kind, a, b, weights))(a), axis=1)
        return np.where(free > 1e-9, miss / np.maximum(free, 1e-9), np.nan)
    # all fits without one point at once, else as core.shape.procrustes
    (cross, mean_b, mean_a), (own, *_) = _without(weights, b, a), _without(weights, a, a)
    u, s, vt = np.linalg.svd(cross)
    sign = np.ones((n, d))
    sign[:, -1] = np.where(np.linalg.det(u @ vt) < 0, -1.0, 1.0)
    size = (s * sign).sum(1) / np.trace(own, axis1=1, axis2=2) if kind is Kind.SIMILARITY else np.ones(n)
    there = mean_b + size[:, None] * np.einsum("nij,nj->ni", (u * sign[:, None]) @ vt, a - mean_a)
    spread, least = np.linalg.eigvalsh(_without(np.ones(n), a, a)[0] / (n - 1)), 1e-6 * np.ptp(a, axis=0).max()
    thick = np.sqrt(np.maximum(spread, 0))
    enough = (thick[:, 1] > least) & (thick[:, 1] > FLAT * thick[:, -1])  # as _check_spread, of a turn
    return np.where(enough, np.linalg.norm(b - there, axis=1), np.nan)


def _without(weights: Array, x: Array, y: Array) -> tuple[Array, Array, Array]:
    """(N, D, D) weighted products of x and y (N, D) about their means (N, D), of all points but each in turn."""
    w, far = weights[:, None], (x.mean(0), y.mean(0))
    rest, (x, y) = w.sum() - w, (x - far[0], y - far[1])
    mean_x, mean_y = (((w * z).sum(0) - w * z) / rest for z in (x, y))
    each = w[..., None] * x[:, :, None] * y[:, None]
    products = each.sum(0) - each - rest[..., None] * mean_x[:, :, None] * mean_y[:, None]
    return products, mean_x + far[0], mean_y + far[1]


# ---------------------------------------------------------------------- what is given


def _shared(
    fixed: Landmarks, moving: Landmarks, kind: Kind, equal: bool
) -> tuple[Array, Array, Array | None, Array | None, tuple[str, ...], str]:
    """Points of the landmarks defined in both, their variances or scores, names, and what the weights are made of."""
    if fixed.ndim != moving.ndim:
        raise InputError(f"the fixed landmarks are {fixed.ndim}D, the moving ones {moving.ndim}D")
    other = moving.select(fixed.names)
    both = fixed.defined & other.defined
    names = tuple(fixed.names[i] for i in np.flatnonzero(both))
    least = kind.least(fixed.ndim)
    if len(names) < least:
        which = f": {', '.join(names)}" if names else ""
        needed = f"{kind} in {fixed.ndim}D needs {least} or more"
        raise InputError(f"{len(names)} landmarks are defined in both{which}; {needed}")
    one, two = fixed.select(names), other.select(names)
    for points, where in ((one.points, "fixed"), (two.points, "moving")):
        _check_spread(kind, points, where)
    variances = [] if equal else [v for v in map(_variance, (one, two)) if v is not None]
    if variances:
        sources = sorted({basis for _, basis in variances})
        return one.points, two.points, np.sum([v for v, _ in variances], 0), None, names, " and ".join(sources)
    scores = [] if equal else [s for s in (one.score, two.score) if s is not None and np.isfinite(s).any()]
    if scores:
        product = np.prod([np.clip(np.where(np.isfinite(s), s, np.nanmedian(s)), 0.05, 1) for s in scores], 0)
        return one.points, two.points, None, product, names, "score"
    return one.points, two.points, None, None, names, "equal"


def _variance(landmarks: Landmarks) -> tuple[Array, str] | None:
    """Variance per axis (N,) mm^2 as the file states it, and whence; an unstated one is the others' median."""
    if landmarks.radius90 is not None and np.isfinite(landmarks.radius90).any():
        values, basis = (landmarks.radius90 / chi_radius(landmarks.ndim, 0.9)) ** 2, "radius90"
    elif landmarks.covariance is not None and np.isfinite(landmarks.covariance).any():
        values, basis = np.trace(landmarks.covariance, axis1=1, axis2=2) / landmarks.ndim, "covariance"
    else:
        return None
    return np.where(np.isfinite(values), values, np.nanmedian(values)), basis


def _check_spread(kind: Kind, points: Array, where: str) -> None:
    """Raises InputError where the points spread too little along the last axis that the kind needs."""
    n, d = points.shape
    needs = d - (kind in (Kind.RIGID, Kind.SIMILARITY))
    s = np.linalg.svd(points - points.mean(0), compute_uv=False) / np.sqrt(n)
    if not s[needs - 1] > max(FLAT * s[0] if needs > 1 else 0.0, 1e-9):
        place = {1: "at one place", 2: "on a line", 3: "on a plane"}[needs]
        problem = f"the {n} {where} landmarks lie {place} (to {s[needs - 1]:.2g} mm)"
        raise InputError(f"{problem}; {kind} in {d}D needs {kind.least(d)} that do not")
