"""Each landmark as its nearest neighbours place it: a local shape model, which bends with what is long and jointed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anatomark.cases.look.medians import distance, nanmedian
from anatomark.core.grid import Array
from anatomark.core.shape import Pose
from anatomark.progress import Reporter

NEIGHBOURS = 12  # three vertebrae of four corners: where one of them is misplaced as a whole, the others outvote it
LEARNED_FROM = 200  # cases, evenly spread, from which the shapes are learned; more change nothing
FEWEST_NEIGHBOURS = 3  # that a case must have marked for a point to be predicted
ROUNDS = 2  # of posing and averaging the neighbourhoods
STEPS = 5  # of reweighting a robust pose
CUT = 2.5  # times its median length, at which a deviation is cut before it teaches
RIDGE, RIDGE_CASES = 0.03, 8.0  # ridge in units of the neighbours' mean variance, and what is added over the cases
AT_ONCE = 50  # cases, for memory's sake
TOGETHER = 0.15  # share of their usual distance at which two points are at one place ...
FAR_FROM_USUAL = 5.0  # ... if that is also so many standard deviations below it


@dataclass(frozen=True, eq=False)
class Poses:
    """M similarities ``x -> scale * rotation @ (x - source) + target``: ``rotation`` (M, D, D), ``scale`` (M,), centres
    ``source`` and ``target`` (M, D)."""

    rotation: Array
    scale: Array
    source: Array
    target: Array

    def apply(self, points: Array) -> Array:
        """(M, K, D) of points (K, D) or (M, K, D)."""
        turned = (points - self.source[:, None]) @ self.rotation.transpose(0, 2, 1)
        return np.asarray(self.scale[:, None, None] * turned + self.target[:, None])

    def invert(self, points: Array) -> Array:
        """The inverse, of (M, K, D)."""
        turned = (points - self.target[:, None]) @ self.rotation / self.scale[:, None, None]
        return np.asarray(turned + self.source[:, None])

    def each(self) -> list[Pose]:
        shifts = self.target - self.scale[:, None] * np.einsum("mde,me->md", self.rotation, self.source)
        return [Pose(*one) for one in zip(self.rotation, shifts, self.scale.tolist(), strict=True)]


def similarities(source: Array, target: Array, weights: Array) -> Poses:
    """The similarities, never reflections, that take ``source`` (K, D), or (M, K, D), closest to ``target`` (M, K, D),
    weighted (M, K): Umeyama 1991, as ``procrustes`` does for one. What is NaN has no weight."""
    usable = np.asarray(np.isfinite(source).all(-1) & np.isfinite(target).all(-1))
    weights = np.where(usable, weights, 0.0)
    weights = (weights / np.maximum(weights.sum(1, keepdims=True), 1e-300))[..., None]
    source, target = np.where(usable[..., None], source, 0.0), np.where(usable[..., None], target, 0.0)
    middle, goal = (weights * source).sum(1), (weights * target).sum(1)
    a, b = source - middle[:, None], target - goal[:, None]
    u, s, vt = np.linalg.svd((b * weights).transpose(0, 2, 1) @ a)
    sign = np.ones_like(s)
    sign[:, -1] = np.where(np.linalg.det(u @ vt) < 0, -1.0, 1.0)
    size = (s * sign).sum(1) / np.maximum((weights * a**2).sum((1, 2)), 1e-300)
    return Poses((u * sign[:, None]) @ vt, np.where(size > 0, size, 1.0), middle, goal)


def robust_similarities(
    source: Array, target: Array, weights: Array, usual: Array | None = None
) -> tuple[Poses, Array]:
    """:func:`similarities` that a minority of gross errors does not pull: reweighted (Geman-McClure) from ``weights``
    on by residuals in units of the case's median one, which counts as no smaller than ``usual`` (M,) mm; None: than
    that of half of the cases. Second, the share (M, K) of its weight that each point kept."""
    poses = similarities(source, target, weights)
    for _ in range(STEPS):
        own = residual_of(poses, source, target)
        least = np.median(own) if usual is None else usual
        width = 2 * np.maximum(own, least)[:, None] + 1e-12
        apart = np.nan_to_num(distance(poses.apply(source), target))
        kept = 1 / (1 + (apart / width) ** 2) ** 2
        poses = similarities(source, target, weights * kept)
    return poses, kept


def residual_of(poses: Poses, source: Array, target: Array) -> Array:
    """(M,) mm: the median distance of what is posed to its ``target`` (M, K, D); 0 where none is known."""
    return np.nan_to_num(nanmedian(distance(poses.apply(source), target), 1))


@dataclass(frozen=True, eq=False)
class LocalShape:
    """N neighbourhoods of K landmarks: ``near`` (N, K) who they are, ``apart`` and ``varies`` (N, K) mm, the usual
    distance to each and its standard deviation (both robust, at the cases' usual size), ``hoods`` (N, K + 1, D) mm
    where they lie, with the landmark itself last, ``noise`` (N,) mm, how well they usually do, and ``gains``
    (N, D, K * D), how far the landmark goes with them where they lie a little otherwise."""

    near: NDArray[np.int64]
    apart: Array
    varies: Array
    hoods: Array
    noise: Array
    gains: Array

    @classmethod
    def learn(cls, shapes: Array, report: Reporter | None = None) -> LocalShape:
        """From ``shapes`` (M, N, D) world mm, NaN = missing, in any pose; every landmark known in some case."""
        far = np.stack([nanmedian(distance(shapes, shapes[:, [i]]), 0) for i in range(shapes.shape[1])])
        np.fill_diagonal(far, np.inf)
        near = np.argsort(np.nan_to_num(far, nan=np.inf), 1, kind="stable")[:, : min(NEIGHBOURS, len(far) - 1)]
        found = _distances(shapes, near, np.take_along_axis(far, near, 1))
        apart = nanmedian(found, 0)
        varies = 1.4826 * nanmedian(np.abs(found - apart), 0)
        trust = _trust(shapes, found, apart, varies)
        (n, k), d = near.shape, shapes.shape[2]
        hoods, noise, gains = np.empty((n, k + 1, d)), np.empty(n), np.empty((n, d, k * d))
        with (report or Reporter(quiet=True)).bar("learning shapes", len(near)) as bar:
            for i, others in enumerate(near):
                hoods[i], noise[i], gains[i] = _median_hood(shapes[:, [*others, i]], trust[:, others])
                bar.update(i + 1)
        return cls(near, apart, varies, hoods, noise, gains)

    def predict(self, shapes: Array, report: Reporter | None = None) -> Array:
        """Every point (M, N, D) of shapes (M, N, D) from its neighbours; NaN where too few of these are marked."""
        out = np.empty_like(shapes)
        with (report or Reporter(quiet=True)).bar("judging annotations", len(shapes)) as bar:
            for first in range(0, len(shapes), AT_ONCE):
                some = shapes[first : first + AT_ONCE]
                out[first : first + AT_ONCE] = self._predict(some)
                bar.update(first + len(some))
        return out

    def _predict(self, shapes: Array) -> Array:
        m, (n, k) = len(shapes), self.near.shape
        around = shapes[:, self.near].reshape(m * n, k, -1)
        hoods, noise = np.tile(self.hoods, (m, 1, 1)), np.tile(self.noise, m)
        trust = self.trust(shapes)[:, self.near].reshape(m * n, k)
        poses, kept = robust_similarities(hoods[:, :-1], around, trust, noise)
        off = np.nan_to_num(poses.invert(around) - hoods[:, :-1]) * kept[..., None]
        own = hoods[:, -1] + np.einsum("bde,be->bd", np.tile(self.gains, (m, 1, 1)), off.reshape(m * n, -1))
        out = poses.apply(own[:, None])[:, 0]
        out[np.isfinite(around).all(2).sum(1) < FEWEST_NEIGHBOURS] = np.nan
        return out.reshape(shapes.shape)

    def trust(self, shapes: Array) -> Array:
        """(M, N) weights to begin with, from distances alone, which need no pose: low where half of a point's
        neighbours lie at another distance than usual; 0 where missing."""
        return _trust(shapes, self._distances(shapes), self.apart, self.varies)

    def together(self, shapes: Array) -> NDArray[np.bool_]:
        """(M, N, K) where a landmark and its neighbour, which are apart in other cases, lie at one place."""
        limit = np.minimum(TOGETHER * self.apart, self.apart - FAR_FROM_USUAL * self.varies)
        return np.asarray(np.nan_to_num(self._distances(shapes), nan=np.inf) < limit)

    def _distances(self, shapes: Array) -> Array:
        return _distances(shapes, self.near, self.apart)


def _distances(shapes: Array, near: NDArray[np.int64], apart: Array) -> Array:
    """(M, N, K) mm from each point to its neighbours, once the case has the size at which these are ``apart``."""
    found = np.stack([distance(shapes[:, others], shapes[:, [i]]) for i, others in enumerate(near)], 1)
    size = nanmedian((found / np.maximum(apart, 1e-9)).reshape(len(shapes), -1), 1)
    return np.asarray(found / np.where(size > 0, size, 1.0)[:, None, None])


def _trust(shapes: Array, found: Array, apart: Array, varies: Array) -> Array:
    votes = nanmedian(np.abs(found - apart) / (np.maximum(varies, 0.02 * apart) + 1e-9), 2)
    return np.where(np.isfinite(shapes).all(2), 1 / (1 + (np.nan_to_num(votes) / 4) ** 2) ** 2, 0.0)


def _median_hood(shapes: Array, trust: Array) -> tuple[Array, float, Array]:
    """The median (K + 1, D) of neighbourhoods (M, K + 1, D), posed by all but the last point with weights (M, K), how
    far in mm they usually lie from it, and the gain of the last point."""
    whole = np.isfinite(shapes).all(2).sum(1)
    hood = shapes[int(np.argmax(whole + trust.min(1)))]  # the most complete, of these the most usual
    few = (trust > 0).sum(1) < FEWEST_NEIGHBOURS
    for _ in range(ROUNDS):
        poses, _ = robust_similarities(hood[:-1], shapes[:, :-1], trust)
        aligned = poses.invert(shapes)
        aligned[few] = np.nan
        hood = nanmedian(aligned, 0)
    poses, _ = robust_similarities(hood[:-1], shapes[:, :-1], trust)
    noise = residual_of(poses, hood[:-1], shapes[:, :-1])
    off = poses.invert(shapes) - hood
    off[few] = np.nan
    return hood, float(np.median(noise[~few])) if not few.all() else 0.0, _gain(off)


def _gain(off: Array) -> Array:
    """(D, K * D) by which the last point's deviation (M, K + 1, D) from its place in the hood follows from the others':
    ridge regression, on deviations that are cut where they are unusual."""
    m, k, d = len(off), off.shape[1] - 1, off.shape[2]
    far = np.linalg.norm(off, axis=2)
    most = CUT * np.nan_to_num(nanmedian(far, 0))
    cut = np.nan_to_num(off) * np.minimum(1, most / np.maximum(np.nan_to_num(far), 1e-9))[..., None]
    x, y = cut[:, :-1].reshape(m, -1), cut[:, -1]
    count = max(1, int(np.isfinite(far).all(1).sum()))
    ridge = (x**2).sum() / (k * d) * (RIDGE + RIDGE_CASES / count) + 1e-12
    return np.asarray(np.linalg.solve(x.T @ x + ridge * np.eye(k * d), x.T @ y).T)
