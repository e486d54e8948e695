"""How far a prediction can be trusted: what is measured of it, what is usual, and what makes it suspicious.

Each measure grows with suspicion. What is usual is learned from the training cases (their true landmarks, each judged
by a reference that leaves it out) and, for what concerns the prediction itself, from cases that no weight was fitted
to. A case is suspicious by its most unusual measure, in robust standard deviations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from anatomark.core.grid import Array, Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks, Status
from anatomark.core.shape import PCAShape, Pose, mean_rotation, mean_shape, procrustes, rotation_angle
from anatomark.model.confidence.likeness import correlation, pictures, roughness
from anatomark.model.confidence.radius import sigma_of

MOST_PATCHES = 96  # landmarks that are looked at
LIMIT = 0.95  # share of usual cases that may not be flagged
LEAST_LIMIT = 4.0  # robust standard deviations
FEW, MARGIN = 20, 1.25  # below so many cases the limit lies so much above the worst of them

# the least that counts as one standard deviation
FLOORS = {
    "shape": 0.10, "size": 0.04, "turn": 1.5, "cut off": 0.01, "absent": 0.02, "whole": 0.05, "detail": 0.04,
    "noise": 0.12, "spread": 0.12, "score": 0.03,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Seen:
    """What is measured of one case: ``values`` by measure's name, and pictures of it in the mean shape's frame, both
    normalised: ``whole`` (px ** D,) and ``patches`` (K, px ** D), NaN rows where there is no landmark.
    ``residual`` (N,) mm: from the shape that the other points suggest; ``absent``: landmarks found to be so."""

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
        return float(np.linalg.norm(self.mean - self.mean.mean(0), axis=1).max())

    @cached_property
    def looked_at(self) -> list[int]:
        """The landmarks that patches are taken of."""
        n = len(self.names)
        return sorted(set(np.linspace(0, n - 1, min(n, MOST_PATCHES)).round().astype(int).tolist()))

    @classmethod
    def of_shapes(cls, names: Sequence[str], shapes: Array, turns_deg: float = 0.0) -> tuple[Reference, list[PCAShape]]:
        """Mean, poses and PCA of true shapes (M, N, D) world mm, NaN = missing, every landmark known in one of them;
        no pictures yet. Also, for each shape, the PCA that has not seen it."""
        mean, poses = mean_shape(shapes)
        aligned = np.stack([p.invert(s) for p, s in zip(poses, shapes, strict=True)])
        pca = _variation(aligned)
        others = [_variation(_without_missing(np.delete(aligned, m, 0), mean)) for m in range(len(aligned))]
        left = [_left_over(o, shape, 0.02 * _radius(mean)) for o, shape in zip(others, aligned, strict=True)]
        noise = np.sqrt(np.nanmedian(np.stack(left) ** 2, 0) / 0.6)
        noise = np.maximum(np.nan_to_num(noise, nan=0.0), 0.004 * _radius(mean))
        size = float(np.median([p.scale for p in poses]))
        usual = mean_rotation([p.rotation for p in poses])
        return cls(tuple(names), mean, usual, size, pca, noise, turns_deg), others

    def with_pictures(self, seen: Sequence[Seen]) -> Reference:
        """With the sums of these cases' pictures."""
        patches = np.stack([s.patches for s in seen])
        there = np.isfinite(patches).all(2)
        return replace(
            self,
            whole=np.sum([s.whole for s in seen], 0),
            patches=np.nan_to_num(patches).sum(0),
            count=len(seen),
            counts=there.sum(0).astype(np.float64),
        )

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """For ``reference.safetensors``."""
        parts = {
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
        return {k: torch.from_numpy(np.array(v)).to(torch.float16 if k in half else torch.float32).contiguous()
                for k, v in parts.items()}  # fmt: skip

    @classmethod
    def from_tensors(cls, names: Sequence[str], tensors: Mapping[str, torch.Tensor]) -> Reference:
        """The inverse of :meth:`to_tensors`. Raises KeyError or ValueError for other tensors."""
        t = {k: v.double().numpy() for k, v in tensors.items()}
        if len(t["mean"]) != len(names):
            raise ValueError(f"a reference of {len(t['mean'])} landmarks for {len(names)}")
        shapes = PCAShape(t["shapes.mean"], t["shapes.modes"].reshape(t["mean"].size, -1), t["shapes.sd"])
        return cls(
            tuple(names), t["mean"], t["rotation"], float(t["size"][0]), shapes, t["noise"],
            float(t["turns_deg"][0]), t["whole"],
            t["patches"], int(t["count"][0]), t["counts"],
        )  # fmt: skip

    # ------------------------------------------------------------------ what is measured

    def look(self, image: Image, found: Landmarks) -> Seen | None:
        """Everything that is measured of landmarks in an image, against nothing yet; None where fewer than three
        landmarks are defined."""
        marks = found.select(self.names)
        points = np.where(self._inside(image.grid, marks.points)[:, None], marks.points, np.nan)
        if np.isfinite(points).all(1).sum() < min(3, len(self.names)):
            return None
        pose = self._robust_pose(points)
        values, residual = self._of_shape(points, pose, image.grid)
        gone = absent_names(marks)
        values["absent"] = len(gone) / len(marks)
        sigma = sigma_of(marks.covariance, len(marks))
        if np.isfinite(sigma).any() and (sigma[np.isfinite(sigma)] > 0).any():
            values["spread"] = float(np.nanmean(np.log(np.where(sigma > 0, sigma, np.nan) / self.radius)))
        if marks.score is not None and np.isfinite(marks.score).any():
            values["score"] = 1 - float(np.nanmean(marks.score))
        whole, patches = pictures(image, points[self.looked_at], pose, self.mean)
        values["noise"] = roughness(image, points)
        return Seen(values, whole, patches, residual, gone)

    def likeness(self, seen: Seen, own: Seen | None = None) -> dict[str, float]:
        """All measures of a case: those of ``seen`` and how unlike the reference's its pictures are. ``own``: what the
        case itself gave to the reference, to be left out."""
        values = dict(seen.values)
        rest = self.count - (own is not None)
        if rest > 0:
            total = self.whole - (own.whole if own is not None else 0)
            values["whole"] = 1 - correlation(seen.whole, total)
            sums, counts = self.patches.copy(), self.counts.copy()
            if own is not None:
                there = np.isfinite(own.patches).all(1)
                sums -= np.nan_to_num(own.patches)
                counts -= there
            usable = np.isfinite(seen.patches).all(1) & (counts > 0.5)
            if usable.any():
                near = [correlation(seen.patches[k], sums[k]) for k in np.flatnonzero(usable)]
                values["detail"] = 1 - float(np.mean(near))
        return values

    def _of_shape(self, points: Array, pose: Pose, grid: Grid) -> tuple[dict[str, float], Array]:
        residual = _left_over(self.shapes, pose.invert(points), 0.02 * self.radius)
        expected = pose.apply(self.mean)
        values = {
            "shape": _oddness(residual, self.noise),
            "size": abs(float(np.log(max(pose.scale, 1e-3) / self.size))),
            "turn": max(0.0, rotation_angle(self.rotation.T @ pose.rotation) - self.turns_deg),
            "cut off": float((~grid.contains(expected)).mean()),
        }
        return values, residual * pose.scale

    def _robust_pose(self, points: Array) -> Pose:
        """Similarity of the mean shape to points, those far off counting little."""
        pose = procrustes(self.mean, points)
        for _ in range(10):
            away = np.linalg.norm(pose.apply(self.mean) - points, axis=1)
            typical = max(float(np.nanmedian(away)), 0.01 * self.radius)
            weights = 1 / (1 + np.nan_to_num(away / (2 * typical), nan=1e3) ** 2)
            pose = procrustes(self.mean, points, weights)
        return pose

    def _inside(self, grid: Grid, points: Array) -> Array:
        far = np.linalg.norm(grid.extent_mm)
        return np.asarray(np.linalg.norm(points - grid.centre, axis=1) <= far)  # NaN compares as outside


@dataclass(frozen=True)
class Usual:
    """What each measure usually is, and from where on a case is suspicious: ``middle`` and ``scale`` by measure,
    ``limit`` in robust standard deviations; ``cases`` and ``independent`` ones it was learned from."""

    middle: dict[str, float]
    scale: dict[str, float]
    limit: float
    cases: int
    independent: int

    @classmethod
    def learned(cls, known: Sequence[Mapping[str, float]], unseen: Sequence[Mapping[str, float]]) -> Usual | None:
        """From measures of training cases at their true landmarks (``known``) and of predictions in cases that no
        weight was fitted to (``unseen``); None without any. What only predictions have is learned from these alone."""
        middle, scale = {}, {}
        both = [*known, *unseen]
        for name, floor in FLOORS.items():
            own = unseen if name in ("spread", "score") else both
            x = np.array([v[name] for v in own if np.isfinite(v.get(name, np.nan))])
            if not len(x):
                continue
            m = float(np.median(x))
            spread = 1.4826 * float(np.median(np.abs(x - m)))
            upper = (float(np.quantile(x, 0.9)) - m) / 1.28
            middle[name], scale[name] = m, max(spread, upper, floor)
        if not middle:
            return None
        usual = cls(middle, scale, float("inf"), len(known), len(unseen))
        worst = np.sort([usual.suspicion(v) for v in (unseen if len(unseen) >= FEW else both)])
        rank = int(np.ceil((len(worst) + 1) * LIMIT))
        limit = worst[rank - 1] if len(worst) >= FEW and rank <= len(worst) else worst[-1] * MARGIN
        return cls(middle, scale, max(LEAST_LIMIT, float(limit)), len(known), len(unseen))

    def unusual(self, values: Mapping[str, float]) -> dict[str, float]:
        """Robust standard deviations above the usual, by measure."""
        return {
            n: (values[n] - m) / self.scale[n] for n, m in self.middle.items() if np.isfinite(values.get(n, np.nan))
        }

    def suspicion(self, values: Mapping[str, float]) -> float:
        """The largest of them, at least 0."""
        return max([0.0, *self.unusual(values).values()])

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, for ``calibration.json``."""
        measures = {n: {"middle": round(m, 5), "scale": round(self.scale[n], 5)} for n, m in self.middle.items()}
        return {"limit": round(self.limit, 3), "cases": self.cases, "independent": self.independent, "usual": measures}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Usual:
        """The inverse of :meth:`to_json`."""
        usual = data["usual"]
        middle = {n: float(v["middle"]) for n, v in usual.items()}
        scale = {n: float(v["scale"]) for n, v in usual.items()}
        return cls(middle, scale, float(data["limit"]), int(data["cases"]), int(data["independent"]))


def reasons(usual: Usual, reference: Reference, values: Mapping[str, float], seen: Seen) -> list[str]:
    """One line for each measure above the limit, the worst first."""
    away = usual.unusual(values)
    worst = [reference.names[k] for k in np.argsort(-np.nan_to_num(seen.residual, nan=-1.0))[:3]]
    v, m = values, usual.middle
    told = {
        "shape": lambda: f"implausible shape, most of all {', '.join(worst)}",
        "size": lambda: f"of unusual size, {np.exp(v['size']):.2f} times larger or smaller than usual",
        "turn": lambda: (
            f"turned by {v['turn'] + reference.turns_deg:.0f} degrees, usual are {m['turn'] + reference.turns_deg:.0f}"
        ),
        "cut off": lambda: f"{v['cut off']:.0%} of the landmarks would lie outside the image",
        "absent": lambda: f"{v['absent']:.0%} of the landmarks are absent: {shortened(seen.absent)}",
        "whole": lambda: f"unlike the training images (likeness {1 - v['whole']:.2f}, usual {1 - m['whole']:.2f})",
        "detail": lambda: (
            f"surroundings of the landmarks unlike those in training (likeness {1 - v['detail']:.2f}, "
            f"usual {1 - m['detail']:.2f})"
        ),
        "noise": lambda: f"noisier than the training images, {np.exp(v['noise'] - m['noise']):.1f} times",
        "spread": lambda: f"votes or starts spread {np.exp(v['spread'] - m['spread']):.1f} times as wide as usual",
        "score": lambda: f"low scores, {1 - v['score']:.2f} on average, usual {1 - m['score']:.2f}",
    }
    over = sorted((n for n, z in away.items() if z > usual.limit), key=lambda n: -away[n])
    return [told[n]() for n in over]


def absent_names(landmarks: Landmarks) -> tuple[str, ...]:
    """The landmarks that are known not to be in the image."""
    pairs = zip(landmarks.names, landmarks.status, strict=True)
    return tuple(n for n, state in pairs if state is Status.ABSENT)


def shortened(names: Sequence[str], most: int = 8) -> str:
    """``a, b and 3 more``."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _oddness(residual: Array, noise: Array) -> float:
    """Log of the root mean square of residuals (N,) in units of the usual; heavy tails count, but no point decides."""
    ratio = (residual / noise)[np.isfinite(residual)]
    return float(np.log(np.sqrt(np.mean(np.minimum(ratio, 50.0) ** 2)) + 1e-6)) if len(ratio) else float("nan")


def _variation(aligned: Array) -> PCAShape:
    """How aligned shapes (M, N, D) vary, in few modes."""
    return PCAShape.fit(aligned.reshape(len(aligned), -1), variance=0.95, most=max(0, len(aligned) // 4))


def _without_missing(aligned: Array, mean: Array) -> Array:
    """Shapes in which a point that is missing in all of them lies at the mean's."""
    empty = ~np.isfinite(aligned).any(0)
    return np.where(empty, mean, aligned)


def _left_over(pca: PCAShape, aligned: Array, noise: float) -> Array:
    """(N,) mm by which points (N, D) in the model's frame miss the model's best explanation; NaN where missing."""
    x = aligned.reshape(-1)
    b = np.clip(pca.encode_partial(x, noise), -3 * pca.sd, 3 * pca.sd)
    return np.asarray(np.linalg.norm((x - pca.decode(b)).reshape(aligned.shape), axis=1))


def _radius(mean: Array) -> float:
    return float(np.linalg.norm(mean - mean.mean(0), axis=1).max())
