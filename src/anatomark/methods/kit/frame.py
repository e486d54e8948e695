"""A block in the frame of the mean shape: what methods that read one share, from the training cases to the first pose.

Half of training's views lie near the pose that the points have, as in the last looks; the others anywhere in the range
of poses, as in the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from anatomark.core.grid import Array
from anatomark.core.image import Image
from anatomark.core.intensity import bounds, normalise
from anatomark.core.landmarks import Landmarks
from anatomark.core.resample import block_mean
from anatomark.core.shape import Pose, procrustes, random_rotation
from anatomark.errors import InputError
from anatomark.methods.base import Study
from anatomark.methods.kit.anatomy import Anatomy, AnatomyFacts, ShapeModel, block_for, start_centre
from anatomark.methods.kit.settings import FrameConfig

SHIFT = 0.2  # radii: least random shift of the block in training where the search begins at the foreground
LEFT_DEG, LEFT = 12.0, 0.06  # of turns and (radii) of shifts, at most, after an alignment
NEAR_DEG, NEAR = 12.0, 0.05  # of turns and (radii) of shifts, at most, of views near the pose


def prepare_frame(settings: FrameConfig, study: Study) -> tuple[Anatomy, dict[str, Any]]:
    """The anatomy, and the fields of ``AnatomyFacts``: mean shape, shape model (with warped copies) and range of poses
    of the cases, or where they are aligned to a template the little that this leaves, and where the template has the
    anatomy."""
    rotations = LEFT_DEG if study.aligned and settings.rotations_deg is None else settings.rotations_deg
    anatomy = Anatomy.of(study.cases, study.names, study.intensity, rotations_deg=rotations, warp_mm=settings.warp_mm)
    shape = anatomy.shape_model(
        variance=settings.shape_variance, most=settings.shape_modes, copies=settings.warped_copies
    )
    return anatomy, {**start_facts(anatomy, study, settings.shift, SHIFT), "shape": shape.to_json()}


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


def seen(image: Image, intensity: Mapping[str, Any], spacing_mm: float) -> Image:
    """Block means towards a spacing, about 0 ... 1 by the rule of intensities."""
    low, high = bounds(image, intensity)
    rule = {"kind": "window", "low": low, "high": high}
    return normalise(block_mean(image, block_for(image, spacing_mm)), rule)


def random_view(rng: np.random.Generator, pose: Pose, facts: AnatomyFacts, scaling: float) -> tuple[Array, Array]:
    """Axes (D, D) and centre (D,) world mm of a block for training: half of them near ``pose``, the others up to the
    range of poses in ``facts``; ``scaling``: standard deviation of the log size."""
    d, rotations = pose.ndim, facts.rotations_deg
    near = rng.random() < 0.5
    turn = random_rotation(rng, d, min(NEAR_DEG, rotations) if near else rotations)
    size = float(np.exp(rng.normal(0, scaling / (3 if near else 1))))
    shift = rng.uniform(-1, 1, d) * (NEAR * facts.radius_mm if near else facts.start_shift_mm)
    return pose.rotation @ turn * pose.scale * size, pose.translation + shift


def given_pose(model: ShapeModel, names: Sequence[str], start: Landmarks) -> Pose:
    """The pose of a first guess. Raises InputError where it holds none of the landmarks."""
    guess = start.select(names).points
    if not np.isfinite(guess).any():
        raise InputError(f"the first guess holds none of the model's landmarks: {', '.join(names[:8])}")
    return model.fit(guess)[0]


def first_poses(facts: AnatomyFacts, block: Image, rng: np.random.Generator, starts: int) -> list[Pose]:
    """Where a search begins: upright where the template has the anatomy, or at the foreground's centre (2D: the image's
    middle) with the training cases' mean offset; where any pose may come, ``starts`` random turns there."""
    if facts.centre_mm is not None:
        centre = np.asarray(facts.centre_mm)
        return [Pose(np.eye(len(centre)), centre, 1.0)]
    middle = start_centre(block) + np.asarray(facts.start_offset_mm)
    d = len(middle)
    if facts.rotations_deg < 180:
        return [Pose(np.eye(d), middle, 1.0)]
    return [Pose(random_rotation(rng, d), middle, 1.0) for _ in range(starts)]
