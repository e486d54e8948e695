"""T2DL as published (Zhang, Liu, Shen, IEEE TIP 2017): preset ``paper``, for 2D and 3D.

Stage ``patches``: a network regresses from a patch of its receptive field to the displacements of all landmarks. Stage
``joint``: the same weights as a fully convolutional network see the whole image, every cell votes for all landmarks,
and a few layers more correct all coordinates at once. The method reads voxels along the image's axes and knows where
in the world they lie: it wants images that were aligned to a template before. Displacements are mm along the image's
axes, divided by S (``displacement_mm``). What could not be established and is ours: the network's exact size, how a
vote's weight falls with its length, the rank of the joint layers, and the share of augmented examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from anatomark.cases.case import Case
from anatomark.core.grid import Array
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.core.shape import procrustes
from anatomark.errors import InputError
from anatomark.methods.base import (
    Batch,
    Batches,
    Channels,
    Coordinate,
    Evidence,
    Length,
    MethodConfig,
    PerLandmark,
    Stage,
    Study,
)
from anatomark.methods.kit.anatomy import Anatomy, AnatomyFacts
from anatomark.methods.kit.augment import PointMap, random_intensity
from anatomark.methods.kit.frame import PosedMethod
from anatomark.methods.kit.layers import chunks, device_of
from anatomark.methods.kit.posed import read_block
from anatomark.methods.kit.targets import average
from anatomark.methods.kit.working import cut
from anatomark.methods.t2dl.net import (
    STRIDE,
    ExtraLayers,
    JointLayers,
    PatchRegressor,
    distance_weighted_loss,
    weighted_vote,
)
from anatomark.methods.t2dl.working import (
    along,
    bright_points,
    clipped_image,
    default_lengths,
    default_spacing,
    first_voxels,
    read_warped,
    z_score,
)

CASES = 8  # training cases whose images are looked at
INTENSITY = 0.5  # strength of the change of contrast in augmented examples
LEAST_SD = 0.1  # voxels: no vote is surer


class PaperT2DLConfig(MethodConfig):
    """Settings. ``spacing_mm`` of the working grid; None: a whole multiple of the training images', about 220 voxels
    along the longer side. ``displacement_mm``: S; None: 50 for heads in 3D, else the median distance of a landmark from
    a place in the image. ``alpha_mm``: of the distance-weighted loss; None: 40 for heads in 3D, else 0.2 diagonals.
    ``vote_share``: alpha of the vote against that of the loss, fixed in stage 1, where learning begins in stage 2.
    ``near``: standard deviation of the patches around the landmarks, in patches. ``augment``: share of the examples
    that are warped and changed in contrast (the paper's: 0). ``huber_mm``: None: squared coordinate loss. ``decode``:
    what is located, and trained: the ``mean`` shape, ``stage1``'s vote, the learned ``votes``, or ``full``."""

    spacing_mm: float | None = Field(default=None, gt=0)
    displacement_mm: float | None = Field(default=None, gt=0)
    alpha_mm: float | None = Field(default=None, gt=0)
    vote_share: float = Field(default=0.1, gt=0)
    maps: list[Channels] = Field(default=[32, 64, 128], min_length=3, max_length=3)
    hidden: Channels = Field(default=512, ge=1)
    per_block: int = Field(default=1, ge=1, le=2)
    dropout: float = Field(default=0.5, ge=0, lt=1)
    rank: Channels = Field(default=64, ge=1, le=64)
    decode: Literal["mean", "stage1", "votes", "full"] = "full"
    near: float = Field(default=0.25, ge=0)
    augment: float = Field(default=0.25, ge=0, le=1)
    batch: Batches = Field(default=4, ge=1)
    patches: Batches = Field(default=16, ge=2)
    lr: float = Field(default=1e-3, gt=0)
    steps_patches: int = Field(default=60_000, ge=1)
    freeze_stage1: bool = False
    huber_mm: float | None = Field(default=None, gt=0)
    lr_joint: float = Field(default=1e-4, gt=0)
    lr_shared: float = Field(default=1e-5, gt=0)
    steps_joint: int = Field(default=20_000, ge=1)
    chunk: int = Field(default=128, ge=1)


class PaperT2DLFacts(AnatomyFacts):
    """``mean_world`` (N, D) mm: the mean of the landmarks where they lie, ``spread_mm`` (N,): root mean square distance
    from it along an axis; lengths as in the config."""

    spacing_mm: Length
    displacement_mm: Length
    alpha_mm: Length
    mean_world: list[list[Coordinate]]
    spread_mm: list[Annotated[float, Field(ge=0, le=1e6)]]

    @model_validator(mode="after")
    def _in_world(self) -> PaperT2DLFacts:
        self.check_points("mean_world", self.mean_world)
        if len(self.spread_mm) != len(self.names):
            raise ValueError(f"spread_mm: holds {len(self.spread_mm)} numbers for {len(self.names)} landmarks")
        return self


class PaperT2DL(PosedMethod):
    """A patch regressor, then the whole image with joint layers, with the published settings."""

    Config = PaperT2DLConfig
    Facts = PaperT2DLFacts
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {}}
    aligned: ClassVar[bool] = True
    axis_bound: ClassVar[bool] = True

    def __init__(self, config: PaperT2DLConfig, facts: PaperT2DLFacts):
        super().__init__(config, facts)
        c = config
        self.spacing, self.unit = facts.spacing_mm, facts.displacement_mm
        self.alpha = facts.alpha_mm / self.unit
        self.mean_world: Array = np.asarray(facts.mean_world)
        self.origin: Array = self.mean_world.mean(0)  # what the joint layers see is counted from here
        shape: dict[str, Any] = {"maps": c.maps, "hidden": c.hidden, "per_block": c.per_block, "dropout": c.dropout}
        self.net = PatchRegressor(self.ndim, len(facts.names), **shape)
        mean = torch.from_numpy((self.mean_world - self.origin) / self.unit)
        self.extra = ExtraLayers(mean, self.alpha * c.vote_share, c.rank)
        self.joint_trained = True

    @classmethod
    def prepare(cls, config: PaperT2DLConfig, study: Study) -> PaperT2DLFacts:
        """Spacing, S, alpha and mean shape from the training cases. Raises InputError where the images are smaller than
        a patch at the spacing."""
        anatomy = Anatomy.of(study.cases, study.names, study.intensity)
        shapes = np.stack([c.landmarks.select(study.names).points for c in study.cases])
        some = np.unique(np.linspace(0, len(shapes) - 1, CASES).astype(int))
        grids = [study.cases[i].image().grid.canonical() for i in some]
        spacing = config.spacing_mm or default_spacing(grids)
        patch = PatchRegressor(2, 1, maps=(1, 1, 1), hidden=1, per_block=config.per_block).patch
        longest = max(grids[0].extent_mm) / spacing
        if longest < patch:
            raise InputError(
                f"case {study.cases[0].id!r}: has only {longest:.0f} voxels along its longer side at method.spacing_mm "
                f"{spacing:g}; a patch has {patch}: set a finer method.spacing_mm, or use `preset` recommended"
            )
        lengths: dict[str, Any] = {"spacing_mm": spacing, **default_lengths(grids, shapes[some])}
        lengths.update({k: v for k in lengths if (v := getattr(config, k)) is not None})
        mean = np.nanmean(shapes, 0)
        spread = np.sqrt(np.nanmean((shapes - mean) ** 2, (0, 2)))
        own = {**lengths, "mean_world": mean.tolist(), "spread_mm": spread.tolist()}
        return PaperT2DLFacts(**study.facts(shapes.shape[2]), **anatomy.facts(shift=0.0), **own)

    @classmethod
    def adapted(cls, facts: PaperT2DLFacts, old: PaperT2DLFacts) -> PaperT2DLFacts:
        """``facts`` with another model's spacing and units."""
        kept = {k: getattr(old, k) for k in ("spacing_mm", "displacement_mm", "alpha_mm")}
        return facts if facts.ndim != old.ndim else facts.model_copy(update=kept)

    def per_landmark(self) -> Mapping[str, int | PerLandmark]:
        """The last layer, the vote's alpha, and where the joint layers read and write each."""
        joint = {f"extra.joint.{key}": rule for key, rule in JointLayers.per_landmark.items()}
        return {"net.out.*": 0, "extra.log_alpha": 0, **joint}

    def stages(self) -> list[Stage]:
        """``patches`` and ``joint``, as far as :attr:`PaperT2DLConfig.decode` needs them."""
        c = self.config
        first = Stage("patches", c.steps_patches, c.batch, c.lr, warmup=0, modules=("net",))
        shared = c.lr_shared / c.lr_joint
        modules, rates = (("extra",), ()) if c.freeze_stage1 else (("net", "extra"), (shared, 1.0))
        # one image at a time: they may differ in size
        second = Stage(
            "joint", c.steps_joint, 1, c.lr_joint, warmup=0, share=0.5, modules=modules, rates=rates, index=1
        )
        return {"mean": [], "stage1": [first]}.get(c.decode, [first, second])

    def begin(self, stage: Stage, evidence: Evidence) -> None:
        """Until ``joint`` is trained :meth:`locate` ends with the vote of stage 1."""
        self.joint_trained = stage.index == 1

    def working_images(self, image: Image) -> dict[str, Image]:
        """``work``: see :func:`clipped_image`; at least a patch in size."""
        return {"work": clipped_image(image, self.spacing, self.facts.intensity, self.net.patch)}

    def examples(self, case: Case, stage: Stage, rng: np.random.Generator) -> Batch:
        """Patches (M, 1, *P) with ``goal`` (M, N, D) in units; or the whole ``image`` (1, *S) with ``points`` (N, D)
        from the mean shape's centre, in units, and ``axes`` (D, D) and ``corner`` (D,) of the image in that frame.
        ``defined`` (N,): 0 = no truth."""
        work, truth = case.images["work"], case.landmarks.points
        read: PointMap | None = None
        if rng.random() < self.config.augment and np.isfinite(truth).all(1).sum() >= self.ndim:
            read, move = self._warps.draw(rng, procrustes(self.mean, truth))
            truth = move(truth)
        defined = np.asarray(np.isfinite(truth).all(1))
        axes = along(work.grid)
        if stage.index == 1:
            values = torch.from_numpy(np.asarray(work.array)) if read is None else read_warped(work, read)
            start = (work.grid.origin - self.origin) / self.unit
            numbers = {"points": (truth - self.origin) / self.unit, "axes": axes, "corner": start}
        else:
            count, side = self.config.patches, self.net.patch
            wanted = bright_points(work, count - count // 2, rng)
            wanted = wanted if read is None else move(wanted)
            aside = rng.normal(0, self.config.near * side * self.spacing, (count // 2, self.ndim))
            near = wanted[: count // 2]
            if defined.any():
                near = truth[defined][rng.integers(defined.sum(), size=count // 2)]
            first = first_voxels(work.grid, np.concatenate([wanted, near + aside]), side)
            centres = work.grid.to_world(first + (side - 1) / 2)
            turned = np.repeat(axes[None], count, 0)
            if read is None:
                values = torch.from_numpy(cut(work.array[0], first, side))[:, None]
            else:
                values = read_block(work, centres, turned, side, self.spacing, read)
            numbers = {"goal": (truth - centres[:, None]) @ axes / self.unit}
        if read is not None:
            values = random_intensity(values, rng, INTENSITY)
        return {
            "image" if stage.index == 1 else "patches": z_score(values, work),
            **{k: torch.from_numpy(np.nan_to_num(v)).float() for k, v in numbers.items()},
            "defined": torch.from_numpy(defined).float(),
        }

    def loss(self, batch: Batch, stage: Stage) -> dict[str, torch.Tensor]:
        """Distance-weighted squared error of the patches; squared (or Huber) error of the points, in units."""
        defined = batch["defined"]
        if stage.index == 0:
            images, goal = batch["patches"].flatten(0, 1), batch["goal"].flatten(0, 1)
            votes = self.net.votes(self.net.features(images))[:, 0]
            defined = defined.repeat_interleave(batch["patches"].shape[1], 0)
            return {"loss": distance_weighted_loss(votes, goal, defined, self.alpha)}
        self.net.eval()  # the statistics of stage 1 stay, and no dropout: as when a point is located
        with torch.set_grad_enabled(not self.config.freeze_stage1):
            features = self.net.features(batch["image"])
        points, _ = self._vote(features, batch["image"].shape[2:], self.extra.sharpness())
        points = torch.einsum("bij,bnj->bni", batch["axes"], points) + batch["corner"][:, None]
        voted = self._miss(points, batch["points"], defined)
        if self.config.decode == "votes":
            return {"loss": voted}
        return {"loss": self._miss(self.extra.joint(points), batch["points"], defined), "votes": voted.detach()}

    def _miss(self, points: torch.Tensor, truth: torch.Tensor, defined: torch.Tensor) -> torch.Tensor:
        far = self.config.huber_mm
        if far is None:
            error = (points - truth).square()
        else:
            error = F.huber_loss(points, truth, reduction="none", delta=far / self.unit)
        return average(error.sum(-1), defined)

    def _vote(
        self, features: torch.Tensor, shape: torch.Size, sharpness: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Points (B, N, D) from the first voxel along the image's axes, and covariance (B, N, D, D), in units; some
        landmarks at a time, whose votes are not kept for the gradients either."""
        centres = self.net.centres(shape).to(features) * (self.spacing / self.unit)

        def some(rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
            return weighted_vote(self.net.votes(features, rows), centres, sharpness[rows])

        keep, parts = torch.is_grad_enabled(), chunks(len(self.names), self.config.chunk)
        votes = [checkpoint(some, r, use_reentrant=False) if keep else some(r) for r in parts]
        return torch.cat([p for p, _ in votes], 1), torch.cat([c for _, c in votes], 1)

    @torch.inference_mode()
    def locate(self, image: Image, start: Landmarks | None = None) -> Landmarks:
        """A first guess is not used: every cell of the image votes. Covariance: of the votes. Score: exp(-s / c), s the
        votes' standard deviation along an axis and c the distance of two cells; 0 where the point lies outside the
        image. How well the votes agree; no probability."""
        self.eval()
        decode = self.config.decode
        if decode == "mean":
            covariance = np.square(self.facts.spread_mm)[:, None, None] * np.eye(self.ndim)
            return self._landmarks(image, self.mean_world, covariance)
        if not self.joint_trained:
            decode = "stage1"
        work = self.working_images(image)["work"]
        x = z_score(torch.from_numpy(work.array), work)[None].to(device_of(self))
        features = self.net.features(x)
        plain = torch.full_like(self.extra.log_alpha, 1 / (self.alpha * self.config.vote_share))
        voted, cloud = self._vote(features, x.shape[2:], plain if decode == "stage1" else self.extra.sharpness())
        axes = along(work.grid) * self.unit
        points = work.grid.origin + voted[0].double().cpu().numpy() @ axes.T
        if decode == "full":
            local = torch.from_numpy((points - self.origin) / self.unit).to(x)
            points = points + (self.extra.joint(local[None])[0] - local).double().cpu().numpy() * self.unit
        return self._landmarks(image, points, axes @ cloud[0].double().cpu().numpy() @ axes.T)

    def _landmarks(self, image: Image, points: Array, covariance: Array) -> Landmarks:
        covariance = covariance + (LEAST_SD * self.spacing) ** 2 * np.eye(self.ndim)
        sd = np.sqrt(np.trace(covariance, axis1=1, axis2=2) / self.ndim)
        score = np.exp(-sd / (STRIDE * self.spacing)) * image.grid.contains(points)
        return Landmarks(self.names, points, score=score, covariance=covariance)
