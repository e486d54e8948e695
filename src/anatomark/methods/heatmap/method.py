"""Heatmap regression, the baseline that other methods are compared with: one map per landmark, and its peak.

Payer et al. (2016, 2019), and what nnU-Net-style systems do: a U-Net over the whole anatomy learns one Gaussian per
landmark (``recommended``), or its maps of the local appearance are multiplied by those of a branch that sees only
these, the SpatialConfiguration-Net (``scn``). The frame, poses, warps and changes of contrast are those of our own
recommended presets: a block in the frame of the mean shape, at a spacing given by the anatomy's size, read anew in the
pose that the points have.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field

from anatomark.core.grid import Array
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.core.shape import Pose, procrustes, random_rotation
from anatomark.errors import InputError
from anatomark.methods.base import Batch, Method, MethodConfig, Plan, Stage, Study, TrainingCase
from anatomark.methods.heatmap.net import LEAST_SIGMA, HeatmapNet, cross_entropy, peaks, squared_error
from anatomark.methods.kit.anatomy import ShapeModel
from anatomark.methods.kit.augment import PooledWarps, random_intensity
from anatomark.methods.kit.frame import adapt_frame, first_poses, given_pose, prepare_frame, random_view, seen
from anatomark.methods.kit.posed import read_block

TURN_DEG = 6.0  # of the looks after the first
BLOCKS_AT_ONCE = 4


class HeatmapConfig(MethodConfig):
    """Settings; lengths in the model's radius (largest distance of a landmark from the mean shape's centre) unless they
    say otherwise. A cell is a place of the maps, ``stem`` voxels of the block wide."""

    px: int | None = Field(default=None, ge=16)  # side of the block; None: 256 in 2D, 80 in 3D
    cover: float = Field(default=2.6, gt=0)  # the same side in radii
    maps: list[int] | None = Field(default=None, min_length=2)  # widths, finest first; None: see MAPS
    stem: Literal[1, 2, 4] = 2  # voxels along a cell
    spatial: int | None = Field(default=None, ge=1)  # channels of the spatial configuration's branch; None: without
    loss: Literal["softmax", "l2"] = "softmax"  # cross entropy of normalised maps, or weighted squared error
    sigma: float = Field(default=1.5, gt=LEAST_SIGMA)  # cells; of the target Gaussians, at first where it is learned
    learn_sigma: bool = False  # each landmark's own (Payer et al. 2019)
    sigma_penalty: float = Field(default=0.05, gt=0)  # weight of the mean squared sigma then
    passes: int = Field(default=2, ge=1)  # times that the block is read anew in the pose found
    looks: int = Field(default=4, ge=1)  # slightly turned views of the last pass, averaged
    starts: int = Field(default=24, ge=1)  # first rotations where any pose may come and nothing aligns
    rotations_deg: float | None = Field(default=None, ge=0, le=180)  # None: from the training poses
    shift: float | None = Field(default=None, ge=0)  # random shift of the block in training; None: 0.2, aligned 0.06
    scaling: float = Field(default=0.1, ge=0)  # random log scale in training
    shape_variance: float = Field(default=0.98, gt=0, le=1)
    shape_modes: int = Field(default=30, ge=0)
    warped_copies: int = Field(default=200, ge=0)
    warp_mm: float | None = Field(default=None, ge=0)  # None: from radius and number of cases
    warp_share: float = Field(default=0.8, ge=0, le=1)
    intensity: float = Field(default=1.0, ge=0)
    lr: float = Field(default=2e-3, gt=0)
    batch: int | None = Field(default=None, ge=1)  # None: 4 in 2D, 2 in 3D
    steps: int = Field(default=6000, ge=1)


PX = {2: 256, 3: 80}
MAPS = {2: [32, 48, 64, 96, 128], 3: [16, 32, 48, 64]}
BATCH = {2: 4, 3: 2}


class Heatmap(Method):
    """``--method heatmap``; see the module."""

    Config = HeatmapConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"recommended": {}, "scn": {"spatial": 32}}
    aligned: ClassVar[bool] = True

    def __init__(self, config: HeatmapConfig, plan: Plan):
        super().__init__()
        self.config, self.plan = config, plan
        self.names, self.ndim = tuple(plan.names), plan.ndim
        self.model = ShapeModel.from_facts(plan.facts)
        self.radius = float(plan.facts["radius_mm"])
        self.rotations = float(plan.facts["rotations_deg"])
        self.log = config.loss == "softmax"
        maps = config.maps or MAPS[self.ndim]
        self.net = HeatmapNet(
            self.ndim, len(self.names), maps=maps, stem=config.stem, spatial=config.spatial, log=self.log
        )
        self.px = config.px or PX[self.ndim]
        if self.px % self.net.whole:
            raise InputError(f"method.px: {self.px} cannot be halved so often; take a multiple of {self.net.whole}")
        self.spacing = config.cover * self.radius / self.px
        self.cell = self.spacing * config.stem
        self.cells = self.px // config.stem
        self.log_sigma = torch.nn.Parameter(torch.full((len(self.names),), float(np.log(config.sigma))))
        self._warps = PooledWarps(self.ndim, self.radius, float(plan.facts["warp_mm"]))

    # ------------------------------------------------------------------ what depends on the data

    @classmethod
    def prepare(cls, config: HeatmapConfig, study: Study) -> Plan:
        """See :func:`anatomark.methods.kit.frame.prepare_frame`."""
        anatomy, facts = prepare_frame(config, study.cases, study.names, study.intensity, aligned=study.aligned)
        return Plan(
            names=list(study.names),
            ndim=anatomy.mean.shape[1],
            modality=study.modality,
            intensity=dict(study.intensity),
            facts=facts,
        )

    @classmethod
    def adapt_plan(cls, plan: Plan, old: Plan) -> Plan:
        """``plan`` in the frame of another model's plan, so that its weights mean the same; see
        :func:`anatomark.methods.kit.frame.adapt_frame`."""
        facts = adapt_frame(plan.facts, plan.names, old.facts, old.names)
        if facts is None:
            return plan
        return plan.model_copy(update={"facts": facts})

    def adapt_state(self, state: dict[str, torch.Tensor], old: Plan) -> dict[str, torch.Tensor]:
        """Another model's weights for this model's landmarks: maps of known names are moved to their places, new
        landmarks get the mean of the old."""
        rows = [old.names.index(n) if n in old.names else -1 for n in self.names]
        spatial = sorted({k.split(".")[2] for k in state if k.startswith("net.spatial.")}, key=int)
        out = dict(state)
        for key, value in state.items():
            ends = key.startswith(("net.head.", "log_sigma", *(f"net.spatial.{s}." for s in spatial[-1:])))
            begins = key == f"net.spatial.{spatial[0]}.weight" if spatial else False
            axis = 0 if ends else 1 if begins else None
            if axis is not None and value.shape[axis] == len(old.names):
                own = value.movedim(axis, 0)
                out[key] = torch.stack([own[r] if r >= 0 else own.mean(0) for r in rows]).movedim(0, axis)
        return out

    def stages(self) -> list[Stage]:
        """One."""
        c = self.config
        batch = c.batch or BATCH[self.ndim]
        return [
            Stage("heatmaps", c.steps, batch, lr=c.lr, warmup=100, weight_decay=1e-2, clip_norm=1.0,
                  options={"ema": 0.998})
        ]  # fmt: skip

    def working_images(self, image: Image) -> dict[str, Image]:
        """``block``: block means towards the block's spacing."""
        return {"block": seen(image, self.plan.intensity, self.spacing)}

    # ------------------------------------------------------------------ training

    def examples(self, case: TrainingCase, stage: Stage, rng: np.random.Generator) -> Batch:
        """A random warp of the case in a random view; ``target`` (N, D) in cells from the middle, ``known`` (N,): 0
        where it lies outside the block or there is none."""
        c = self.config
        image, truth = case.images["block"], case.landmarks.points
        pose, read = procrustes(self.model.mean, truth), None
        if rng.random() < c.warp_share:
            read, move = self._warps.draw(rng, pose)
            truth = move(truth)
            pose = procrustes(self.model.mean, truth)
        axes, centre = random_view(rng, pose, self.plan.facts, c.scaling)
        block = read_block(image, centre[None], axes[None], self.px, self.spacing, read)[0].clamp_(0, 1.5)
        target = (truth - centre) @ np.linalg.inv(axes).T / self.cell
        known = np.asarray(np.isfinite(target).all(1))
        target = np.where(known[:, None], target, 0.0)
        known &= (np.abs(target) < self.cells / 2).all(1)
        return {
            "block": random_intensity(block, rng, c.intensity),
            "target": torch.from_numpy(target).float(),
            "known": torch.from_numpy(known).float(),
        }

    def _sigma(self) -> torch.Tensor:
        """(N,) cells. Of a learned width the part above the least is an exponential, so none is stuck at the least."""
        if not self.config.learn_sigma:
            return self.log_sigma.detach().exp()
        return LEAST_SIGMA + (1 - LEAST_SIGMA / self.config.sigma) * self.log_sigma.exp()

    def loss(self, batch: Batch, stage: Stage) -> dict[str, torch.Tensor]:
        """The maps' divergence or squared error from Gaussians, over known landmarks; the penalty of learned widths."""
        maps, sigma, known = self.net(batch["block"]), self._sigma(), batch["known"]
        if self.log:
            apart = cross_entropy(maps, batch["target"], sigma)
        else:
            apart = squared_error(maps, batch["target"], sigma, self.config.sigma)
        loss = (apart * known).sum() / known.sum().clamp(min=1)
        if not self.config.learn_sigma:
            return {"loss": loss}
        penalty = self.config.sigma_penalty * sigma.square().mean()
        return {"loss": loss + penalty, "maps": loss.detach(), "sigma": sigma.mean().detach()}

    # ------------------------------------------------------------------ inference

    @torch.inference_mode()
    def locate(self, image: Image, start: Landmarks | None = None) -> Landmarks:
        """See :meth:`Method.locate`. Score: the share of the map that lies at its peak, 0 where that is outside the
        image; no probability. Covariance: of the maps about their peaks, and of the looks."""
        self.eval()
        block = self.working_images(image)["block"]
        rng = np.random.default_rng(7)  # the same image gives the same answer
        pose = self._first_pose(block, rng) if start is None else given_pose(self.model, self.names, start)
        for _ in range(self.config.passes - 1):
            look = self._look(block, [pose])
            pose, _ = self.model.fit(look.points[0], look.score[0] + 1e-3)
        turns = [np.eye(self.ndim), *(random_rotation(rng, self.ndim, TURN_DEG) for _ in range(self.config.looks - 1))]
        look = self._look(block, [Pose(pose.rotation @ t, pose.translation, pose.scale) for t in turns])
        points = np.median(look.points, 0)
        spread = look.points - points
        covariance = look.covariance.mean(0) + np.einsum("mni,mnj->nij", spread, spread) / len(spread)
        least = (0.02 * self.spacing) ** 2 * np.eye(self.ndim)
        score = look.score.mean(0) * image.grid.contains(points)
        return Landmarks(self.names, points, score=score, covariance=covariance + least)

    def _first_pose(self, block: Image, rng: np.random.Generator) -> Pose:
        """Upright where the template has it, or at the foreground's centre (2D: the image's middle) with the training
        cases' mean offset; where any pose may come, the one of many there whose peaks are the clearest."""
        poses = first_poses(self.plan.facts, block, rng, self.config.starts)
        if self.rotations < 180 or self.plan.facts.get("centre_mm") is not None:
            return poses[0]
        look = self._look(block, poses)
        best = int(look.score.mean(1).argmax())
        return self.model.fit(look.points[best], look.score[best] + 1e-3)[0]

    def _look(self, image: Image, poses: list[Pose]) -> _Look:
        """What the blocks in these poses show, in world mm."""
        parts = []
        for i in range(0, len(poses), BLOCKS_AT_ONCE):
            some = poses[i : i + BLOCKS_AT_ONCE]
            axes = np.stack([p.rotation * p.scale for p in some])
            centres = np.stack([p.translation for p in some])
            blocks = read_block(image, centres, axes, self.px, self.spacing).clamp_(0, 1.5)  # as in training
            found = peaks(self.net(blocks.to(self.log_sigma.device)), self._sigma(), log=self.log)
            local, cloud, score = (x.cpu().double().numpy() for x in found)
            step = axes * self.cell
            points = centres[:, None] + np.einsum("mij,mnj->mni", step, local)
            parts.append((points, np.einsum("mij,mnjk,mlk->mnil", step, cloud, step), score))
        return _Look(*(np.concatenate(x) for x in zip(*parts, strict=True)))


class _Look(NamedTuple):
    """``points`` (M, N, D) world mm, ``covariance`` (M, N, D, D) mm^2 and ``score`` (M, N) of M blocks."""

    points: Array
    covariance: Array
    score: Array
