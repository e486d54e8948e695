"""How well each point of each case fits the shapes of the other cases."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from anatomark.cases.look.local_shape import LEARNED_FROM, LocalShape, robust_similarities
from anatomark.cases.look.medians import distance, nanmedian
from anatomark.core.grid import Array
from anatomark.core.shape import Pose, mean_shape, procrustes
from anatomark.progress import Reporter

FEWEST_POINTS = 4  # points of a case below which its pose says nothing
BEYOND = (
    2.65  # a point is suspect at this many times what 95 % of a usual case's points keep to; few cases keep to less
)


class ShapeStudy:
    """All cases, and every case's points as their neighbours place them (``local_shape.py``): ``expected`` (M, N, D),
    ``residual`` (M, N) mm, what is ``typical`` (N,) of it, by which ``factor`` (M,) a case differs from that, and ``z``
    (M, N), the residual in units of what is typical for the landmark and the case, suspect from ``beyond`` on.
    ``middle`` (N, D) is the median shape, ``poses`` its robust pose on each case."""

    def __init__(self, shapes: Array, report: Reporter | None = None):
        """``shapes`` (M, N, D) world mm, NaN = missing; every landmark known in some case, M >= 2."""
        self.shapes = shapes
        self.local = LocalShape.learn(_some(shapes), report)
        self.middle, self.poses = _middle(shapes, self.local.trust(shapes))
        self.expected = self.local.predict(shapes, report)
        self.expected[np.isfinite(shapes).all(2).sum(1) < FEWEST_POINTS] = np.nan
        self.residual = distance(self.expected, shapes)
        self.judged = np.isfinite(self.residual).any(1)
        self.typical = _typical(self.residual)
        self.factor = np.nan_to_num(nanmedian(self.residual / self.typical, 1), nan=1.0)
        self.z = self.residual / self.scale()
        usual = nanmedian(np.nanquantile(self.z[self.judged], 0.95, 1), 0)
        self.beyond = BEYOND * float(usual)

    @cached_property
    def usual_misfit(self) -> float:
        """mm that four in five points of a case usually keep to the median shape."""
        found = [misfit(pose, self.middle, s) for pose, s in zip(self.poses, self.shapes, strict=True) if _marked(s)]
        return float(np.median(found))

    def predict(self, shape: Array) -> Array:
        """Every point (N, D) of a shape from its neighbours."""
        return np.asarray(self.local.predict(shape[None])[0])

    def scale(self) -> Array:
        """(M, N) mm that a residual usually has; a case of unusual shape is allowed up to twice as much."""
        return self.typical * np.clip(self.factor, 1, 2)[:, None]


def _some(shapes: Array) -> Array:
    """At most ``LEARNED_FROM`` of the shapes, if they show every landmark; else all."""
    some = shapes[:: -(-len(shapes) // LEARNED_FROM)]
    return some if np.isfinite(some).all(2).any(0).all() else shapes


def _middle(shapes: Array, trust: Array) -> tuple[Array, list[Pose]]:
    """The median shape (N, D) and its robust pose on each case."""
    middle, _ = mean_shape(_some(shapes))
    for _ in range(3):
        poses, _ = robust_similarities(middle, shapes, trust)
        aligned = poses.invert(shapes)
        middle = np.where(np.isfinite(aligned).any(0), nanmedian(aligned, 0), middle)
    return middle, robust_similarities(middle, shapes, trust)[0].each()


def misfit(pose: Pose, middle: Array, shape: Array) -> float:
    """mm that four in five points of ``shape`` (N, D) keep to ``middle`` (N, D) so posed."""
    return float(np.nanquantile(distance(pose.apply(middle), shape), 0.8))


def _marked(shape: Array) -> bool:
    return bool(np.isfinite(shape).any())


def robust_pose(source: Array, target: Array) -> Pose:
    """The similarity that most of the points agree on, where nothing is known of them: Geman-McClure, with the scale
    lowered step by step, so that a minority of gross errors does not pull the start."""
    seen = np.isfinite(source).all(1) & np.isfinite(target).all(1)
    if seen.sum() < FEWEST_POINTS:
        return procrustes(source, target)
    r = distance(procrustes(source, target, _robust_weights(source, target, 0.0)).apply(source), target)
    return procrustes(source, target, _robust_weights(source, target, 2 * float(np.nanmedian(r)) + 1e-9))


def _robust_weights(source: Array, target: Array, scale: float) -> Array:
    """(N,) weights of the points that a similarity explains within about ``scale`` mm."""
    seen = np.isfinite(source).all(1) & np.isfinite(target).all(1)
    weights = seen.astype(float)
    for step in range(12):
        pose = procrustes(source, target, weights)
        r = np.nan_to_num(distance(pose.apply(source), target))
        if step == 0:
            wide = max(float(r[seen].max()), scale)
        width = max(scale, wide * 0.7**step)
        weights = np.where(seen, 1 / (1 + (r / width) ** 2) ** 2, 0.0)
    return weights


def _typical(residual: Array) -> Array:
    """(N,) the median residual of each landmark, drawn towards the median of all where few cases were seen."""
    overall = max(float(np.nanmedian(residual)), 1e-9)
    count = np.isfinite(residual).sum(0)
    own = np.maximum(np.nan_to_num(nanmedian(residual, 0), nan=overall), overall / 10)
    return np.asarray(np.exp((count * np.log(own) + 8 * np.log(overall)) / (count + 8)))
