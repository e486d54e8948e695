"""What training cases look like, and how a case with its landmarks is measured against them.

Each measure grows with suspicion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from anatomark.core.grid import Array, Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.core.shape import PCAShape, Pose, mean_rotation, mean_shape, robust_pose, rotation_angle
from anatomark.model.confidence.likeness import PATCH_PX, WHOLE_PX, correlation, pictures, roughness
from anatomark.model.confidence.radius import sigma_of

MOST_PATCHES = 96  # landmarks whose surroundings are compared


@dataclass(frozen=True, eq=False)
class Measured:
    """What is measured of one case: ``values`` by measure's name, and pictures of it in the mean shape's frame, both
    normalised: ``whole`` (px ** D,) and ``patches`` (K, px ** D), NaN rows where there is no landmark.
    ``residual`` (N,) mm: from the shape that the other points suggest; ``absent``: names of the absent landmarks."""

    values: dict[str, float]
    whole: Array
    patches: Array
    residual: Array
    absent: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Reference:
    """What the training cases look like. ``mean`` (N, D) mm, ``rotation`` (D, D) and ``size``: their mean shape and
    usual pose; ``shapes``: the PCA of the aligned shapes; ``noise`` (N,) mm: what it usually leaves of each point;
    ``turns_deg``: how far from it a model was trained to find the anatomy; ``whole`` and ``patches``: sums of their
    normalised pictures, ``count`` and ``counts`` (K,) of them."""

    names: tuple[str, ...]
    mean: Array
    rotation: Array
    size: float
    shapes: PCAShape
    noise: Array
    turns_deg: float = 0.0
    whole: Array = field(default_factory=lambda: np.zeros(0))
    patches: Array = field(default_factory=lambda: np.zeros((0, 0)))
    count: int = 0
    counts: Array = field(default_factory=lambda: np.zeros(0))

    @cached_property
    def radius(self) -> float:
        """Largest distance of a landmark from the mean shape's centre, mm."""
        return _radius(self.mean)

    @cached_property
    def pictured(self) -> list[int]:
        """The landmarks that patches are taken of."""
        return _pictured(len(self.names))

    @classmethod
    def of_shapes(
        cls, names: Sequence[str], shapes: Array, turns_deg: float = 0.0
    ) -> tuple[Reference, list[Reference]]:
        """Of true shapes (M, N, D) world mm, NaN = missing, every landmark known in one of them; no pictures yet. Also,
        for each shape, the reference whose PCA has not seen it."""
        mean, poses = mean_shape(shapes)
        radius = _radius(mean)
        aligned = np.stack([p.invert(s) for p, s in zip(poses, shapes, strict=True)])
        others = [_variation(_without_missing(np.delete(aligned, m, 0), mean)) for m in range(len(aligned))]
        left = [_unexplained(o, shape, 0.02 * radius) for o, shape in zip(others, aligned, strict=True)]
        noise = np.maximum(np.sqrt(np.nanmedian(np.stack(left) ** 2, 0) / 0.6), 0.004 * radius)
        size = float(np.median([p.scale for p in poses]))
        rotation = mean_rotation([p.rotation for p in poses])
        whole = cls(tuple(names), mean, rotation, size, _variation(aligned), noise, turns_deg)
        return whole, [replace(whole, shapes=o) for o in others]

    def with_pictures(self, cases: Sequence[Measured]) -> Reference:
        """With the sums of these cases' pictures."""
        patches = np.stack([c.patches for c in cases])
        return replace(
            self,
            whole=np.sum([c.whole for c in cases], 0),
            patches=np.nan_to_num(patches).sum(0),
            count=len(cases),
            counts=np.isfinite(patches).all(2).sum(0).astype(np.float64),
        )

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """What ``reference.safetensors`` holds; ``from_tensors`` reads it."""
        arrays = {
            "mean": self.mean,
            "rotation": self.rotation,
            "size": np.array([self.size]),
            "noise": self.noise,
            "turns_deg": np.array([self.turns_deg]),
            "shapes.mean": self.shapes.mean,
            "shapes.modes": self.shapes.modes,
            "shapes.sd": self.shapes.sd,
            "whole": self.whole,
            "patches": self.patches,
            "count": np.array([self.count]),
            "counts": self.counts,
        }
        half = {"whole", "patches", "shapes.modes"}
        return {
            name: torch.from_numpy(np.array(a)).to(torch.float16 if name in half else torch.float32).contiguous()
            for name, a in arrays.items()
        }

    @classmethod
    def from_tensors(cls, names: Sequence[str], tensors: Mapping[str, torch.Tensor], ndim: int) -> Reference:
        """The inverse of :meth:`to_tensors`. Raises ValueError for tensors of others than ``names`` in ``ndim``
        dimensions, and for numbers that cannot be."""
        t = {k: v.double().numpy() for k, v in tensors.items()}
        _check_tensors(t, len(names), ndim)
        shapes = PCAShape(t["shapes.mean"], t["shapes.modes"], t["shapes.sd"]).checked()
        return cls(
            names=tuple(names),
            mean=t["mean"],
            rotation=t["rotation"],
            size=float(t["size"][0]),
            shapes=shapes,
            noise=t["noise"],
            turns_deg=float(t["turns_deg"][0]),
            whole=t["whole"],
            patches=t["patches"],
            count=int(t["count"][0]),
            counts=t["counts"],
        )

    # ------------------------------------------------------------------ what is measured

    def measure(self, image: Image, landmarks: Landmarks) -> Measured | None:
        """Everything that is measured of landmarks in an image, except how much its pictures are like the reference's;
        None where fewer than three landmarks are defined."""
        landmarks = landmarks.select(self.names)
        points = np.where(_near(image.grid, landmarks.points)[:, None], landmarks.points, np.nan)
        if np.isfinite(points).all(1).sum() < min(3, len(self.names)):
            return None
        pose = robust_pose(self.mean, points)
        values, residual = self._of_shape(points, pose, image.grid)
        absent = tuple(n for n, a in zip(landmarks.names, landmarks.absent, strict=True) if a)
        values["absent"] = len(absent) / len(landmarks)
        sigma = sigma_of(landmarks.covariance, len(landmarks))
        if (sigma > 0).any():  # NaN is not
            values["spread"] = float(np.nanmean(np.log(np.where(sigma > 0, sigma, np.nan) / self.radius)))
        if landmarks.score is not None and np.isfinite(landmarks.score).any():
            values["score"] = 1 - float(np.nanmean(landmarks.score))
            values["weakest"] = 1 - float(np.nanquantile(landmarks.score, 0.1))
        whole, patches = pictures(image, points[self.pictured], pose, self.mean)
        values["noise"] = roughness(image, points)
        return Measured(values, whole, patches, residual, absent)

    def compare(self, case: Measured, own: Measured | None = None) -> dict[str, float]:
        """All measures of a case: its ``values``, and how unlike the reference's its pictures are. ``own``: what the
        case itself gave to the reference, to be left out."""
        values = dict(case.values)
        whole, patches, counts = self.whole, self.patches, self.counts
        if own is not None:
            whole, patches = whole - own.whole, patches - np.nan_to_num(own.patches)
            counts = counts - np.isfinite(own.patches).all(1)
        if self.count - (own is not None) > 0:
            values["whole"] = 1 - correlation(case.whole, whole)
            usable = np.isfinite(case.patches).all(1) & (counts > 0.5)
            if usable.any():
                alike = [correlation(case.patches[k], patches[k]) for k in np.flatnonzero(usable)]
                values["detail"] = 1 - float(np.mean(alike))
        return values

    def _of_shape(self, points: Array, pose: Pose, grid: Grid) -> tuple[dict[str, float], Array]:
        residual = _unexplained(self.shapes, pose.invert(points), 0.02 * self.radius)
        expected = pose.apply(self.mean)
        values = {
            "shape": _log_rms(residual / self.noise),
            "size": abs(float(np.log(max(pose.scale, 1e-3) / self.size))),
            "turn": max(0.0, rotation_angle(self.rotation.T @ pose.rotation) - self.turns_deg),
            "cut off": float((~grid.contains(expected)).mean()),
        }
        return values, residual * pose.scale


