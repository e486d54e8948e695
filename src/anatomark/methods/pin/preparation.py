"""What the recommended PIN knows before it learns: settings, mean shape, shape model, range of poses, levels."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from anatomark.core.grid import Array, Grid
from anatomark.core.image import Image
from anatomark.core.resample import block_mean
from anatomark.core.shape import PCAShape, Pose, mean_shape, procrustes, rotation_angle
from anatomark.core.warp import random_warp
from anatomark.data.intensity import foreground_centre, normalise
from anatomark.methods.base import MethodConfig, Plan, Study


class Level(BaseModel):
    """One level of patches. Lengths are fractions of the model's radius (largest distance of a landmark from the
    centroid of the mean shape), so one default serves a mouse and a man."""

    model_config = ConfigDict(extra="forbid")
    px: int = Field(default=32, ge=8, multiple_of=8)
    spacing: float  # of the finest scale
    scales: list[float] = [1.0, 2.0]
    update: Literal["shape", "free"] = "free"  # move pose and shape parameters, or each landmark by itself
    rotation_deg: float  # noise of the training states, standard deviation
    shift: float
    log_scale: float
    reach: float  # free displacement of each landmark in training, uniform up to this
    iterations: int = 3
    width: int = 24


class CascadeConfig(MethodConfig):
    """Settings of the recommended PIN. All ours; sizes in fractions of the model's radius unless they say mm."""

    context_px: int = Field(default=32, ge=16)
    context_cover: float = Field(default=2.8, gt=0)  # side of the coarse block
    context_starts: int = Field(default=8, ge=1)
    rotations_deg: float | None = Field(
        default=None, ge=0, le=180
    )  # random rotations in training; None: from the training poses
    shift: float = Field(default=0.25, ge=0)  # random shift of the coarse block in training
    scaling: float = Field(default=0.15, ge=0)  # random log scale in training
    levels: list[Level] | None = None  # None: from radius and spacing
    starts: int = Field(default=4, ge=1)
    alpha: float = Field(
        default=0.5, ge=0, le=1
    )  # weight of the classification of cells against the regression (eq. 2)
    cell_sigma: float = Field(default=0.7, gt=0)  # blur of the classification target, cells
    shape_variance: float = Field(default=0.98, gt=0, le=1)
    shape_modes: int = Field(default=30, ge=0)
    warped_copies: int = Field(default=500, ge=0)
    warp_mm: float | None = Field(
        default=None, ge=0
    )  # largest displacement of the warps; None: from radius and number of cases
    warp_share: float = Field(default=0.8, ge=0, le=1)
    intensity: float = Field(default=1.0, ge=0)
    free_step: bool = True  # False: stop at the shape model (for comparison)
    batch: int | None = Field(default=None, ge=1)  # cases in a step of a level; None: about 384 landmarks
    context_batch: int = Field(default=24, ge=1)
    steps_context: int = Field(default=2000, ge=1)
    steps_level: int = Field(default=2000, ge=1)


def prepare(config: CascadeConfig, study: Study) -> Plan:
    """Mean shape, shape model (with warped copies), range of poses and patch levels from the training cases."""
    # a case without any of the landmarks says nothing of shape and pose
    study = replace(study, cases=[c for c in study.cases if c.landmarks.select(study.names).defined.any()])
    shapes = np.stack([c.landmarks.select(study.names).points for c in study.cases])
    mean, poses = mean_shape(shapes)
    radius = float(np.nanmax(np.linalg.norm(mean, axis=1)))
    if radius < 1e-6:  # a single landmark has no extent: its surroundings stand in
        radius = 0.25 * float(study.cases[0].image().grid.extent_mm.min())
    known = np.isfinite(shapes).all(2).sum(1)
    sure = known >= min(shapes.shape[2], known.max())  # fewer points leave the rotation open
    spread = max(rotation_angle(p.rotation) for p, good in zip(poses, sure, strict=True) if good)
    rotations = config.rotations_deg
    if rotations is None:
        rotations = 180.0 if spread > 60 else max(30.0, 1.5 * spread)
    warp_mm = config.warp_mm
    if warp_mm is None:
        warp_mm = radius * (0.03 + 0.15 / np.sqrt(len(shapes)))
    ndim = shapes.shape[2]
    offset, shift, spacing = _start_statistics(study, poses, radius, full=rotations >= 180)
    levels = config.levels or default_levels(ndim, spacing / radius)
    aligned = np.stack([p.invert(s) for p, s in zip(poses, shapes, strict=True)])
    shape = _shape_model(aligned, mean, radius, warp_mm, config)
    facts = {
        "mean_shape": mean.tolist(),
        "radius_mm": radius,
        "rotations_deg": rotations,
        "start_offset_mm": offset.tolist(),
        "start_shift_mm": max(shift, config.shift * radius),
        "warp_mm": float(warp_mm),
        "levels": [v.model_dump() for v in levels],
        "shape": shape.to_json(),
    }
    return Plan(
        names=list(study.names),
        ndim=ndim,
        modality=study.modality,
        intensity=dict(study.intensity),
        facts=facts,
    )


