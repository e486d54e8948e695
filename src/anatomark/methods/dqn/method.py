"""Deep Q-learning agents (Ghesu et al. 2016; Alansary et al. 2019): a baseline, with the presets ``paper`` and
``recommended``.

An agent for each landmark sees the last four patches around its position, moves by one step along one of the world's
axes, and is paid by how much closer it came. When it oscillates, its step and the spacing of its patch become finer;
when it oscillates with the finest, it has arrived. The agents share one network up to their heads. Both presets share
the rule of intensities, the warps and, in 3D, the alignment with the other methods.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field, model_validator
from torch.nn import functional as F

from anatomark.cases.case import Case
from anatomark.core.grid import Array, Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.core.shape import Pose, procrustes, random_rotation
from anatomark.errors import InputError
from anatomark.methods.base import (
    Batch,
    Batches,
    Channels,
    Length,
    MethodConfig,
    PerLandmark,
    Pixels,
    Rounds,
    Stage,
    Study,
)
from anatomark.methods.dqn.moves import TRAIL, Flags, Numbers, Played, Walk, directions, drawn, reward
from anatomark.methods.dqn.net import QNet, last_side
from anatomark.methods.kit.anatomy import Anatomy, AnatomyFacts
from anatomark.methods.kit.augment import PointMap, random_intensity
from anatomark.methods.kit.frame import PosedMethod, start_facts
from anatomark.methods.kit.layers import chunks
from anatomark.methods.kit.posed import read_block
from anatomark.methods.kit.targets import agreement
from anatomark.methods.kit.working import Parts

PATCH_PX, VOXELS = {2: 31, 3: 15}, {2: 120, 3: 60}  # where the settings leave them open
AGENTS = 24  # in a played case
PLAYED_FIRST, PLAY_EVERY = 4, 5  # cases before a round's first batch; batches from one played case to the next
SHIFT = 0.1  # radii: of shifts of the mean shape in training, at least, where nothing aligns
BESIDE = 0.3  # radii: how far an agent may leave the image
AT_ONCE = 512  # agents that walk together, at most
AT_LEAST, NUMBERS = 8, 2**25  # and at least, else so few that their first maps hold so many numbers


Kernel = Annotated[int, Field(ge=1, le=63)]


class DQNConfig(MethodConfig):
    """Settings of both presets; the defaults are those of ``recommended``. Voxels are the finest of the agents'."""

    voxels: float | None = Field(default=None, gt=0)  # in a radius; None: 120 in 2D, 60 in 3D. At least the image's own
    patch_px: Pixels | None = Field(default=None, ge=4)  # None: 31 in 2D, 15 in 3D
    # step and spacing of the patch, voxels, coarse to fine
    scales: list[Annotated[int, Field(ge=1, le=1000)]] = Field(default=[6, 3, 1], min_length=1)
    layers: list[tuple[Channels, Kernel]] = Field(default=[(16, 5), (32, 3), (64, 3)], min_length=1)
    pooled: bool = False  # max-pooling between convolutions; else their stride is 2
    hidden: Channels = Field(default=128, ge=1)
    narrow: Channels = Field(default=32, ge=1)
    head_per_scale: bool = True
    double: bool = True
    discount: float = Field(default=0.5, ge=0, lt=1)
    arrived: float = Field(default=0.5, gt=0)  # steps from the truth, where an episode ends
    moves: Rounds = Field(default=12, ge=1)  # of an episode in training
    explore: float = Field(default=0.1, ge=0, le=1)  # share of random moves in the end; 1 in the beginning
    explore_share: float = Field(default=0.5, gt=0, le=1)  # of the training, over which it falls
    target_every: int = Field(default=100, ge=1)  # steps
    near: float = Field(default=1.5, gt=0)  # sd of starts about the truth, in steps of the scale before
    shift: float | None = Field(default=None, ge=0)  # radii: least random shift of the mean shape; None: 0.1
    turn_deg: float = Field(default=5.0, ge=0, le=180)
    warp_mm: float | None = Field(default=None, ge=0)  # None: from radius and number of cases
    warp_share: float = Field(default=0.8, ge=0, le=1)
    intensity: float = Field(default=1.0, ge=0)
    starts: Rounds = Field(default=5, ge=1)
    starts_apart: float = Field(default=0.05, ge=0)  # radii
    most_moves: Rounds = Field(default=40, ge=1)  # of a located agent at a scale
    batch: Batches = Field(default=64, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    steps: int = Field(default=6000, ge=1)

    @model_validator(mode="after")
    def _odd_kernels(self) -> DQNConfig:
        if even := [k for _, k in self.layers if k % 2 == 0 and not self.pooled]:
            raise ValueError(f"layers: kernels must be odd unless pooled, found {even[0]}")
        return self


PAPER = {
    "voxels": 250.0, "patch_px": 45, "scales": [3, 2, 1], "layers": [(32, 5), (32, 5), (64, 4), (64, 3)],
    "pooled": True, "hidden": 512, "narrow": 128, "head_per_scale": False, "double": False, "discount": 0.9,
    "arrived": 1.0, "moves": 24, "target_every": 2500, "explore_share": 0.3, "most_moves": 200, "batch": 48,
    "steps": 100_000,
}  # fmt: skip


class DQNFacts(AnatomyFacts):
    """``spacing_mm``: the finest voxel of the agents."""

    spacing_mm: Length


class DQN(PosedMethod):
    """Deep Q-learning agents, one for each landmark, on one trunk."""

    Config = DQNConfig
    Facts = DQNFacts
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"recommended": {}, "paper": PAPER}
    aligned: ClassVar[bool] = True
    learned: torch.Tensor

    def __init__(self, config: DQNConfig, facts: DQNFacts):
        super().__init__(config, facts)
        c = config
        self.px = c.patch_px or PATCH_PX[self.ndim]
        self.steps_mm: Array = facts.spacing_mm * np.asarray(c.scales, dtype=np.float64)
        shape: dict[str, Any] = {"layers": c.layers, "pooled": c.pooled, "hidden": c.hidden, "narrow": c.narrow}
        heads = len(self.names) * (len(c.scales) if c.head_per_scale else 1)
        self.net, self.target = (QNet(self.ndim, self.px, TRAIL, heads=heads, **shape) for _ in range(2))
        self.target.load_state_dict(self.net.state_dict())
        self.register_buffer("learned", torch.zeros((), dtype=torch.int64))  # steps, for exploration and target

    @classmethod
    def prepare(cls, config: DQNConfig, study: Study) -> DQNFacts:
        """Mean shape, where it lies in an image, and the finest voxel. Raises InputError for patches that are too
        small for the layers."""
        anatomy = Anatomy.of(study.cases, study.names, study.intensity, warp_mm=config.warp_mm)
        d = anatomy.mean.shape[1]
        px = config.patch_px or PATCH_PX[d]
        if last_side(px, len(config.layers), config.pooled) < 1:
            raise InputError(f"method.patch_px {px} is too small for {len(config.layers)} layers; set more, or fewer")
        spacing = max(anatomy.spacing, anatomy.radius / (config.voxels or VOXELS[d]))
        return DQNFacts(**start_facts(anatomy, study, config.shift, SHIFT), spacing_mm=spacing)

    @classmethod
    def adapted(cls, facts: DQNFacts, old: DQNFacts) -> DQNFacts:
        """``facts`` with another model's finest voxel, so that its weights mean the same."""
        return facts if facts.ndim != old.ndim else facts.model_copy(update={"spacing_mm": old.spacing_mm})

    def per_landmark(self) -> Mapping[str, Any]:
        """The heads, at each scale one for each landmark. Exploration begins anew."""
        return {"*.first*": PerLandmark(order="inner"), "*.last*": PerLandmark(order="inner"), "learned": None}

    def stages(self) -> list[Stage]:
        c = self.config
        return [Stage("agents", c.steps, c.batch, c.lr, modules=("net",), clip_norm=10.0)]

    def working_images(self, image: Image) -> dict[str, Image]:
        """``scale0`` ...: block means towards the spacing of each scale's patches, coarse to fine."""
        parts = Parts(image, self.facts.intensity)
        return {f"scale{k}": parts.whole(spacing) for k, spacing in enumerate(self.steps_mm)}

    def collect(self, cases: Sequence[Case], stage: Stage, rng: np.random.Generator) -> Iterator[Batch]:
        """Batches from a replay memory that this call fills, case by case, with what the agents do under the current
        weights; so it holds nothing that a resumed training would miss."""
        memory: list[Played] = []
        order: list[int] = []
        for k in count():
            wanted = PLAYED_FIRST if k == 0 else int(k % PLAY_EVERY == 0)
            while wanted:
                order = order or rng.permutation(len(cases)).tolist()
                played = self._play(cases[order.pop()], rng, self._exploring(stage))
                if len(played.action):
                    memory.append(played)
                    wanted -= 1
            yield drawn(memory, stage.batch, rng)

    def _exploring(self, stage: Stage) -> float:
        """The share of random moves now."""
        c = self.config
        fallen = min(1.0, int(self.learned) / max(1.0, c.explore_share * stage.steps))
        return 1 - fallen * (1 - c.explore)

    def _play(self, case: Case, rng: np.random.Generator, exploring: float) -> Played:
        """One episode of some agents in a random view of a case."""
        c = self.config
        images = case.images
        way, truths, pose = self._view(case, rng)
        landmark = np.flatnonzero(np.isfinite(truths).all(1))
        if len(landmark):
            landmark = rng.choice(landmark, AGENTS, replace=len(landmark) < AGENTS)
        scale = rng.integers(len(c.scales), size=len(landmark))
        step, truth, head = self.steps_mm[scale], truths[landmark], self._head(landmark, scale)
        at = self._starts(rng, images["scale0"].grid, pose, truth, landmark, scale)
        contrast = int(rng.integers(2**31))
        alive = np.ones(len(at), dtype=bool)
        frames, rows = [], []
        for t in count():
            seen = self._read(images, at, scale, way)
            frames.append(random_intensity(seen, np.random.default_rng(contrast), c.intensity))
            if t == c.moves or not alive.any():
                break
            last = torch.stack([frames[max(0, t - i)] for i in reversed(range(TRAIL))], 1)
            action = self._worth(last, head).argmax(1)
            random = rng.random(len(at)) < exploring
            action = np.where(random, rng.integers(2 * self.ndim, size=len(at)), action)
            there = at + step[:, None] * directions(self.ndim)[action]
            stays = ~self._allowed(images, *((at, there) if way is None else (way(at), way(there))))
            paid = np.where(stays, -1.0, reward(at, there, truth, step))
            at = np.where(stays[:, None], at, there)
            arrived = np.linalg.norm(at - truth, axis=1) <= c.arrived * step
            rows.append(np.stack([np.full(len(at), t), np.arange(len(at)), head, action, paid, arrived], 1)[alive])
            alive &= ~arrived
        table = np.concatenate(rows) if rows else np.zeros((0, 6))
        whole, real = torch.from_numpy(table[:, :4].astype(np.int64)), torch.from_numpy(table[:, 4:]).float()
        return Played(torch.stack(frames), *whole.unbind(1), *real.unbind(1))

    def _view(self, case: Case, rng: np.random.Generator) -> tuple[PointMap | None, Array, Pose]:
        """A random warp and turn of a case: from the view's world to the image's, the landmarks in it, their pose."""
        truth = case.landmarks.points
        pose = procrustes(self.mean, truth)
        if rng.random() >= self.config.warp_share or not np.isfinite(truth).any():
            return None, truth, pose
        read, move = self._warps.draw(rng, pose)
        turn = random_rotation(rng, self.ndim, self.config.turn_deg)
        turned = Pose(turn, pose.translation - turn @ pose.translation)
        truth = turned.apply(move(truth))
        return (lambda world: read(turned.invert(world))), truth, procrustes(self.mean, truth)

    def _starts(
        self, rng: np.random.Generator, image: Grid, pose: Pose, truth: Array, landmark: Numbers, scale: Numbers
    ) -> Array:
        """(M, D) half of the coarsest where the mean shape puts them, a quarter anywhere in the image (who has gone
        astray must know the way back), all others about the truth."""
        c, d = self.config, self.ndim
        shift = rng.uniform(-1, 1, d) * self.facts.start_shift_mm
        mean = pose.translation + shift + self.mean[landmark]
        mean = mean + rng.normal(0, c.starts_apart * self.radius, truth.shape)
        anywhere = image.to_world(rng.uniform(-0.5, np.asarray(image.shape) - 0.5, truth.shape))
        reach = c.near * self.steps_mm[np.maximum(scale - 1, 0)]
        near = truth + rng.normal(0, 1, truth.shape) * reach[:, None]
        kind = np.where(scale == 0, rng.random(len(scale)), 1.0)[:, None]
        return np.where(kind < 0.5, mean, np.where(kind < 0.75, anywhere, near))

    def loss(self, batch: Batch, stage: Stage) -> dict[str, torch.Tensor]:
        """Huber loss of Q against reward plus what the target network thinks of the next state."""
        now, after, head = batch["frames"][:, :-1], batch["frames"][:, 1:], batch["head"]
        q = self.net(now, head).gather(1, batch["action"][:, None])[:, 0]
        with torch.no_grad():
            worth = self.target(after, head)
            best = self.net(after, head) if self.config.double else worth
            ahead = worth.gather(1, best.argmax(1, keepdim=True))[:, 0]
            goal = batch["reward"] + self.config.discount * (1 - batch["arrived"]) * ahead
        return {"loss": F.smooth_l1_loss(q, goal), "reward": batch["reward"].mean()}

    def after_step(self, stage: Stage) -> None:
        self.learned += 1
        if int(self.learned) % self.config.target_every == 0:
            self.target.load_state_dict(self.net.state_dict())

    @torch.inference_mode()
    def locate(self, image: Image, start: Landmarks | None = None) -> Landmarks:
        """The median of where several starts end. Score: how well they agree (:func:`agreement`); no probability.
        Covariance: their spread, and that of a place within a voxel."""
        images = self.working_images(image)
        first = self._first_points(images["scale0"], start)
        n, d, s = len(self.names), self.ndim, self.config.starts
        rng = np.random.default_rng(7)  # the same image gives the same answer
        apart = rng.normal(0, self.config.starts_apart * self.radius, (s, n, d))
        apart[0] = 0
        at, landmark = (first + apart).reshape(-1, d), np.tile(np.arange(n), s)
        most = int(np.clip(NUMBERS // (self.config.layers[0][0] * self.px**d), AT_LEAST, AT_ONCE))
        parts = [self._walked(images, at[p], landmark[p]) for p in chunks(len(at), most)]
        ends = np.concatenate(parts).reshape(s, n, d)
        points = np.median(ends, 0)
        spread = ends - points
        covariance = np.einsum("sni,snj->nij", spread, spread) / s + self.steps_mm[-1] ** 2 / 12 * np.eye(d)
        return Landmarks(self.names, points, score=agreement(covariance, self.radius), covariance=covariance)

    def _first_points(self, coarse: Image, start: Landmarks | None) -> Array:
        """(N, D) the mean shape upright where an anatomy lies; or the first guess, the mean shape for what it lacks."""
        if start is not None:
            guess = self._guess(start)
            return np.where(np.isfinite(guess), guess, procrustes(self.mean, guess).apply(self.mean))
        return self.mean + self._start_point(coarse)

    def _walked(self, images: Mapping[str, Image], at: Array, landmark: Numbers) -> Array:
        """(M, D) where agents end."""
        walk = Walk(at, self.steps_mm, self.config.most_moves)
        frames = torch.zeros(len(at), TRAIL, *(self.px,) * self.ndim)
        while len(rows := walk.active):
            seen = self._read(images, walk.at[rows], walk.scale[rows], None)[:, None]
            fresh = torch.from_numpy(np.equal(walk.made[rows], 0)).view(-1, *(1,) * (self.ndim + 1))
            last = torch.cat([frames[rows, 1:], seen], 1)
            frames[rows] = torch.where(fresh, seen.expand_as(last), last)
            worth = self._worth(frames[rows], self._head(landmark[rows], walk.scale[rows]))
            walk.go(worth, lambda here, there: self._allowed(images, here, there))
        return walk.at

    def _allowed(self, images: Mapping[str, Image], here: Array, there: Array) -> Flags:
        """(M,) whether agents may go from ``here`` (M, D) to ``there``: into the image or just beside it, or from far
        outside to where it is no farther."""
        grid = images["scale0"].grid
        half = np.asarray(grid.shape) / 2

        def beyond(world: Array) -> Array:
            outside = (np.abs(grid.to_index(world) - (half - 0.5)) - half) * grid.spacing - BESIDE * self.radius
            return np.asarray(np.linalg.norm(outside.clip(0), axis=1))

        return np.asarray(beyond(there) <= beyond(here) + 1e-6)  # mm, rounding

    def _head(self, landmark: Numbers, scale: Numbers) -> Numbers:
        return landmark + (len(self.names) * scale if self.config.head_per_scale else 0)

    def _worth(self, frames: torch.Tensor, head: Numbers) -> Array:
        """(M, 2 D) Q of states (M, 4, px, ..., px)."""
        with torch.no_grad():
            q = self.net(frames.to(self.learned.device), torch.from_numpy(head).to(self.learned.device))
        return np.asarray(q.cpu().double().numpy())

    def _read(self, images: Mapping[str, Image], at: Array, scale: Numbers, way: PointMap | None) -> torch.Tensor:
        """(M, px, ..., px) patches around ``at`` (M, D), along the world's axes of the view."""
        out = torch.zeros(len(at), *(self.px,) * self.ndim)
        for k, spacing in enumerate(self.steps_mm):
            if len(rows := np.flatnonzero(scale == k)):
                centres, axes = _through(way, at[rows], self.px / 4 * spacing)
                out[rows] = read_block(images[f"scale{k}"], centres, axes, self.px, spacing)[:, 0].clamp_(0, 1.5)
        return out


def _through(way: PointMap | None, centres: Array, reach: float) -> tuple[Array, Array]:
    """Centres (M, D) and axes (M, D, D) of patches seen through a smooth map, by its slope over ``reach`` mm."""
    m, d = centres.shape
    if way is None:
        return centres, np.repeat(np.eye(d)[None], m, 0)
    stencil = reach * np.concatenate([np.zeros((1, d)), np.eye(d), -np.eye(d)])
    moved = way(centres[:, None] + stencil)
    slopes = (moved[:, 1 : d + 1] - moved[:, d + 1 :]) / (2 * reach)
    return moved[:, 0], np.moveaxis(slopes, 1, 2)