def _check_tensors(t: Mapping[str, Array], n: int, d: int) -> None:
    """Raises ValueError unless these are the tensors of a reference of ``n`` landmarks in ``d`` dimensions."""
    k = len(_pictured(n))
    modes = t["shapes.sd"].size if "shapes.sd" in t else 0
    shapes = {
        "mean": (n, d), "rotation": (d, d), "size": (1,), "noise": (n,), "turns_deg": (1,), "shapes.mean": (n * d,),
        "shapes.modes": (n * d, modes), "shapes.sd": (modes,), "whole": (WHOLE_PX[d] ** d,),
        "patches": (k, PATCH_PX[d] ** d), "count": (1,), "counts": (k,),
    }  # fmt: skip
    for name, shape in shapes.items():
        there = t[name].shape if name in t else "missing"
        if there != shape:
            raise ValueError(f"{name} is {there}, not {shape} as of {n} landmarks in {d}D")
    if strange := sorted(t.keys() - shapes.keys()):
        raise ValueError(f"{strange[0]} is none of its tensors")
    if np.abs(t["rotation"] @ t["rotation"].T - np.eye(d)).max() > 1e-3 or np.linalg.det(t["rotation"]) < 0:
        raise ValueError("rotation is none")
    if not (t["size"][0] > 0 and _radius(t["mean"]) > 0 and (t["noise"] > 0).all() and 0 <= t["turns_deg"][0] <= 180):
        raise ValueError("size, mean shape, noise and degrees are not all above 0")
    if (t["counts"] < 0).any() or (t["counts"] > t["count"][0]).any():
        raise ValueError("there are more pictures of a landmark than of the whole")


