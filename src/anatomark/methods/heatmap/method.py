"""Heatmap regression, the baseline that other methods are compared with: one map per landmark, and its peak.

Payer et al. (2016, 2019), and what nnU-Net-style systems do: a U-Net over the whole anatomy learns one Gaussian per
landmark (``recommended``), or its maps of the local appearance are multiplied by those of a branch that sees only
these, the SpatialConfiguration-Net (``scn``). The frame, poses, warps and changes of contrast are those of our own
recommended presets: a block in the frame of the mean shape, at a spacing given by the anatomy's size, read anew in the
pose that the points have.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from anatomark.cases.case import Case
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.core.shape import Pose
from anatomark.errors import InputError
from anatomark.methods.base import Batch, Method, PerLandmark, Stage, Study
from anatomark.methods.heatmap.net import LEAST_SIGMA, HeatmapNet, cross_entropy, peaks, squared_error
from anatomark.methods.kit.anatomy import AnatomyFacts, ShapeModel, adapted_anatomy
from anatomark.methods.kit.augment import PooledWarps, random_intensity
from anatomark.methods.kit.frame import FrameConfig, any_pose, first_poses, given_pose, prepare_frame, random_view
from anatomark.methods.kit.posed import Views, read_block, read_views, turned
from anatomark.methods.kit.working import Parts

TURN_DEG = 6.0  # of the views after the first
BLOCKS_AT_ONCE = 4


class HeatmapConfig(FrameConfig):
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
    lr: float = Field(default=2e-3, gt=0)
    batch: int | None = Field(default=None, ge=1)  # None: 4 in 2D, 2 in 3D
    steps: int = Field(default=6000, ge=1)


PX = {2: 256, 3: 80}
MAPS = {2: [32, 48, 64, 96, 128], 3: [16, 32, 48, 64]}
BATCH = {2: 4, 3: 2}


class Heatmap(Method):
    """The method ``heatmap``; see the module."""

    Config = HeatmapConfig
    Facts = AnatomyFacts
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"recommended": {}, "scn": {"spatial": 32}}
    aligned: ClassVar[bool] = True

    def __init__(self, config: HeatmapConfig, facts: AnatomyFacts):
        super().__init__()
        self.config, self.facts = config, facts
        self.names, self.ndim = tuple(facts.names), facts.ndim
        self.model = ShapeModel.from_facts(facts)
        self.log = config.loss == "softmax"
        maps = config.maps or MAPS[self.ndim]
        self.net = HeatmapNet(
            self.ndim, len(self.names), maps=maps, stem=config.stem, spatial=config.spatial, log=self.log
        )
        self.px = config.px or PX[self.ndim]
        if self.px % self.net.whole:
            raise InputError(f"method.px: {self.px} cannot be halved so often; take a multiple of {self.net.whole}")
        self.spacing = config.cover * facts.radius_mm / self.px
        self.cell = self.spacing * config.stem
        self.cells = self.px // config.stem
        self.log_sigma = torch.nn.Parameter(torch.full((len(self.names),), float(np.log(config.sigma))))
        self._warps = PooledWarps(self.ndim, facts.radius_mm, facts.warp_mm)

    # ------------------------------------------------------------------ what depends on the data

    @classmethod
    def prepare(cls, config: HeatmapConfig, study: Study) -> AnatomyFacts:
        """See :func:`anatomark.methods.kit.frame.prepare_frame`."""
        return AnatomyFacts(**prepare_frame(config, study)[1])

    @classmethod
    def adapted(cls, facts: AnatomyFacts, old: Any) -> AnatomyFacts:
        """``facts`` in the frame of another model's; see :func:`anatomark.methods.kit.anatomy.adapted_anatomy`."""
        return adapted_anatomy(facts, old) or facts

    def per_landmark(self) -> Mapping[str, int | PerLandmark]:
        """The maps, where they end and where the spatial configuration's branch reads and writes them."""
        rules: dict[str, int | PerLandmark] = {"net.head.*": 0, "log_sigma": 0}
        if self.net.spatial is not None:
            rules |= {"net.spatial.0.weight": 1, f"net.spatial.{len(self.net.spatial) - 1}.*": 0}
        return rules

    def stages(self) -> list[Stage]:
        c = self.config
        batch = c.batch or BATCH[self.ndim]
        return [
            Stage("heatmaps", c.steps, batch, lr=c.lr, warmup=100, weight_decay=1e-2, clip_norm=1.0, ema=0.998)
        ]  # fmt: skip

    def working_images(self, image: Image) -> dict[str, Image]:
        """``block``: block means towards the block's spacing."""
        return {"block": Parts(image, self.facts.intensity).whole(self.spacing)}

    # ------------------------------------------------------------------ training

    def examples(self, case: Case, stage: Stage, rng: np.random.Generator) -> Batch:
        """A random warp of the case in a random view; ``target`` (N, D) in cells from the middle, ``defined`` (N,): 0
        where it lies outside the block or there is none."""
        c = self.config
        image = case.images["block"]
        read, truth, pose = self._warps.warped(rng, self.model.mean, case.landmarks.points, c.warp_share)
        axes, centre = random_view(rng, pose, self.facts, c.scaling)
        block = read_block(image, centre[None], axes[None], self.px, self.spacing, read)[0].clamp_(0, 1.5)
        target = (truth - centre) @ np.linalg.inv(axes).T / self.cell
        defined = np.asarray(np.isfinite(target).all(1))
        target = np.where(defined[:, None], target, 0.0)
        defined &= (np.abs(target) < self.cells / 2).all(1)
        return {
            "block": random_intensity(block, rng, c.intensity),
            "target": torch.from_numpy(target).float(),
            "defined": torch.from_numpy(defined).float(),
        }

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
        loss = (apart * defined).sum() / defined.sum().clamp(min=1)
        if not self.config.learn_sigma:
            return {"loss": loss}
        penalty = self.config.sigma_penalty * sigma.square().mean()
        return {"loss": loss + penalty, "maps": loss.detach(), "sigma": sigma.mean().detach()}

    # ------------------------------------------------------------------ inference

    @torch.inference_mode()
    def locate(self, image: Image, start: Landmarks | None = None) -> Landmarks:
        """See :meth:`Method.locate`. Score: the share of the map that lies at its peak, 0 where that is outside the
        image; no probability. Covariance: of the maps about their peaks, and of the views."""
        self.eval()
        block = self.working_images(image)["block"]
        rng = np.random.default_rng(7)  # the same image gives the same answer
        pose = self._first_pose(block, rng) if start is None else given_pose(self.model, self.names, start)
        for _ in range(self.config.passes - 1):
            views = self._views(block, [pose])
            pose, _ = self.model.fit(views.points[0], views.score[0] + 1e-3)
        views = self._views(block, [pose, *turned(pose, rng, self.config.looks - 1, TURN_DEG)])
        points = np.median(views.points, 0)
        least = (0.02 * self.spacing) ** 2 * np.eye(self.ndim)
        score = views.score.mean(0) * image.grid.contains(points)
        return Landmarks(self.names, points, score=score, covariance=views.covariance_about(points) + least)

    def _first_pose(self, block: Image, rng: np.random.Generator) -> Pose:
        """See :func:`first_poses`; where any pose may come, the one of many whose peaks are the clearest."""
        poses = first_poses(self.facts, block, rng, self.config.starts)
        if not any_pose(self.facts):
            return poses[0]
        views = self._views(block, poses)
        best = int(views.score.mean(1).argmax())
        return self.model.fit(views.points[best], views.score[best] + 1e-3)[0]

    def _views(self, image: Image, poses: list[Pose]) -> Views:
        """What the blocks in these poses show."""
        return read_views(
            image, poses, self._read, px=self.px, spacing=self.spacing, unit=self.cell, at_once=BLOCKS_AT_ONCE
        )

    def _read(self, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return peaks(self.net(blocks.to(self.log_sigma.device)), self._sigma(), log=self.log)
