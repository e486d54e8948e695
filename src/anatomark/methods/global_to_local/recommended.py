"""Global-to-local as we recommend it: a coarse network whose cells all vote finds first points in any pose.

As in Noothout et al. (2020) every cell regresses the log displacement to every landmark and classifies whether it holds
it, and a landmark lies at the mean of the votes weighted by that posterior. Ours: the network reads a block turned into
a pose's frame, at a spacing given by the anatomy's size; its posterior is one softmax over the cells and "not here", so
that presence needs no network of its own; it learns from warped, turned and cropped images; it looks several times, at
first in many rotations where the training poses ask for it, then upright; and what a landmark's own votes leave open
the shape model fills in. The local stage is the general refiner (``model/refine``).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch.nn import functional as F

from anatomark.cases.case import Case
from anatomark.core.grid import Array
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks, Status
from anatomark.core.shape import Pose, random_rotation
from anatomark.methods.base import Batch, Batches, Channels, PerLandmark, Pixels, Rounds, Stage, Study, Task
from anatomark.methods.global_to_local.net import (
    STRIDE,
    CoarseNet,
    displacement,
    log_displacement,
    log_votes,
    read_votes,
)
from anatomark.methods.kit.anatomy import AnatomyFacts
from anatomark.methods.kit.augment import random_intensity
from anatomark.methods.kit.frame import BlockMethod, FrameConfig, prepare_shapes
from anatomark.methods.kit.posed import Views, turned
from anatomark.methods.kit.targets import average, logged, masked
from anatomark.methods.kit.working import Parts

PASSES = ((15.0, 2), (10.0, 2), (6.0, 4))  # then again upright, turned by up to so many degrees, so many times
LANDMARKS_AT_ONCE = 12  # that vote in a training step
ANY_POSE_DEG = 60.0  # turned by more than this, an anatomy lies in any pose
BESIDE = 0.6  # radii between the first views
EDGE = 0.02  # radii outside the image at which a landmark counts as half absent
FEW = 0.05  # weight of a landmark that no cell claims, against one that is surely there


class GlobalToLocalConfig(FrameConfig):
    """Settings of the recommended global stage. All ours; sizes in fractions of the model's radius (largest distance
    of a landmark from the mean shape's centre) unless they say otherwise."""

    block_px: Pixels | None = Field(default=None, ge=16, multiple_of=16)  # side of the block; None: 48 in 2D, 32 in 3D
    cover: float | None = Field(default=None, gt=0)  # the same side in radii; None: 3.2 in 2D, 2.8 in 3D
    width: Channels = Field(default=16, ge=4)
    starts: Rounds = Field(default=12, ge=1)  # rotations of the first views where any pose may come
    hypotheses: Rounds = Field(default=12, ge=1)  # of which so many are looked at again
    shift: float = Field(default=0.4, ge=0)
    scaling: float = Field(default=0.15, ge=0)
    anywhere_share: float = Field(default=0.1, ge=0, le=1)  # of the wide half: anywhere in the image
    crop_share: float = Field(default=0.4, ge=0, le=1)  # examples that are cut by planes
    warped_copies: Rounds = Field(default=500, ge=0)
    classification: float = Field(default=0.2, ge=0)  # weight of the cross entropy against the votes' error
    batch: Batches = Field(default=24, ge=2)
    steps: int = Field(default=2000, ge=1)