def _pictured(n: int) -> list[int]:
    return sorted(set(np.linspace(0, n - 1, min(n, MOST_PATCHES)).round().astype(int).tolist()))


def _near(grid: Grid, points: Array) -> NDArray[np.bool_]:
    """(N,) True where a point is no farther from the image's centre than the image's diagonal; not where it is NaN."""
    return np.asarray(np.linalg.norm(points - grid.centre, axis=1) <= np.linalg.norm(grid.extent_mm))


def _log_rms(ratio: Array) -> float:
    """Log of the root mean square of residuals (N,) in units of the usual; heavy tails count, but no point decides."""
    ratio = ratio[np.isfinite(ratio)]
    return float(np.log(np.sqrt(np.mean(np.minimum(ratio, 50.0) ** 2)) + 1e-6)) if len(ratio) else float("nan")


def _variation(aligned: Array) -> PCAShape:
    """How aligned shapes (M, N, D) vary, in few modes."""
    return PCAShape.fit(aligned.reshape(len(aligned), -1), variance=0.95, most=max(0, len(aligned) // 4))


def _without_missing(aligned: Array, mean: Array) -> Array:
    """Shapes in which a point that is missing in all of them lies at the mean's."""
    empty = ~np.isfinite(aligned).any(0)
    return np.where(empty, mean, aligned)


def _unexplained(pca: PCAShape, aligned: Array, noise: float) -> Array:
    """(N,) mm by which points (N, D) in the model's frame miss the model's best explanation; NaN where missing."""
    x = aligned.reshape(-1)
    b = np.clip(pca.encode_partial(x, noise), -3 * pca.sd, 3 * pca.sd)
    return np.asarray(np.linalg.norm((x - pca.decode(b)).reshape(aligned.shape), axis=1))


def _radius(mean: Array) -> float:
    return float(np.linalg.norm(mean - mean.mean(0), axis=1).max())
