"""What training cases tell of an anatomy before anything is learned: its mean shape, how it varies, in which poses it
comes, and where in an image a search for it begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from pydantic import Field, model_validator

from anatomark.cases.case import Case
from anatomark.core.grid import Array, Grid
from anatomark.core.image import Image
from anatomark.core.intensity import foreground_centre, normalise
from anatomark.core.resample import block_mean
from anatomark.core.shape import PCAShape, Pose, mean_shape, procrustes, rotation_angle
from anatomark.core.warp import random_warp
from anatomark.methods.base import Angle, Coordinate, Facts, Length


class AnatomyFacts(Facts):
    """What :class:`Anatomy` tells a method: ``mean_shape`` (N, D) mm, centred; ``radius_mm``; ``rotations_deg``: the
    range of poses, 180 = any; where a search begins: ``start_offset_mm`` (D,) from the image's start centre, strayed
    from by ``start_shift_mm``, or ``centre_mm`` (D,) where a template has the anatomy; ``warp_mm``; ``shape``: the PCA
    of shapes (``PCAShape.to_json``), of methods that have one."""

    mean_shape: list[list[Coordinate]]
    radius_mm: Length
    rotations_deg: Angle
    start_offset_mm: list[Coordinate]
    start_shift_mm: float = Field(ge=0, le=1e6)
    warp_mm: float = Field(default=0.0, ge=0, le=1e6)
    centre_mm: list[Coordinate] | None = None
    shape: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _of_its_landmarks(self) -> AnatomyFacts:
        self.check_points("mean_shape", self.mean_shape)
        for field in ("start_offset_mm", "centre_mm"):
            if (place := getattr(self, field)) is not None and len(place) != self.ndim:
                raise ValueError(f"{field}: holds {len(place)} coordinates in {self.ndim}D")
        if self.shape is not None and len(PCAShape.from_json(self.shape).mean) != len(self.names) * self.ndim:
            raise ValueError(f"shape: is not of {len(self.names)} landmarks")
        return self


@dataclass(frozen=True)
class Anatomy:
    """The training shapes, aligned, and where they lie in their images.

    ``mean`` (N, D) mm, centred; ``radius`` mm, the largest distance of one of its points from the centre, in which
    every other length may be given; ``aligned`` (M, N, D) the shapes in the mean's frame, NaN = missing;
    ``rotations_deg`` the range of poses to expect, 180 = any; ``offset`` (D,) mean way from the start centre to the
    landmarks' centre and ``stray`` mm how far cases stray from it, with margin; ``spacing`` mm, median finest spacing
    (these of at most 40 cases); ``warp_mm`` largest displacement of warps that make up for few cases.
    """

    mean: Array
    radius: float
    aligned: Array
    rotations_deg: float
    offset: Array
    stray: float
    spacing: float
    warp_mm: float

    @classmethod
    def of(
        cls,
        cases: Sequence[Case],
        names: Sequence[str],
        intensity: Mapping[str, Any],
        *,
        rotations_deg: float | None = None,
        warp_mm: float | None = None,
        least_deg: float = 30.0,
    ) -> Anatomy:
        """From training cases and their rule of intensities; what is None is taken from the cases, the range of poses
        then being ``least_deg`` at least."""
        # a case without any of the landmarks says nothing of shape and pose
        cases = [c for c in cases if c.landmarks.select(names).defined.any()]
        shapes = np.stack([c.landmarks.select(names).points for c in cases])
        mean, poses = mean_shape(shapes)
        radius = float(np.nanmax(np.linalg.norm(mean, axis=1)))
        if radius < 1e-6:  # a single landmark has no extent: its surroundings stand in
            radius = 0.25 * float(cases[0].image().grid.extent_mm.min())
        defined = np.isfinite(shapes).all(2).sum(1)
        sure = defined >= min(shapes.shape[2], defined.max())  # fewer points leave the rotation open
        spread = max(rotation_angle(p.rotation) for p, good in zip(poses, sure, strict=True) if good)
        if rotations_deg is None:
            rotations_deg = 180.0 if spread > 60 else max(least_deg, 1.5 * spread)
        if warp_mm is None:
            warp_mm = radius * (0.03 + 0.15 / np.sqrt(len(shapes)))
        offsets, spacings = [], []
        for i in np.linspace(0, len(poses) - 1, min(40, len(poses))).astype(int):
            image = cases[i].image()
            block = tuple(int(b) for b in np.clip(radius / 12 / image.grid.spacing, 1, image.grid.shape))
            offsets.append(poses[i].translation - start_centre(normalise(block_mean(image, block), intensity)))
            spacings.append(image.grid.spacing.min())
        offset = np.zeros(mean.shape[1]) if rotations_deg >= 180 else np.mean(offsets, 0)
        stray = float(1.25 * np.abs(np.stack(offsets) - offset).max() + 0.05 * radius)
        aligned = np.stack([p.invert(s) for p, s in zip(poses, shapes, strict=True)])
        return cls(mean, radius, aligned, rotations_deg, offset, stray, float(np.median(spacings)), float(warp_mm))

    def shape_model(self, *, variance: float, most: int, copies: int) -> PCAShape:
        """PCA of the aligned shapes and of ``copies`` smoothly warped copies of them."""
        d = self.aligned.shape[2]
        rng = np.random.default_rng(5)
        box = Grid.centred((2,) * d, np.eye(d)[:, ::-1] * 1.3 * self.radius, np.zeros(d))
        shapes = list(self.aligned)
        for i in range(copies):
            shape = self.aligned[i % len(self.aligned)]
            amplitude, wave = self.warp_mm * rng.uniform(0.2, 1), self.radius * rng.uniform(0.5, 1.5)
            field = random_warp(rng, box, amplitude, wave, nodes=14)
            moved = field.inverse(shape)
            shapes.append(procrustes(self.mean, moved).invert(moved))
        return PCAShape.fit(np.stack(shapes).reshape(len(shapes), -1), variance=variance, most=most)

    def facts(self, *, shift: float) -> dict[str, Any]:
        """The fields of :class:`AnatomyFacts` but ``shape``. ``shift``: least random shift of the search, radii."""
        return {
            "mean_shape": self.mean.tolist(),
            "radius_mm": self.radius,
            "rotations_deg": self.rotations_deg,
            "start_offset_mm": self.offset.tolist(),
            "start_shift_mm": max(self.stray, shift * self.radius),
            "warp_mm": self.warp_mm,
        }


@dataclass(frozen=True)
class ShapeModel:
    """Similarity pose and whitened parameters of an aligned PCA. ``mean`` (N, D) mm; ``noise_mm`` of a point given."""

    mean: Array
    shape: PCAShape
    noise_mm: float

    @classmethod
    def from_facts(cls, facts: AnatomyFacts) -> ShapeModel:
        """Noise of 0.02 radii."""
        assert facts.shape is not None
        return cls(np.asarray(facts.mean_shape), PCAShape.from_json(facts.shape), 0.02 * facts.radius_mm)

    def encode(self, points: Array) -> Array:
        """Whitened shape parameters (K,) of model-frame points (N, D), NaN = missing."""
        b = self.shape.encode_partial(points.reshape(-1), self.noise_mm)
        return b / np.maximum(self.shape.sd, 1e-9)

    def decode(self, b: Array) -> Array:
        """Model-frame points (N, D) of whitened parameters (K,)."""
        return self.shape.decode(b * self.shape.sd).reshape(-1, self.mean.shape[1])

    def fit(self, world: Array, weight: Array | None = None) -> tuple[Pose, Array]:
        """Pose and whitened shape (within 3 standard deviations) of world points (N, D), weighted (N,)."""
        pose = procrustes(self.mean, world, weight)
        for _ in range(2):  # the shape's own part must not be taken for pose
            b = np.clip(self.encode(pose.invert(world)), -3, 3)
            pose = procrustes(self.decode(b), world, weight)
        return replace(pose, scale=float(np.clip(pose.scale, 0.6, 1.6))), b


def start_centre(image: Image) -> Array:
    """World mm (D,) where the search begins: the foreground's centre of mass, in 2D the middle of the image."""
    return foreground_centre(image) if image.ndim == 3 else image.grid.centre


