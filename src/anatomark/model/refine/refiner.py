"""The refiner: makes any first guess precise. The local stage of Noothout et al. (TMI 2020) for every method.

A sub-image around each landmark's first guess, read upright in the pose's frame, goes to that landmark's local network
(all of them in one call, ``net.py``); its cells vote, and the posterior-weighted mean of the votes is the
landmark. One to three levels follow each other from coarse to fine. How large a level's sub-images are is chosen from
the errors of what comes before it, so that they cover them. Ours: several scales as channels, 2.5D sub-images in 3D,
the pose's frame, a class "not in here", and several looks from slightly different places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from anatomark.cases.case import Case
from anatomark.core.grid import Array
from anatomark.core.image import Image
from anatomark.core.intensity import normalise
from anatomark.core.landmarks import Landmarks, Status
from anatomark.core.resample import block_mean
from anatomark.core.shape import Pose, procrustes, rotation_from_vector
from anatomark.methods.base import (
    Batch,
    Batches,
    Channels,
    Coordinate,
    Evidence,
    Facts,
    Length,
    MethodConfig,
    PerLandmark,
    Pixels,
    Rounds,
    Stage,
    Study,
)
from anatomark.methods.kit.anatomy import Anatomy, AnatomyFacts, block_for, pose_onto
from anatomark.methods.kit.augment import random_intensity
from anatomark.methods.kit.frame import PosedMethod
from anatomark.methods.kit.layers import chunks, device_of
from anatomark.methods.kit.posed import in_world, placed, planes, read_patches, turned
from anatomark.methods.kit.targets import masked
from anatomark.methods.kit.working import Parts
from anatomark.model.refine.levels import LevelFacts, sized
from anatomark.model.refine.net import LocalNet, read_votes, vote_loss

STRIDE = 4  # pixels in a cell
JITTER = 0.1  # of the reach: how far the looks' places lie apart
PYRAMID = tuple(f"refine.{2**k}" for k in range(5))  # block means by 1, 2, 4 ... are cached for training


class RefineConfig(MethodConfig):
    """Settings of the refiner. ``enabled`` None: as the method's author chose."""

    enabled: bool | None = None
    only: bool = False  # train the refiner alone, on top of the model that the run starts from
    levels: int = Field(default=2, ge=1, le=3)
    px: Pixels | None = Field(default=None, ge=16, multiple_of=16)  # None: 64 in 2D, 32 in 3D
    scales: list[Annotated[float, Field(gt=0)]] = Field(default=[1.0, 2.0], min_length=1)  # channels, in spacings
    trunk: Literal["shared", "grouped"] = "grouped"
    width: Channels = Field(default=32, ge=4, multiple_of=2)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    coverage: float = Field(default=0.99, gt=0, lt=1)  # share of the errors before that the sub-images must cover
    reach_mm: list[Annotated[float, Field(gt=0)]] | None = None  # errors to cover, per level; None: from validation
    passes: Rounds = Field(default=2, ge=1)  # of each level: from the second on the sub-images are centred better
    looks: Rounds = Field(default=1, ge=1)  # from slightly different places in each pass; more made nothing better
    chunk: int = Field(default=64, ge=1)  # landmarks in one call
    alpha: float = Field(default=0.5, ge=0, le=1)  # weight of classification against regression
    rotation_deg: float = Field(default=4.0, ge=0)
    log_scale: float = Field(default=0.03, ge=0)
    warp_share: float = Field(default=0.8, ge=0, le=1)
    crop_share: float = Field(default=0.1, ge=0, le=1)  # training examples that are cut off near a landmark
    intensity: float = Field(default=1.0, ge=0)
    batch: Batches | None = Field(default=None, ge=2)  # cases in a step; None: about 150 landmarks
    steps: int = Field(default=2000, ge=1)
    share: float = Field(default=2.0, gt=0)  # of a time budget, per level

    @model_validator(mode="after")
    def _agreeing(self) -> RefineConfig:
        if self.reach_mm is not None and len(self.reach_mm) != self.levels:
            raise ValueError(f"reach_mm holds {len(self.reach_mm)} lengths for {self.levels} levels; give one for each")
        if self.only and self.enabled is False:
            raise ValueError("only=true trains the refiner alone, but enabled=false leaves it out")
        return self


