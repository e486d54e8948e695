"""Global-to-local as we recommend it: a coarse network whose cells all vote finds first points in any pose.

As in Noothout et al. (2020) every cell regresses the log displacement to every landmark and classifies whether it holds
it, and a landmark lies at the mean of the votes weighted by that posterior. Ours: the network reads a block turned into
a pose's frame, at a spacing given by the anatomy's size; its posterior is one softmax over the cells and "not here", so
that presence needs no network of its own; it learns from warped, turned and cropped images; it looks several times, at
first in many rotations where the training poses ask for it, then upright; and what a landmark's own votes leave open
the shape model fills in. The local stage is the general refiner (``methods/refine.py``).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch.nn import functional as F

from anatomark.core.grid import Array
from anatomark.core.image import Image
from anatomark.core.intensity import bounds, normalise
from anatomark.core.landmarks import Landmarks, Status
from anatomark.core.resample import block_mean
from anatomark.core.shape import Pose, procrustes, random_rotation
from anatomark.errors import InputError
from anatomark.methods.base import Batch, Method, MethodConfig, Plan, Stage, Study, TrainingCase
from anatomark.methods.global_to_local.looks import Hypotheses, Look, inside_image, log_votes, read_votes
from anatomark.methods.global_to_local.net import STRIDE, CoarseNet
from anatomark.methods.global_to_local.votes import displacement, log_displacement
from anatomark.methods.kit.anatomy import Anatomy, ShapeModel, adapt_facts, block_for, start_centre
from anatomark.methods.kit.augment import PooledWarps, random_intensity
from anatomark.methods.kit.posed import read_block

PASSES = ((15.0, 2), (10.0, 2), (6.0, 4))  # then again upright, turned by up to so many degrees, so many times
BLOCKS_AT_ONCE = 32
LANDMARKS_AT_ONCE = 12  # that vote in a training step
BESIDE = 0.6  # radii between the first views
EDGE = 0.02  # radii outside the image at which a landmark counts as half absent
FEW = 0.05  # weight of a landmark that no cell claims, against one that is surely there


class CoarseConfig(MethodConfig):
    """Settings of the recommended global stage. All ours; sizes in fractions of the model's radius (largest distance
    of a landmark from the mean shape's centre) unless they say otherwise."""

    block_px: int | None = Field(default=None, ge=16, multiple_of=16)  # side of the block; None: 48 in 2D, 32 in 3D
    cover: float | None = Field(default=None, gt=0)  # the same side in radii; None: 3.2 in 2D, 2.8 in 3D
    width: int = Field(default=16, ge=4)
    starts: int = Field(default=12, ge=1)  # rotations of the first looks where any pose may come
    hypotheses: int = Field(default=12, ge=1)  # of which so many are looked at again
    rotations_deg: float | None = Field(default=None, ge=0, le=180)  # None: from the training poses
    shift: float = Field(default=0.4, ge=0)  # random shift of the block in training
    scaling: float = Field(default=0.15, ge=0)  # random log scale in training
    anywhere_share: float = Field(default=0.1, ge=0, le=1)  # of the wide half: anywhere in the image
    crop_share: float = Field(default=0.4, ge=0, le=1)  # examples that are cut by planes
    shape_variance: float = Field(default=0.98, gt=0, le=1)
    shape_modes: int = Field(default=30, ge=0)
    warped_copies: int = Field(default=500, ge=0)
    warp_mm: float | None = Field(default=None, ge=0)  # None: from radius and number of cases
    warp_share: float = Field(default=0.8, ge=0, le=1)
    intensity: float = Field(default=1.0, ge=0)
    classification: float = Field(default=0.2, ge=0)  # weight of the cross entropy against the votes' error
    batch: int = Field(default=24, ge=2)
    steps: int = Field(default=2000, ge=1)


