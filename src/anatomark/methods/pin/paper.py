"""PIN as published (Li et al., MICCAI 2018): its presets ``paper`` (several landmarks) and ``paper-single``.

The working grid is isotropic, its axes the image's own, ordered and pointed as nearly along x, y[, z] as they go (for
an oblique image they stay oblique); positions, displacements and shape parameters are in its voxels, x, y[, z], from
the first voxel's centre. Two things differ from the paper: training images come in shuffled rounds instead of being
drawn one by one, and convolutions run in bf16 where the machine is fast at it (``precision: fp32`` for float32).
The random starts follow ``method.seed``. What the config offers beyond the paper (``c-pair``, ``whiten``, ``sampling``,
``huber``, ``intensity``, 2D, first guesses) is ours, and off by default.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import nn

from anatomark.cases.case import Case
from anatomark.core.grid import Array, Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.core.shape import PCAShape
from anatomark.errors import InputError, nearest
from anatomark.methods.base import Batch, Batches, Evidence, Facts, Length, MethodConfig, Pixels, Rounds, Stage, Study
from anatomark.methods.kit.layers import device_of, evaluating
from anatomark.methods.kit.working import VoxelMethod, working_grid
from anatomark.methods.pin.paper_net import PaperNet, Rule, cut_planes, pin_loss, plane_count, update
from anatomark.methods.pin.spaces import AutoencoderSpace, PointSpace, ShapeAutoencoder, ShapeSpace, Space

LONGEST_PX = 500  # ours: 2D images above three times this are thinned to about this many pixels


class PaperPINConfig(MethodConfig):
    """Settings; the defaults are the paper's for several landmarks.

    ``mode`` ``single`` trains one network for each landmark, one stage after the other. ``landmarks``: only these.
    ``spacing_mm``: of the working grid (None: the training images' median). ``starts`` and ``iterations`` None: 19
    (2D: 9) starts for single, 6 for multiple; 350 iterations for rule A, else 10. ``modes``: shape parameters of the
    autoencoder (None: as many as the PCA has). ``whiten``: shape parameters in standard deviations. ``huber``: in
    units of the state. ``intensity`` ``study`` normalises by the training set's rule.
    """

    mode: Literal["multiple", "single"] = "multiple"
    landmarks: list[str] | None = None
    patch_px: Pixels = Field(101, ge=4)
    spacing_mm: float | None = Field(None, gt=0)
    alpha: float = Field(0.5, ge=0, le=1)
    huber: float | None = Field(None, gt=0)
    rule: Rule = "C"
    starts: Rounds | None = Field(None, ge=1)
    iterations: Rounds | None = Field(None, ge=1)
    shape_model: Literal["pca", "autoencoder"] = "pca"
    variance: float = Field(0.995, gt=0, le=1)
    modes: Rounds | None = Field(None, ge=1)
    whiten: bool = False
    sampling: Literal["uniform", "multiscale", "on_policy"] = "uniform"
    dropout: float = Field(0.5, ge=0, lt=1)
    intensity: Literal["none", "study"] = "none"
    batch: Batches = Field(64, ge=1)
    lr: float = Field(1e-3, gt=0)
    steps: int = Field(100_000, ge=1)
    autoencoder_steps: int = Field(3_000, ge=1)
    seed: int = 0


class PaperPINFacts(Facts):
    """``spacing_mm`` of the working grid; for several landmarks the PCA of their voxel coordinates
    (``PCAShape.to_json``), and with an autoencoder the shapes (M, N, D) themselves, null where not annotated."""

    spacing_mm: Length
    pca: dict[str, Any] | None = None
    shapes: list[list[list[float | None]]] | None = None

    @model_validator(mode="after")
    def _of_its_landmarks(self) -> PaperPINFacts:
        if self.pca is not None and len(PCAShape.from_json(self.pca).mean) != len(self.names) * self.ndim:
            raise ValueError(f"pca: is not of {len(self.names)} landmarks")
        for k, shape in enumerate(self.shapes or ()):
            self.check_points(f"shapes.{k}", shape)
        return self


class PaperPIN(VoxelMethod):
    """The patch-based iterative network with the published settings."""

    Config = PaperPINConfig
    Facts = PaperPINFacts
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {}, "paper-single": {"mode": "single"}}

    def __init__(self, config: PaperPINConfig, facts: PaperPINFacts):
        super().__init__(config, facts)
        c, d = config, self.ndim
        self.autoencoder: ShapeAutoencoder | None = None
        self.spaces: list[Space]
        if c.mode == "single":
            self.spaces = [PointSpace(i, d, c.starts or 19) for i in range(len(self.names))]
        else:
            pca = PCAShape.from_json(facts.pca or {})
            modes = c.modes if c.modes and c.shape_model == "autoencoder" else pca.size
            drawn = np.random.default_rng(c.seed).uniform(-1, 1, ((c.starts or 6) - 1, modes))
            if c.shape_model == "autoencoder":
                self.autoencoder = ShapeAutoencoder(len(pca.mean), modes)
                self.spaces = [AutoencoderSpace(pca, self.autoencoder, d, drawn, whiten=c.whiten)]
            else:
                self.spaces = [ShapeSpace(pca, d, drawn, whiten=c.whiten)]
        self.nets = nn.ModuleList(
            PaperNet(plane_count(d) * len(s.landmarks), s.size, c.patch_px, dropout=c.dropout) for s in self.spaces
        )
        self._trained = len(self.spaces)

    @property
    def iterations(self) -> int:
        """T: the config's, else 350 for rule A and 10 for the others."""
        return self.config.iterations or (350 if self.config.rule == "A" else 10)

    @classmethod
    def prepare(cls, config: PaperPINConfig, study: Study) -> PaperPINFacts:
        """Spacing and, for several landmarks, the shape model of the training cases' voxel coordinates.

        Raises InputError for an unknown landmark, one without any annotation, and for fewer than two shapes.
        """
        names = config.landmarks or list(study.names)
        for name in names:
            if name not in study.names:
                raise InputError(f"landmarks: {name!r} is in no training case{nearest(name, study.names)}")
        landmarks = [c.landmarks.select(names) for c in study.cases]
        annotated = np.any([x.defined for x in landmarks], 0)
        if not annotated.all():
            missing = names[int(np.argmin(annotated))]
            raise InputError(f"landmark {missing!r} is annotated in no training case; leave it out or annotate it")
        grids = [c.image().grid.canonical() for c in study.cases]
        spacing = config.spacing_mm or default_spacing(grids)
        own: dict[str, Any] = {"names": list(names), "descriptions": list(landmarks[0].descriptions)}
        if config.mode == "multiple":
            pairs = zip(grids, landmarks, strict=True)
            voxels = [to_voxels(working_grid(g, spacing), x.points) for g, x in pairs]
            pca = PCAShape.fit(np.stack(voxels).reshape(len(voxels), -1), variance=config.variance)
            if pca.size == 0:
                raise InputError(
                    "the published PIN's shape model needs two or more different training shapes, found "
                    f"{len(voxels)}; add cases, or use `preset` recommended"
                )
            own["pca"] = pca.to_json()
            if config.shape_model == "autoencoder":
                own["shapes"] = [[[None if np.isnan(x) else x for x in p] for p in v.tolist()] for v in voxels]
        return PaperPINFacts(**{**study.facts(grids[0].ndim), **own}, spacing_mm=spacing)

    def stages(self) -> list[Stage]:
        """``pin``, or ``pin1``, ``pin2`` ... for each landmark."""
        c = self.config
        names = ["pin"] if c.mode == "multiple" else [f"pin{i + 1}" for i in range(len(self.spaces))]
        return [
            Stage(name, c.steps, c.batch, c.lr, "constant", 0, modules=(f"nets.{i}",), index=i)
            for i, name in enumerate(names)
        ]

    def begin(self, stage: Stage, evidence: Evidence) -> None:
        """Fits the autoencoder first, where there is one; :meth:`locate` leaves networks of later stages alone."""
        self._trained = stage.index + 1
        space = self.spaces[0]
        if isinstance(space, AutoencoderSpace) and not bool(space.net.fitted):
            shapes = np.array(self.facts.shapes, dtype=np.float64)
            space.fit(shapes, self.config.autoencoder_steps, self.config.seed)

    def per_landmark(self) -> dict[str, int]:
        """A network each, or the first convolution's input planes."""
        return {"nets.{landmark}.*": 0} if self.config.mode == "single" else {"nets.0.convs.0.weight": 1}

    def examples(self, case: Case, stage: Stage, rng: np.random.Generator) -> Batch:
        """``patches`` (s, s, C) at a random state, ``displacement`` (n,) to the truth, ``weight`` 0 without a truth."""
        work = case.images["work"]
        points = self._voxels(case)
        space = self.spaces[stage.index]
        truth = space.encode(points)
        state = self._draw(space, truth, _size(work), rng)
        patches = cut_planes(work.array[0], space.decode(state[None]), self.config.patch_px)[0]
        return {"patches": torch.from_numpy(patches), **_target(truth, state)}

    def _voxels(self, case: Case) -> Array:
        """(N, D) the model's landmarks, which ``config.landmarks`` may have chosen among the case's."""
        return to_voxels(case.images["work"].grid, case.landmarks.select(self.names).points)

    def _draw(self, space: Space, truth: Array | None, size: Array, rng: np.random.Generator) -> Array:
        if self.config.sampling == "multiscale" and truth is not None and rng.random() < 0.5:
            return space.near(rng, truth, size)
        return space.uniform(rng, size)

    def collect(self, cases: Sequence[Case], stage: Stage, rng: np.random.Generator) -> Iterator[Batch] | None:
        """Whole batches made with the current weights, for on-policy sampling and for states that an autoencoder
        encodes; None where :meth:`examples` does."""
        if self.config.sampling != "on_policy" and self.autoencoder is None:
            return None
        return self._collected(cases, stage, rng)

    def _collected(self, cases: Sequence[Case], stage: Stage, rng: np.random.Generator) -> Iterator[Batch]:
        """On-policy: each state has gone 0, 1, 2 ... steps of the iteration (half of them none, a quarter one ...)."""
        index = stage.index
        space, net = self.spaces[index], self.nets[index]
        assert isinstance(net, PaperNet)
        while True:
            chosen = [cases[k] for k in rng.integers(len(cases), size=stage.batch)]
            work = [c.images["work"] for c in chosen]
            truths = [space.encode(self._voxels(c)) for c in chosen]
            states = np.stack([self._draw(space, t, _size(w), rng) for t, w in zip(truths, work, strict=True)])
            if self.config.sampling == "on_policy":
                updates = np.minimum(rng.geometric(0.5, stage.batch) - 1, self.iterations)
                for k in range(int(updates.max())):
                    moving = np.flatnonzero(updates > k)
                    states[moving] = self._on_policy_step(space, net, [work[m] for m in moving], states[moving])
            patches = self._cut(space, work, states)
            rows = [_target(t, s) for t, s in zip(truths, states, strict=True)]
            yield {"patches": patches, **{key: torch.stack([r[key] for r in rows]) for key in rows[0]}}

    def _cut(self, space: Space, work: list[Image], states: Array) -> torch.Tensor:
        points = space.decode(states)
        cut = [cut_planes(w.array[0], p[None], self.config.patch_px) for w, p in zip(work, points, strict=True)]
        return torch.from_numpy(np.concatenate(cut))

    def _on_policy_step(self, space: Space, net: PaperNet, work: list[Image], states: Array) -> Array:
        with evaluating(net), torch.no_grad():
            d, logits = net(_channels_first(self._cut(space, work, states), net))
        moved = states + self._step(space, d, logits)
        size = np.stack([_size(w) for w in work])[:, None]
        with np.errstate(invalid="ignore"):
            stays = np.asarray((np.abs(space.decode(moved) - size / 2) <= size).all((1, 2)))
        return np.where(stays[:, None], moved, states)  # nothing is learned far outside the image

    def loss(self, batch: Batch, stage: Stage) -> dict[str, torch.Tensor]:
        d, logits = self.nets[stage.index](batch["patches"].permute(0, 3, 1, 2))
        c = self.config
        return pin_loss(d, logits, batch["displacement"], c.alpha, c.huber, batch["weight"])

    def locate(self, image: Image, start: Landmarks | None = None) -> Landmarks:
        """The mean of the starts' last positions. Score: how closely they agree (1: all in one place, about 1/e: a
        tenth of a patch apart). Covariance: their spread (none for a single start)."""
        work = self.working_images(image)["work"]
        guess = None if start is None else to_voxels(work.grid, start.select(self.names).points)
        n, d = len(self.names), self.ndim
        points, score, covariance = np.full((n, d), np.nan), np.zeros(n), np.full((n, d, d), np.nan)
        several = True
        for space, net in zip(self.spaces[: self._trained], self.nets, strict=False):
            assert isinstance(net, PaperNet)
            starts = space.starts(_size(work), guess)
            with np.errstate(invalid="ignore", over="ignore"):
                last = space.decode(self.iterate(space, net, work, starts))
            usable = np.asarray(np.isfinite(last).all((1, 2)))
            ends = last[usable] if usable.any() else space.decode(starts)  # a diverged network says nothing
            rows = space.landmarks
            points[rows] = ends.mean(0)
            apart = ends - points[rows]
            covariance[rows] = np.einsum("mni,mnj->nij", apart, apart) / max(1, len(ends) - 1)
            near = np.exp(-np.linalg.norm(apart, axis=2) / (self.config.patch_px / 10)).mean(0)
            score[rows] = near * usable.mean()
            several &= len(ends) > 1
        axes = work.grid.axes[:, ::-1]
        world = work.grid.to_world(points[:, ::-1])
        spread = axes @ covariance @ axes.T if several else None
        return Landmarks(self.names, world, score=score, covariance=spread, descriptions=tuple(self.facts.descriptions))

    def iterate(self, space: Space, net: PaperNet, work: Image, states: Array) -> Array:
        """The states (S, n) after T updates; one network call for all of them in each."""
        volume, cut = work.array[0], None
        with evaluating(net), torch.inference_mode():
            prepared = net.prepare()
            for _ in range(self.iterations):
                cut = cut_planes(volume, space.decode(states), self.config.patch_px, cut)
                d, logits = net(_channels_first(torch.from_numpy(cut), net), prepared)
                states = states + self._step(space, d, logits)
        return states

    def _step(self, space: Space, d: torch.Tensor, logits: torch.Tensor) -> Array:
        step = update(self.config.rule, d, logits).cpu().double().numpy()
        return np.asarray(step / space.unit if self.config.rule == "A" else step)  # rule A: one voxel, not one sd


def default_spacing(grids: Sequence[Grid]) -> float:
    """Median spacing in mm; a whole multiple of it for 2D images of more than 1500 pixels, to leave about 500."""
    spacing = float(np.median([g.spacing for g in grids]))
    longest = float(np.median([max(g.shape) for g in grids]))
    if grids[0].ndim == 2 and longest > 3 * LONGEST_PX:
        spacing *= int(np.ceil(longest / LONGEST_PX))
    return spacing


def to_voxels(grid: Grid, points: Array) -> Array:
    """Voxel coordinates (N, D), x, y[, z], of world points (N, D) on a canonical grid."""
    return np.asarray(grid.to_index(points)[..., ::-1])


def _size(image: Image) -> Array:
    return np.asarray(image.grid.shape[::-1], dtype=np.float64)


def _channels_first(cut: torch.Tensor, net: PaperNet) -> torch.Tensor:
    return cut.to(device_of(net)).permute(0, 3, 1, 2)


def _target(truth: Array | None, state: Array) -> Batch:
    displacement = np.zeros(len(state)) if truth is None else truth - state
    weight = 0.0 if truth is None else 1.0
    return {"displacement": torch.from_numpy(displacement).float(), "weight": torch.tensor(weight)}
