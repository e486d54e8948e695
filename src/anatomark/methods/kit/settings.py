"""Settings that the methods which work in the mean shape's frame share."""

from __future__ import annotations

from pydantic import Field

from anatomark.methods.base import MethodConfig


class FrameConfig(MethodConfig):
    """Mean shape, shape model, range of poses and augmentation; lengths in the model's radius (largest distance of a
    landmark from the mean shape's centre) unless they say otherwise. None: from the training cases."""

    rotations_deg: float | None = Field(default=None, ge=0, le=180)  # random rotations in training
    shift: float | None = Field(default=None, ge=0)  # random shift of the block in training; None: 0.2, aligned 0.06
    scaling: float = Field(default=0.1, ge=0)  # random log scale in training
    shape_variance: float = Field(default=0.98, gt=0, le=1)
    shape_modes: int = Field(default=30, ge=0)
    warped_copies: int = Field(default=200, ge=0)
    warp_mm: float | None = Field(default=None, ge=0)  # largest displacement; None: from radius and number of cases
    warp_share: float = Field(default=0.8, ge=0, le=1)
    intensity: float = Field(default=1.0, ge=0)  # strength of the changes of contrast
