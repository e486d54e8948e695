"""PIN as we recommend it: a pose first, then 2.5D patches in the pose's frame, from coarse to fine.

State = similarity pose + whitened parameters of a Procrustes-aligned PCA; patches are cut in the current pose's frame, so
the networks always see upright anatomy. A coarse block finds the pose; joint levels update pose and shape together by
regression and classification (Li et al. 2018, eq. 1-2, rule C with per-component probabilities); the last levels let each
landmark leave the PCA's subspace by votes of its own patches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from anatomark.core.grid import Array, Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.core.resample import block_mean
from anatomark.core.shape import (
    PCAShape,
    Pose,
    mean_shape,
    procrustes,
    random_rotation,
    rotation_angle,
    rotation_from_vector,
    vector_from_rotation,
)
from anatomark.core.warp import Warp, random_warp
from anatomark.data.augment import random_intensity
from anatomark.data.intensity import bounds, foreground_centre, normalise
from anatomark.data.posed import planes, read_block, read_patches
from anatomark.methods.base import Batch, Method, MethodConfig, Plan, Stage, Study, TrainingCase
from anatomark.methods.pin.rules import pin_loss, update
from anatomark.nets.cascade import ContextNet, PatchNet


class Level(BaseModel):
    """One level of patches. Lengths are fractions of the model's radius (largest distance of a landmark from the
    centroid of the mean shape), so one default serves a mouse and a man."""

    model_config = ConfigDict(extra="forbid")
    px: int = 32
    spacing: float  # of the finest scale
    scales: list[float] = [1.0, 2.0]
    joint: bool = False  # update pose and shape together before the free votes
    rotation_deg: float  # noise of the training states, standard deviation
    shift: float
    log_scale: float
    reach: float  # free displacement of each landmark in training, uniform up to this
    iterations: int = 2
    width: int = 32


class CascadeConfig(MethodConfig):
    """Settings of the recommended PIN. All ours; sizes in fractions of the model's radius unless they say mm."""

    context_px: int = 32
    context_cover: float = 2.8  # side of the coarse block
    context_starts: int = 16
    rotations_deg: float | None = None  # random rotations in training; None: from the training poses
    shift: float = 0.25  # random shift of the coarse block in training
    scaling: float = 0.15  # random log scale in training
    levels: list[Level] | None = None  # None: from radius and spacing
    starts: int = 6
    rule: str = "c-pair"
    alpha: float = 0.5
    shape_variance: float = 0.98
    shape_modes: int = 30
    warped_copies: int = 500
    warp_mm: float | None = None  # largest displacement of the warps; None: from radius and number of cases
    warp_share: float = 0.8
    intensity: float = 1.0
    free_step: bool = True
    batch: int = 24
    context_batch: int = 24
    steps_context: int = 2000
    steps_level: int = 2000


@dataclass(frozen=True)
class State:
    """Poses of M starts and their points (M, N, D) in the model's frame."""

    poses: list[Pose]
    points: Array

    def world(self) -> Array:
        """(M, N, D) world mm."""
        return np.stack([p.apply(x) for p, x in zip(self.poses, self.points, strict=True)])


