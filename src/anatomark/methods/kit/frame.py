"""A block in the frame of the mean shape: what methods that read one share, from the training cases to the first pose.

Half of training's views lie near the pose that the points have, as in the last views; the others anywhere in the range
of poses, as in the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import Field

from anatomark.core.grid import Array
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.core.shape import Pose, procrustes, random_rotation
from anatomark.errors import InputError
from anatomark.methods.base import MethodConfig, Study
from anatomark.methods.kit.anatomy import Anatomy, AnatomyFacts, ShapeModel, start_centre

SHIFT = 0.2  # radii: least random shift of the block in training where the search begins at the foreground
LEFT_DEG, LEFT = 12.0, 0.06  # of turns and (radii) of shifts, at most, after an alignment
NEAR_DEG, NEAR = 12.0, 0.05  # of turns and (radii) of shifts, at most, of views near the pose


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


def prepare_shapes(
    settings: FrameConfig, study: Study, rotations_deg: float | None = None
) -> tuple[Anatomy, dict[str, Any]]:
    """The anatomy of the training cases, and its shape model (with warped copies) as plain JSON. The range of poses is
    the settings', else ``rotations_deg``, else that of the cases."""
    if settings.rotations_deg is not None:
        rotations_deg = settings.rotations_deg
    anatomy = Anatomy.of(
        study.cases, study.names, study.intensity, rotations_deg=rotations_deg, warp_mm=settings.warp_mm
    )
    shape = anatomy.shape_model(
        variance=settings.shape_variance, most=settings.shape_modes, copies=settings.warped_copies
    )
    return anatomy, shape.to_json()


def prepare_frame(settings: FrameConfig, study: Study) -> tuple[Anatomy, dict[str, Any]]:
    """The anatomy, and the fields of ``AnatomyFacts``: mean shape, shape model and range of poses of the cases, or
    where they are aligned to a template the little that this leaves, and where the template has the anatomy."""
    anatomy, shape = prepare_shapes(settings, study, LEFT_DEG if study.aligned else None)
    return anatomy, {**start_facts(anatomy, study, settings.shift, SHIFT), "shape": shape}


def start_facts(anatomy: Anatomy, study: Study, shift: float | None, usual: float) -> dict[str, Any]:
    """The fields of ``AnatomyFacts`` but ``shape``. ``shift``: radii, random in training; None: ``usual``, or what an
    alignment leaves."""
    shift = shift if shift is not None else LEFT if study.aligned else usual
    facts = {**study.facts(anatomy.mean.shape[1]), **anatomy.facts(shift=shift), "centre_mm": None}
    if study.aligned:
        poses = [procrustes(anatomy.mean, c.landmarks.select(study.names).points) for c in study.cases]
        facts["centre_mm"] = np.mean([p.translation for p in poses], 0).tolist()
        facts["start_shift_mm"] = shift * anatomy.radius
    return facts


def random_view(rng: np.random.Generator, pose: Pose, facts: AnatomyFacts, scaling: float) -> tuple[Array, Array]:
    """Axes (D, D) and centre (D,) world mm of a block for training: half of them near ``pose``, the others up to the
    range of poses in ``facts``; ``scaling``: standard deviation of the log size."""
    d, rotations = pose.ndim, facts.rotations_deg
    near = rng.random() < 0.5
    turn = random_rotation(rng, d, min(NEAR_DEG, rotations) if near else rotations)
    size = float(np.exp(rng.normal(0, scaling / (3 if near else 1))))
    shift = rng.uniform(-1, 1, d) * (NEAR * facts.radius_mm if near else facts.start_shift_mm)
    return pose.rotation @ turn * pose.scale * size, pose.translation + shift


def guessed_points(names: Sequence[str], start: Landmarks) -> Array:
    """(N, D) world mm of a first guess, NaN where it lacks a landmark. Raises InputError where it holds none."""
    guess = start.select(names).points
    if not np.isfinite(guess).any():
        raise InputError(f"the first guess holds none of the model's landmarks: {', '.join(names[:8])}")
    return guess


def given_pose(model: ShapeModel, names: Sequence[str], start: Landmarks) -> Pose:
    """The pose of a first guess. Raises InputError where it holds none of the landmarks."""
    return model.fit(guessed_points(names, start))[0]


def start_point(facts: AnatomyFacts, image: Image) -> Array:
    """World mm (D,) where a search begins: where the template has the anatomy, or at the foreground's centre (2D: the
    image's middle) with the training cases' mean offset. ``image``: normalised, coarse is enough."""
    if facts.centre_mm is not None:
        return np.asarray(facts.centre_mm)
    return start_centre(image) + np.asarray(facts.start_offset_mm)


def any_pose(facts: AnatomyFacts) -> bool:
    """Whether a search must find the rotation too: any may come, and nothing aligned the images."""
    return facts.rotations_deg >= 180 and facts.centre_mm is None


def first_poses(facts: AnatomyFacts, block: Image, rng: np.random.Generator, starts: int) -> list[Pose]:
    """Upright at :func:`start_point`; where any pose may come, ``starts`` random turns there."""
    centre, d = start_point(facts, block), facts.ndim
    if not any_pose(facts):
        return [Pose(np.eye(d), centre)]
    return [Pose(random_rotation(rng, d), centre) for _ in range(starts)]
