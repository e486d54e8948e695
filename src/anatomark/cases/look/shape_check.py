"""How well each point of each case fits the shapes of the other cases: robust poses, leave-one-out predictions."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anatomark.core.grid import Array
from anatomark.core.shape import PCAShape, Pose, mean_shape, procrustes

FEWEST_POINTS = 4  # points of a case below which its pose says nothing
BEYOND = 4.0  # a point is suspect this many times its landmark's typical (median) residual away; more with few cases


class ShapeStudy:
    """All cases, and every case's points as predicted without them. ``z`` (M, N) is the residual in units of what is
    typical for the landmark and the case."""

    def __init__(self, shapes: Array):
        """``shapes`` (M, N, D) world mm, NaN = missing; every landmark known in some case, M >= 2."""
        self.shapes = shapes
        self.beyond = BEYOND * (1 + 3 / len(shapes))
        keep, self.middle, self.poses = _plausible(shapes)
        aligned = np.stack([pose.invert(shape) for pose, shape in zip(self.poses, shapes, strict=True)])
        aligned[~keep] = np.nan
        cases = len(shapes)
        folds = np.arange(cases) if cases <= 40 else np.arange(cases) % 20
        models = [_Model.fit(aligned[folds != f], self.middle) for f in range(folds.max() + 1)]
        noise = models[0].spread / 2
        for _ in range(2):  # the noise that leaves-one-out residuals show is the one the prediction assumes
            fits = [models[folds[m]].predict(shape, noise) for m, shape in enumerate(shapes)]
            kept = np.where(keep, np.stack([distance(p, s) for p, s in zip(fits, shapes, strict=True)]), np.nan)
            noise = max(float(np.nanmedian(kept)) / np.sqrt(2 * shapes.shape[2] / 3), 1e-9)
        self._models, self._noise = [models[f] for f in folds], noise
        self.expected = np.stack(fits)
        self.residual = distance(self.expected, shapes)
        self.typical = _typical(kept)
        with np.errstate(invalid="ignore"):
            self.factor = np.nan_to_num(nanmedian(self.residual / self.typical, 1), nan=1.0)
        self.z = self.residual / self.scale()

    def predict(self, m: int, shape: Array) -> Array:
        """Every point (N, D) of a shape from its other points, by the model of all cases but ``m``."""
        return self._models[m].predict(shape, self._noise)

    def scale(self) -> Array:
        """(M, N) mm that a residual usually has; a case of unusual shape is allowed up to twice as much."""
        return self.typical * np.clip(self.factor, 1, 2)[:, None]


@dataclass(frozen=True)
class _Model:
    pca: PCAShape
    spread: float

    @classmethod
    def fit(cls, aligned: Array, middle: Array) -> _Model:
        """From shapes (M, N, D) posed as the median shape ``middle`` (N, D); NaN = missing."""
        stack = aligned[np.isfinite(aligned).all(2).sum(1) >= FEWEST_POINTS]
        stack = stack if len(stack) else middle[None]
        stack = np.where(np.isfinite(stack).any(0), stack, middle)
        pca = PCAShape.fit(stack.reshape(len(stack), -1), variance=0.98, most=max(1, len(stack) // 2))
        return cls(pca, float(np.sqrt(np.nanmean(np.nanvar(stack, 0)))) or 1e-9)

    def predict(self, shape: Array, noise: float) -> Array:
        """Every point (N, D) predicted from the other, robustly weighted points of ``shape`` (N, D); NaN where these
        are too few."""
        n = len(shape)
        if np.isfinite(shape).all(1).sum() < FEWEST_POINTS:
            return np.full_like(shape, np.nan)
        mean = self.pca.mean.reshape(shape.shape)
        weights, b = _robust_weights(mean, shape, 3 * noise), np.zeros((1, self.pca.size))
        seen = weights > 0
        for _ in range(4):
            world, scale, b = self._fit(shape, weights[None], b, noise)
            r = distance(world[0], shape)
            weights = np.where(seen, 1 / (1 + (np.nan_to_num(r) / (3 * noise * scale[0])) ** 2) ** 2, 0.0)
        world, _, _ = self._fit(shape, weights * (1 - np.eye(n)), np.repeat(b, n, 0), noise)
        return np.asarray(world[np.arange(n), np.arange(n)])

    def _fit(self, shape: Array, weights: Array, b: Array, noise: float) -> tuple[Array, Array, Array]:
        """Pose and shape by turns, for B weightings (B, N) at once, from coefficients ``b`` (B, K): world points
        (B, N, D), pose scale (B,), coefficients."""
        n, d = shape.shape
        mean, modes = self.pca.mean.reshape(n, d), self.pca.modes.reshape(n, d, -1)
        prior = np.diag(noise**2 / np.maximum(self.pca.sd, 1e-9) ** 2)
        target = np.nan_to_num(shape)
        share = weights / weights.sum(1, keepdims=True)
        goal_mean = share @ target
        goal = target - goal_mean[:, None]
        normal = np.einsum("bn,nda,ndc->bac", weights, modes, modes, optimize=True) + prior
        for _ in range(2):
            source = mean + np.einsum("nda,ba->bnd", modes, b)
            source_mean = np.einsum("bn,bnd->bd", share, source)
            centred = source - source_mean[:, None]
            u, s, vt = np.linalg.svd(np.einsum("bn,bnd,bne->bde", share, goal, centred))
            sign = np.ones((len(b), d))
            sign[:, -1] = np.where(np.linalg.det(u @ vt) < 0, -1.0, 1.0)
            turn = (u * sign[:, None]) @ vt
            scale = (s * sign).sum(1) / np.maximum(np.einsum("bn,bnd->b", share, centred**2), 1e-12)
            scale = np.where(scale > 0, scale, 1.0)
            y = goal @ turn / scale[:, None, None] + source_mean[:, None] - mean
            seen_in = np.einsum("bn,nda,bnd->ba", weights, modes, y, optimize=True)
            b = np.linalg.solve(normal, seen_in[..., None])[..., 0]
        fitted = mean + np.einsum("nda,ba->bnd", modes, b) - source_mean[:, None]
        return scale[:, None, None] * (fitted @ turn.transpose(0, 2, 1)) + goal_mean[:, None], scale, b


def _plausible(shapes: Array) -> tuple[NDArray[np.bool_], Array, list[Pose]]:
    """Points (M, N) fit to learn a shape model from, the median shape (N, D) and each case's robust pose on it."""
    middle, _ = mean_shape(shapes)
    poses: list[Pose] = []
    for _ in range(3):
        poses = [robust_pose(middle, shape) for shape in shapes]
        aligned = np.stack([pose.invert(shape) for pose, shape in zip(poses, shapes, strict=True)])
        middle = np.where(np.isfinite(aligned).any(0), nanmedian(aligned, 0), middle)
    residual = distance(np.broadcast_to(middle, aligned.shape), aligned)
    scale = _typical(residual)
    good = residual <= BEYOND * scale
    seen = np.isfinite(residual)
    case_fits = (good.sum(1) >= 0.6 * seen.sum(1)) & (nanmedian(residual / scale, 1) < 3)
    keep = good & case_fits[:, None]
    # a landmark that nobody would be left to teach keeps all its points
    keep[:, keep.sum(0) < 3] = seen[:, keep.sum(0) < 3]
    return keep, middle, poses