class CascadePIN(Method):
    """The recommended preset of ``--method pin``; see the module."""

    Config = CascadeConfig
    presets: Mapping[str, Mapping[str, Any]] = {"recommended": {}}

    def __init__(self, config: CascadeConfig, plan: Plan):
        super().__init__()
        self.config, self.plan = config, plan
        facts = plan.facts
        self.names = tuple(plan.names)
        self.ndim = plan.ndim
        self.mean: Array = np.asarray(facts["mean_shape"])
        self.radius = float(facts["radius_mm"])
        self.rotations = float(facts["rotations_deg"])
        self.levels = [Level.model_validate(x) for x in facts["levels"]]
        self.shape = PCAShape.from_json(facts["shape"])
        self.noise_mm = 0.02 * self.radius
        n, d = len(self.names), self.ndim
        self.context = ContextNet(d, config.context_px, n)
        channels = len(planes(d))
        self.nets = torch.nn.ModuleList(
            PatchNet(d, channels * len(v.scales), v.px, n, self._outputs if v.joint else 0, v.width) for v in self.levels
        )
        self._warps: dict[int, Warp] = {}

    @property
    def _pose_size(self) -> int:
        return 4 if self.ndim == 2 else 7

    @property
    def _outputs(self) -> int:
        return self._pose_size + self.shape.size

    # ------------------------------------------------------------------ what depends on the data

    @classmethod
    def prepare(cls, config: CascadeConfig, study: Study) -> Plan:
        """Mean shape, shape model (with warped copies), range of poses and patch levels from the training cases."""
        shapes = np.stack([c.landmarks.select(study.names).points for c in study.cases])
        mean, poses = mean_shape(shapes)
        radius = float(np.nanmax(np.linalg.norm(mean, axis=1)))
        spread = max(rotation_angle(p.rotation) for p in poses)
        rotations = config.rotations_deg
        if rotations is None:
            rotations = 180.0 if spread > 60 else max(30.0, 1.5 * spread)
        warp_mm = config.warp_mm
        if warp_mm is None:
            warp_mm = radius * (0.03 + 0.15 / np.sqrt(len(shapes)))
        ndim = shapes.shape[2]
        offset, shift, spacing = _start_statistics(study, poses, radius, full=rotations >= 180)
        levels = config.levels or default_levels(ndim, spacing / radius)
        aligned = np.stack([p.invert(s) for p, s in zip(poses, shapes, strict=True)])
        shape = _shape_model(aligned, mean, radius, warp_mm, config)
        facts = {
            "mean_shape": mean.tolist(),
            "radius_mm": radius,
            "rotations_deg": rotations,
            "start_offset_mm": offset.tolist(),
            "start_shift_mm": max(shift, config.shift * radius),
            "warp_mm": float(warp_mm),
            "levels": [v.model_dump() for v in levels],
            "shape": shape.to_json(),
        }
        return Plan(
            names=list(study.names),
            ndim=ndim,
            modality=study.modality,
            intensity=dict(study.intensity),
            facts=facts,
        )

    def stages(self) -> list[Stage]:
        """The context network, then one stage per level."""
        c = self.config
        out = [
            Stage("context", c.steps_context, c.context_batch, lr=1e-3, share=1.0, modules=("context",), clip_norm=1.0)
        ]
        for k in range(len(self.levels)):
            name = f"level{k + 1}"
            out.append(Stage(name, c.steps_level, c.batch, lr=1e-3, share=1.0, modules=(f"nets.{k}",), clip_norm=1.0))
        return out

    def working_images(self, image: Image) -> dict[str, Image]:
        """``context`` and one image per patch spacing, block means towards that spacing; equal ones are shared."""
        out: dict[str, Image] = {}
        made: dict[tuple[int, ...], Image] = {}
        low, high = bounds(image, self.plan.intensity)
        rule = {"kind": "window", "low": low, "high": high}
        wanted = {"context": self._context_spacing}
        for k, level in enumerate(self.levels):
            for s, scale in enumerate(level.scales):
                wanted[f"{k}.{s}"] = level.spacing * scale * self.radius
        for key, spacing in wanted.items():
            fit = np.floor(spacing / image.grid.spacing * 1.15)
            block = tuple(int(b) for b in np.clip(fit, 1, image.grid.shape))
            if block not in made:
                made[block] = normalise(block_mean(image, block) if max(block) > 1 else image, rule)
            out[key] = made[block]
        return out

    @property
    def _context_spacing(self) -> float:
        return self.config.context_cover * self.radius / (self.config.context_px - 1)

    # ------------------------------------------------------------------ training

    def examples(self, case: TrainingCase, stage: Stage, rng: np.random.Generator) -> Batch:
        """A random warp of the case seen from a random state near its truth."""
        truth = case.landmarks.points
        pose = procrustes(self.mean, truth)
        warp = self._random_warp(rng, pose) if rng.random() < self.config.warp_share else None
        if warp is not None:
            truth = warp[1](truth)
            pose = procrustes(self.mean, truth)
        read = warp[0] if warp is not None else None
        if stage.name == "context":
            batch = self._context_example(case, truth, pose, read, rng)
        else:
            batch = self._level_example(int(stage.name[5:]) - 1, case, truth, pose, read, rng)
        image = "block" if stage.name == "context" else "patches"
        batch[image] = random_intensity(batch[image], rng, self.config.intensity)
        return batch

    def _random_warp(self, rng: np.random.Generator, pose: Pose) -> tuple[Any, Any]:
        """(output -> input function, landmark-moving function): a pooled warp in the model's frame, scaled at random."""
        k = int(rng.integers(200))
        if k not in self._warps:
            own = np.random.default_rng([77, k])
            side = 2.6 * self.radius
            box = Grid.centred((2,) * self.ndim, np.eye(self.ndim)[:, ::-1] * side / 2, np.zeros(self.ndim))
            wave = self.radius * own.uniform(0.5, 1.5)
            self._warps[k] = random_warp(own, box, float(self.plan.facts["warp_mm"]), wave, nodes=18)
        full = self._warps[k]
        warp = Warp(full.grid, full.field * float(rng.uniform(0, 1)))
        stretch = np.exp(rng.normal(0, 0.06, self.ndim)) if rng.random() < 0.5 else np.ones(self.ndim)

        def read(world: Array) -> Array:
            return pose.apply(warp(pose.invert(world) * stretch))

        def move(points: Array) -> Array:
            return pose.apply(warp.inverse(pose.invert(points), tolerance_mm=1e-3 * self.radius / 10) / stretch)

        return read, move

    def _context_example(
        self, case: TrainingCase, truth: Array, pose: Pose, warp: Any, rng: np.random.Generator
    ) -> Batch:
        d, c = self.ndim, self.config
        near = rng.random() < 0.5
        turn = random_rotation(rng, d, min(30.0, self.rotations) if near else self.rotations)
        size = float(np.exp(rng.normal(0, c.scaling / (2 if near else 1))))
        shift = rng.uniform(-1, 1, d) * float(self.plan.facts["start_shift_mm"]) * (0.2 if near else 1.0)
        axes = pose.rotation @ turn * pose.scale * size
        centre = pose.translation + shift
        half = c.context_cover * self.radius / 2
        block = read_block(case.images["context"], centre[None], axes[None], c.context_px, self._context_spacing, warp)
        target = (truth - centre) @ np.linalg.inv(axes).T / half
        return {"block": block[0], **_masked("target", target)}

    def _level_example(
        self, k: int, case: TrainingCase, truth: Array, pose: Pose, warp: Any, rng: np.random.Generator
    ) -> Batch:
        level, d = self.levels[k], self.ndim
        wide = rng.uniform(0.1, 1.0)  # from narrow to wide around the truth
        noise = Pose(
            rotation_from_vector(rng.normal(0, np.radians(level.rotation_deg) * wide, 1 if d == 2 else 3)),
            rng.normal(0, level.shift * self.radius * wide, d),
            float(np.exp(rng.normal(0, level.log_scale * wide))),
        )
        state = noise.then(pose)
        b_true = self._encode(pose.invert(truth))
        if level.joint:
            b = b_true + rng.normal(0, 0.7 * wide, self.shape.size)
            points = self._decode(b)
        else:
            b = b_true
            known = np.where(np.isfinite(truth), truth, pose.apply(self._decode(b_true)))
            points = state.invert(known)
        points = points + _in_ball(rng, points.shape) * level.reach * self.radius * rng.uniform(0.05, 1.0)
        patches = self._patches(k, case.images, State([state], points[None]), warp)[0]
        half = self._half(k)
        batch = {"patches": patches, **_masked("free_true", (state.invert(truth) - points) / half)}
        if level.joint:
            batch["joint_true"] = torch.from_numpy(self._pose_difference(k, state, pose, b_true - b)).float()
        return batch

    def _pose_difference(self, k: int, state: Pose, goal: Pose, b: Array) -> Array:
        """What the joint head predicts: rotation vector, shift and log scale from ``state`` to ``goal`` in units of the
        level's noise, then whitened shape parameters."""
        level = self.levels[k]
        turn = vector_from_rotation(state.rotation.T @ goal.rotation) / np.radians(level.rotation_deg)
        shift = state.invert(goal.translation) / (level.shift * self.radius)
        grow = np.log(goal.scale / state.scale) / level.log_scale
        return np.concatenate([turn, shift, [grow], b])

    def _moved(self, k: int, state: Pose, step: Array) -> Pose:
        level, d = self.levels[k], self.ndim
        r = 1 if d == 2 else 3
        turn = rotation_from_vector(step[:r] * np.radians(level.rotation_deg))
        shift = step[r : r + d] * level.shift * self.radius
        grow = float(np.exp(np.clip(step[r + d] * level.log_scale, -0.3, 0.3)))
        return Pose(turn, shift, grow).then(state)

    def loss(self, batch: Batch, stage: Stage) -> dict[str, torch.Tensor]:
        """Huber regression and cross entropy of the direction (eq. 2), for the joint state and for each landmark."""
        if stage.name == "context":
            error = torch.nn.functional.smooth_l1_loss(
                self.context(batch["block"]), batch["target"], reduction="none", beta=0.02
            )
            mask = batch["target_mask"][..., None]
            return {"loss": (error * mask).sum() / (mask.sum() * self.ndim).clamp(min=1)}
        k = int(stage.name[5:]) - 1
        out = self.nets[k](batch["patches"])
        mask = batch["free_true_mask"].reshape(-1) > 0
        alpha = self.config.alpha
        free = pin_loss(
            out["free"].reshape(-1, self.ndim)[mask] * 8,
            out["free_logits"].reshape(-1, 2 * self.ndim)[mask],
            batch["free_true"].reshape(-1, self.ndim)[mask] * 8,
            alpha,
            huber=0.25,
        )
        logs = {"loss": free["loss"], "free": free["loss"].detach()}
        if self.levels[k].joint:
            joint = pin_loss(out["joint"], out["joint_logits"], batch["joint_true"], alpha, huber=0.5)
            logs["loss"] = logs["loss"] + joint["loss"]
            logs["joint"] = joint["loss"].detach()
        return logs

    # ------------------------------------------------------------------ the state

    def _encode(self, points: Array) -> Array:
        """Whitened shape parameters (K,) of model-frame points (N, D), NaN = missing."""
        b = self.shape.encode_partial(points.reshape(-1), self.noise_mm)
        return b / np.maximum(self.shape.sd, 1e-9)

    def _decode(self, b: Array) -> Array:
        """Model-frame points (N, D) of whitened parameters (K,)."""
        return self.shape.decode(b * self.shape.sd).reshape(-1, self.ndim)

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
        images = self.working_images(image)
        if start is None:
            pose, b = self._find_pose(images["context"])
        else:
            guess = start.select(self.names).points
            pose = procrustes(self.mean, guess)
            b = self._encode(pose.invert(guess))
        rng = np.random.default_rng(20180706)  # the same image gives the same answer
        world, votes = pose.apply(self._decode(b)), None
        for k, level in enumerate(self.levels):
            if level.joint:
                world = self._joint_level(k, images, pose, b, rng)
                pose, b = self._fit(world)
            if level.joint or not self.config.free_step:
                continue
            world, votes = self._free_level(k, images, pose, world, rng)
            pose, b = self._fit(world)
        return self._landmarks(world, votes)

    def _find_pose(self, image: Image) -> tuple[Pose, Array]:
        """Pose and shape from the coarse block: many rotations, their median, then again upright."""
        c, d = self.config, self.ndim
        rng = np.random.default_rng(7)
        centre = start_centre(image) + np.asarray(self.plan.facts["start_offset_mm"])
        full = self.rotations >= 180
        turns = [random_rotation(rng, d) if full else np.eye(d) for _ in range(c.context_starts if full else 1)]
        axes = np.stack(turns)
        centres = np.repeat(centre[None], len(turns), 0)
        for limit in (15.0, 10.0, 5.0):
            points = self._context_points(image, centres, axes)
            middle = np.median(points, 0)
            pose, b = self._fit(middle)
            upright = [random_rotation(rng, d, limit) for _ in range(5)]
            axes = np.stack([pose.rotation @ t * pose.scale for t in upright])
            centres = np.repeat(pose.apply(np.zeros(d))[None], 5, 0)
        return pose, b

    def _context_points(self, image: Image, centres: Array, axes: Array) -> Array:
        half = self.config.context_cover * self.radius / 2
        block = read_block(image, centres, axes, self.config.context_px, self._context_spacing)
        local = self.context(block).double().numpy() * half
        return centres[:, None] + np.einsum("mij,mnj->mni", axes, local)

    def _fit(self, world: Array) -> tuple[Pose, Array]:
        """Pose and whitened shape (within 3 standard deviations) of world points (N, D)."""
        pose = procrustes(self.mean, world)
        pose = replace(pose, scale=float(np.clip(pose.scale, 0.6, 1.6)))
        return pose, np.clip(self._encode(pose.invert(world)), -3, 3)

    def _joint_level(
        self, k: int, images: Mapping[str, Image], pose: Pose, b: Array, rng: np.random.Generator
    ) -> Array:
        """World points (N, D) after joint updates of several starts (their median)."""
        level, d = self.levels[k], self.ndim
        poses, shapes = [pose], [b]
        for _ in range(self.config.starts - 1):
            noise = Pose(
                rotation_from_vector(rng.normal(0, np.radians(level.rotation_deg) * 0.5, 1 if d == 2 else 3)),
                rng.normal(0, level.shift * self.radius * 0.5, d),
                1.0,
            )
            poses.append(noise.then(pose))
            shapes.append(np.clip(b + rng.normal(0, 0.3, b.shape), -3, 3))
        for t in range(level.iterations):
            state = State(poses, np.stack([self._decode(x) for x in shapes]))
            out = self.nets[k](self._patches(k, images, state))
            step = update(self.config.rule, out["joint"], out["joint_logits"]).double().numpy()
            poses = [self._moved(k, p, s) for p, s in zip(poses, step, strict=True)]
            shapes = [np.clip(x + s[self._pose_size :], -3, 3) for x, s in zip(shapes, step, strict=True)]
        state = State(poses, np.stack([self._decode(x) for x in shapes]))
        return np.median(state.world(), 0)

    def _free_level(
        self, k: int, images: Mapping[str, Image], pose: Pose, world: Array, rng: np.random.Generator
    ) -> tuple[Array, Array]:
        """World points (N, D) after free votes, and the last votes (M, N, D)."""
        level, d, m = self.levels[k], self.ndim, self.config.starts
        votes = world[None]
        for t in range(level.iterations):
            poses = [
                Pose(pose.rotation @ random_rotation(rng, d, level.rotation_deg), pose.translation, pose.scale)
                for _ in range(m)
            ]
            jitter = _in_ball(rng, (m, *world.shape)) * level.reach * self.radius * (0.4 if t == 0 else 0.2)
            points = np.stack([p.invert(world) for p in poses]) + jitter
            state = State(poses, points)
            out = self.nets[k](self._patches(k, images, state))
            step = update(self.config.rule, out["free"].reshape(-1, d), out["free_logits"].reshape(-1, 2 * d))
            moved = points + step.double().numpy().reshape(points.shape) * self._half(k)
            votes = State(poses, moved).world()
            world = np.median(votes, 0)
        return world, votes

    def _landmarks(self, world: Array, votes: Array | None) -> Landmarks:
        n, d = world.shape
        if votes is None or len(votes) < 2:
            return Landmarks(self.names, world)
        centred = votes - votes.mean(0)
        covariance = np.einsum("mni,mnj->nij", centred, centred) / (len(votes) - 1)
        spread = np.sqrt(np.trace(covariance, axis1=1, axis2=2))
        score = np.exp(-spread / (0.05 * self.radius))
        return Landmarks(self.names, world, score=score, covariance=covariance + 1e-6 * np.eye(d))