class GlobalToLocal(Method):
    """The recommended preset of ``--method global_to_local``; see the module."""

    Config = CoarseConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"recommended": {}}
    refined: ClassVar[bool] = True

    def __init__(self, config: CoarseConfig, plan: Plan):
        super().__init__()
        self.config, self.plan = config, plan
        self.names, self.ndim = tuple(plan.names), plan.ndim
        self.model = ShapeModel.from_facts(plan.facts)
        self.radius = float(plan.facts["radius_mm"])
        self.rotations = float(plan.facts["rotations_deg"])
        self.px = config.block_px or (48 if self.ndim == 2 else 32)
        self.cover = self.radius * (config.cover or (3.2 if self.ndim == 2 else 2.8))
        self.spacing = self.cover / self.px
        self.net = CoarseNet(self.ndim, self.px, len(self.names), config.width)
        self._warps = PooledWarps(self.ndim, self.radius, float(plan.facts["warp_mm"]))

    # ------------------------------------------------------------------ what depends on the data

    @classmethod
    def prepare(cls, config: CoarseConfig, study: Study) -> Plan:
        """Mean shape, shape model (with warped copies) and range of poses from the training cases."""
        anatomy = Anatomy.of(
            study.cases, study.names, study.intensity, rotations_deg=config.rotations_deg, warp_mm=config.warp_mm
        )
        shape = anatomy.shape_model(
            variance=config.shape_variance, most=config.shape_modes, copies=config.warped_copies
        )
        return Plan(
            names=list(study.names),
            ndim=anatomy.mean.shape[1],
            modality=study.modality,
            intensity=dict(study.intensity),
            facts={**anatomy.facts(shift=config.shift), "shape": shape.to_json()},
        )

    @classmethod
    def adapt_plan(cls, plan: Plan, old: Plan) -> Plan:
        """``plan`` in the frame of another model's plan, so that its weights mean the same; see
        :func:`anatomark.methods.kit.anatomy.adapt_facts`."""
        facts = adapt_facts(plan.facts, plan.names, old.facts, old.names)
        return plan if facts is None else plan.model_copy(update={"facts": facts})

    def adapt_state(self, state: dict[str, torch.Tensor], old: Plan) -> dict[str, torch.Tensor]:
        """Another model's weights for this model's landmarks: rows of known names are moved to their places, new
        landmarks get the mean of the old."""
        rows = [old.names.index(n) if n in old.names else -1 for n in self.names]
        count, d = len(old.names), old.ndim
        sizes = {"net.direct.": d, "net.nowhere.": 1, "net.head": 1, "net.offset": 1, "net.sharpness": 1}
        out = dict(state)
        for key, value in state.items():
            size = next((s for prefix, s in sizes.items() if key.startswith(prefix)), 0)
            if size and len(value) == count * size:
                own = value.view(count, size, *value.shape[1:])
                own = torch.stack([own[r] if r >= 0 else own.mean(0) for r in rows])
                out[key] = own.reshape(len(rows) * size, *value.shape[1:])
        return out

    def stages(self) -> list[Stage]:
        """One; any pose is twice as much to learn."""
        c = self.config
        steps = c.steps * (2 if self.rotations >= 180 else 1)
        return [
            Stage("global", steps, c.batch, lr=3e-3, warmup=100, weight_decay=1e-4, modules=("net",), clip_norm=1.0)
        ]

    def working_images(self, image: Image) -> dict[str, Image]:
        """``coarse``: block means towards the block's spacing."""
        low, high = bounds(image, self.plan.intensity)
        rule = {"kind": "window", "low": low, "high": high}
        return {"coarse": normalise(block_mean(image, block_for(image, self.spacing)), rule)}

    # ------------------------------------------------------------------ training

    def examples(self, case: TrainingCase, stage: Stage, rng: np.random.Generator) -> Batch:
        """A random warp of the case, turned, moved and maybe cropped."""
        c = self.config
        image, truth = case.images["coarse"], case.landmarks.points
        inside = image.grid.contains(truth)
        pose = procrustes(self.model.mean, truth)
        read = None
        if rng.random() < c.warp_share:
            read, move = self._warps.draw(rng, pose)
            truth = move(truth)
            pose = procrustes(self.model.mean, truth)
        axes, centre = self._random_view(rng, image, pose)
        block = read_block(image, centre[None], axes[None], self.px, self.spacing, read)[0].clamp_(0, 1.5)
        if rng.random() < c.crop_share:
            for normal, limit in _random_cuts(rng, image, truth, self.radius):
                block = block * torch.from_numpy(self._along(centre, axes, normal) < limit)
                inside = inside & np.asarray(truth @ normal < limit)
        target = (truth - centre) @ np.linalg.inv(axes).T / (self.spacing * STRIDE)
        known = np.asarray(np.isfinite(target).all(1))
        absent = np.array([s is Status.ABSENT for s in case.landmarks.status])
        cells = self.px // STRIDE
        inside = inside & known & (np.abs(np.where(known[:, None], target, 0)) < cells / 2).all(1)
        return {
            "block": random_intensity(block, rng, c.intensity),
            "target": torch.from_numpy(np.where(known[:, None], target, 0.0)).float(),
            "known": torch.from_numpy(known).float(),
            "judged": torch.from_numpy(known | absent).float(),  # whether it is here is known
            "here": torch.from_numpy(inside),
        }

    def _random_view(self, rng: np.random.Generator, image: Image, pose: Pose) -> tuple[Array, Array]:
        """Axes (D, D) and centre (D,) of a block: half of them near the pose, the others up to the range of poses, of
        these some anywhere in the image and just beside it, as windows of a large image are."""
        c, d = self.config, self.ndim
        near = rng.random() < 0.5
        turn = random_rotation(rng, d, min(30.0, self.rotations) if near else self.rotations)
        size = float(np.exp(rng.normal(0, c.scaling / (2 if near else 1))))
        shift = rng.uniform(-1, 1, d) * float(self.plan.facts["start_shift_mm"]) * (0.2 if near else 1.0)
        centre = pose.translation + shift
        if not near and rng.random() < c.anywhere_share:
            beside = self.cover / 2 / image.grid.spacing
            centre = image.grid.to_world(rng.uniform(-beside, np.asarray(image.grid.shape) - 1 + beside))
        return pose.rotation @ turn * pose.scale * size, centre

    def _along(self, centre: Array, axes: Array, normal: Array) -> Array:
        """(px, ..., px) ``x @ normal`` mm of a block's voxels."""
        line = (np.arange(self.px) - (self.px - 1) / 2) * self.spacing
        out = np.asarray(centre @ normal)
        for slope in axes.T @ normal:  # x first: the fastest axis
            out = slope * line.reshape(-1, *(1,) * out.ndim) + out
        return out

    def loss(self, batch: Batch, stage: Stage) -> dict[str, torch.Tensor]:
        """Mean absolute error of every cell's log displacement, cross entropy over the cells and "not here", and the
        error of the point that they make together."""
        # some of many landmarks vote in a step, all are found directly: the votes of 45 cost more than the convolutions
        n, k, d = len(self.names), self.net.cells, self.ndim
        chosen = torch.randperm(n, device=batch["block"].device)[:LANDMARKS_AT_ONCE]
        votes = self.net(batch["block"], chosen)
        target, known = batch["target"][:, chosen], batch["known"][:, chosen]
        here = known * batch["here"][:, chosen]
        towards = log_votes(votes._replace(points=votes.points[:, chosen]), self.net.centres)
        goal = log_displacement(target[:, :, None] - self.net.centres)
        regression = _mean((towards - goal).abs().mean((2, 3)), known)
        at = (target + k / 2).floor().clamp(0, k - 1).long()
        cell = torch.stack([at[..., a] * k**a for a in range(d)]).sum(0)
        cell = torch.where(here > 0, cell, torch.full_like(cell, k**d))
        cross = F.cross_entropy(votes.logits.flatten(0, 1), cell.flatten(), reduction="none").view_as(known)
        classification = _mean(cross, batch["judged"][:, chosen])
        weight = votes.logits[..., :-1].softmax(-1)
        point = torch.einsum("bnk,bnkd->bnd", weight, self.net.centres + displacement(towards))
        miss = _mean(_huber(point, target), here)
        near = batch["known"] * (batch["target"].abs().amax(-1) < k)  # what is far off the block is anyone's guess
        direct = _mean(_huber(votes.points, batch["target"]), near)
        loss = regression + self.config.classification * classification + 0.5 * (miss + direct)
        parts = {"regression": regression, "classification": classification, "point": miss, "direct": direct}
        return {"loss": loss, **{name: value.detach() for name, value in parts.items()}}

    # ------------------------------------------------------------------ inference

    @torch.inference_mode()
    def locate(self, image: Image, start: Landmarks | None = None) -> Landmarks:
        """See :meth:`Method.locate`. Score: posterior that the landmark is in the image, less where its point is not;
        what is not there lies where the shape says. Covariance: of the vote clouds and of the looks."""
        self.eval()
        coarse = self.working_images(image)["coarse"]
        rng = np.random.default_rng(7)  # the same image gives the same answer
        if start is None:
            pose, b = self._pose(*self._search(coarse, rng).middle())
        else:
            guess = start.select(self.names).points
            if not np.isfinite(guess).any():
                raise InputError(f"the first guess holds none of the model's landmarks: {', '.join(self.names[:8])}")
            pose, b = self.model.fit(guess)
        for limit, count in PASSES:
            turns = [random_rotation(rng, self.ndim, limit) for _ in range(count)]
            axes = np.stack([pose.rotation @ t * pose.scale for t in turns])
            look = self._look(coarse, np.repeat(pose.translation[None], count, 0), axes)
            points, here = look.middle()
            pose, b = self._pose(points, here)
        spread = look.points - look.points.mean(0)
        covariance = look.covariance.mean(0) + np.einsum("mni,mnj->nij", spread, spread) / len(spread)
        world = here[:, None] * points + (1 - here[:, None]) * pose.apply(self.model.decode(b))
        least = (0.02 * self.spacing) ** 2 * np.eye(self.ndim)
        score = np.clip(here * inside_image(image, world, EDGE * self.radius), 0, 1)
        return Landmarks(self.names, world, score=score, covariance=covariance + least)

    def _pose(self, points: Array, here: Array) -> tuple[Pose, Array]:
        """Pose and shape of points (N, D) that are in the image with probability ``here`` (N,)."""
        sure = here > 0.5
        known = points if sure.sum() <= self.ndim else np.where(sure[:, None], points, np.nan)
        return self.model.fit(known, here + FEW)

    def _search(self, image: Image, rng: np.random.Generator) -> Look:
        """Looks from many places (and rotations, where any may come), each of which makes a hypothesis, and from the
        best of these again: the looks that agree with the one that has most support."""
        found = self._hypotheses(self._look(image, *self._first_views(image, rng)))
        best = np.argsort(-found.weight)[: self.config.hypotheses]
        poses = [found.poses[i] for i in best]
        axes = np.stack([p.rotation * p.scale for p in poses])
        return self._hypotheses(self._look(image, np.stack([p.translation for p in poses]), axes)).consensus(
            self.radius
        )

    def _hypotheses(self, look: Look) -> Hypotheses:
        """Pose and shape that each block sees, the more credible the more landmarks it claims and the better they
        fit."""
        poses, shapes, weight = [], [], []
        for points, here in zip(look.points, look.here, strict=True):
            pose, b = self._pose(points, here)
            shape = pose.apply(self.model.decode(b))
            aside = np.sqrt(((here + FEW) * ((points - shape) ** 2).sum(1)).sum() / (here + FEW).sum())
            poses.append(pose)
            shapes.append(shape)
            weight.append(here.mean() * np.exp(-aside / (0.1 * self.radius)) + 1e-9)
        return Hypotheses(look, poses, np.stack(shapes), np.array(weight))

    def _first_views(self, image: Image, rng: np.random.Generator) -> tuple[Array, Array]:
        """Centres (M, D) and axes (M, D, D) of the first blocks: where the search starts and around it, as in a crop
        the anatomy's middle lies aside; windows over the whole image where it is much larger than a block."""
        d = self.ndim
        middle = start_centre(image) + np.asarray(self.plan.facts["start_offset_mm"])
        step = BESIDE * self.radius
        if self.rotations >= 180:
            turns = [random_rotation(rng, d) for _ in range(self.config.starts)]
            around = [middle + step * rng.uniform(-1, 1, d) * (i > 2) for i in range(len(turns))]
            views = [(c, t) for a, t in zip(around, turns, strict=True) for c in self._windows(image, t, a)]
        else:
            aside = [middle + step * np.array(x) for x in itertools.product((0, -1, 1), repeat=d)]
            aside = [a for a in aside if d == 2 or np.abs(a - middle).max() * 1.01 > np.linalg.norm(a - middle)]
            whole = self._windows(image, np.eye(d), middle)
            views = [(c, np.eye(d)) for c in (whole if len(whole) > len(aside) else aside)]
        return np.stack([c for c, _ in views]), np.stack([t for _, t in views])

    def _windows(self, image: Image, turn: Array, middle: Array) -> list[Array]:
        """Centres (D,) of blocks turned by ``turn`` that together see the image; one at ``middle`` where that does."""
        ends = np.array(list(itertools.product(*([-0.5, n - 0.5] for n in image.grid.shape))))
        corners = image.grid.to_world(ends) @ turn
        low, high = corners.min(0), corners.max(0)
        lines = []
        for a in range(self.ndim):
            side = high[a] - low[a]
            if side <= 1.3 * self.cover:
                lines.append(np.array([middle @ turn[:, a]]))
            else:
                count = max(2, int(np.ceil((side - self.cover) / (self.cover / 2) - 0.3)) + 1)
                lines.append(np.linspace(low[a] + self.cover / 2, high[a] - self.cover / 2, count))
        return [turn @ np.array(at) for at in itertools.product(*lines)]

    def _look(self, image: Image, centres: Array, axes: Array) -> Look:
        """What the blocks at ``centres`` (M, D) world mm with ``axes`` (M, D, D) say."""
        parts = []
        for i in range(0, len(centres), BLOCKS_AT_ONCE):
            at, turned = centres[i : i + BLOCKS_AT_ONCE], axes[i : i + BLOCKS_AT_ONCE]
            block = read_block(image, at, turned, self.px, self.spacing).clamp_(0, 1.5)  # as in training
            votes = read_votes(self.net(block.to(self.net.centres.device)), self.net.centres)
            parts.append([x.cpu().double().numpy() for x in votes])
        local, cloud, here = (np.concatenate(x) for x in zip(*parts, strict=True))
        step = axes * self.spacing * STRIDE
        points = centres[:, None] + np.einsum("mij,mnj->mni", step, local)
        return Look(points, np.einsum("mij,mnjk,mlk->mnil", step, cloud, step), here)


def _huber(points: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.smooth_l1_loss(points, target, reduction="none", beta=0.1).mean(-1)


def _mean(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return (values * weight).sum() / weight.sum().clamp(min=1)


def _random_cuts(rng: np.random.Generator, image: Image, truth: Array, radius: float) -> list[tuple[Array, float]]:
    """One or two half spaces ``x @ normal < limit`` that a crop keeps, along the image's axes: each leaves at least
    half of the landmarks, or falls just beside them."""
    d = image.ndim
    directions = image.grid.axes / image.grid.spacing
    out = []
    for axis in rng.permutation(d)[: int(rng.integers(1, 3))]:
        normal = directions[:, axis] * (1 if rng.random() < 0.5 else -1)
        along = truth @ normal
        limit = rng.uniform(np.nanmedian(along), np.nanmax(along) + 0.2 * radius)
        out.append((normal, float(limit)))
    return out
