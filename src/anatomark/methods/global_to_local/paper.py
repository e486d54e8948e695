"""Global-to-local localisation as published (Noothout et al., IEEE TMI 2020): preset ``paper`` (2D as for their
cephalograms, 3D as for their CCTA), and one preset for each of their applications.

One network sees the whole image on an isotropic working grid; each of its cells says how likely it holds a landmark
and how far away each landmark is, and all cells vote. Then one small network for each landmark looks at 16 voxels a
side around that estimate, in the same way. An image is tiled into cells of ``stride`` q voxels; cell i has its centre
at q i + (q - 1) / 2. Points, displacements and covariances are in voxels of the working grid, components in the order
of the array's axes (z, y, x); maps are (B, N, *cells) logits and (B, N, D, *cells) logarithmic displacements. What
differs from the paper: training images come in shuffled rounds, the N local networks are trained side by side (each on
its own loss), the warm restarts fit the number of steps (the published one gives the published periods), and
convolutions run in bf16 where the machine is fast at it (``precision: fp32`` for float32). First guesses, other
dimensions and the options ``vote`` and ``intensity`` are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch.nn import functional as F

from anatomark.cases.case import Case
from anatomark.core.grid import Array
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks, Status
from anatomark.errors import InputError
from anatomark.methods import base
from anatomark.methods.base import (
    Batch,
    Batches,
    Channels,
    Evidence,
    Length,
    MethodConfig,
    PerLandmark,
    Pixels,
    Stage,
    Study,
)
from anatomark.methods.global_to_local.net import displacement, log_displacement
from anatomark.methods.global_to_local.paper_net import GlobalFCNN, LocalFCNNs, Maps
from anatomark.methods.kit.layers import device_of, evaluating
from anatomark.methods.kit.targets import logged, masked
from anatomark.methods.kit.working import VoxelMethod, cut, working_grid

Vote = Literal["posterior", "positive"]

LEAST_MASS = 1e-6  # below this sum of posteriors nobody votes but the most probable cell
LEAST_CELLS = 2  # an image with fewer along an axis is surely at the wrong spacing

_CCTA = {"spacing_mm": 1.5, "pools": [True, True, False, False], "crop_px": 72, "classification_weight": 8.0}
APPLICATIONS: dict[str, dict[str, Any]] = {
    "cephalogram": {"spacing_mm": 0.1, "pools": [True] * 4, "crop_px": 992, "classification_weight": 20.0},
    "ccta": _CCTA,
    "olfactory-mr": {**_CCTA, "spacing_mm": 0.47, "classification_weight": 2.0},
}
OF_DIMENSION = {2: "cephalogram", 3: "ccta"}


class PaperGlobalToLocalConfig(MethodConfig):
    """Settings; the defaults are the paper's, and what is None is that of the cephalograms (2D) or of CCTA (3D).

    ``spacing_mm``: of the working grid. ``pools``: average pooling before which of the four groups; the output stride
    is 2 for the first convolution and 2 more for each. ``crop_px``: side of the training crops, a multiple of the
    stride. ``classification_weight``: lambda of the global network (about the number of landmarks). ``local_cycles``:
    warm restarts of doubling periods in ``steps_local`` (5: the first period is 10,000 of 310,000). ``intensity``
    ``study`` normalises by the training set's rule.
    """

    spacing_mm: float | None = Field(None, gt=0)
    pools: list[bool] | None = Field(None, min_length=4, max_length=4)
    crop_px: int | None = Field(None, ge=2, le=8192)
    classification_weight: float | None = Field(None, ge=0)
    widths: list[Channels] = Field([32, 64, 128, 256], min_length=4, max_length=4)
    blocks: list[Annotated[int, Field(le=64)]] = Field([3, 4, 6, 3], min_length=4, max_length=4)
    local_px: Pixels = Field(16, ge=4, multiple_of=2)
    local_widths: list[Channels] = Field([32, 64], min_length=2, max_length=2)
    local_classification_weight: float = Field(1.0, ge=0)
    local_cycles: int = Field(5, ge=1)
    vote: Vote = "posterior"
    intensity: Literal["none", "study"] = "none"
    batch: Batches = Field(4, ge=1)
    lr: float = Field(1e-3, gt=0)
    steps_global: int = Field(300_000, ge=1)
    steps_local: int = Field(310_000, ge=1)

    @field_validator("widths", "blocks", "local_widths")
    @classmethod
    def _positive(cls, value: list[int]) -> list[int]:
        if min(value) < 1:
            raise ValueError("every entry is 1 or more")
        return value


class PaperGlobalToLocalFacts(base.Facts):
    """The settings that depend on the dimension; see the config."""

    spacing_mm: Length
    pools: list[bool] = Field(min_length=4, max_length=4)
    crop_px: int = Field(ge=2, le=8192)
    classification_weight: float = Field(ge=0, le=1e9)


class PaperGlobalToLocal(VoxelMethod):
    """A global FCNN, then one local FCNN for each landmark, with the published settings."""

    Config = PaperGlobalToLocalConfig
    Facts = PaperGlobalToLocalFacts
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        **{f"paper-{name}": settings for name, settings in APPLICATIONS.items()},
    }

    def __init__(self, config: PaperGlobalToLocalConfig, facts: PaperGlobalToLocalFacts):
        super().__init__(config, facts)
        n, c = len(facts.names), config
        self.global_net = GlobalFCNN(self.ndim, n, facts.pools, widths=c.widths, blocks=c.blocks)
        self.local_nets = LocalFCNNs(self.ndim, n, widths=(c.local_widths[0], c.local_widths[1]))
        self.local_trained = True

    @classmethod
    def prepare(cls, config: PaperGlobalToLocalConfig, study: Study) -> PaperGlobalToLocalFacts:
        """The settings that depend on the dimension. Raises InputError where a crop is no multiple of the output
        stride, and where the images have next to no voxels at the spacing."""
        grid = study.cases[0].image().grid.canonical()
        own = dict(APPLICATIONS[OF_DIMENSION[grid.ndim]])
        own.update({k: getattr(config, k) for k in own if getattr(config, k) is not None})
        facts = PaperGlobalToLocalFacts(**study.facts(grid.ndim), **own)
        stride = 2 ** (1 + sum(facts.pools))
        if facts.crop_px % stride:
            raise InputError(f"method.crop_px {facts.crop_px}: must be a multiple of the output stride, {stride}")
        voxels = working_grid(grid, facts.spacing_mm).shape
        if min(voxels) < LEAST_CELLS * stride:
            raise InputError(
                f"case {study.cases[0].id!r}: has only {' x '.join(map(str, voxels))} voxels at method.spacing_mm "
                f"{facts.spacing_mm:g}; at least {LEAST_CELLS * stride} a side are needed: set a finer "
                "method.spacing_mm, or use `preset` recommended"
            )
        return facts

    def stages(self) -> list[Stage]:
        """The global network at a constant rate; all local networks with cosine warm restarts. AMSGrad."""
        c = self.config
        return [
            Stage("global", c.steps_global, c.batch, c.lr, "constant", 0, amsgrad=True, modules=("global_net",)),
            Stage("local", c.steps_local, c.batch, c.lr, "restarts", 0, amsgrad=True, modules=("local_nets",),
                  share=0.5, cycles=c.local_cycles, index=1),
        ]  # fmt: skip

    def begin(self, stage: Stage, evidence: Evidence) -> None:
        """Local networks that are not trained yet are left out of :meth:`locate`."""
        self.local_trained = stage.index == 1

    def per_landmark(self) -> Mapping[str, int | PerLandmark]:
        """The local networks, and the last layers of the global one."""
        return dict.fromkeys(("local_nets.*", "global_net.classify.4.*", "global_net.regress.4.*"), 0)

    def examples(self, case: Case, stage: Stage, rng: np.random.Generator) -> Batch:
        """A random crop (global: ``image`` (1, *S)), or for each landmark a sub-image with the landmark anywhere in it
        (local: ``image`` (N, *S)); ``points`` (N, D) in crop voxels; ``defined`` and ``judged`` as in ``vote_loss``."""
        work = case.images["work"]
        points = work.grid.to_index(case.landmarks.points)
        defined = np.asarray(np.isfinite(points).all(1))
        judged = np.array([s is not Status.UNANNOTATED for s in case.landmarks.status])
        size = np.asarray(work.grid.shape)
        if stage.index == 0:
            first = rng.integers(0, np.maximum(size - self.facts.crop_px, 0) + 1)[None]
            image = cut(work.array[0], first, self.facts.crop_px)
        else:
            side = self.config.local_px
            # the landmark lies in any of the sub-image's voxels; one that is not defined lies anywhere
            middle = np.where(defined[:, None], points, rng.uniform(0, size, points.shape))
            first = np.floor(middle + 0.5).astype(np.int64) - rng.integers(0, side, points.shape)
            image = cut(work.array[0], first, side)
            judged = defined  # an absent landmark has no sub-image
        truth = masked(points - first, names=("points", "defined"))
        return {"image": torch.from_numpy(image), **truth, "judged": torch.from_numpy(judged).float()}

    def loss(self, batch: Batch, stage: Stage) -> dict[str, torch.Tensor]:
        """Mean absolute error + lambda x binary cross entropy; of the local networks each has its own."""
        local = stage.index == 1
        net = self.local_nets if local else self.global_net
        weight = self.config.local_classification_weight if local else self.facts.classification_weight
        truth = (batch["points"], batch["defined"], batch["judged"])
        return vote_loss(net(batch["image"]), *truth, stride=net.stride, weight=weight, separate=local)

    def locate(self, image: Image, start: Landmarks | None = None) -> Landmarks:
        """With ``start`` the global network runs only if a landmark has no first guess. Score: the largest posterior of
        the last stage; covariance: of its votes; ``meta["posterior_mass"]``: the sum of its posteriors."""
        work = self.working_images(image)["work"]
        guess = None if start is None else work.grid.to_index(start.select(self.names).points)
        with evaluating(self), torch.inference_mode():
            if guess is None or not np.isfinite(guess).all():
                votes = self._globally(work)
                global_points = votes.points[0].cpu().numpy()
                guess = global_points if guess is None else np.where(np.isfinite(guess), guess, global_points)
            if self.local_trained or start is not None:
                votes, first = self._locally(work, guess)
                guess = votes.points[0].cpu().numpy() + first
        axes = work.grid.axes
        return Landmarks(
            self.names,
            work.grid.to_world(guess),
            score=votes.score[0].cpu().numpy(),
            covariance=axes @ votes.covariance[0].cpu().numpy() @ axes.T,
            descriptions=tuple(self.facts.descriptions),
            meta={"posterior_mass": votes.mass[0].tolist()},
        )

    def _globally(self, work: Image) -> Votes:
        """The whole image, zero-padded at the far end to a multiple of the stride."""
        stride = self.global_net.stride
        padded = np.zeros((1, *(n + -n % stride for n in work.grid.shape)), dtype=work.array.dtype)
        padded[(slice(None), *(slice(n) for n in work.grid.shape))] = work.array
        logits, moves = self.global_net(torch.from_numpy(padded)[None].to(device_of(self)))
        return decode(logits, moves, stride, self.config.vote)

    def _locally(self, work: Image, centres: Array) -> tuple[Votes, NDArray[np.int64]]:
        """Votes in sub-images centred on ``centres`` (N, D) voxels, and their first voxels (N, D)."""
        side = self.config.local_px
        limit = 2.0 * np.asarray(work.grid.shape) + side  # a diverged guess must not overflow an index
        first = np.round(np.clip(np.nan_to_num(centres), -limit, limit) - (side - 1) / 2).astype(np.int64)
        images = torch.from_numpy(cut(work.array[0], first, side)).to(device_of(self))
        logits, moves = self.local_nets(images[None])
        return decode(logits, moves, self.local_nets.stride, self.config.vote), first


# ---------------------------------------------------------------------- what a cell is taught, and how cells vote


def cell_centres(cells: Sequence[int], stride: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """(D, *cells) the cells' centres, voxels, float32."""
    lines = [torch.arange(n, device=device) * stride + (stride - 1) / 2 for n in cells]
    return torch.stack(torch.meshgrid(*lines, indexing="ij"))