def default_levels(ndim: int, voxel: float) -> list[Level]:
    """The levels of the recommended preset. ``voxel``: spacing of the training images in radii."""
    levels = [
        Level(spacing=1 / 36, update="shape", rotation_deg=6, shift=0.04, log_scale=0.05, reach=0.04),
        Level(spacing=1 / 90, rotation_deg=4, shift=0.01, log_scale=0.03, reach=0.08),
    ]
    if voxel < 1 / 250:
        levels.append(Level(spacing=1 / 250, rotation_deg=4, shift=0.005, log_scale=0.03, reach=0.03))
    return levels


def start_centre(image: Image) -> Array:
    """World mm (D,) where the search begins: the foreground's centre of mass, in 2D the middle of the image."""
    return foreground_centre(image) if image.ndim == 3 else image.grid.centre


def block_for(image: Image, spacing_mm: float) -> tuple[int, ...]:
    """(D,) voxels to average so that an image comes close to a spacing."""
    fit = np.floor(spacing_mm / image.grid.spacing * 1.15)
    return tuple(int(b) for b in np.clip(fit, 1, image.grid.shape))


def _start_statistics(study: Study, poses: list[Pose], radius: float, *, full: bool) -> tuple[Array, float, float]:
    """Mean offset (D,) mm from the start centre to the landmarks' centre, how far cases stray from it (mm, with
    margin), and the median finest spacing (mm), over at most 40 cases."""
    chosen = np.linspace(0, len(poses) - 1, min(40, len(poses))).astype(int)
    offsets, spacings = [], []
    for i in chosen:
        image = study.cases[i].image()
        block = tuple(int(b) for b in np.clip(radius / 12 / image.grid.spacing, 1, image.grid.shape))
        offsets.append(poses[i].translation - start_centre(normalise(block_mean(image, block), study.intensity)))
        spacings.append(image.grid.spacing.min())
    mean = np.zeros(poses[0].ndim) if full else np.mean(offsets, 0)
    stray = np.abs(np.stack(offsets) - mean).max()
    return mean, float(1.25 * stray + 0.05 * radius), float(np.median(spacings))


def _shape_model(aligned: Array, mean: Array, radius: float, warp_mm: float, config: CascadeConfig) -> PCAShape:
    """PCA of the aligned shapes (M, N, D) and of smoothly warped copies of them."""
    d = aligned.shape[2]
    rng = np.random.default_rng(5)
    box = Grid.centred((2,) * d, np.eye(d)[:, ::-1] * 1.3 * radius, np.zeros(d))
    copies = list(aligned)
    for i in range(config.warped_copies):
        shape = aligned[i % len(aligned)]
        field = random_warp(rng, box, warp_mm * rng.uniform(0.2, 1), radius * rng.uniform(0.5, 1.5), nodes=14)
        moved = field.inverse(shape)
        copies.append(procrustes(mean, moved).invert(moved))
    return PCAShape.fit(
        np.stack(copies).reshape(len(copies), -1), variance=config.shape_variance, most=config.shape_modes
    )


def adapt_plan(plan: Plan, old: Plan) -> Plan:
    """``plan`` in the frame of another model's plan, so that its weights mean the same: its radius, levels, coarse
    block and orientation, and this plan's shapes laid onto its mean shape. Unchanged where the two share fewer than
    three landmarks, another dimension, or other kinds of facts."""
    known = [n for n in plan.names if n in old.names]
    if len(known) < 3 or plan.ndim != old.ndim or "mean_shape" not in old.facts:
        return plan
    d, facts = plan.ndim, dict(plan.facts)
    mean, goal = np.asarray(facts["mean_shape"]), np.asarray(old.facts["mean_shape"])
    rows, goals = [plan.names.index(n) for n in known], [old.names.index(n) for n in known]
    pose = procrustes(mean[rows], goal[goals])
    shape = PCAShape.from_json(facts["shape"])
    modes = (shape.modes.T.reshape(-1, d) @ pose.rotation.T).reshape(-1, shape.mean.size).T
    laid = PCAShape(pose.apply(shape.mean.reshape(-1, d)).ravel(), modes, shape.sd * pose.scale)
    # where the search starts is a matter of the new images: from the new centre on to the old model's
    aside = pose.invert(np.zeros(d))
    rotations = max(facts["rotations_deg"], old.facts["rotations_deg"])
    full = rotations >= 180  # the direction of an offset is then unknown
    facts["start_offset_mm"] = [0.0] * d if full else (np.asarray(facts["start_offset_mm"]) + aside).tolist()
    stray = facts["start_shift_mm"] + (float(np.linalg.norm(aside)) if full else 0.0)
    facts["start_shift_mm"] = max(stray, old.facts["start_shift_mm"])
    facts.update({k: old.facts[k] for k in ("radius_mm", "levels", "warp_mm")})
    facts.update(mean_shape=pose.apply(mean).tolist(), shape=laid.to_json())
    facts["rotations_deg"] = rotations
    return plan.model_copy(update={"facts": facts})
