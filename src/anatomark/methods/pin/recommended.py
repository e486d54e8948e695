"""PIN as we recommend it: a pose first, then 2.5D patches in the pose's frame, from coarse to fine.

State = similarity pose + whitened parameters of a Procrustes-aligned PCA; patches are cut in the current pose's frame,
so the networks always see upright anatomy. A coarse block finds the pose. Then, as in PIN, patches around all current
points go to the network together, it says where each landmark lies from there, and the points move, a few times, from
several starts. Where PIN classifies the direction and regresses the displacement, each plane here gives a distribution
over the cells of its patch: classified by cross entropy, regressed through its mean (``net.py``). ``shape`` levels
move pose and shape parameters by the most probable fit to these votes; ``free`` levels let each landmark leave the
PCA's subspace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch.nn import functional as F

from anatomark.cases.case import Case
from anatomark.core.grid import Array
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.core.shape import Pose, procrustes, rotation_from_vector
from anatomark.methods.base import Angle, Batch, Batches, Channels, Evidence, Pixels, Rounds, Stage, Study, Task
from anatomark.methods.kit.anatomy import AnatomyFacts, block_for
from anatomark.methods.kit.augment import PointMap, random_intensity
from anatomark.methods.kit.frame import BlockMethod, FrameConfig, prepare_shapes
from anatomark.methods.kit.layers import device_of
from anatomark.methods.kit.posed import in_world, placed, planes, read_block, read_patches, turned
from anatomark.methods.kit.targets import masked
from anatomark.methods.kit.working import Parts
from anatomark.methods.pin.net import ContextNet, PatchNet, read_votes, vote_loss

PASSES_DEG = (15.0, 10.0, 5.0)  # after the first look the coarse block is read again upright, turned by up to this


Fraction = Annotated[float, Field(ge=0, le=100)]  # of the radius


class Level(BaseModel):
    """One level of patches. Lengths are fractions of the model's radius (largest distance of a landmark from the
    centroid of the mean shape), so one default serves a mouse and a man."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    px: Pixels = Field(default=32, ge=8, multiple_of=8)
    spacing: Annotated[Fraction, Field(gt=0)]  # of the finest scale
    scales: list[Annotated[Fraction, Field(gt=0)]] = Field(default=[1.0, 2.0], min_length=1, max_length=8)
    update: Literal["shape", "free"] = "free"  # move pose and shape parameters, or each landmark by itself
    rotation_deg: Angle  # noise of the training states, standard deviation
    shift: Fraction
    log_scale: Fraction
    reach: Fraction  # free displacement of each landmark in training, uniform up to this
    iterations: Rounds = Field(default=3, ge=1)
    width: Channels = Field(default=24, ge=1)


class PINConfig(FrameConfig):
    """Settings of the recommended PIN. All ours; sizes in fractions of the model's radius unless they say mm."""

    context_px: Pixels = Field(default=32, ge=16)
    context_cover: float = Field(default=2.8, gt=0)  # side of the coarse block
    context_starts: Rounds = Field(default=8, ge=1)
    shift: float = Field(default=0.25, ge=0)
    scaling: float = Field(default=0.15, ge=0)
    levels: list[Level] | None = None  # None: from radius and spacing
    starts: Rounds = Field(default=4, ge=1)
    alpha: float = Field(default=0.5, ge=0, le=1)  # weight of cells' classification against the regression (eq. 2)
    cell_sigma: float = Field(default=0.7, gt=0)  # blur of the classification target, cells
    warped_copies: Rounds = Field(default=500, ge=0)
    free_step: bool = True  # False: stop at the shape model (for comparison)
    batch: Batches | None = Field(default=None, ge=1)  # cases in a step of a level; None: about 384 landmarks
    context_batch: Batches = Field(default=24, ge=1)
    steps_context: int = Field(default=2000, ge=1)
    steps_level: int = Field(default=2000, ge=1)


class PINFacts(AnatomyFacts):
    """What PIN knows of the training data: the anatomy, and the levels from coarse to fine."""

    levels: list[Level] = Field(max_length=16)