def targets(points: torch.Tensor, cells: Sequence[int], stride: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Occupancy (B, N, *cells), 1 in the cell that contains the landmark (nowhere if none does), and logarithmic
    displacements (B, N, D, *cells) of landmarks at ``points`` (B, N, D)."""
    d = len(cells)
    centres = cell_centres(cells, stride, points.device)
    towards = log_displacement(points.view(*points.shape, *(1,) * d) - centres)
    at = torch.floor((points + 0.5) / stride)
    occupied = torch.ones((), dtype=points.dtype, device=points.device)
    for a, n in enumerate(cells):
        view = [1] * d
        view[a] = n
        line = torch.arange(n, device=points.device, dtype=points.dtype) == at[..., a, None]
        occupied = occupied * line.view(*points.shape[:-1], *view)
    return occupied, towards


def vote_loss(
    maps: Maps,
    points: torch.Tensor,
    defined: torch.Tensor,
    judged: torch.Tensor,
    *,
    stride: int,
    weight: float,
    separate: bool = False,
) -> dict[str, torch.Tensor]:
    """Mean absolute error of the displacements + ``weight`` x mean binary cross entropy of the posteriors.

    ``maps`` logits and displacements; ``points`` (B, N, D); ``defined`` (B, N) 1 where the position is given, else no
    displacement is learned; ``judged`` (B, N) 1 where it is known whether and where the landmark is there (an absent
    one has a posterior of 0 everywhere), else no posterior is learned. Means are over all landmarks, cells and axes;
    ``separate``: over each landmark's own, and added up, as N networks trained one by one would have them.
    """
    logits, moves = maps
    cells = logits.shape[2:]
    # a point that is not defined must not put NaN into the gradients
    here = torch.where(defined[..., None] > 0, points, points.new_full((), -1e4))
    occupied, towards = targets(here, cells, stride)
    absolute = (moves - towards).abs().flatten(2).mean(2)
    cross = F.binary_cross_entropy_with_logits(logits, occupied, reduction="none").flatten(2).mean(2)
    axes = (0,) if separate else (0, 1)
    regression = ((absolute * defined).sum(axes) / defined.sum(axes).clamp(min=1)).sum()
    classification = ((cross * judged).sum(axes) / judged.sum(axes).clamp(min=1)).sum()
    return logged(regression + weight * classification, regression=regression, classification=classification)


@dataclass(frozen=True)
class Votes:
    """What the cells say of each landmark: ``points`` (B, N, D) voxels, ``score`` (B, N) the largest posterior,
    ``mass`` (B, N) the sum of posteriors, ``covariance`` (B, N, D, D) of the votes, voxels^2 (NaN where a single cell
    voted). Float64."""

    points: torch.Tensor
    score: torch.Tensor
    mass: torch.Tensor
    covariance: torch.Tensor


def decode(logits: torch.Tensor, moves: torch.Tensor, stride: int, vote: Vote = "posterior") -> Votes:
    """x = sum_p pi_p (c_p + g^-1(r_p)) / sum_p pi_p over all cells p.

    ``vote`` ``positive``: only cells with pi >= 0.5 vote, all alike (the predecessor of 2018). Where the votes' weight
    is (nearly) nought, the most probable cell alone decides.
    """
    logits, moves = logits.cpu(), moves.cpu()  # not every device has float64
    cells = logits.shape[2:]
    flat = logits.flatten(2).double()
    posterior = flat.sigmoid()
    mass = posterior.sum(2)
    weights = posterior if vote == "posterior" else (posterior >= 0.5).double()
    total = weights.sum(2, keepdim=True)
    alone = F.one_hot(flat.argmax(2), flat.shape[2]).to(weights.dtype)
    weights = torch.where(total > LEAST_MASS, weights / total.clamp(min=LEAST_MASS), alone)
    votes = (cell_centres(cells, stride, logits.device) + displacement(moves)).flatten(3).double()  # (B, N, D, cells)
    points = torch.einsum("bnc,bndc->bnd", weights, votes)
    apart = votes - points[..., None]
    covariance = torch.einsum("bnc,bndc,bnec->bnde", weights, apart, apart)
    single = (weights > 0).sum(2) == 1
    covariance = covariance.masked_fill(single[..., None, None], torch.nan)
    return Votes(points, posterior.amax(2), mass, covariance)
