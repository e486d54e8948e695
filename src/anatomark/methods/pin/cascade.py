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

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from anatomark.core.grid import Array, Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.core.resample import block_mean
from anatomark.core.shape import PCAShape, Pose, procrustes, random_rotation, rotation_from_vector
from anatomark.core.warp import Warp, random_warp
from anatomark.data.augment import random_intensity
from anatomark.data.intensity import bounds, normalise
from anatomark.data.posed import planes, read_block, read_patches
from anatomark.errors import InputError
from anatomark.methods.base import Batch, Method, Plan, Stage, Study, TrainingCase
from anatomark.methods.pin.preparation import (
    CascadeConfig,
    Level,
    adapt_plan,
    block_for,
    prepare,
    start_centre,
)
from anatomark.methods.pin.votes import read_votes, vote_loss
from anatomark.nets.cascade import ContextNet, PatchNet

Indices = NDArray[np.int64]
PASSES_DEG = (15.0, 10.0, 5.0)  # after the first look the coarse block is read again upright, turned by up to this


@dataclass(frozen=True)
class Part:
    """A normalised working image of the voxels ``first`` (D,) up to ``end`` (D,)."""

    first: Indices
    end: Indices
    image: Image


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
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"recommended": {}}

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
        p = len(planes(d))
        self.nets = torch.nn.ModuleList(PatchNet(p * len(v.scales), p, n, v.width) for v in self.levels)
        self._warps: dict[int, Warp] = {}
        self._active = len(self.levels)  # levels that locate uses; those not trained yet would only do harm

    # ------------------------------------------------------------------ what depends on the data

    @classmethod
    def prepare(cls, config: CascadeConfig, study: Study) -> Plan:
        """See :func:`anatomark.methods.pin.preparation.prepare`."""
        return prepare(config, study)

    @classmethod
    def adapt_plan(cls, plan: Plan, old: Plan) -> Plan:
        """See :func:`anatomark.methods.pin.preparation.adapt_plan`."""
        return adapt_plan(plan, old)

    def stages(self) -> list[Stage]:
        """The context network, then one stage per level."""
        c = self.config
        batch = c.batch or int(np.clip(384 // len(self.names), 4, 48))
        share = 2.0 if self.rotations >= 180 else 1.0  # any pose is much to learn, and all else stands on it
        steps = int(c.steps_context * share)
        out = [Stage("context", steps, c.context_batch, share=share, modules=("context",), clip_norm=1.0)]
        for k in range(len(self.levels)):
            share = 1.0 if self.levels[k].update == "shape" else 1.5
            net = (f"nets.{k}",)
            out.append(Stage(f"level{k + 1}", c.steps_level, batch, share=share, modules=net, clip_norm=1.0))
        return out

    def begin(self, stage: Stage, evidence: Mapping[str, Any]) -> None:
        """While a level is trained, the levels after it are left out of :meth:`locate`."""
        self.use_levels(0 if stage.name == "context" else _level_index(stage))

    def use_levels(self, count: int) -> None:
        """Let :meth:`locate` stop after ``count`` levels; 0 is the pose alone."""
        self._active = count

    def adapt_state(self, state: dict[str, torch.Tensor], old: Plan) -> dict[str, torch.Tensor]:
        """Another model's weights for this model's landmarks: rows of known names are moved to their places, new
        landmarks get the mean of the old."""
        rows = [old.names.index(n) if n in old.names else -1 for n in self.names]
        count = len(old.names)

        def moved(x: torch.Tensor) -> torch.Tensor:
            return torch.stack([x[r] if r >= 0 else x.mean(0) for r in rows])

        out = {}
        for key, value in state.items():
            if key.startswith("nets.") and (".films." in key or key.endswith((".weight", ".bias"))):
                per_landmark = ".films." in key or key.split(".")[2] in ("weight", "bias")
                out[key] = moved(value) if per_landmark and len(value) == count else value
            elif key.startswith("context.head.4.") and len(value) == count * old.ndim:  # the last layer
                out[key] = moved(value.view(count, old.ndim, -1)).reshape(len(rows) * old.ndim, *value.shape[1:])
            else:
                out[key] = value
        return out

    def working_images(self, image: Image) -> dict[str, Image]:
        """``context`` and one image per level and scale (``0.1``: first level, second scale), block means towards that
        spacing; equal ones are shared."""
        made: dict[tuple[int, ...], Image] = {}
        rule = self._rule(image)
        out: dict[str, Image] = {}
        for key, spacing in {"context": self._context_spacing, **self._spacings()}.items():
            block = block_for(image, spacing)
            if block not in made:
                made[block] = normalise(block_mean(image, block), rule)
            out[key] = made[block]
        return out

    def _rule(self, image: Image) -> dict[str, Any]:
        """This image's own window: the bounds come from all of it, whatever part is read."""
        low, high = bounds(image, self.plan.intensity)
        return {"kind": "window", "low": low, "high": high}

    def _spacings(self) -> dict[str, float]:
        """Patch spacing in mm by key."""
        levels = enumerate(self.levels)
        return {f"{k}.{s}": v.spacing * x * self.radius for k, v in levels for s, x in enumerate(v.scales)}

    def _around(
        self, image: Image, rule: Mapping[str, Any], k: int, world: Array, read: dict[tuple[int, ...], Part]
    ) -> dict[str, Image]:
        """The working images of level k, only the part that patches near ``world`` (N, D) mm can touch.

        ``read`` holds the parts read so far by block; one that covers what is wanted serves again.
        """
        level = self.levels[k]
        scales = {f"{k}.{s}": scale for s, scale in enumerate(level.scales)}
        blocks = {key: block_for(image, level.spacing * scale * self.radius) for key, scale in scales.items()}
        for block in set(blocks.values()):
            widest = max(scales[key] for key, b in blocks.items() if b == block)
            # a turned plane's corner, and room for what the points move in this level
            reach = self._half(k) * widest * np.sqrt(2) * 1.1 + (0.15 + level.reach) * self.radius
            first, end = _extent(image, world, reach, block)
            if block not in read or (first < read[block].first).any() or (end > read[block].end).any():
                cut = (slice(None), *(slice(a, b) for a, b in zip(first, end, strict=True)))
                grid = Grid.from_axes((end - first).tolist(), image.grid.axes, image.grid.to_world(first))
                part = Image(image.array[cut], grid, image.meta)
                read[block] = Part(first, end, normalise(block_mean(part, block) if max(block) > 1 else part, rule))
        return {key: read[block].image for key, block in blocks.items()}

    @property
    def _weights_device(self) -> torch.device:
        return next(self.parameters()).device

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
            batch = self._level_example(_level_index(stage) - 1, case, truth, pose, read, rng)
        image = "block" if stage.name == "context" else "patches"
        batch[image] = random_intensity(batch[image], rng, self.config.intensity)
        return batch

    def _random_warp(self, rng: np.random.Generator, pose: Pose) -> tuple[Any, Any]:
        """A pooled warp in the model's frame, scaled at random: functions output -> input, and to move landmarks."""
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
        b = self._encode(pose.invert(truth))
        if level.update == "shape":
            points = self._decode(b + rng.normal(0, 0.7 * wide, self.shape.size))
        else:
            points = state.invert(np.where(np.isfinite(truth), truth, pose.apply(self._decode(b))))
        points = points + _in_ball(rng, points.shape) * level.reach * self.radius * rng.uniform(0.05, 1.0)
        patches = self._patches(k, case.images, State([state], points[None]), warp)[0]
        return {"patches": patches, **_masked("target", (state.invert(truth) - points) / self._half(k))}

    def loss(self, batch: Batch, stage: Stage) -> dict[str, torch.Tensor]:
        """Regression and classification together (eq. 2): of the points, of each plane's cells and their mean."""
        if stage.name == "context":
            error = torch.nn.functional.smooth_l1_loss(
                self.context(batch["block"]), batch["target"], reduction="none", beta=0.02
            )
            mask = batch["target_mask"][..., None]
            return {"loss": (error * mask).sum() / (mask.sum() * self.ndim).clamp(min=1)}
        logits = self.nets[_level_index(stage) - 1](batch["patches"])
        c = self.config
        return vote_loss(logits, batch["target"], batch["target_mask"], alpha=c.alpha, cell_sigma=c.cell_sigma)

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
        rule = self._rule(image)
        if start is None:
            coarse = block_mean(image, block_for(image, self._context_spacing))
            pose, b = self._find_pose(normalise(coarse, rule))
        else:
            guess = start.select(self.names).points
            if not np.isfinite(guess).any():
                raise InputError(f"the first guess holds none of the model's landmarks: {', '.join(self.names[:8])}")
            pose = procrustes(self.mean, guess)
            b = self._encode(pose.invert(guess))
        rng = np.random.default_rng(20180706)  # the same image gives the same answer
        world, votes = pose.apply(self._decode(b)), None
        read: dict[tuple[int, ...], Part] = {}
        last = self.levels[self._active - 1] if self._active else None
        for k, level in enumerate(self.levels[: self._active]):
            if level.update == "free" and not self.config.free_step:
                break
            images = self._around(image, rule, k, world, read)
            for t in range(level.iterations):
                count = self._starts(last=t == level.iterations - 1)
                votes, weight = self._votes(k, images, pose, world, rng, count)
                world = np.median(votes, 0)
                if level is last and t == level.iterations - 1 and level.update == "free":
                    break  # the answer; its pose would serve nothing
                pose, b = self._fit(world, weight)
                if level.update == "shape":
                    world = pose.apply(self._decode(b))
        return self._landmarks(world, votes)

    def _starts(self, *, last: bool) -> int:
        """The way there needs fewer starts than the answer."""
        return self.config.starts if last else max(2, self.config.starts // 2)

    def _find_pose(self, image: Image) -> tuple[Pose, Array]:
        """Pose and shape from the coarse block: many rotations, their median, then again upright."""
        c, d = self.config, self.ndim
        rng = np.random.default_rng(7)
        centre = start_centre(image) + np.asarray(self.plan.facts["start_offset_mm"])
        full = self.rotations >= 180
        turns = [random_rotation(rng, d) if full else np.eye(d) for _ in range(c.context_starts if full else 1)]
        axes = np.stack(turns)
        centres = np.repeat(centre[None], len(turns), 0)
        pose, b = self._fit(np.median(self._context_points(image, centres, axes), 0))
        for i, limit in enumerate(PASSES_DEG):
            count = self._starts(last=i == len(PASSES_DEG) - 1)
            upright = [random_rotation(rng, d, limit) for _ in range(count)]
            axes = np.stack([pose.rotation @ t * pose.scale for t in upright])
            centres = np.repeat(pose.apply(np.zeros(d))[None], len(upright), 0)
            pose, b = self._fit(np.median(self._context_points(image, centres, axes), 0))
        return pose, b

    def _context_points(self, image: Image, centres: Array, axes: Array) -> Array:
        half = self.config.context_cover * self.radius / 2
        block = read_block(image, centres, axes, self.config.context_px, self._context_spacing)
        local = self.context(block.to(self._weights_device)).cpu().double().numpy() * half
        return centres[:, None] + np.einsum("mij,mnj->mni", axes, local)

    def _fit(self, world: Array, weight: Array | None = None) -> tuple[Pose, Array]:
        """Pose and whitened shape (within 3 standard deviations) of world points (N, D), weighted (N,)."""
        pose = procrustes(self.mean, world, weight)
        for _ in range(2):  # the shape's own part must not be taken for pose
            b = np.clip(self._encode(pose.invert(world)), -3, 3)
            pose = procrustes(self._decode(b), world, weight)
        return replace(pose, scale=float(np.clip(pose.scale, 0.6, 1.6))), b

    def _votes(
        self, k: int, images: Mapping[str, Image], pose: Pose, world: Array, rng: np.random.Generator, count: int
    ) -> tuple[Array, Array]:
        """Where the patches of ``count`` starts around ``world`` (N, D) see the landmarks: votes (M, N, D) world mm,
        and each landmark's weight (N,), the inverse of its distributions' variance."""
        level, d = self.levels[k], self.ndim
        turns = [random_rotation(rng, d, level.rotation_deg / 2) for _ in range(count)]
        poses = [Pose(pose.rotation @ t, pose.translation, pose.scale) for t in turns]
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


def _level_index(stage: Stage) -> int:
    """1 for the stage ``level1`` and so on."""
    return int(stage.name.removeprefix("level"))


def _extent(image: Image, world: Array, reach_mm: float, block: tuple[int, ...]) -> tuple[Indices, Indices]:
    """First and end index (D,) of what lies up to ``reach_mm`` around points (N, D), in whole blocks."""
    index = image.grid.to_index(world)
    margin = reach_mm / image.grid.spacing
    size = np.asarray(block)
    whole = -(-np.asarray(image.grid.shape) // size)  # blocks, the last one maybe cut short
    first = np.clip(np.floor((index.min(0) - margin) / size), 0, whole - 1).astype(int)
    last = np.clip(np.ceil((index.max(0) + margin) / size), first + 1, whole).astype(int)
    return first * size, np.minimum(last * size, image.grid.shape)


def _masked(name: str, target: Array) -> Batch:
    known = np.asarray(np.isfinite(target).all(-1))
    filled = np.where(known[:, None], target, 0.0)
    return {name: torch.from_numpy(filled).float(), f"{name}_mask": torch.from_numpy(known).float()}


def _in_ball(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Random vectors (..., D) of direction uniform and length uniform in 0 ... 1."""
    v = rng.normal(size=shape)
    v /= np.linalg.norm(v, axis=-1, keepdims=True)
    return np.asarray(v * rng.uniform(0, 1, (*shape[:-1], 1)))
