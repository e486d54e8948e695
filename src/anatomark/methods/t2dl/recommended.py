"""T2DL as we recommend it: cells of a block in the anatomy's pose vote for all landmarks, joint layers correct them.

As in Zhang et al. (2017) a network learns from patches the displacements of all landmarks, is then applied as a fully
convolutional network whose cells vote, and ends in layers that correct all coordinates jointly. Ours: the image is read
in the frame of the mean shape, at a spacing given by the anatomy's size; a cell knows where in that frame it lies and
says how each landmark departs from the mean shape, and how much its word is worth; its patch is wide enough to see the
pose, about the model's radius; the block is read anew in the pose that the points have, until it stands upright.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch.nn import functional as F

from anatomark.cases.case import Case
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.core.shape import Pose, procrustes
from anatomark.core.warp import Warp
from anatomark.methods.base import Batch, Batches, Channels, PerLandmark, Pixels, Rounds, Stage, Study, Task
from anatomark.methods.kit.anatomy import AnatomyFacts
from anatomark.methods.kit.augment import PointMap, random_intensity
from anatomark.methods.kit.frame import FINER, BlockMethod, FrameConfig, prepare_frame
from anatomark.methods.kit.layers import chunks
from anatomark.methods.kit.posed import turned
from anatomark.methods.kit.targets import agreement, average, logged, masked
from anatomark.methods.kit.working import Parts
from anatomark.methods.t2dl.net import BlockRegressor, JointLayers, weighted_vote
from anatomark.methods.t2dl.picture import Picture, PictureFacts, in_pose

MANY = 100  # landmarks from which on a network, or a search, for each of them costs too much
UNIT = 0.1  # radii: the length in which displacements are learned
TURN_DEG = 6.0  # of the views after the first
AT_ONCE = 96  # of many landmarks, that a step learns
PICTURE_PX, PICTURE_COVER = {2: 160, 3: 80}, 2.7  # voxels, at most, and radii along the mean picture's side
PICTURE_LEAST = 24  # voxels along it
PICTURED = 24  # cases, at most, that the mean picture is made of
LEFT_WARP = 0.2  # of training's largest warp, where the picture has drawn the case onto itself


class T2DLConfig(FrameConfig):
    """Settings of the recommended preset. All ours; lengths in the model's radius (largest distance of a landmark from
    the mean shape's centre) unless they say otherwise."""

    cells: Pixels | None = Field(default=None, ge=2)  # along the block's side; None: 8 in 2D, 3 in 3D
    cover: float = Field(default=3.0, gt=0)  # the block's side, patches' margins included
    maps: list[Channels] | None = Field(default=None, min_length=2)  # of the trunk; None: 32, 64, 128; in 3D 16, 32, 64
    narrow: Channels | None = Field(default=None, ge=4)  # of each cell's own layer; None: 64 in 2D, 96 in 3D
    hidden: Channels = Field(default=256, ge=8)
    dropout: float = Field(default=0.2, ge=0, lt=1)
    alpha: float = Field(default=0.5, gt=0)  # distance at which a cell's error counts 1/e in the first stage
    rank: Channels = Field(default=32, ge=1)  # of the joint layers
    decode: Literal["mean", "stage1", "votes", "full"] = "full"  # what the points are read from, for comparisons
    passes: Rounds = Field(default=4, ge=1)  # times that the block is read anew in the pose found
    settle: bool | None = None  # whether the mean picture draws the block onto itself before the views; None: in 3D
    settled_share: float = Field(default=0.4, ge=0, le=1)  # of training views that are drawn onto it
    field: bool | None = None  # whether landmarks share an affine field of each cell; None: where there are over 96
    looks: Rounds = Field(default=4, ge=1)  # slightly turned views of the last pass, averaged
    starts: Rounds = Field(default=24, ge=1)  # first rotations where any pose may come and nothing aligns
    batch: Batches = Field(default=8, ge=2)
    steps: int = Field(default=2000, ge=1)
    chunk: int = Field(default=256, ge=1)  # landmarks that vote at once when located


class T2DLFacts(AnatomyFacts):
    """``picture``: the mean picture that draws blocks onto itself, if there is one."""

    picture: PictureFacts | None = None


