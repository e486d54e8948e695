"""The frame of the mean shape: what methods that work in it share, from the training cases to the answer.

Half of training's views of a block lie near the pose that the points have, as in the last views; the others anywhere
in the range of poses, as in the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field

from anatomark.core.grid import Array
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.core.shape import Pose, procrustes, random_rotation
from anatomark.errors import InputError
from anatomark.methods.base import Method, MethodConfig, Rounds, Study
from anatomark.methods.kit.anatomy import Anatomy, AnatomyFacts, ShapeModel, adapted_anatomy, start_centre
from anatomark.methods.kit.augment import PointMap, PooledWarps
from anatomark.methods.kit.posed import Views, placed, read_block
from anatomark.methods.kit.working import Parts

FINER = 0.75  # of the images' finest spacing: what is read finer shows nothing more
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
    shape_modes: Rounds = Field(default=30, ge=0)
    warped_copies: Rounds = Field(default=200, ge=0)
    warp_mm: float | None = Field(default=None, ge=0)  # largest displacement; None: from radius and number of cases
    warp_share: float = Field(default=0.8, ge=0, le=1)
    intensity: float = Field(default=1.0, ge=0)  # strength of the changes of contrast


def prepare_shapes(
    settings: FrameConfig, study: Study, rotations_deg: float | None = None, least_deg: float = 30.0
) -> tuple[Anatomy, dict[str, Any]]:
    """The anatomy of the training cases, and the fields of ``AnatomyFacts`` with its shape model (with warped copies).
    The range of poses is the settings', else ``rotations_deg``, else that of the cases, ``least_deg`` at least."""
    if settings.rotations_deg is not None:
        rotations_deg = settings.rotations_deg
    anatomy = Anatomy.of(
        study.cases,
        study.names,
        study.intensity,
        rotations_deg=rotations_deg,
        warp_mm=settings.warp_mm,
        least_deg=least_deg,
    )
    shape = anatomy.shape_model(
        variance=settings.shape_variance, most=settings.shape_modes, copies=settings.warped_copies
    )
    facts = {**study.facts(anatomy.mean.shape[1]), **anatomy.facts(shift=settings.shift or 0.0)}
    return anatomy, {**facts, "shape": shape.to_json()}


def prepare_frame(settings: FrameConfig, study: Study, least_deg: float = 30.0) -> tuple[Anatomy, dict[str, Any]]:
    """:func:`prepare_shapes`; where the cases are aligned to a template, poses are the little that this leaves, and the
    search begins where the template has the anatomy."""
    anatomy, facts = prepare_shapes(settings, study, LEFT_DEG if study.aligned else None, least_deg)
    return anatomy, {**facts, **start_facts(anatomy, study, settings.shift, SHIFT)}


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


class PosedMethod(Method):
    """A method that knows the mean shape: ``mean`` (N, D) mm, its ``radius`` mm, and random warps of such anatomies."""

    def __init__(self, config: Any, facts: Any):
        super().__init__()
        self.config, self.facts = config, facts
        self.names, self.ndim = tuple(facts.names), facts.ndim
        self.mean: Array = np.asarray(facts.mean_shape)
        self.radius: float = facts.radius_mm
        self._warps = PooledWarps(self.ndim, self.radius, facts.warp_mm)

    def _random_view(self, rng: np.random.Generator, pose: Pose, *, wide: bool = False) -> tuple[Array, Array, bool]:
        """Axes (D, D) and centre (D,) world mm of a block for training, and whether it is one of the half that lie near
        ``pose``; the others come up to the range of poses. ``wide``: for networks that are to find the pose alone, so
        near is less near."""
        d, rotations, start = self.ndim, self.facts.rotations_deg, self.facts.start_shift_mm
        near_deg, part, reach, share = (30.0, 2, start, 0.2) if wide else (NEAR_DEG, 3, NEAR * self.radius, 1.0)
        near = rng.random() < 0.5
        turn = random_rotation(rng, d, min(near_deg, rotations) if near else rotations)
        size = float(np.exp(rng.normal(0, self.config.scaling / (part if near else 1))))
        shift = rng.uniform(-1, 1, d) * (reach if near else start) * (share if near else 1.0)
        return pose.rotation @ turn * pose.scale * size, pose.translation + shift, near

    def _guess(self, start: Landmarks) -> Array:
        """(N, D) world mm of a first guess, NaN where it lacks a landmark. Raises InputError where it holds none."""
        guess = start.select(self.names).points
        if not np.isfinite(guess).any():
            raise InputError(f"the first guess holds none of the model's landmarks: {', '.join(self.names[:8])}")
        return guess

    def _start_point(self, image: Image) -> Array:
        """World mm (D,) where a search begins: where the template has the anatomy, or at the foreground's centre (2D:
        the image's middle) with the training cases' mean offset. ``image``: normalised, coarse is enough."""
        if self.facts.centre_mm is not None:
            return np.asarray(self.facts.centre_mm)
        return start_centre(image) + np.asarray(self.facts.start_offset_mm)

    @property
    def _any_pose(self) -> bool:
        """Whether a search must find the rotation too: any may come, and nothing aligned the images."""
        return self.facts.rotations_deg >= 180 and self.facts.centre_mm is None

    def _first_poses(self, image: Image, rng: np.random.Generator, starts: int) -> list[Pose]:
        """Upright where a search begins; where any pose may come, ``starts`` random turns there."""
        centre, d = self._start_point(image), self.ndim
        turns = [random_rotation(rng, d) for _ in range(starts)] if self._any_pose else [np.eye(d)]
        return [Pose(turn, centre) for turn in turns]


