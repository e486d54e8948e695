"""PIN as we recommend it: a pose first, then 2.5D patches in the pose's frame, from coarse to fine.

State = similarity pose + whitened parameters of a Procrustes-aligned PCA; patches are cut in the current pose's frame,
so the networks always see upright anatomy. A coarse block finds the pose. Then, as in PIN, patches around all current
points go to the network together, it says where each landmark lies from there, and the points move, a few times, from
several starts. Where PIN classifies the direction and regresses the displacement, each plane here gives a distribution
over the cells of its patch: classified by cross entropy, regressed through its mean (``votes.py``). ``shape`` levels
move pose and shape parameters by the most probable fit to these votes; ``free`` levels let each landmark leave the
PCA's subspace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from anatomark.cases.case import Case
from anatomark.core.grid import Array
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.core.shape import Pose, procrustes, random_rotation, rotation_from_vector
from anatomark.methods.base import Batch, Evidence, Method, Stage, Study, Task
from anatomark.methods.kit.anatomy import ShapeModel, adapted_anatomy, block_for
from anatomark.methods.kit.augment import PooledWarps, random_intensity
from anatomark.methods.kit.frame import first_poses, guessed_points, prepare_shapes
from anatomark.methods.kit.posed import planes, read_block, read_patches, turned
from anatomark.methods.kit.working import Parts
from anatomark.methods.pin.levels import Level, PINConfig, PINFacts, default_levels
from anatomark.methods.pin.net import ContextNet, PatchNet
from anatomark.methods.pin.votes import read_votes, vote_loss

PASSES_DEG = (15.0, 10.0, 5.0)  # after the first look the coarse block is read again upright, turned by up to this


@dataclass(frozen=True)
class State:
    """Poses of M starts and their points (M, N, D) in the model's frame."""

    poses: list[Pose]
    points: Array

    def world(self) -> Array:
        """(M, N, D) world mm."""
        return np.stack([p.apply(x) for p, x in zip(self.poses, self.points, strict=True)])


