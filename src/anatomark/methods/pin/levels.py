"""Settings, facts and patch levels of the recommended PIN."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from anatomark.methods.kit.anatomy import AnatomyFacts
from anatomark.methods.kit.frame import FrameConfig


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


class PINConfig(FrameConfig):
    """Settings of the recommended PIN. All ours; sizes in fractions of the model's radius unless they say mm."""

    context_px: int = Field(default=32, ge=16)
    context_cover: float = Field(default=2.8, gt=0)  # side of the coarse block
    context_starts: int = Field(default=8, ge=1)
    shift: float = Field(default=0.25, ge=0)
    scaling: float = Field(default=0.15, ge=0)
    levels: list[Level] | None = None  # None: from radius and spacing
    starts: int = Field(default=4, ge=1)
    alpha: float = Field(default=0.5, ge=0, le=1)  # weight of cells' classification against the regression (eq. 2)
    cell_sigma: float = Field(default=0.7, gt=0)  # blur of the classification target, cells
    warped_copies: int = Field(default=500, ge=0)
    free_step: bool = True  # False: stop at the shape model (for comparison)
    batch: int | None = Field(default=None, ge=1)  # cases in a step of a level; None: about 384 landmarks
    context_batch: int = Field(default=24, ge=1)
    steps_context: int = Field(default=2000, ge=1)
    steps_level: int = Field(default=2000, ge=1)


class PINFacts(AnatomyFacts):
    """What PIN knows of the training data: the anatomy, and the levels from coarse to fine."""

    levels: list[Level]


def default_levels(voxel: float) -> list[Level]:
    """``voxel``: spacing of the training images in radii."""
    levels = [
        Level(spacing=1 / 36, update="shape", rotation_deg=6, shift=0.04, log_scale=0.05, reach=0.04),
        Level(spacing=1 / 90, rotation_deg=4, shift=0.01, log_scale=0.03, reach=0.08),
    ]
    if voxel < 1 / 250:
        levels.append(Level(spacing=1 / 250, rotation_deg=4, shift=0.005, log_scale=0.03, reach=0.03))
    return levels