def default_levels(voxel: float) -> list[Level]:
    """``voxel``: spacing of the training images in radii."""
    levels = [
        Level(spacing=1 / 36, update="shape", rotation_deg=6, shift=0.04, log_scale=0.05, reach=0.04),
        Level(spacing=1 / 90, rotation_deg=4, shift=0.01, log_scale=0.03, reach=0.08),
    ]
    if voxel < 1 / 250:
        levels.append(Level(spacing=1 / 250, rotation_deg=4, shift=0.005, log_scale=0.03, reach=0.03))
    return levels


class PIN(BlockMethod):
    """Patches along the planes through each landmark, from coarse to fine, their poses found first."""

    Config = PINConfig
    Facts = PINFacts
    taken_over = ("levels",)

    def __init__(self, config: PINConfig, facts: PINFacts):
        super().__init__(config, facts)
        n, d, p = len(self.names), self.ndim, len(planes(self.ndim))
        self.levels: list[Level] = facts.levels
        self.px = config.context_px
        self.spacing = config.context_cover * self.radius / (self.px - 1)
        self.unit = config.context_cover * self.radius / 2
        self.context = ContextNet(d, self.px, n)
        self.nets = torch.nn.ModuleList(PatchNet(p * len(v.scales), p, n, v.width) for v in self.levels)
        self._active = len(self.levels)  # levels that locate uses; those not trained yet would only do harm

    @classmethod
    def suits(cls, task: Task) -> str | None:
        return "the quickest to learn, and it seeks the pose itself"

    @classmethod
    def prepare(cls, config: PINConfig, study: Study) -> PINFacts:
        """Mean shape, shape model (with warped copies), range of poses and patch levels from the training cases."""
        anatomy, frame = prepare_shapes(config, study)
        return PINFacts(**frame, levels=config.levels or default_levels(anatomy.spacing / anatomy.radius))

    def per_landmark(self) -> dict[str, int]:
        """Output layers, and each patch network's scales and shifts."""
        own = ("films.*", "weight", "bias")
        return {"context.head.4.*": 0, **{f"nets.{k}.{name}": 0 for k in range(len(self.levels)) for name in own}}

    def stages(self) -> list[Stage]:
        """``context``, then ``level1``, ``level2`` ..."""
        c = self.config
        batch = c.batch or int(np.clip(384 // len(self.names), 4, 48))
        share = 2.0 if self.facts.rotations_deg >= 180 else 1.0  # any pose is much to learn, and all else stands on it
        steps = int(c.steps_context * share)
        out = [Stage("context", steps, c.context_batch, share=share, modules=("context",), clip_norm=1.0)]
        for k, level in enumerate(self.levels):
            share = 1.0 if level.update == "shape" else 1.5
            name, net = f"level{k + 1}", (f"nets.{k}",)
            out.append(Stage(name, c.steps_level, batch, share=share, modules=net, clip_norm=1.0, index=k + 1))
        return out

    def begin(self, stage: Stage, evidence: Evidence) -> None:
        self._active = stage.index

    def working_images(self, image: Image) -> dict[str, Image]:
        """``context`` and one image per level and scale (``0.1``: first level, second scale), block means towards that
        spacing; equal ones are shared."""
        made: dict[tuple[int, ...], Image] = {}
        parts, out = Parts(image, self.facts.intensity), {}
        patches = {f"{k}.{s}": mm for k in range(len(self.levels)) for s, mm in enumerate(self._spacings(k))}
        for key, spacing in {"context": self.spacing, **patches}.items():
            block = block_for(image, spacing)
            if block not in made:
                made[block] = parts.whole(spacing)
            out[key] = made[block]
        return out

    def _spacings(self, k: int) -> list[float]:
        """Of level k's patches, mm, by scale."""
        return [self.levels[k].spacing * scale * self.radius for scale in self.levels[k].scales]

    def _around(self, parts: Parts, k: int, world: Array) -> dict[str, Image]:
        """The working images of level k, only the part that patches near ``world`` (N, D) mm can touch."""
        level, spacings, out = self.levels[k], self._spacings(k), {}
        # the widest first: where scales share their voxels, it serves the others
        for s, scale in sorted(enumerate(level.scales), key=lambda x: -x[1]):
            # a turned plane's corner, and room for what the points move in this level
            reach = self._half(k) * scale * np.sqrt(2) * 1.1 + (0.15 + level.reach) * self.radius
            out[f"{k}.{s}"] = parts.around(spacings[s], world, reach)
        return out

    def examples(self, case: Case, stage: Stage, rng: np.random.Generator) -> Batch:
        """A random warp of the case: the coarse block in a random view, or patches from a random state near its
        truth."""
        c = self.config
        read, truth, pose = self._warps.warped(rng, self.mean, case.landmarks.points, c.warp_share)
        if stage.index:
            patches, target = self._level_example(stage.index - 1, case, truth, pose, read, rng)
            image = {"patches": random_intensity(patches, rng, c.intensity)}
        else:
            axes, centre, _ = self._random_view(rng, pose, wide=True)
            block = read_block(case.images["context"], centre[None], axes[None], self.px, self.spacing, read)[0]
            image = {"block": random_intensity(block, rng, c.intensity)}
            target = self._target(truth, centre, axes)
        return {**image, **masked(target, names=("target", "target_mask"))}

    def _level_example(
        self, k: int, case: Case, truth: Array, pose: Pose, way: PointMap | None, rng: np.random.Generator
    ) -> tuple[torch.Tensor, Array]:
        """Patches (N, C, px, px), and where the landmarks are in them, (N, D) in half widths."""
        level, d = self.levels[k], self.ndim
        wide = rng.uniform(0.1, 1.0)  # from narrow to wide around the truth
        noise = Pose(
            rotation_from_vector(rng.normal(0, np.radians(level.rotation_deg) * wide, 1 if d == 2 else 3)),
            rng.normal(0, level.shift * self.radius * wide, d),
            float(np.exp(rng.normal(0, level.log_scale * wide))),
        )
        state = noise.then(pose)
        b = self.model.encode(pose.invert(truth))
        if level.update == "shape":
            points = self.model.decode(b + rng.normal(0, 0.7 * wide, self.model.shape.size))
        else:
            points = state.invert(np.where(np.isfinite(truth), truth, pose.apply(self.model.decode(b))))
        points = points + _in_ball(rng, points.shape) * level.reach * self.radius * rng.uniform(0.05, 1.0)
        patches = self._patches(k, case.images, [state], points[None], way)[0]
        return patches, (state.invert(truth) - points) / self._half(k)

    def loss(self, batch: Batch, stage: Stage) -> dict[str, torch.Tensor]:
        """Regression and classification together (eq. 2): of the points, of each plane's cells and their mean."""
        c, target, mask = self.config, batch["target"], batch["target_mask"]
        if stage.index:
            logits = self.nets[stage.index - 1](batch["patches"])
            return vote_loss(logits, target, mask, alpha=c.alpha, cell_sigma=c.cell_sigma)
        error = F.smooth_l1_loss(self.context(batch["block"]), target, reduction="none", beta=0.02)
        return {"loss": (error * mask[..., None]).sum() / (mask.sum() * self.ndim).clamp(min=1)}

    def _half(self, k: int) -> float:
        level = self.levels[k]
        return level.spacing * self.radius * (level.px - 1) / 2

    def _patches(
        self, k: int, images: Mapping[str, Image], poses: Sequence[Pose], points: Array, way: PointMap | None = None
    ) -> torch.Tensor:
        """(M, N, C, px, px) around model-frame points (M, N, D) of M poses."""
        spacings = self._spacings(k)
        chosen = [images[f"{k}.{s}"] for s in range(len(spacings))]
        return read_patches(chosen, in_world(poses, points), placed(poses)[1], self.levels[k].px, spacings, way)

    @torch.inference_mode()
    def locate(self, image: Image, start: Landmarks | None = None) -> Landmarks:
        """Score: agreement of the last votes; covariance: their spread."""
        self.eval()
        parts = Parts(image, self.facts.intensity)
        if start is None:
            pose, b = self._find_pose(parts.whole(self.spacing))
        else:
            guess = self._guess(start)
            pose = procrustes(self.mean, guess)
            b = self.model.encode(pose.invert(guess))
        rng = np.random.default_rng(20180706)  # the same image gives the same answer
        world, votes = pose.apply(self.model.decode(b)), None
        last = self.levels[self._active - 1] if self._active else None
        for k, level in enumerate(self.levels[: self._active]):
            if level.update == "free" and not self.config.free_step:
                break
            images = self._around(parts, k, world)
            for t in range(level.iterations):
                count = self._starts(last=t == level.iterations - 1)
                votes, weight = self._votes(k, images, pose, world, rng, count)
                world = np.median(votes, 0)
                if level is last and t == level.iterations - 1 and level.update == "free":
                    break  # the answer; its pose would serve nothing
                pose, b = self.model.fit(world, weight)
                if level.update == "shape":
                    world = pose.apply(self.model.decode(b))
        if votes is None or len(votes) < 2:
            return Landmarks(self.names, world)
        centred = votes - votes.mean(0)
        covariance = np.einsum("mni,mnj->nij", centred, centred) / (len(votes) - 1)
        score = np.exp(-np.sqrt(np.trace(covariance, axis1=1, axis2=2)) / (0.05 * self.radius))
        return Landmarks(self.names, world, score=score, covariance=covariance + 1e-6 * np.eye(self.ndim))

    def _starts(self, *, last: bool) -> int:
        """The way there needs fewer starts than the answer."""
        return self.config.starts if last else max(2, self.config.starts // 2)

    def _find_pose(self, image: Image) -> tuple[Pose, Array]:
        """Pose and shape from the coarse block: many rotations, their median, then again upright."""
        rng = np.random.default_rng(7)
        pose, b = self._context_pose(image, self._first_poses(image, rng, self.config.context_starts))
        for i, limit in enumerate(PASSES_DEG):
            count = self._starts(last=i == len(PASSES_DEG) - 1)
            pose, b = self._context_pose(image, turned(pose, rng, count, limit))
        return pose, b

    def _context_pose(self, image: Image, poses: Sequence[Pose]) -> tuple[Pose, Array]:
        """Pose and shape that the coarse block shows, seen from these poses."""
        centres, axes = placed(poses)
        block = read_block(image, centres, axes, self.px, self.spacing)
        local = self.context(block.to(device_of(self))).cpu().double().numpy() * self.unit
        return self.model.fit(np.median(centres[:, None] + np.einsum("mij,mnj->mni", axes, local), 0))

    def _votes(
        self, k: int, images: Mapping[str, Image], pose: Pose, world: Array, rng: np.random.Generator, count: int
    ) -> tuple[Array, Array]:
        """Where the patches of ``count`` starts around ``world`` (N, D) see the landmarks: votes (M, N, D) world mm,
        and each landmark's weight (N,), the inverse of its distributions' variance."""
        level = self.levels[k]
        poses = turned(pose, rng, count, level.rotation_deg / 2)
        jitter = _in_ball(rng, (count, *world.shape)) * level.reach * self.radius * 0.2
        points = np.stack([p.invert(world) for p in poses]) + jitter
        logits = self.nets[k](self._patches(k, images, poses, points).to(device_of(self)))
        mean, variance = read_votes(logits.cpu(), self.ndim)
        return in_world(poses, points + mean * self._half(k)), 1 / np.median(variance.sum(-1), 0)


def _in_ball(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Random vectors (..., D) of direction uniform and length uniform in 0 ... 1."""
    v = rng.normal(size=shape)
    v /= np.linalg.norm(v, axis=-1, keepdims=True)
    return np.asarray(v * rng.uniform(0, 1, (*shape[:-1], 1)))
