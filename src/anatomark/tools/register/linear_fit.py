"""Linear transforms from pairs of points, and which of the pairs belong to them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anatomark.core.grid import Array
from anatomark.core.shape import procrustes
from anatomark.tools.register.kind import Kind

Bools = NDArray[np.bool_]
STARTS, KEPT = 200, 10  # random starts of the robust fit, and how many of them are followed to the end
FALSE_ALARM = 0.01  # probability that any landmark of a clean case is rejected, if its errors are normal

_nodes, _shares = np.polynomial.legendre.leggauss(48)
NODES, SHARES = np.append((_nodes + 1) / 2, 1.0), _shares / 2  # Gauss-Legendre on 0..1, and the end


@dataclass(frozen=True, eq=False)
class Linear:
    """``matrix`` (D+1, D+1): world mm (x, y[, z]) of the fixed image to those of the moving one."""

    matrix: Array

    def __call__(self, points: ArrayLike) -> Array:
        """Mapped points (..., D)."""
        d = len(self.matrix) - 1
        return np.asarray(points, dtype=np.float64) @ self.matrix[:d, :d].T + self.matrix[:d, d]


def fit_linear(kind: Kind, source: Array, target: Array, weights: Array) -> Array:
    """(D+1, D+1) matrix of the rigid, similarity or affine map that takes ``source`` (N, D) closest to ``target``,
    weighted least squares."""
    d = source.shape[1]
    matrix = np.eye(d + 1)
    if kind is Kind.AFFINE:
        w = weights / weights.sum()
        middle, there = w @ source, w @ target
        root = np.sqrt(w)[:, None]
        matrix[:d, :d] = np.linalg.lstsq(root * (source - middle), root * (target - there), rcond=None)[0].T
        matrix[:d, d] = there - matrix[:d, :d] @ middle
        return matrix
    pose = procrustes(source, target, weights, scale=kind is Kind.SIMILARITY)
    matrix[:d, :d], matrix[:d, d] = pose.scale * pose.rotation, pose.translation
    return matrix


def inliers(
    kind: Kind, a: Array, b: Array, variance: Array | None, score: Array | None, keep_all: bool
) -> tuple[Bools, Array, Array]:
    """Which points are used, the distance in mm beyond which each is an outlier (NaN: untested), and the weights."""
    n, d = a.shape
    h = n if keep_all else min(n, (n + kind.least(d) + 1) // 2)
    core = np.ones(n, dtype=bool) if h == n else _trimmed(kind, a, b, h)
    if variance is None:
        weights = np.ones(n) if score is None else score / score.mean()
        return *_forward(kind, a, b, weights, core), weights
    used = core
    for _ in range(2):
        weights = 1 / (variance + _beyond(kind, a, b, variance, used))
        used, limits = _forward(kind, a, b, weights / weights.mean(), core)
    return used, limits, weights / weights.mean()


def _beyond(kind: Kind, a: Array, b: Array, variance: Array, used: Bools) -> float:
    """Variance per axis, mm^2, that the fit of the used points leaves beyond ``variance`` (N,): the one with which the
    weighted sum of squares equals its degrees of freedom (Paule and Mandel 1982)."""
    floor = 1e-6 * float(variance.max()) + 1e-12
    low, high = math.log(floor), math.log(floor + float(((b - b.mean(0)) ** 2).sum(1).max()))
    for _ in range(40):
        weights = 1 / (variance + math.exp((low + high) / 2))
        miss, free = _misses(kind, a, b, weights, used)
        more = float((weights * miss**2)[used].sum()) > free
        low, high = ((low + high) / 2, high) if more else (low, (low + high) / 2)
    return math.exp(low)


def _misses(kind: Kind, a: Array, b: Array, weights: Array, used: Bools) -> tuple[Array, int]:
    """Distance (N,) mm of each point from the fit of the used ones, and that fit's degrees of freedom."""
    d = a.shape[1]
    parameters = {Kind.RIGID: d * (d + 1) // 2, Kind.SIMILARITY: d * (d + 1) // 2 + 1}.get(kind, d * (d + 1))
    fitted = Linear(fit_linear(kind, a[used], b[used], weights[used]))
    return np.asarray(np.linalg.norm(b - fitted(a), axis=1)), d * int(used.sum()) - parameters


def _forward(kind: Kind, a: Array, b: Array, weights: Array, core: Bools) -> tuple[Bools, Array]:
    """Forward search: grow ``core`` by the nearest point in turn; used is the first set that leaves only outliers.

    Outside a set of m points, with scale s from its f degrees of freedom, |miss|^2 / (D s^2 (1/w + leverage)) follows
    F(D, f) where the point belongs to the others (exact for affine), at level FALSE_ALARM / N for each of N.
    """
    n, d = a.shape
    floor = 1e-6 * float(np.sqrt(((b - b.mean(0)) ** 2).sum(1).mean()))  # exact data leave rounding only
    used, before, step = core, core, 0
    while True:
        miss, free = _misses(kind, a, b, weights, used)
        spread, limits = np.sqrt(1 / weights + _leverage(kind, a, weights, used)), np.full(n, np.nan)
        if free > 0 and not core.all():
            scale = max(float(np.sqrt((weights * miss**2)[used].sum() / free)), floor)
            limits = scale * spread * math.sqrt(d * f_radius(d, free, FALSE_ALARM / n))
        if used.all() or (miss > limits)[~used].all():
            if step <= 1:
                return used, limits
            used, step = before, 1  # it may have gone too far: from here on one by one
            continue
        if step != 1:  # of many, 2 % at a time
            step = max(1, int((~used).sum()) // 50)
        before = used
        nearest = np.argsort(miss / spread, kind="stable")[: int(used.sum()) + step]
        used = np.zeros(n, dtype=bool)
        used[nearest] = True


def _leverage(kind: Kind, a: Array, weights: Array, used: Bools) -> Array:
    """(N,) variance per axis that the fit of the used points has at each point, in units of their own."""
    n, d = a.shape
    x = a - np.average(a[used], axis=0, weights=weights[used])
    x = x / max(float(np.abs(x).max()), 1e-12)
    if kind is Kind.AFFINE:
        columns = np.column_stack([np.ones(n), x])
        normal = (columns[used].T * weights[used]) @ columns[used]
        return np.asarray(((columns @ np.linalg.pinv(normal)) * columns).sum(1))
    turns = [(i, j) for i in range(d) for j in range(i)]
    size = kind is Kind.SIMILARITY
    design = np.zeros((n, d, d + len(turns) + size))  # of each coordinate by shift, turns and size
    design[:, :, :d] = np.eye(d)
    for k, (i, j) in enumerate(turns, start=d):
        design[:, i, k], design[:, j, k] = x[:, j], -x[:, i]
    if size:
        design[:, :, -1] = x
    rows = design.reshape(n * d, -1)
    counted = np.repeat(np.where(used, weights, 0.0), d)
    normal = (rows.T * counted) @ rows
    return np.asarray(((rows @ np.linalg.pinv(normal)) * rows).sum(1).reshape(n, d).mean(1))


def _trimmed(kind: Kind, a: Array, b: Array, h: int) -> Bools:
    """Least trimmed squares: the ``h`` points whose own fit has the least sum of squares, from many random starts."""
    n, p = len(a), kind.least(a.shape[1])
    rng = np.random.default_rng(0)

    def step(keep: NDArray[np.intp]) -> tuple[float, NDArray[np.intp]]:
        fitted = Linear(fit_linear(kind, a[keep], b[keep], np.ones(len(keep))))
        square = ((b - fitted(a)) ** 2).sum(1)
        order = np.argsort(square, kind="stable")[:h]
        return float(square[order].sum()), order

    starts = [np.arange(n), *(rng.choice(n, p, replace=False) for _ in range(STARTS))]
    tried = sorted((step(step(start)[1]) for start in starts), key=lambda one: one[0])
    best, chosen = tried[0]
    for now, keep in tried[:KEPT]:
        while True:
            then, keep = step(keep)
            if then >= now * (1 - 1e-9):
                break
            now = then
        if now < best:
            best, chosen = now, keep
    used = np.zeros(n, dtype=bool)
    used[chosen] = True
    return used


@cache
def f_radius(d: int, free: int, tail: float) -> float:
    """The value that an F(d, free) variable exceeds with probability ``tail``, from the incomplete beta function."""
    log_beta = math.lgamma(free / 2) + math.lgamma(d / 2) - math.lgamma((free + d) / 2)

    def beyond(f: float) -> tuple[float, float]:
        """The probability, and its slope over f."""
        top = math.sqrt(free / (free + d * f))  # of v, where v^2 = free / (free + d F)
        v = top * NODES
        density = 2 * np.exp((free - 1) * np.log(v) + (d / 2 - 1) * np.log1p(-(v**2)) - log_beta)
        return float(top * (SHARES * density[:-1]).sum()), -float(density[-1]) * top * d / (2 * (free + d * f))

    low, high, y = 0.0, 50.0, 1.0  # of log(1 + f)
    for _ in range(80):  # Newton's steps on the logarithm, halving where they leave the bracket
        p, slope = beyond(math.expm1(y))
        low, high = (y, high) if p > tail else (low, y)
        there = y - p * math.log(p / tail) / (slope * math.exp(y)) if p > 0 and slope < 0 else low
        there = there if low < there < high else (low + high) / 2
        if abs(there - y) <= 1e-15 * (1 + y):
            break
        y = there
    return math.expm1(y)


def chi_radius(d: int, probability: float) -> float:
    """The radius within which a standard normal point in D = 2 or 3 dimensions lies with ``probability``."""
    if d == 2:
        return math.sqrt(-2 * math.log1p(-probability))
    low, high = 0.0, 40.0
    for _ in range(80):
        r = (low + high) / 2
        inside = math.erf(r / math.sqrt(2)) - math.sqrt(2 / math.pi) * r * math.exp(-r * r / 2)
        low, high = (r, high) if inside < probability else (low, r)
    return low