class PIN(Method):
    """The recommended preset of the method ``pin``; see the module."""

    Config = PINConfig
    Facts = PINFacts
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"recommended": {}}

    def __init__(self, config: PINConfig, facts: PINFacts):
        super().__init__()
        self.config, self.facts = config, facts
        self.names = tuple(facts.names)
        self.ndim = facts.ndim
        self.model = ShapeModel.from_facts(facts)
        self.mean, self.shape = self.model.mean, self.model.shape
        self.radius = facts.radius_mm
        self.rotations = facts.rotations_deg
        self.levels: list[Level] = facts.levels
        n, d = len(self.names), self.ndim
        self.context = ContextNet(d, config.context_px, n)
        p = len(planes(d))
        self.nets = torch.nn.ModuleList(PatchNet(p * len(v.scales), p, n, v.width) for v in self.levels)
        self._warps = PooledWarps(self.ndim, self.radius, facts.warp_mm)
        self._active = len(self.levels)  # levels that locate uses; those not trained yet would only do harm

    @classmethod
    def suits(cls, task: Task) -> str | None:
        return "the quickest to learn, and it seeks the pose itself"

    # ------------------------------------------------------------------ what depends on the data

    @classmethod
    def prepare(cls, config: PINConfig, study: Study) -> PINFacts:
        """Mean shape, shape model (with warped copies), range of poses and patch levels from the training cases."""
        anatomy, shape = prepare_shapes(config, study)
        levels = config.levels or default_levels(anatomy.spacing / anatomy.radius)
        frame = {**study.facts(anatomy.mean.shape[1]), **anatomy.facts(shift=config.shift)}
        return PINFacts(**frame, shape=shape, levels=levels)

    @classmethod
    def adapted(cls, facts: PINFacts, old: Any) -> PINFacts:
        """With the other model's radius, levels, coarse block and orientation, and these shapes laid onto its mean
        shape. Unchanged where the two share fewer than three landmarks or have another dimension."""
        laid = adapted_anatomy(facts, old) if isinstance(old, PINFacts) else None
        return facts if laid is None else laid.model_copy(update={"levels": old.levels})

    def per_landmark(self) -> dict[str, int]:
        """Output layers, and each patch network's scales and shifts."""
        own = ("films.*", "weight", "bias")
        return {"context.head.4.*": 0, **{f"nets.{k}.{name}": 0 for k in range(len(self.levels)) for name in own}}

    def stages(self) -> list[Stage]:
        """``context``, then ``level1``, ``level2`` ..."""
        c = self.config
        batch = c.batch or int(np.clip(384 // len(self.names), 4, 48))
        share = 2.0 if self.rotations >= 180 else 1.0  # any pose is much to learn, and all else stands on it
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
        for key, spacing in {"context": self._context_spacing, **self._spacings()}.items():
            block = block_for(image, spacing)
            if block not in made:
                made[block] = parts.whole(spacing)
            out[key] = made[block]
        return out

    def _spacings(self) -> dict[str, float]:
        """Patch spacing in mm by key."""
        levels = enumerate(self.levels)
        return {f"{k}.{s}": v.spacing * x * self.radius for k, v in levels for s, x in enumerate(v.scales)}

    def _around(self, parts: Parts, k: int, world: Array) -> dict[str, Image]:
        """The working images of level k, only the part that patches near ``world`` (N, D) mm can touch."""
        level, out = self.levels[k], {}
        # the widest first: where scales share their voxels, it serves the others
        for s, scale in sorted(enumerate(level.scales), key=lambda x: -x[1]):
            # a turned plane's corner, and room for what the points move in this level
            reach = self._half(k) * scale * np.sqrt(2) * 1.1 + (0.15 + level.reach) * self.radius
            out[f"{k}.{s}"] = parts.around(level.spacing * scale * self.radius, world, reach)
        return out

    @property
    def _weights_device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def _context_spacing(self) -> float:
        return self.config.context_cover * self.radius / (self.config.context_px - 1)

    # ------------------------------------------------------------------ training

    def examples(self, case: Case, stage: Stage, rng: np.random.Generator) -> Batch:
        """A random warp of the case seen from a random state near its truth."""
        read, truth, pose = self._warps.warped(rng, self.mean, case.landmarks.points, self.config.warp_share)
        if stage.index == 0:
            batch = self._context_example(case, truth, pose, read, rng)
        else:
            batch = self._level_example(stage.index - 1, case, truth, pose, read, rng)
        image = "block" if stage.index == 0 else "patches"
        batch[image] = random_intensity(batch[image], rng, self.config.intensity)
        return batch

    def _context_example(self, case: Case, truth: Array, pose: Pose, warp: Any, rng: np.random.Generator) -> Batch:
        d, c = self.ndim, self.config
        near = rng.random() < 0.5
        turn = random_rotation(rng, d, min(30.0, self.rotations) if near else self.rotations)
        size = float(np.exp(rng.normal(0, c.scaling / (2 if near else 1))))
        shift = rng.uniform(-1, 1, d) * self.facts.start_shift_mm * (0.2 if near else 1.0)
        axes = pose.rotation @ turn * pose.scale * size
        centre = pose.translation + shift
        half = c.context_cover * self.radius / 2
        block = read_block(case.images["context"], centre[None], axes[None], c.context_px, self._context_spacing, warp)
        target = (truth - centre) @ np.linalg.inv(axes).T / half
        return {"block": block[0], **_masked("target", target)}

    def _level_example(
        self, k: int, case: Case, truth: Array, pose: Pose, warp: Any, rng: np.random.Generator
    ) -> Batch:
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
            points = self.model.decode(b + rng.normal(0, 0.7 * wide, self.shape.size))
        else:
            points = state.invert(np.where(np.isfinite(truth), truth, pose.apply(self.model.decode(b))))
        points = points + _in_ball(rng, points.shape) * level.reach * self.radius * rng.uniform(0.05, 1.0)
        patches = self._patches(k, case.images, State([state], points[None]), warp)[0]
        return {"patches": patches, **_masked("target", (state.invert(truth) - points) / self._half(k))}

    def loss(self, batch: Batch, stage: Stage) -> dict[str, torch.Tensor]:
        """Regression and classification together (eq. 2): of the points, of each plane's cells and their mean."""
        if stage.index == 0:
            error = torch.nn.functional.smooth_l1_loss(
                self.context(batch["block"]), batch["target"], reduction="none", beta=0.02
            )
            mask = batch["target_mask"][..., None]
            return {"loss": (error * mask).sum() / (mask.sum() * self.ndim).clamp(min=1)}
        logits = self.nets[stage.index - 1](batch["patches"])
        c = self.config
        return vote_loss(logits, batch["target"], batch["target_mask"], alpha=c.alpha, cell_sigma=c.cell_sigma)

    # ------------------------------------------------------------------ the state

    def _half(self, k: int) -> float:
        level = self.levels[k]
        return level.spacing * self.radius * (level.px - 1) / 2

    def _patches(self, k: int, images: Mapping[str, Image], state: State, warp: Any = None) -> torch.Tensor:
        level = self.levels[k]
        chosen = [images[f"{k}.{s}"] for s in range(len(level.scales))]
        spacings = [level.spacing * scale * self.radius for scale in level.scales]
        axes = np.stack([p.rotation * p.scale for p in state.poses])
        return read_patches(chosen, state.world(), axes, level.px, spacings, warp)

    # ------------------------------------------------------------------ inference

    @torch.inference_mode()
    def locate(self, image: Image, start: Landmarks | None = None) -> Landmarks:
        """See :meth:`Method.locate`. Score: agreement of the last votes; covariance: their spread."""
        self.eval()
        parts = Parts(image, self.facts.intensity)
        if start is None:
            pose, b = self._find_pose(parts.whole(self._context_spacing))
        else:
            guess = guessed_points(self.names, start)
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
        return self._landmarks(world, votes)

    def _starts(self, *, last: bool) -> int:
        """The way there needs fewer starts than the answer."""
        return self.config.starts if last else max(2, self.config.starts // 2)

    def _find_pose(self, image: Image) -> tuple[Pose, Array]:
        """Pose and shape from the coarse block: many rotations, their median, then again upright."""
        rng = np.random.default_rng(7)
        pose, b = self._context_pose(image, first_poses(self.facts, image, rng, self.config.context_starts))
        for i, limit in enumerate(PASSES_DEG):
            count = self._starts(last=i == len(PASSES_DEG) - 1)
            pose, b = self._context_pose(image, turned(pose, rng, count, limit))
        return pose, b

    def _context_pose(self, image: Image, poses: Sequence[Pose]) -> tuple[Pose, Array]:
        """Pose and shape that the coarse block shows, seen from these poses."""
        half = self.config.context_cover * self.radius / 2
        axes, centres = np.stack([p.rotation * p.scale for p in poses]), np.stack([p.translation for p in poses])
        block = read_block(image, centres, axes, self.config.context_px, self._context_spacing)
        local = self.context(block.to(self._weights_device)).cpu().double().numpy() * half
        return self.model.fit(np.median(centres[:, None] + np.einsum("mij,mnj->mni", axes, local), 0))

    def _votes(
        self, k: int, images: Mapping[str, Image], pose: Pose, world: Array, rng: np.random.Generator, count: int
    ) -> tuple[Array, Array]:
        """Where the patches of ``count`` starts around ``world`` (N, D) see the landmarks: votes (M, N, D) world mm,
        and each landmark's weight (N,), the inverse of its distributions' variance."""
        level = self.levels[k]
        poses = turned(pose, rng, count, level.rotation_deg / 2)
        jitter = _in_ball(rng, (count, *world.shape)) * level.reach * self.radius * 0.2
        state = State(poses, np.stack([p.invert(world) for p in poses]) + jitter)
        mean, variance = self._read(k, images, state)
        half = self._half(k)
        moved = State(poses, state.points + mean * half)
        return moved.world(), 1 / np.median(variance.sum(-1), 0)

    def _read(self, k: int, images: Mapping[str, Image], state: State) -> tuple[Array, Array]:
        logits = self.nets[k](self._patches(k, images, state).to(self._weights_device))
        return read_votes(logits.cpu(), self.ndim)

    def _landmarks(self, world: Array, votes: Array | None) -> Landmarks:
        d = world.shape[1]
        if votes is None or len(votes) < 2:
            return Landmarks(self.names, world)
        centred = votes - votes.mean(0)
        covariance = np.einsum("mni,mnj->nij", centred, centred) / (len(votes) - 1)
        spread = np.sqrt(np.trace(covariance, axis1=1, axis2=2))
        score = np.exp(-spread / (0.05 * self.radius))
        return Landmarks(self.names, world, score=score, covariance=covariance + 1e-6 * np.eye(d))


def _masked(name: str, target: Array) -> Batch:
    annotated = np.asarray(np.isfinite(target).all(-1))
    filled = np.where(annotated[:, None], target, 0.0)
    return {name: torch.from_numpy(filled).float(), f"{name}_mask": torch.from_numpy(annotated).float()}


def _in_ball(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Random vectors (..., D) of direction uniform and length uniform in 0 ... 1."""
    v = rng.normal(size=shape)
    v /= np.linalg.norm(v, axis=-1, keepdims=True)
    return np.asarray(v * rng.uniform(0, 1, (*shape[:-1], 1)))