def _robust_weights(source: Array, target: Array, scale: float) -> Array:
    """(N,) weights of the points that a similarity of ``source`` onto ``target`` explains within about ``scale`` mm:
    Geman-McClure, with the scale lowered step by step, so that a minority of gross errors does not pull the start."""
    seen = np.isfinite(source).all(1) & np.isfinite(target).all(1)
    weights = seen.astype(float)
    if seen.sum() < FEWEST_POINTS:
        return weights
    for step in range(12):
        pose = procrustes(source, target, weights)
        r = np.nan_to_num(distance(pose.apply(source), target))
        if step == 0:
            wide = max(float(r[seen].max()), scale)
        width = max(scale, wide * 0.7**step)
        weights = np.where(seen, 1 / (1 + (r / width) ** 2) ** 2, 0.0)
    return weights


def robust_pose(source: Array, target: Array) -> Pose:
    """The similarity of :func:`_robust_weights`, its scale taken from the residuals themselves."""
    weights = np.isfinite(source).all(1) & np.isfinite(target).all(1)
    if weights.sum() < FEWEST_POINTS:
        return procrustes(source, target)
    r = distance(procrustes(source, target, _robust_weights(source, target, 0.0)).apply(source), target)
    return procrustes(source, target, _robust_weights(source, target, 2 * float(np.nanmedian(r)) + 1e-9))


def _typical(residual: Array) -> Array:
    """(N,) the median residual of each landmark, drawn towards the median of all where few cases were seen."""
    overall = max(float(np.nanmedian(residual)), 1e-9)
    count = np.isfinite(residual).sum(0)
    own = np.maximum(np.nan_to_num(nanmedian(residual, 0), nan=overall), overall / 10)
    return np.asarray(np.exp((count * np.log(own) + 8 * np.log(overall)) / (count + 8)))


def distance(a: Array, b: Array) -> Array:
    """(...) distances in mm of points (..., D)."""
    return np.asarray(np.linalg.norm(np.asarray(a) - b, axis=-1))


def nanmedian(values: Array, axis: int) -> Array:
    """Median over ``axis`` of what is not NaN; NaN where nothing is left."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # an all-NaN slice is NaN
        return np.asarray(np.nanmedian(values, axis))