class GlobalToLocal(BlockMethod):
    """Votes of blocks in the frame of the anatomy."""

    Config = GlobalToLocalConfig
    refined: ClassVar[bool] = True
    at_once: ClassVar[int] = 32

    def __init__(self, config: GlobalToLocalConfig, facts: AnatomyFacts):
        super().__init__(config, facts)
        flat = self.ndim == 2
        self.px = config.block_px or (48 if flat else 32)
        self.cover = self.radius * (config.cover or (3.2 if flat else 2.8))
        self.spacing = self.cover / self.px
        self.unit = self.spacing * STRIDE
        self.net = CoarseNet(self.ndim, self.px, len(self.names), config.width)

    @classmethod
    def suits(cls, task: Task) -> str | None:
        """In 2D, where the refiner follows and poses are known roughly."""
        if task.ndim == 2 and task.refined and task.turned_deg <= ANY_POSE_DEG:
            return "the best with the refiner on images held out of training"
        return None

    @classmethod
    def prepare(cls, config: GlobalToLocalConfig, study: Study) -> AnatomyFacts:
        """Mean shape, shape model (with warped copies) and range of poses from the training cases."""
        return AnatomyFacts(**prepare_shapes(config, study)[1])

    def per_landmark(self) -> Mapping[str, int | PerLandmark]:
        """All of the heads."""
        return dict.fromkeys(("net.direct.*", "net.nowhere.*", "net.head", "net.offset", "net.sharpness"), 0)

    def stages(self) -> list[Stage]:
        """One; any pose is twice as much to learn."""
        c = self.config
        steps = c.steps * (2 if self.facts.rotations_deg >= 180 else 1)
        usual: dict[str, Any] = {"warmup": 100, "weight_decay": 1e-4, "clip_norm": 1.0}
        return [Stage("global", steps, c.batch, 3e-3, modules=("net",), **usual)]

    def working_images(self, image: Image) -> dict[str, Image]:
        """``coarse``: block means towards the block's spacing."""
        return {"coarse": Parts(image, self.facts.intensity).whole(self.spacing)}

    def examples(self, case: Case, stage: Stage, rng: np.random.Generator) -> Batch:
        """A random warp of the case, turned, moved and maybe cropped; of the views that lie anywhere in the range of
        poses, some anywhere in the image and just beside it, as windows of a large image are."""
        c = self.config
        image, grid = case.images["coarse"], case.images["coarse"].grid
        inside = grid.contains(case.landmarks.points)
        read, truth, pose = self._warps.warped(rng, self.mean, case.landmarks.points, c.warp_share)
        axes, centre, near = self._random_view(rng, pose, wide=True)
        if not near and rng.random() < c.anywhere_share:
            beside = self.cover / 2 / grid.spacing
            centre = grid.to_world(rng.uniform(-beside, np.asarray(grid.shape) - 1 + beside))
        block = self._block(image, centre, axes, read)
        if rng.random() < c.crop_share:
            for normal, limit in _random_cuts(rng, image, truth, self.radius):
                block = block * torch.from_numpy(self._along(centre, axes, normal) < limit)
                inside = inside & np.asarray(truth @ normal < limit)
        target = self._target(truth, centre, axes)
        absent = np.array([s is Status.ABSENT for s in case.landmarks.status])
        judged = np.isfinite(target).all(1) | absent  # whether it is here is known
        return {
            "block": random_intensity(block, rng, c.intensity),
            **masked(target),
            "judged": torch.from_numpy(judged).float(),
            "here": torch.from_numpy(inside & (np.abs(target) < self.net.cells / 2).all(1)),
        }

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
        # some of many landmarks vote in a step, all are regressed: the votes of 45 cost more than the convolutions
        n, k, d = len(self.names), self.net.cells, self.ndim
        chosen = torch.randperm(n, device=batch["block"].device)[:LANDMARKS_AT_ONCE]
        votes = self.net(batch["block"], chosen)
        target, defined = batch["target"][:, chosen], batch["defined"][:, chosen]
        here = defined * batch["here"][:, chosen]
        towards = log_votes(votes._replace(points=votes.points[:, chosen]), self.net.centres)
        goal = log_displacement(target[:, :, None] - self.net.centres)
        regression = average((towards - goal).abs().mean((2, 3)), defined)
        at = (target + k / 2).floor().clamp(0, k - 1).long()
        cell = torch.stack([at[..., a] * k**a for a in range(d)]).sum(0)
        cell = torch.where(here > 0, cell, torch.full_like(cell, k**d))
        cross = F.cross_entropy(votes.logits.flatten(0, 1), cell.flatten(), reduction="none").view_as(defined)
        classification = average(cross, batch["judged"][:, chosen])
        weight = votes.logits[..., :-1].softmax(-1)
        point = torch.einsum("bnk,bnkd->bnd", weight, self.net.centres + displacement(towards))
        miss = average(_huber(point, target), here)
        near = batch["defined"] * (batch["target"].abs().amax(-1) < k)  # what is far off the block is anyone's guess
        direct = average(_huber(votes.points, batch["target"]), near)
        loss = regression + self.config.classification * classification + 0.5 * (miss + direct)
        return logged(loss, regression=regression, classification=classification, point=miss, direct=direct)

    @torch.inference_mode()
    def locate(self, image: Image, start: Landmarks | None = None) -> Landmarks:
        """Score: posterior that the landmark is in the image, less where its point is not; what is not there lies where
        the shape says. Covariance: of the vote clouds and of the views."""
        self.eval()
        coarse = self.working_images(image)["coarse"]
        rng = np.random.default_rng(7)  # the same image gives the same answer
        if start is None:
            pose, b = self._pose(*middle(self._search(coarse, rng)))
        else:
            pose = self._guessed_pose(start)
        for limit, count in PASSES:
            views = self._views(coarse, turned(pose, rng, count, limit))
            points, here = middle(views)
            pose, b = self._pose(points, here)
        covariance = views.covariance_about(views.points.mean(0))
        world = here[:, None] * points + (1 - here[:, None]) * pose.apply(self.model.decode(b))
        score = np.clip(here * inside_image(image, world, EDGE * self.radius), 0, 1)
        return self._landmarks(world, covariance, score)

    def _pose(self, points: Array, here: Array) -> tuple[Pose, Array]:
        """Pose and shape of points (N, D) that are in the image with probability ``here`` (N,)."""
        sure = here > 0.5
        there = points if sure.sum() <= self.ndim else np.where(sure[:, None], points, np.nan)
        return self.model.fit(there, here + FEW)

    def _search(self, image: Image, rng: np.random.Generator) -> Views:
        """Views from many places (and rotations, where any may come), each of which makes a hypothesis, and from the
        best of these again: the views that agree with the one that has most support."""
        poses, _, weight = self._hypotheses(self._views(image, self._first_windows(image, rng)))
        best = np.argsort(-weight)[: self.config.hypotheses]
        views = self._views(image, [poses[i] for i in best])
        return views.some(consensus(*self._hypotheses(views)[1:], self.radius))

    def _hypotheses(self, views: Views) -> tuple[list[Pose], Array, Array]:
        """Poses (M) and fitted shapes (M, N, D) world mm that M blocks see, and how credible each is (M,): the more
        landmarks it claims and the better they fit."""
        poses, shapes, weight = [], [], []
        for points, here in zip(views.points, views.score, strict=True):
            pose, b = self._pose(points, here)
            shape = pose.apply(self.model.decode(b))
            aside = np.sqrt(((here + FEW) * ((points - shape) ** 2).sum(1)).sum() / (here + FEW).sum())
            poses.append(pose)
            shapes.append(shape)
            weight.append(here.mean() * np.exp(-aside / (0.1 * self.radius)) + 1e-9)
        return poses, np.stack(shapes), np.array(weight)

    def _first_windows(self, image: Image, rng: np.random.Generator) -> list[Pose]:
        """Of the first blocks: where the search starts and around it, as in a crop the anatomy's middle lies aside;
        windows over the whole image where it is much larger than a block."""
        d = self.ndim
        begin = self._start_point(image)
        step = BESIDE * self.radius
        if self.facts.rotations_deg >= 180:
            turns = [random_rotation(rng, d) for _ in range(self.config.starts)]
            around = [begin + step * rng.uniform(-1, 1, d) * (i > 2) for i in range(len(turns))]
            return [Pose(t, c) for a, t in zip(around, turns, strict=True) for c in self._windows(image, t, a)]
        aside = [begin + step * np.array(x) for x in itertools.product((0, -1, 1), repeat=d)]
        aside = [a for a in aside if d == 2 or np.abs(a - begin).max() * 1.01 > np.linalg.norm(a - begin)]
        whole = self._windows(image, np.eye(d), begin)
        return [Pose(np.eye(d), c) for c in (whole if len(whole) > len(aside) else aside)]

    def _windows(self, image: Image, turn: Array, centre: Array) -> list[Array]:
        """Centres (D,) of blocks turned by ``turn`` that together see the image; one at ``centre`` where that does."""
        ends = np.array(list(itertools.product(*([-0.5, n - 0.5] for n in image.grid.shape))))
        corners = image.grid.to_world(ends) @ turn
        low, high = corners.min(0), corners.max(0)
        lines = []
        for a in range(self.ndim):
            side = high[a] - low[a]
            if side <= 1.3 * self.cover:
                lines.append(np.array([centre @ turn[:, a]]))
            else:
                count = max(2, int(np.ceil((side - self.cover) / (self.cover / 2) - 0.3)) + 1)
                lines.append(np.linspace(low[a] + self.cover / 2, high[a] - self.cover / 2, count))
        return [turn @ np.array(at) for at in itertools.product(*lines)]

    def _read(self, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return read_votes(self.net(blocks.to(self.net.centres.device)), self.net.centres)


def middle(views: Views) -> tuple[Array, Array]:
    """Median point (N, D) of all blocks, each weighing as much as it is sure that it holds the landmark (its score),
    and how sure (N,) those are."""
    weight = views.score + 1e-6
    points = weighted_median(views.points, weight)
    return points, (weight * views.score).sum(0) / weight.sum(0)


def consensus(shapes: Array, weight: Array, radius: float) -> NDArray[np.bool_]:
    """(M,) which of shapes (M, N, D) mm with weights (M,) lie near the one that has most support."""
    apart = np.linalg.norm(shapes[:, None] - shapes[None], axis=-1).mean(-1) / radius
    support = weight * (np.exp(-((apart / 0.2) ** 2)) @ weight)
    return np.asarray(apart[int(support.argmax())] < 0.3)


def inside_image(image: Image, world: Array, tolerance: float) -> Array:
    """(N,) how credible it is that points (N, D) mm lie in the image: 0.5 where they lie ``tolerance`` mm outside."""
    index = image.grid.to_index(world)
    depth = (np.minimum(index + 0.5, np.asarray(image.grid.shape) - 0.5 - index) * image.grid.spacing).min(1)
    return np.asarray(1 / (1 + np.exp(-np.clip(depth / tolerance + 1, -50, 50))))


def weighted_median(values: Array, weight: Array) -> Array:
    """(N, D) median along the first axis of values (M, N, D) with weights (M, N)."""
    order = np.argsort(values, 0)
    ranked = np.take_along_axis(values, order, 0)
    mass = np.take_along_axis(np.broadcast_to(weight[..., None], values.shape), order, 0)
    share = np.cumsum(mass, 0) / mass.sum(0)
    upper = (share > 0.5 + 1e-9).argmax(0)[None]
    lower = (share >= 0.5 - 1e-9).argmax(0)[None]
    return np.asarray((np.take_along_axis(ranked, lower, 0) + np.take_along_axis(ranked, upper, 0))[0] / 2)


def _huber(points: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.smooth_l1_loss(points, target, reduction="none", beta=0.1).mean(-1)


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
