"""A block in the frame of the mean shape: what methods that read one share, from the training cases to the first pose.

Half of training's views lie near the pose that the points have, as in the last looks; the others anywhere in the range
of poses, as in the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from anatomark.core.grid import Array
from anatomark.core.image import Image
from anatomark.core.intensity import bounds, normalise
from anatomark.core.landmarks import Landmarks
from anatomark.core.resample import block_mean
from anatomark.core.shape import Pose, procrustes, random_rotation
from anatomark.errors import InputError
from anatomark.methods.kit.anatomy import Anatomy, AnnotatedCase, ShapeModel, adapt_facts, block_for, start_centre

SHIFT = 0.2  # radii: least random shift of the block in training where the search begins at the foreground
LEFT_DEG, LEFT = 12.0, 0.06  # of turns and (radii) of shifts, at most, after an alignment
NEAR_DEG, NEAR = 12.0, 0.05  # of turns and (radii) of shifts, at most, of views near the pose


class FrameSettings(Protocol):
    """What a method's settings say of the frame; None: from the training cases."""

    rotations_deg: float | None
    shift: float | None
    scaling: float
    warp_mm: float | None
    shape_variance: float
    shape_modes: int
    warped_copies: int


def prepare_frame(
    settings: FrameSettings,
    cases: Sequence[AnnotatedCase],
    names: Sequence[str],
    intensity: Mapping[str, Any],
    *,
    aligned: bool,
) -> tuple[Anatomy, dict[str, Any]]:
    """Mean shape, shape model (with warped copies) and range of poses, for ``plan.json``: that of the cases, or where
    they are ``aligned`` to a template the little that this leaves, and ``centre_mm``, where the template has them."""
    rotations = LEFT_DEG if aligned and settings.rotations_deg is None else settings.rotations_deg
    anatomy = Anatomy.of(cases, names, intensity, rotations_deg=rotations, warp_mm=settings.warp_mm)
    shape = anatomy.shape_model(
        variance=settings.shape_variance, most=settings.shape_modes, copies=settings.warped_copies
    )
    facts = start_facts(anatomy, cases, names, settings.shift, SHIFT, aligned=aligned)
    return anatomy, {**facts, "shape": shape.to_json()}


def start_facts(
    anatomy: Anatomy,
    cases: Sequence[AnnotatedCase],
    names: Sequence[str],
    shift: float | None,
    usual: float,
    *,
    aligned: bool,
) -> dict[str, Any]:
    """Where a search begins, for ``plan.json``, with ``centre_mm`` (D,), where the template has the anatomy; None where
    cases are not ``aligned``. ``shift``: radii, random in training; None: ``usual``, or what an alignment leaves."""
    shift = shift if shift is not None else LEFT if aligned else usual
    facts = {**anatomy.facts(shift=shift), "centre_mm": None}
    if aligned:
        poses = [procrustes(anatomy.mean, c.landmarks.select(names).points) for c in cases]
        facts["centre_mm"] = np.mean([p.translation for p in poses], 0).tolist()
        facts["start_shift_mm"] = shift * anatomy.radius
    return facts


def adapt_frame(
    facts: Mapping[str, Any], names: Sequence[str], old: Mapping[str, Any], old_names: Sequence[str]
) -> dict[str, Any] | None:
    """``facts`` in the frame of another model's, so that its weights mean the same; None where they have too little in
    common (:func:`anatomark.methods.kit.anatomy.adapt_facts`)."""
    out = adapt_facts(facts, names, old, old_names)
    if out is not None and old.get("centre_mm") and out.get("centre_mm"):  # only where these images are aligned too
        out["centre_mm"] = old["centre_mm"]
    return out


def seen(image: Image, intensity: Mapping[str, Any], spacing_mm: float) -> Image:
    """Block means towards a spacing, about 0 ... 1 by the rule of intensities."""
    low, high = bounds(image, intensity)
    rule = {"kind": "window", "low": low, "high": high}
    return normalise(block_mean(image, block_for(image, spacing_mm)), rule)


def random_view(rng: np.random.Generator, pose: Pose, facts: Mapping[str, Any], scaling: float) -> tuple[Array, Array]:
    """Axes (D, D) and centre (D,) world mm of a block for training: half of them near ``pose``, the others up to the
    range of poses in ``facts``; ``scaling``: standard deviation of the log size."""
    d, rotations = pose.ndim, float(facts["rotations_deg"])
    near = rng.random() < 0.5
    turn = random_rotation(rng, d, min(NEAR_DEG, rotations) if near else rotations)
    size = float(np.exp(rng.normal(0, scaling / (3 if near else 1))))
    shift = rng.uniform(-1, 1, d) * (NEAR * float(facts["radius_mm"]) if near else float(facts["start_shift_mm"]))
    return pose.rotation @ turn * pose.scale * size, pose.translation + shift


def given_pose(model: ShapeModel, names: Sequence[str], start: Landmarks) -> Pose:
    """The pose of a first guess. Raises InputError where it holds none of the landmarks."""
    guess = start.select(names).points
    if not np.isfinite(guess).any():
        raise InputError(f"the first guess holds none of the model's landmarks: {', '.join(names[:8])}")
    return model.fit(guess)[0]


def first_poses(facts: Mapping[str, Any], block: Image, rng: np.random.Generator, starts: int) -> list[Pose]:
    """Where a search begins: upright where the template has the anatomy, or at the foreground's centre (2D: the image's
    middle) with the training cases' mean offset; where any pose may come, ``starts`` random turns there."""
    if facts.get("centre_mm") is not None:
        centre = np.asarray(facts["centre_mm"])
        return [Pose(np.eye(len(centre)), centre, 1.0)]
    middle = start_centre(block) + np.asarray(facts["start_offset_mm"])
    d = len(middle)
    if float(facts["rotations_deg"]) < 180:
        return [Pose(np.eye(d), middle, 1.0)]
    return [Pose(random_rotation(rng, d), middle, 1.0) for _ in range(starts)]
