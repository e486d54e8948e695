"""Heatmap regression, the baseline that other methods are compared with: one map per landmark, and its peak.

Payer et al. (2016, 2019), and what nnU-Net-style systems do: a U-Net over the whole anatomy learns one Gaussian per
landmark (``recommended``), or its maps of the local appearance are multiplied by those of a branch that sees only
these, the SpatialConfiguration-Net (``scn``). ``tree``, for what is long, bent and repetitive, reads a block as long as
the anatomy, whose ends see each other, and takes of each map the peak that its neighbours in a tree agree with
(``tree.py``). The frame, poses, warps and changes of contrast are those of our own
recommended presets: a block in the frame of the mean shape, at a spacing given by the anatomy's size, read anew in the
pose that the points have.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from anatomark.cases.case import Case
from anatomark.cases.division import spread
from anatomark.core.grid import Array
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.core.shape import Pose, random_rotation
from anatomark.errors import InputError
from anatomark.methods.base import Batch, Batches, Channels, Length, PerLandmark, Pixels, Rounds, Stage, Study
from anatomark.methods.heatmap.net import (
    LEAST_SIGMA,
    SHRINK,
    HeatmapNet,
    candidates,
    cross_entropy,
    peaks,
    squared_error,
)
from anatomark.methods.heatmap.tree import Tree, TreeFacts
from anatomark.methods.kit.anatomy import Anatomy, AnatomyFacts
from anatomark.methods.kit.augment import random_intensity
from anatomark.methods.kit.frame import FINER, BlockMethod, FrameConfig, prepare_frame
from anatomark.methods.kit.posed import turned
from anatomark.methods.kit.targets import average, logged, masked

TURN_DEG = 6.0  # of the views after the first
FRAMED_DEG, FRAMED = 3.0, 0.03  # turns and (radii) shifts of a framed block, at most


class HeatmapConfig(FrameConfig):
    """Settings; lengths in the model's radius (largest distance of a landmark from the mean shape's centre) unless they
    say otherwise. A cell is a place of the maps, ``stem`` voxels of the block wide."""

    px: Pixels | None = Field(default=None, ge=16)  # side of the block; None: 256 in 2D, 80 in 3D
    cover: float = Field(default=2.6, gt=0)  # the same side in radii
    maps: list[Channels] | None = Field(default=None, min_length=2)  # widths, finest first; None: see MAPS
    stem: Literal[1, 2, 4] = 2  # voxels along a cell
    spatial: Channels | None = Field(default=None, ge=1)  # channels of the spatial branch; None: without
    loss: Literal["softmax", "l2"] = "softmax"  # cross entropy of normalised maps, or weighted squared error
    sigma: float = Field(default=1.5, gt=LEAST_SIGMA)  # cells; of the target Gaussians, at first where it is learned
    learn_sigma: bool = False  # each landmark's own (Payer et al. 2019)
    sigma_penalty: float = Field(default=0.05, gt=0)  # weight of the mean squared sigma then
    passes: Rounds = Field(default=2, ge=1)  # times that the block is read anew in the pose found
    looks: Rounds = Field(default=4, ge=1)  # slightly turned views of the last pass, averaged
    local: bool = False  # the network also sees the block freed from local mean and contrast
    context: bool = False  # the coarsest cells look at each other
    tree: bool = False  # neighbours decide between a map's peaks
    framed: bool = False  # the block stays where a search begins: how images are framed says something too
    fitted: bool = False  # the block is no wider along each axis than the anatomy needs; px is its longest side
    starts: Rounds = Field(default=24, ge=1)  # first rotations where any pose may come and nothing aligns
    lr: float = Field(default=2e-3, gt=0)
    batch: Batches | None = Field(default=None, ge=1)  # None: 4 in 2D, 2 in 3D
    steps: int = Field(default=6000, ge=1)


PX, LONG = {2: 256, 3: 80}, {2: 320, 3: 96}  # LONG: of a fitted block's longest side
MAPS = {2: [32, 48, 64, 96, 128], 3: [16, 32, 48, 64]}
BATCH = {2: 4, 3: 2}


CANDIDATES = 12  # peaks of a map
UPRIGHT_DEG = 10.0  # least range of poses of a fitted block
UPRIGHT_MOST_DEG = 45.0  # above it a block is not fitted
ROOM, NARROWEST = 1.15, 0.35  # of a fitted block's half, beside what the landmarks reach; of its longest side


class HeatmapFacts(AnatomyFacts):
    """``reach_mm`` (D,): half the sides of a fitted block; ``px``: of its longest side where the images hold less than
    the usual block; ``tree``: :class:`Tree`; None: none of these."""

    reach_mm: list[Length] | None = None
    px: Pixels | None = Field(default=None, ge=1)
    tree: TreeFacts | None = None

    @model_validator(mode="after")
    def _of_these_landmarks(self) -> HeatmapFacts:
        if self.reach_mm is not None and len(self.reach_mm) != self.ndim:
            raise ValueError(f"reach_mm: holds {len(self.reach_mm)} lengths in {self.ndim}D")
        if self.tree is not None:
            self.tree.check(len(self.names), self.ndim)
        return self


class Heatmap(BlockMethod):
    """One heatmap for each landmark over a block in the frame of the anatomy."""

    Config = HeatmapConfig
    Facts = HeatmapFacts
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "recommended": {},
        "scn": {"spatial": 32},
        "tree": {
            "context": True,
            "local": True,
            "tree": True,
            "fitted": True,
            "framed": True,
            "maps": [32, 48, 64, 96],
            "batch": 6,
        },
    }
    taken_over: ClassVar[tuple[str, ...]] = ("reach_mm", "px")
    aligned: ClassVar[bool] = True
    at_once: ClassVar[int] = 4

    def __init__(self, config: HeatmapConfig, facts: HeatmapFacts):
        super().__init__(config, facts)
        n, d = len(self.names), self.ndim
        self.log = config.loss == "softmax"
        maps, px = config.maps or MAPS[d], config.px or facts.px or usual_px(config, d)
        reach = np.array(facts.reach_mm or [config.cover * self.radius / 2] * d)
        whole = _whole(config, d)
        self.spacing = 2 * float(reach.max()) / px
        self.px = px
        self._sides = tuple(int(-(-2 * r // (self.spacing * whole)) * whole) for r in reach[::-1] * (1 - 1e-9))
        self.net = HeatmapNet(
            d, n, maps=maps, stem=config.stem, spatial=config.spatial, log=self.log,
            context=self._sides if config.context else None, local=config.local,
        )  # fmt: skip
        if px % self.net.whole:
            raise InputError(f"method.px: {px} cannot be halved so often; take a multiple of {self.net.whole}")
        self.unit = self.spacing * config.stem  # a cell
        self.cells = np.array(self._sides[::-1]) // config.stem  # along the model's axes
        self.log_sigma = torch.nn.Parameter(torch.full((n,), float(np.log(config.sigma))))
        self.tree = Tree.of(facts.tree) if facts.tree is not None else None

    @classmethod
    def prepare(cls, config: HeatmapConfig, study: Study) -> HeatmapFacts:
        """The frame, and what ``fitted`` and ``tree`` ask for."""
        if not config.fitted:
            anatomy, facts = prepare_frame(config, study)
            own: dict[str, Any] = {}
        else:
            anatomy, facts = prepare_frame(config, study, least_deg=UPRIGHT_DEG)
            own = {"reach_mm": _reach(study, anatomy, config.cover).tolist()}
        side = 2 * max(own.get("reach_mm", [config.cover * anatomy.radius / 2]))
        d, whole = study.cases[0].landmarks.ndim, _whole(config, study.cases[0].landmarks.ndim)
        enough = int(-(-side // (FINER * anatomy.spacing * whole)) * whole)
        if config.px is None and enough < usual_px(config, d):
            own["px"] = enough
        if config.tree:
            own["tree"] = Tree.learned(anatomy.aligned, anatomy.radius).facts()
        return HeatmapFacts(**facts, **own)

    @property
    def sides(self) -> tuple[int, ...]:
        return self._sides

    def per_landmark(self) -> Mapping[str, int | PerLandmark]:
        """The maps, where they end and where the spatial configuration's branch reads and writes them."""
        rules: dict[str, int | PerLandmark] = {"net.head.*": 0, "log_sigma": 0}
        if self.net.spatial is not None:
            rules |= {"net.spatial.0.weight": 1, f"net.spatial.{len(self.net.spatial) - 1}.*": 0}
        return rules

    def stages(self) -> list[Stage]:
        c = self.config
        batch = c.batch or BATCH[self.ndim]
        return [Stage("heatmaps", c.steps, batch, c.lr, warmup=100, weight_decay=1e-2, clip_norm=1.0, ema=0.998)]

    def examples(self, case: Case, stage: Stage, rng: np.random.Generator) -> Batch:
        """A random warp of the case in a random view; ``target`` (N, D) in cells from the middle, ``defined`` (N,): 0
        where it lies outside the block or there is none."""
        c = self.config
        read, truth, pose = self._warps.warped(rng, self.mean, case.landmarks.points, c.warp_share)
        if c.framed:
            axes, centre = self._framed_view(rng, case.images["block"])
        else:
            axes, centre, _ = self._random_view(rng, pose)
        block = self._block(case.images["block"], centre, axes, read)
        target = self._target(truth, centre, axes)
        batch = {"block": random_intensity(block, rng, c.intensity), **masked(target)}
        batch["defined"] *= torch.from_numpy((np.abs(target) < self.cells / 2).all(1))
        return batch

    def _framed_view(self, rng: np.random.Generator, block: Image) -> tuple[Array, Array]:
        """Axes (D, D) and centre (D,) world mm of a block hardly away from where a search begins."""
        turn = random_rotation(rng, self.ndim, FRAMED_DEG) * np.exp(rng.normal(0, self.config.scaling / 2))
        return turn, self._start_point(block) + rng.uniform(-1, 1, self.ndim) * FRAMED * self.radius

    def _sigma(self) -> torch.Tensor:
        """(N,) cells. Of a learned width the part above the least is an exponential, so none is stuck at the least."""
        if not self.config.learn_sigma:
            return self.log_sigma.detach().exp()
        return LEAST_SIGMA + (1 - LEAST_SIGMA / self.config.sigma) * self.log_sigma.exp()

    def loss(self, batch: Batch, stage: Stage) -> dict[str, torch.Tensor]:
        """The maps' divergence or squared error from Gaussians, over defined landmarks, and the penalty of learned
        widths."""
        maps, sigma, defined = self.net(batch["block"]), self._sigma(), batch["defined"]
        if self.log:
            apart = cross_entropy(maps, batch["target"], sigma)
        else:
            apart = squared_error(maps, batch["target"], sigma, self.config.sigma)
        loss = average(apart, defined)
        if not self.config.learn_sigma:
            return {"loss": loss}
        return logged(loss + self.config.sigma_penalty * sigma.square().mean(), maps=loss, sigma=sigma.mean())

    @torch.inference_mode()
    def locate(self, image: Image, start: Landmarks | None = None) -> Landmarks:
        """Score: the share of the map that lies at its peak, 0 where that is outside the image; no probability.
        Covariance: of the maps about their peaks, and of the views."""
        self.eval()
        block = self.working_images(image)["block"]
        rng = np.random.default_rng(7)  # the same image gives the same answer
        pose = self._first_pose(block, rng) if start is None else self._guessed_pose(start)
        for _ in range(0 if self.config.framed else self.config.passes - 1):
            views = self._views(block, [pose])
            pose, _ = self.model.fit(views.points[0], views.score[0] + 1e-3)
        views = self._views(
            block, [pose, *turned(pose, rng, self.config.looks - 1, FRAMED_DEG if self.config.framed else TURN_DEG)]
        )
        points = np.median(views.points, 0)
        return self._landmarks(
            points, views.covariance_about(points), views.score.mean(0) * image.grid.contains(points)
        )

    def _first_pose(self, block: Image, rng: np.random.Generator) -> Pose:
        """Where any pose may come, the one of many whose peaks are the clearest."""
        poses = self._first_poses(block, rng, self.config.starts)
        if not self._any_pose:
            return poses[0]
        views = self._views(block, poses)
        best = int(views.score.mean(1).argmax())
        return self.model.fit(views.points[best], views.score[best] + 1e-3)[0]

    def _read(self, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        maps, sigma = self.net(blocks.to(self.log_sigma.device)), self._sigma()
        if self.tree is None:
            return peaks(maps, sigma, log=self.log)
        of = candidates(maps, CANDIDATES)
        volume = float(np.prod(self.cells)) * self.unit**self.ndim
        belief = self.tree.beliefs(of.places.cpu() * self.unit, of.log_mass.cpu(), volume).to(maps)
        best = belief.argmax(-1, keepdim=True)
        return peaks(maps, sigma, log=True, at=of.at.gather(-1, best)[..., 0])  # a belief is too sure to be a score


def usual_px(config: HeatmapConfig, ndim: int) -> int:
    """Of a block's longest side where neither the settings nor coarse images say so."""
    return (LONG if config.fitted else PX)[ndim]


def _whole(config: HeatmapConfig, ndim: int) -> int:
    """Voxels that a side is a multiple of."""
    halvings = len(config.maps or MAPS[ndim]) - 1
    return config.stem * max(2**halvings, SHRINK if config.spatial else 1)


def _reach(study: Study, anatomy: Anatomy, cover: float) -> Array:
    """(D,) mm half the sides of a block about where a search begins that holds the anatomy of nearly all cases, and
    little outside their images."""
    d = anatomy.mean.shape[1]
    most = np.full(d, cover * anatomy.radius / 2)
    if anatomy.rotations_deg > UPRIGHT_MOST_DEG:
        return most
    shapes = np.stack([c.landmarks.select(study.names).points for c in study.cases])
    away = np.abs(shapes - np.nanmedian(shapes, 1, keepdims=True))
    far = np.nanquantile(away.reshape(-1, d), 0.995, axis=0)
    reach = ROOM * far + anatomy.stray / 2
    some = [study.cases[i].grid(d) for i in spread(len(study.cases), 40)]
    sides = np.array([np.abs(g.axes) @ np.asarray(g.shape) for g in some])
    middle = np.abs(anatomy.offset) if d == 2 else sides.max(0)  # in 3D a search begins anywhere
    reach = np.minimum(reach, np.quantile(sides, 0.9, axis=0) / 2 + middle)
    return np.asarray(np.clip(reach, NARROWEST * reach.max(), most))