class RefinerFacts(Facts):
    """``mean_shape`` (N, D) mm, ``radius_mm`` and ``warp_mm`` as of an anatomy; ``voxel_mm``: the training images'
    finest spacing, median; the ``levels`` sized so far."""

    mean_shape: list[list[Coordinate]]
    radius_mm: Length
    warp_mm: float = Field(ge=0, le=1e6)
    voxel_mm: Length
    levels: list[LevelFacts] = Field(default=[], max_length=3)

    @model_validator(mode="after")
    def _of_its_landmarks(self) -> RefinerFacts:
        self.check_points("mean_shape", self.mean_shape)
        return self


class Refiner(PosedMethod):
    """Patches around what a method finds, read once more and finer, from level to level."""

    Config = RefineConfig
    Facts = RefinerFacts

    def __init__(self, config: RefineConfig, facts: RefinerFacts):
        super().__init__(config, facts)
        c, p = config, len(planes(self.ndim))
        self.px = c.px or (64 if self.ndim == 2 else 32)
        self.nets = torch.nn.ModuleList(
            LocalNet(p * len(c.scales), p, len(self.names), c.width, c.trunk, c.dropout) for _ in range(c.levels)
        )
        self._active = c.levels  # levels that locate uses

    @classmethod
    def prepare(cls, config: RefineConfig, study: Study) -> RefinerFacts:
        """The anatomy as the method before knows it, where it does, else from the cases."""
        spacing = float(np.median([c.image().grid.spacing.min() for c in study.cases[:8]]))
        names = study.names if study.known is None else study.known.names
        if isinstance(study.known, AnatomyFacts):
            anatomy = study.known.own()
        else:
            anatomy = Anatomy.of(study.cases, names, study.intensity).facts(shift=0.0)
        own = {k: anatomy[k] for k in ("mean_shape", "radius_mm", "warp_mm")}
        return RefinerFacts(**{**study.facts(), "names": list(names)}, **own, voxel_mm=spacing)

    @classmethod
    def adapted(cls, facts: RefinerFacts, old: RefinerFacts) -> RefinerFacts:
        """With the other refiner's radius and warps, and this mean shape laid onto its own, where :func:`pose_onto`
        can."""
        pose = pose_onto(facts, old)
        if pose is None:
            return facts
        mean = pose.apply(facts.mean_shape).tolist()
        return facts.model_copy(update={"mean_shape": mean, "radius_mm": old.radius_mm, "warp_mm": old.warp_mm})

    def per_landmark(self) -> dict[str, PerLandmark]:
        """A new landmark keeps its own network; with a shared trunk it gets the mean of the others' outputs."""
        if self.config.trunk == "grouped":
            return {"*": PerLandmark(new="own")}
        outputs = ("films.*", "weight", "bias", "elsewhere*")
        return {f"nets.{k}.{name}": PerLandmark() for k in range(len(self.nets)) for name in outputs}

    def stages(self) -> list[Stage]:
        """``refine1``, ``refine2`` ..."""
        c = self.config
        batch = c.batch or int(np.clip(152 // len(self.names), 2, 32))
        return [
            Stage(f"refine{k + 1}", c.steps, batch, share=c.share, modules=(f"nets.{k}",), clip_norm=1.0,
                  weight_decay=1e-2, ema=0.998, index=k)
            for k in range(c.levels)
        ]  # fmt: skip

    def begin(self, stage: Stage, evidence: Evidence) -> None:
        """Size the sub-images of a level so that they cover the errors of what comes before it."""
        c, k, facts = self.config, stage.index, self.facts
        given = None if c.reach_mm is None else c.reach_mm[k]
        level = sized(k, self.px, facts.radius_mm, facts.voxel_mm, evidence, coverage=c.coverage, reach_mm=given)
        self.facts = facts.model_copy(update={"levels": [*facts.levels[:k], level]})
        self._active = k + 1

    def working_images(self, image: Image) -> dict[str, Image]:
        """``refine.1``, ``refine.2``, ``refine.4`` ...: block means, normalised, from the finest spacing of use on."""
        parts = Parts(image, self.facts.intensity)
        finest = max(self.facts.voxel_mm, self.radius / 350)
        now = block_mean(image, block_for(image, finest))
        out = {}
        for key in PYRAMID:
            out[key] = normalise(now, parts.rule)
            if now.grid.spacing.max() > self.radius / 10:
                break
            now = block_mean(now, block_for(now, 2.0 * float(now.grid.spacing.min())))
        return out

    def examples(self, case: Case, stage: Stage, rng: np.random.Generator) -> Batch:
        """Sub-images around places near the landmarks of a random warp of the case."""
        k, c = stage.index, self.config
        read, truth, pose = self._warps.warped(rng, self.mean, case.landmarks.points, c.warp_share)
        turn = rotation_from_vector(rng.normal(0, np.radians(c.rotation_deg), 1 if self.ndim == 2 else 3))
        size = float(np.exp(rng.normal(0, c.log_scale)))
        state = Pose(pose.rotation @ turn, pose.translation, pose.scale * size)
        local = state.invert(truth)
        defined = np.asarray(np.isfinite(local).all(1))
        level = self.facts.levels[k]
        points = np.where(defined[:, None], local, self.mean) + self._strayed(rng, level, len(local))
        patches = self._patches(k, self._pyramid(case.images, k), [state], points[None], read)[0]
        if rng.random() < c.crop_share:
            patches, beyond = self._cut(k, patches, points, np.where(defined[:, None], local, points), rng)
            local = np.where(beyond[:, None], points + 1e3 * self.radius, local)
        absent = np.array([s is Status.ABSENT for s in case.landmarks.status])
        local = np.where(absent[:, None], points + 1e3 * self.radius, local)  # "not in here", wherever it looks
        target = (local - points) / (level.spacing_mm * STRIDE)
        patches = random_intensity(patches, rng, c.intensity)
        return {"patches": patches, **masked(target, defined | absent, ("target", "mask"))}

    def _strayed(self, rng: np.random.Generator, level: LevelFacts, count: int) -> Array:
        """Displacements (N, D) mm like the errors to cover; a few lie beyond the sub-image."""
        length = np.minimum(np.abs(rng.normal(0, 0.4, (count, 1))), 1.5) * level.reach_mm * rng.uniform(0.3, 1.2)
        far = rng.random((count, 1)) < 0.02
        length = np.where(far, level.half_mm * rng.uniform(1.2, 3.0, (count, 1)), length)
        direction = rng.normal(size=(count, self.ndim))
        return np.asarray(direction / np.linalg.norm(direction, axis=1, keepdims=True) * length)

    def _cut(
        self, k: int, patches: torch.Tensor, points: Array, truth: Array, rng: np.random.Generator
    ) -> tuple[torch.Tensor, Any]:
        """Sub-images (N, C, px, px) of an image that ends at a random plane across a model axis near a landmark, and
        which landmarks (N,) lie beyond it."""
        axis, side = int(rng.integers(self.ndim)), float(rng.choice([-1, 1]))
        half = self.facts.levels[k].half_mm
        at = truth[rng.integers(len(truth)), axis] + rng.uniform(-1, 1) * half
        steps = torch.linspace(-1, 1, self.px) * (1 - 1 / self.px)  # to the outer pixels' centres
        own = torch.from_numpy(points[:, axis]).float()[:, None, None]
        kept = []
        for scale in self.config.scales:
            for u, v in planes(self.ndim):
                along = {u: steps[None, None, :], v: steps[None, :, None]}.get(axis, torch.zeros(1, 1, 1))
                kept.append(((own + along * half * scale - at) * side <= 0).expand(-1, self.px, self.px))
        return patches * torch.stack(kept, 1), (truth[:, axis] - at) * side > 0

    def loss(self, batch: Batch, stage: Stage) -> dict[str, torch.Tensor]:
        logits, votes = self.nets[stage.index](batch["patches"])
        return vote_loss(logits, votes, batch["target"], batch["mask"], alpha=self.config.alpha)

    def notes(self) -> list[str]:
        """How large each level's sub-images are, why, and how many of the errors before they cover."""
        return [f"Refiner, level {k + 1}: {level.described(self.px)}" for k, level in enumerate(self.facts.levels)]

    def _pyramid(self, images: Mapping[str, Image], k: int) -> list[Image]:
        """For each scale the coarsest cached image that is as fine as the sub-images."""
        cached = sorted((images[n] for n in PYRAMID if n in images), key=lambda i: i.grid.spacing.max())
        out = []
        for scale in self.config.scales:
            spacing = self.facts.levels[k].spacing_mm * scale * 1.15
            fits = [i for i in cached if i.grid.spacing.min() <= spacing]
            out.append((fits or cached[:1])[-1])
        return out

    def _patches(
        self, k: int, images: Sequence[Image], poses: Sequence[Pose], points: Array, warp: Any = None
    ) -> torch.Tensor:
        """(M, N, C, px, px) around model-frame points (M, N, D) of M poses."""
        spacings = [self.facts.levels[k].spacing_mm * s for s in self.config.scales]
        return read_patches(images, in_world(poses, points), placed(poses)[1], self.px, spacings, warp)

    def locate(self, image: Image, start: Landmarks | None = None) -> Landmarks:
        """``start`` refined; a landmark that it lacks starts from the mean shape in the others' pose. Score: posterior
        mass in the sub-image; covariance: of the vote cloud."""
        return self._refined(image, start, self._active)

    def before_stages(self, image: Image, start: Landmarks | None = None) -> dict[str, Landmarks]:
        """``start`` after the levels before each."""
        return {stage.name: self._refined(image, start, stage.index) for stage in self.stages()}

    @torch.inference_mode()
    def _refined(self, image: Image, start: Landmarks | None, levels: int) -> Landmarks:
        """``start`` after so many levels. Raises ValueError where there is none."""
        if start is None:
            raise ValueError("the refiner needs a first guess")
        self.eval()
        guess = start.select(self.names)
        count = min(levels, len(self.facts.levels))
        if not count or not guess.defined.any():
            return guess
        pose = procrustes(self.mean, guess.points)
        world = np.where(guess.defined[:, None], guess.points, pose.apply(self.mean))
        parts, rng = Parts(image, self.facts.intensity), np.random.default_rng(20200714)
        covariance, mass = np.zeros(0), np.zeros(0)
        for k in range(count):
            for _ in range(self.config.passes):
                world, covariance, mass = self._look(k, parts, world, rng)
        if guess.score is not None:
            mass = np.fmin(mass, guess.score)  # present only where both see it
        return replace(guess, points=world, status=(), covariance=covariance, score=mass, radius90=None)

    def _look(self, k: int, parts: Parts, world: Array, rng: np.random.Generator) -> tuple[Array, Array, Array]:
        """Points (N, D), covariances (N, D, D) mm^2 and posterior mass (N,) that one level sees around ``world``."""
        looks, level = self.config.looks, self.facts.levels[k]
        pose = procrustes(self.mean, world)
        poses = turned(pose, rng, looks, self.config.rotation_deg if looks > 1 else 0.0)
        guess = np.stack([p.invert(world) for p in poses])
        points = guess + (rng.normal(0, JITTER * level.reach_mm, guess.shape) if looks > 1 else 0.0)
        half, reach = level.half_mm * pose.scale, level.reach_mm * pose.scale
        near = {
            s: parts.around(level.spacing_mm * s, world, 1.45 * half * s + 5 * JITTER * reach, reach)
            for s in sorted(self.config.scales, reverse=True)  # the widest first: it serves the others of its block
        }
        images = [near[s] for s in self.config.scales]
        votes_of = []
        for some in chunks(len(self.names), self.config.chunk):
            patches = self._patches(k, images, poses, points[:, some]).to(device_of(self))
            logits, votes = self.nets[k](patches, some.start)
            votes_of.append(read_votes(logits, votes, self.ndim))
        mean, cloud, mass = (np.concatenate(x, 1) for x in zip(*votes_of, strict=True))
        cell = level.spacing_mm * STRIDE
        seen = np.where(mass[..., None] > 0.5, points + mean * cell, guess)  # nothing to see there: the guess stands
        places, axes = in_world(poses, seen), placed(poses)[1] * cell
        cloud = np.einsum("mij,mnjk,mlk->mnil", axes, cloud, axes)
        middle = np.median(places, 0)
        off = places - middle
        covariance = (cloud + np.einsum("mni,mnj->mnij", off, off)).mean(0)
        return middle, covariance, mass.mean(0)