class BlockMethod(PosedMethod):
    """A method whose network reads one block of the image in the frame of the mean shape: ``px`` voxels along
    its longest side, ``spacing`` mm apart; it says where landmarks lie from the block's middle in lengths of ``unit``
    mm."""

    Facts: ClassVar[type[AnatomyFacts]] = AnatomyFacts
    taken_over: ClassVar[tuple[str, ...]] = ()  # facts that another model's weights need as they were
    at_once: ClassVar[int] = 8  # blocks that the network reads
    px: int
    spacing: float
    unit: float

    def __init__(self, config: Any, facts: Any):
        super().__init__(config, facts)
        self.model = ShapeModel.from_facts(facts)

    @classmethod
    def adapted(cls, facts: Any, old: Any) -> Any:
        """``facts`` in the frame of another model's (:func:`adapted_anatomy`), with what is ``taken_over``."""
        laid = adapted_anatomy(facts, old)
        return facts if laid is None else laid.model_copy(update={key: getattr(old, key) for key in cls.taken_over})

    @property
    def sides(self) -> int | tuple[int, ...]:
        """Of the block in voxels: one number, or along each array axis."""
        return self.px

    def working_images(self, image: Image) -> dict[str, Image]:
        """``block``: block means towards the block's spacing."""
        return {"block": Parts(image, self.facts.intensity).whole(self.spacing)}

    def _block(self, image: Image, centre: Array, axes: Array, way: PointMap | None) -> torch.Tensor:
        """(1, px, ..., px) the block of a training example."""
        return read_block(image, centre[None], axes[None], self.sides, self.spacing, way)[0].clamp_(0, 1.5)

    def _target(self, truth: Array, centre: Array, axes: Array) -> Array:
        """(N, D) what the network is to say of landmarks at ``truth`` (N, D) mm in a block."""
        return np.asarray((truth - centre) @ np.linalg.inv(axes).T / self.unit)

    def _guessed_pose(self, start: Landmarks) -> Pose:
        return self.model.fit(self._guess(start))[0]

    def _read(self, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the network sees in blocks (B, 1, px, ..., px): points (B, N, D) and covariance (B, N, D, D) from their
        middles, in units along the model's axes, and score (B, N)."""
        raise NotImplementedError

    def _views(self, image: Image, poses: Sequence[Pose], way: PointMap | None = None) -> Views:
        """What the blocks in these poses show; ``way``: from where a block lies to where it is read."""
        parts = []
        for i in range(0, len(poses), self.at_once):
            centres, axes = placed(poses[i : i + self.at_once])
            blocks = read_block(image, centres, axes, self.sides, self.spacing, way).clamp_(0, 1.5)  # as in training
            local, cloud, score = (x.cpu().double().numpy() for x in self._read(blocks))
            step = axes * self.unit
            points = centres[:, None] + np.einsum("mij,mnj->mni", step, local)
            points = points if way is None else way(points)
            parts.append((points, np.einsum("mij,mnjk,mlk->mnil", step, cloud, step), score))
        return Views(*(np.concatenate(x) for x in zip(*parts, strict=True)))

    def _landmarks(self, points: Array, covariance: Array, score: Array) -> Landmarks:
        """The answer; no place is surer than a fiftieth of a voxel."""
        least = (0.02 * self.spacing) ** 2 * np.eye(self.ndim)
        return Landmarks(self.names, points, score=score, covariance=covariance + least)