def block_for(image: Image, spacing_mm: float) -> tuple[int, ...]:
    """(D,) voxels to average so that an image comes close to a spacing."""
    fit = np.floor(spacing_mm / image.grid.spacing * 1.15)
    return tuple(int(b) for b in np.clip(fit, 1, image.grid.shape))


F = TypeVar("F", bound=AnatomyFacts)


def pose_onto(facts: Any, old: Any) -> Pose | None:
    """The pose that lays a model's mean shape onto another's. None where the two share fewer than three landmarks or
    have another dimension."""
    shared = [n for n in facts.names if n in old.names]
    if len(shared) < 3 or facts.ndim != old.ndim:
        return None
    mean, goal = ([f.mean_shape[f.names.index(n)] for n in shared] for f in (facts, old))
    return procrustes(np.asarray(mean), np.asarray(goal))


def adapted_anatomy(facts: F, old: AnatomyFacts) -> F | None:
    """``facts`` in the frame of another model's, so that its weights mean the same: its radius, warps and orientation,
    and these shapes laid onto its mean shape; of a template's centre the old one, where both have one. None where
    :func:`pose_onto` is."""
    pose, d = pose_onto(facts, old), facts.ndim
    if pose is None:
        return None
    # where the search starts is a matter of the new images: from the new centre on to the old model's
    aside = pose.invert(np.zeros(d))
    rotations = max(facts.rotations_deg, old.rotations_deg)
    full = rotations >= 180  # the direction of an offset is then unknown
    stray = facts.start_shift_mm + (float(np.linalg.norm(aside)) if full else 0.0)
    update: dict[str, Any] = {
        "start_offset_mm": [0.0] * d if full else (np.asarray(facts.start_offset_mm) + aside).tolist(),
        "start_shift_mm": max(stray, old.start_shift_mm),
        "radius_mm": old.radius_mm,
        "warp_mm": old.warp_mm,
        "mean_shape": pose.apply(facts.mean_shape).tolist(),
        "rotations_deg": rotations,
    }
    if facts.centre_mm is not None:
        update["centre_mm"] = old.centre_mm or (np.asarray(facts.centre_mm) + aside).tolist()
    if facts.shape is not None:
        shape = PCAShape.from_json(facts.shape)
        modes = (shape.modes.T.reshape(-1, d) @ pose.rotation.T).reshape(-1, shape.mean.size).T
        laid = PCAShape(pose.apply(shape.mean.reshape(-1, d)).ravel(), modes, shape.sd * pose.scale)
        update["shape"] = laid.to_json()
    return facts.model_copy(update=update)
