"""Shapes: Procrustes alignment, similarity poses, principal components with missing points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anatomark.core.grid import Array


@dataclass(frozen=True, eq=False)
class Pose:
    """A similarity ``x -> scale * rotation @ x + translation`` from a model's frame (mm) to world mm.

    ``rotation`` (D, D) proper, ``translation`` (D,) mm.
    """

    rotation: Array
    translation: Array
    scale: float = 1.0

    @property
    def ndim(self) -> int:
        return len(self.translation)

    def apply(self, points: ArrayLike) -> Array:
        """World points (..., D) of model points (..., D)."""
        return self.scale * (np.asarray(points, dtype=np.float64) @ self.rotation.T) + self.translation

    def invert(self, points: ArrayLike) -> Array:
        """Model points (..., D) of world points (..., D)."""
        return (np.asarray(points, dtype=np.float64) - self.translation) @ self.rotation / self.scale

    def then(self, other: Pose) -> Pose:
        return Pose(
            other.rotation @ self.rotation,
            other.scale * (other.rotation @ self.translation) + other.translation,
            self.scale * other.scale,
        )

    @classmethod
    def identity(cls, ndim: int) -> Pose:
        return cls(np.eye(ndim), np.zeros(ndim))


def procrustes(source: Array, target: Array, weights: Array | None = None, *, scale: bool = True) -> Pose:
    """The similarity (or, without ``scale``, rigid motion) that takes ``source`` (N, D) closest to ``target`` (N, D).

    Weighted least squares in closed form (Umeyama 1991), never a reflection. Rows with NaN on either side have no
    weight. Points on a line leave the turn about it open: of all rotations the smallest is taken. With fewer than two
    usable rows rotation is the identity, with none the pose is.
    """
    d = source.shape[1]
    usable = np.asarray(np.isfinite(source).all(1) & np.isfinite(target).all(1))
    w = np.where(usable, 1.0 if weights is None else weights, 0.0)
    if w.sum() <= 0:
        return Pose.identity(d)
    w = w / w.sum()
    a, b = np.where(usable[:, None], source, 0.0), np.where(usable[:, None], target, 0.0)
    mean_a, mean_b = w @ a, w @ b
    a, b = (a - mean_a) * usable[:, None], (b - mean_b) * usable[:, None]
    spread = (b * w[:, None]).T @ a
    u, s, vt = np.linalg.svd(spread)
    if d == 3 and s[1] < 1e-6 * s[0]:  # on a line
        u, _, vt = np.linalg.svd(spread + 1e-5 * s[0] * np.eye(d))
    sign = np.ones(d)
    sign[-1] = np.sign(np.linalg.det(u @ vt)) or 1.0
    rotation = (u * sign) @ vt
    variance = float(w @ (a**2).sum(1))
    size = float((s * sign).sum() / variance) if scale and variance > 0 else 1.0
    size = size if size > 0 else 1.0
    return Pose(rotation, mean_b - size * rotation @ mean_a, size)


def robust_pose(mean: Array, points: Array, rounds: int = 10) -> Pose:
    """Similarity of ``mean`` (N, D) to ``points`` (N, D), NaN = missing, those far off counting little (Cauchy weights
    about twice the median distance)."""
    radius = float(np.linalg.norm(mean - mean.mean(0), axis=1).max())
    pose = procrustes(mean, points)
    for _ in range(rounds):
        away = np.linalg.norm(pose.apply(mean) - points, axis=1)
        typical = max(float(np.nanmedian(away)) if np.isfinite(away).any() else 0.0, 0.01 * radius, 1e-12)
        weights = 1 / (1 + np.nan_to_num(away / (2 * typical), nan=1e3) ** 2)
        pose = procrustes(mean, points, weights)
    return pose


def mean_shape(shapes: Array, *, scale: bool = True, rounds: int = 10) -> tuple[Array, list[Pose]]:
    """Generalised Procrustes: the mean of ``shapes`` (M, N, D), NaN = missing, and each shape's pose on it.

    The mean (N, D) is centred at the origin, has the shapes' mean size in mm and the orientation whose rotation to the
    shapes is smallest on average. A point missing everywhere is NaN.
    """
    reference = shapes[int(np.isfinite(shapes).all(2).sum(1).argmax())]
    mean = reference - np.nanmean(reference, 0)
    size = _mean_size(shapes)
    for _ in range(rounds):
        aligned = []
        for shape in shapes:
            aligned.append(procrustes(mean, shape, scale=scale).invert(shape))
        mean = nanmean(np.stack(aligned))
        mean = mean - np.nanmean(mean, 0)
        mean = mean * (size / max(_size(mean), 1e-12))
    poses = [procrustes(mean, shape, scale=scale) for shape in shapes]
    turn = mean_rotation([p.rotation for p in poses])
    mean = mean @ turn.T
    return mean, [procrustes(mean, shape, scale=scale) for shape in shapes]


def mean_rotation(rotations: Sequence[Array]) -> Array:
    """The rotation (D, D) closest to all of them (chordal mean)."""
    u, _, vt = np.linalg.svd(np.sum(rotations, axis=0))
    sign = np.ones(len(u))
    sign[-1] = np.sign(np.linalg.det(u @ vt)) or 1.0
    return np.asarray((u * sign) @ vt)


def rotation_angle(rotation: Array) -> float:
    """Angle in degrees of a rotation matrix (D, D)."""
    d = len(rotation)
    cosine = (np.trace(rotation) - (d - 2)) / 2
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def rotation_from_vector(vector: ArrayLike) -> Array:
    """Rotation matrix from a rotation vector in radians: (3,) axis times angle in 3D, (1,) angle in 2D."""
    v = np.asarray(vector, dtype=np.float64)
    if v.size == 1:
        c, s = np.cos(v[0]), np.sin(v[0])
        return np.array([[c, -s], [s, c]])
    angle = float(np.linalg.norm(v))
    x, y, z = v
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    if angle < 1e-12:
        return np.asarray(np.eye(3) + cross)
    return np.asarray(np.eye(3) + np.sin(angle) / angle * cross + (1 - np.cos(angle)) / angle**2 * cross @ cross)


def random_rotation(rng: np.random.Generator, ndim: int, most_degrees: float = 180.0) -> Array:
    """A random rotation (D, D): uniform over all rotations at 180 degrees, else an angle uniform up to the limit about
    a uniform axis."""
    if ndim == 2:
        return rotation_from_vector([np.radians(rng.uniform(-most_degrees, most_degrees))])
    if most_degrees >= 180:
        q = rng.normal(size=4)
        w, x, y, z = q / np.linalg.norm(q)
        return np.array(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
            ]
        )
    axis = rng.normal(size=3)
    return rotation_from_vector(axis / np.linalg.norm(axis) * np.radians(rng.uniform(0, most_degrees)))


@dataclass(frozen=True, eq=False)
class PCAShape:
    """Linear shape model (Li et al. 2018, eq. 3-4): ``x = mean + W b``, ``b = W^T (x - mean)``.

    ``mean`` (P,), ``modes`` W (P, K) orthonormal columns, ``sd`` (K,) standard deviations of b, for vectors of P = N*D
    coordinates in whatever unit and frame the training vectors had.
    """

    mean: Array
    modes: Array
    sd: Array

    @classmethod
    def fit(cls, vectors: Array, *, variance: float = 0.995, most: int | None = None) -> PCAShape:
        """From training vectors (M, P); NaN = missing, filled by EM (Roweis 1998) in the model's own subspace.

        Keeps the first K modes that explain ``variance``, at most ``most`` and M - 1.
        """
        given = np.array(vectors, dtype=np.float64)
        missing = ~np.isfinite(given)
        mean = nanmean(given)
        if not np.isfinite(mean).all():
            raise ValueError("a coordinate is missing in every training shape")
        x = np.where(missing, mean, given)
        limit = min(len(x) - 1, x.shape[1]) if most is None else min(most, len(x) - 1, x.shape[1])
        for _ in range(20 if missing.any() else 1):
            mean = x.mean(0)
            _, s, vt = np.linalg.svd(x - mean, full_matrices=False)
            power = s**2
            total = power.sum()
            k = int(np.searchsorted(np.cumsum(power) / total, variance - 1e-12) + 1) if total > 0 else 0
            k = max(0, min(k, limit))
            modes = vt[:k].T
            if not missing.any():
                break
            # a missing coordinate is what the row's known ones make most probable; modes that a fill has made must not
            # confirm it, so the prior's noise is what the lesser half of the modes carry
            lesser = power[min(k, max(1, len(x) // 2)) :].sum()
            noise = float(np.sqrt(max(lesser, 1e-6 * total) / (len(x) * x.shape[1])))
            model = cls(mean, modes, s[:k] / np.sqrt(max(1, len(x) - 1)))
            for row in np.flatnonzero(missing.any(1)):
                fitted = model.decode(model.encode_partial(given[row], noise))
                x[row, missing[row]] = fitted[missing[row]]
        return cls(mean, modes, s[:k] / np.sqrt(max(1, len(x) - 1)))

    @property
    def size(self) -> int:
        return int(self.modes.shape[1])

    def encode(self, x: Array) -> Array:
        """b (..., K) of vectors (..., P)."""
        return np.asarray((x - self.mean) @ self.modes)

    def decode(self, b: Array) -> Array:
        """Vectors (..., P) of b (..., K)."""
        return np.asarray(self.mean + b @ self.modes.T)

    def encode_partial(self, x: Array, noise: float) -> Array:
        """b (K,) most probable for a vector (P,) with NaN = missing, under the model's Gaussian prior and independent
        noise of standard deviation ``noise`` on each coordinate."""
        seen = np.isfinite(x)
        if self.size == 0 or not seen.any():
            return np.zeros(self.size)
        w = self.modes[seen]
        prior = np.diag(noise**2 / np.maximum(self.sd, 1e-9) ** 2)
        return np.asarray(np.linalg.solve(w.T @ w + prior, w.T @ (x[seen] - self.mean[seen])))

    def to_json(self) -> dict[str, Any]:
        return {"mean": self.mean.tolist(), "modes": self.modes.tolist(), "sd": self.sd.tolist()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> PCAShape:
        """The inverse of :meth:`to_json`. Raises ValueError for anything else."""
        try:
            mean, modes, sd = (np.asarray(data[k], dtype=np.float64) for k in ("mean", "modes", "sd"))
            return cls(mean, modes.reshape(len(mean), len(sd)), sd).checked()
        except (KeyError, TypeError, OverflowError):
            raise ValueError("a shape model is numbers: mean, modes, sd") from None

    def checked(self) -> PCAShape:
        """The same. Raises ValueError unless mean, modes and deviations are finite and fit together, and the modes are
        orthonormal."""
        size = self.modes.shape[-1]
        if self.mean.ndim != 1 or self.modes.shape != (len(self.mean), size) or self.sd.shape != (size,):
            raise ValueError("a shape model's mean, modes and deviations do not fit together")
        if not all(np.isfinite(a).all() and np.abs(a).max(initial=0) < 1e9 for a in (self.mean, self.modes, self.sd)):
            raise ValueError("a shape model holds numbers that are not finite")
        if (self.sd < 0).any() or np.abs(self.modes.T @ self.modes - np.eye(size)).max(initial=0) > 0.05:
            raise ValueError("a shape model's modes are not orthonormal, or a deviation is negative")
        return self


def nanmean(values: Array, axis: int = 0) -> Array:
    """Mean over ``axis`` of what is not NaN; NaN where nothing is left."""
    seen = np.isfinite(values)
    count = seen.sum(axis)
    total = np.where(seen, values, 0).sum(axis)
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan))


def _size(shape: Array) -> float:
    centred = shape - np.nanmean(shape, 0)
    return float(np.sqrt(np.nanmean((centred**2).sum(1))))


def _mean_size(shapes: Array) -> float:
    # over complete shapes where there are any: a shape that lacks its outer points is smaller by construction
    complete: NDArray[np.bool_] = np.asarray(np.isfinite(shapes).all((1, 2)))
    chosen = shapes[complete] if complete.any() else shapes
    return float(np.mean([_size(s) for s in chosen]))
