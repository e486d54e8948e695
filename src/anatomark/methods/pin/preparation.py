"""What the recommended PIN knows before it learns: settings, mean shape, shape model, range of poses, levels."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from anatomark.methods.base import MethodConfig, Plan, Study
from anatomark.methods.kit.anatomy import Anatomy, adapt_facts


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
    anatomy = Anatomy.of(
        study.cases, study.names, study.intensity, rotations_deg=config.rotations_deg, warp_mm=config.warp_mm
    )
    ndim = anatomy.mean.shape[1]
    levels = config.levels or default_levels(ndim, anatomy.spacing / anatomy.radius)
    shape = anatomy.shape_model(variance=config.shape_variance, most=config.shape_modes, copies=config.warped_copies)
    return Plan(
        names=list(study.names),
        ndim=ndim,
        modality=study.modality,
        intensity=dict(study.intensity),
        facts={
            **anatomy.facts(shift=config.shift),
            "levels": [v.model_dump() for v in levels],
            "shape": shape.to_json(),
        },
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


def adapt_plan(plan: Plan, old: Plan) -> Plan:
    """``plan`` in the frame of another model's plan, so that its weights mean the same: its radius, levels, coarse
    block and orientation, and this plan's shapes laid onto its mean shape. Unchanged where the two share fewer than
    three landmarks, another dimension, or other kinds of facts."""
    facts = adapt_facts(plan.facts, plan.names, old.facts, old.names) if "levels" in old.facts else None
    if facts is None:
        return plan
    return plan.model_copy(update={"facts": {**facts, "levels": old.facts["levels"]}})