class T2DL(BlockMethod):
    """A fully convolutional patch regressor and joint layers in the frame of the anatomy."""

    Config = T2DLConfig
    Facts = T2DLFacts
    aligned: ClassVar[bool] = True
    taken_over: ClassVar[tuple[str, ...]] = ("picture",)
    places: torch.Tensor

    def __init__(self, config: T2DLConfig, facts: T2DLFacts):
        super().__init__(config, facts)
        n, d, flat = len(self.names), self.ndim, self.ndim == 2
        self.unit = UNIT * self.radius
        self.net = BlockRegressor(
            d,
            n,
            config.cells or (8 if flat else 3),
            maps=config.maps or ([32, 64, 128] if flat else [16, 32, 64]),
            narrow=config.narrow or (64 if flat else 96),
            hidden=config.hidden,
            dropout=config.dropout,
            field=n > AT_ONCE if config.field is None else config.field,
        )
        torch.nn.init.constant_(self.net.sharpness, float(np.log(UNIT / config.alpha)))
        self.joint = JointLayers(torch.from_numpy(self.mean / self.unit).float(), config.rank)
        self.px = self.net.px
        self.spacing = config.cover * self.radius / self.px
        self.register_buffer("places", (self.net.centres * (self.spacing / self.unit)).float(), persistent=False)
        self.picture: Picture | None = None
        if facts.picture is not None and config.decode == "full":
            self.picture = Picture.from_facts(facts.picture)
        self._forms: dict[str, Warp] = {}  # of the training cases, on the mean picture

    @classmethod
    def suits(cls, task: Task) -> str | None:
        """Of many landmarks, and in 3D where an alignment comes before it; fewer than four landmarks fix no pose to
        align by."""
        if task.landmarks > MANY:
            return f"{task.landmarks} landmarks, and its cost hardly grows with their number"
        if task.ndim == 3 and task.landmarks > task.ndim and task.align is not False:
            return "an alignment finds the pose without being taught"
        return None

    @classmethod
    def prepare(cls, config: T2DLConfig, study: Study) -> T2DLFacts:
        """In 3D also the mean picture, of at most ``PICTURED`` cases."""
        anatomy, frame = prepare_frame(config, study)
        settle = frame["ndim"] == 3 if config.settle is None else config.settle
        if not settle or config.decode != "full":
            return T2DLFacts(**frame, picture=None)
        side = PICTURE_COVER * anatomy.radius
        enough = 2 * math.ceil(side / (2 * FINER * anatomy.spacing))
        px = min(PICTURE_PX[frame["ndim"]], max(PICTURE_LEAST, enough))
        spacing = side / px
        annotated = [(c, c.landmarks.select(study.names)) for c in study.cases]
        annotated = [(c, landmarks) for c, landmarks in annotated if landmarks.defined.any()]
        some = annotated[:: -(-len(annotated) // PICTURED)]
        drawn = ((Parts(c.image(), study.intensity).whole(spacing), landmarks.points) for c, landmarks in some)
        return T2DLFacts(**frame, picture=Picture.of(drawn, anatomy.mean, px, spacing, anatomy.radius).facts())

    def per_landmark(self) -> Mapping[str, int | PerLandmark]:
        """What the cells say of each, and where the joint layers read and write it: they do not move a new one, nor
        look at it."""
        return {
            **dict.fromkeys(("net.out.*", "net.sure.*", "net.sharpness"), 0),
            **{f"joint.{key}": rule for key, rule in JointLayers.per_landmark.items()},
        }

    def stages(self) -> list[Stage]:
        """``patches``, then ``joint``, as far as :attr:`T2DLConfig.decode` needs them."""
        c = self.config
        usual: dict[str, Any] = {"weight_decay": 1e-4, "clip_norm": 1.0}
        first = Stage("patches", c.steps, c.batch, lr=2e-3, warmup=100, share=2.0, modules=("net",), **usual)
        if c.decode in ("mean", "stage1"):
            return [first]
        return [first, Stage("joint", c.steps, c.batch, lr=1e-3, share=3.0, modules=("net", "joint"), index=1, **usual)]

    def working_images(self, image: Image) -> dict[str, Image]:
        """``block``: block means towards the block's spacing; ``picture``: towards the mean picture's, if there is."""
        parts = Parts(image, self.facts.intensity)
        images = {"block": parts.whole(self.spacing)}
        return images if self.picture is None else {**images, "picture": parts.whole(self.picture.spacing)}

    def examples(self, case: Case, stage: Stage, rng: np.random.Generator) -> Batch:
        """A random warp of the case in a random view; some drawn onto the mean picture first, as in the end."""
        c = self.config
        truth = case.landmarks.points
        pose = procrustes(self.mean, truth)
        ways: list[PointMap] = []  # from what is shown to the image
        if settled := self.picture is not None and rng.random() < c.settled_share:
            form = self._form(case, pose)
            truth = pose.apply(form.inverse(pose.invert(truth), tolerance_mm=1e-4 * self.radius))
            ways = [in_pose(form, pose)]
        if rng.random() < c.warp_share:
            read, move = self._warps.draw(rng, pose, LEFT_WARP if settled else 1.0)
            truth, ways = move(truth), [read, *ways]
        pose = procrustes(self.mean, truth)
        axes, centre, _ = self._random_view(rng, pose)
        block = self._block(case.images["block"], centre, axes, _chain(ways))
        return {"block": random_intensity(block, rng, c.intensity), **masked(self._target(truth, centre, axes))}

    def loss(self, batch: Batch, stage: Stage) -> dict[str, torch.Tensor]:
        """First stage: every cell's error, weighted by its true distance from the landmark. Second: the error of the
        points that the votes make, before and after the joint layers."""
        features = self.net.features(batch["block"])
        rows: slice | torch.Tensor = slice(None)
        target, defined, places = batch["target"], batch["defined"], self.places[:, None]
        if many := len(self.names) > AT_ONCE:  # the votes of a thousand cost more than the network
            rows = torch.randperm(len(self.names), device=target.device)[:AT_ONCE]
            target, defined = target[:, rows], defined[:, rows]
        votes = self._absolute_votes(features, rows)
        own = F.smooth_l1_loss(votes, target[:, None].expand_as(votes), reduction="none", beta=0.2).sum(-1)
        away = (target[:, None] - places).norm(dim=-1) * UNIT
        weight = torch.exp(-away / self.config.alpha) * defined[:, None]
        cells = (own * weight).sum() / weight.sum().clamp(min=1e-6)
        if stage.index == 0:
            return {"loss": cells}
        sharpness, sure = self.net.sharpness[rows].exp(), self.net.confidence(features, rows)
        points, _ = weighted_vote(votes - places, self.places, sharpness, sure)
        voted = _miss(points, target, defined)
        # of a part there is nothing joint to learn
        full = voted if many else _miss(self.joint(points), target, defined)
        return logged(0.2 * cells + voted + full, cells=cells, votes=voted, full=full)

    def _absolute_votes(self, features: torch.Tensor, rows: slice | torch.Tensor) -> torch.Tensor:
        """(B, K, n, D) where the cells say that the landmarks ``rows`` lie."""
        mean = self.joint.mean.view(-1, self.ndim)[rows]
        return self.net.votes(features, rows, (mean - self.places[:, None]) * UNIT) + mean

    def _form(self, case: Case, pose: Pose) -> Warp:
        """The field that draws the case onto the mean picture."""
        assert self.picture is not None
        if case.id not in self._forms:
            self._forms[case.id] = self.picture.draw(case.images["picture"], pose)
        return self._forms[case.id]

    @torch.inference_mode()
    def locate(self, image: Image, start: Landmarks | None = None) -> Landmarks:
        """Score: how well the votes agree (:func:`agreement`); no probability. Covariance: of the votes and of the
        views."""
        self.eval()
        images = self.working_images(image)
        block = images["block"]
        rng = np.random.default_rng(7)  # the same image gives the same answer
        pose = self._first_pose(block, rng) if start is None else self._guessed_pose(start)
        for _ in range(self.config.passes - 1):
            pose, _ = self.model.fit(self._views(block, [pose]).points[0])
        way, drawn, weight = None, np.zeros(self.ndim), 0.0
        if self.picture is not None:
            pose, form = self.picture.settle(images["picture"], pose, self.mean)
            way = in_pose(form, pose)
            drawn, weight = way(pose.apply(self.mean)), self.picture.weight
        views = self._views(block, [pose, *turned(pose, rng, self.config.looks - 1, TURN_DEG)], way)
        points = (1 - weight) * np.median(views.points, 0) + weight * drawn
        covariance = views.covariance_about(points)
        return self._landmarks(points, covariance, agreement(covariance, self.radius))

    def _first_pose(self, block: Image, rng: np.random.Generator) -> Pose:
        """Where any pose may come, the one of many whose votes agree best."""
        poses = self._first_poses(block, rng, self.config.starts)
        if not self._any_pose:
            return poses[0]
        for _ in range(2):
            poses = [self.model.fit(p)[0] for p in self._views(block, poses).points]
        views = self._views(block, poses)
        return poses[int(np.trace(views.covariance, axis1=2, axis2=3).mean(1).argmin())]

    def _read(self, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A view has no score (1)."""
        decode, mean, learned = self.config.decode, self.joint.mean.view(-1, self.ndim), self.net.sharpness.exp()
        features = self.net.features(blocks.to(self.places.device))
        points, clouds = [], []
        for rows in chunks(len(self.names), self.config.chunk):
            votes = self._absolute_votes(features, rows) - self.places[:, None]
            plain = decode == "stage1"
            sharpness = torch.full_like(learned, UNIT / self.config.alpha) if plain else learned
            confidence = None if plain else self.net.confidence(features, rows)
            voted, cloud = weighted_vote(votes, self.places, sharpness[rows], confidence)
            points.append(voted)
            clouds.append(cloud)
        out, cloud = torch.cat(points, 1), torch.cat(clouds, 1)
        if decode == "mean":
            out = mean.expand_as(out)
        return (self.joint(out) if decode == "full" else out), cloud, out.new_ones(out.shape[:2])


def _chain(ways: list[PointMap]) -> PointMap | None:
    return (lambda world: functools.reduce(lambda at, way: way(at), ways, world)) if ways else None


def _miss(points: torch.Tensor, target: torch.Tensor, defined: torch.Tensor) -> torch.Tensor:
    """Mean distance of points from the truth, squared near zero."""
    return average(F.smooth_l1_loss(points, target, reduction="none", beta=0.1).sum(-1), defined)