def default_levels(ndim: int, voxel: float) -> list[Level]:
    """The levels of the recommended preset. ``voxel``: spacing of the training images in radii."""
    levels = [
        Level(spacing=1 / 28, joint=True, rotation_deg=6, shift=0.05, log_scale=0.05, reach=0.04, iterations=2),
        Level(spacing=1 / 60, rotation_deg=3, shift=0.01, log_scale=0.02, reach=0.08, iterations=2),
    ]
    if voxel < 1 / 150:
        levels.append(Level(spacing=1 / 180, rotation_deg=3, shift=0.005, log_scale=0.02, reach=0.03, iterations=2))
    return levels


def start_centre(image: Image) -> Array:
    """World mm (D,) where the search begins: the foreground's centre of mass, in 2D the middle of the image."""
    return foreground_centre(image) if image.ndim == 3 else image.grid.centre


def _start_statistics(study: Study, poses: list[Pose], radius: float, *, full: bool) -> tuple[Array, float, float]:
    """Mean offset (D,) mm from the start centre to the landmarks' centre, how far cases stray from it (mm, with
    margin), and the median finest spacing (mm), over at most 40 cases."""
    chosen = np.linspace(0, len(poses) - 1, min(40, len(poses))).astype(int)
    offsets, spacings = [], []
    for i in chosen:
        image = study.cases[i].image()
        block = tuple(int(b) for b in np.clip(radius / 12 / image.grid.spacing, 1, image.grid.shape))
        offsets.append(poses[i].translation - start_centre(normalise(block_mean(image, block), study.intensity)))
        spacings.append(image.grid.spacing.min())
    mean = np.zeros(poses[0].ndim) if full else np.mean(offsets, 0)
    stray = np.abs(np.stack(offsets) - mean).max()
    return mean, float(1.25 * stray + 0.05 * radius), float(np.median(spacings))


def _shape_model(aligned: Array, mean: Array, radius: float, warp_mm: float, config: CascadeConfig) -> PCAShape:
    """PCA of the aligned shapes (M, N, D) and of smoothly warped copies of them."""
    d = aligned.shape[2]
    rng = np.random.default_rng(5)
    box = Grid.centred((2,) * d, np.eye(d)[:, ::-1] * 1.3 * radius, np.zeros(d))
    copies = [s for s in aligned]
    for i in range(config.warped_copies):
        shape = aligned[i % len(aligned)]
        field = random_warp(rng, box, warp_mm * rng.uniform(0.2, 1), radius * rng.uniform(0.5, 1.5), nodes=14)
        moved = field.inverse(shape)
        copies.append(procrustes(mean, moved).invert(moved))
    return PCAShape.fit(np.stack(copies).reshape(len(copies), -1), variance=config.shape_variance, most=config.shape_modes)


def _masked(name: str, target: Array) -> Batch:
    known = np.isfinite(target).all(-1)
    filled = np.where(known[:, None], target, 0.0)
    return {name: torch.from_numpy(filled).float(), f"{name}_mask": torch.from_numpy(known).float()}


def _in_ball(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Random vectors (..., D) of direction uniform and length uniform in 0 ... 1."""
    v = rng.normal(size=shape)
    v /= np.linalg.norm(v, axis=-1, keepdims=True)
    return np.asarray(v * rng.uniform(0, 1, (*shape[:-1], 1)))
